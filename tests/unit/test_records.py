import resource

import pytest

from autoscale.records import read_json, write_json, write_text


def test_round_trip_with_kind_and_version(tmp_path):
    path = write_json(tmp_path / "new" / "fit.json", "fit", {"weights": {"a": 1.0}})
    assert read_json(path, "fit") == {"kind": "fit", "schema_version": 1, "weights": {"a": 1.0}}


def test_another_version_is_refused_by_name(tmp_path):
    path = tmp_path / "fit.json"
    path.write_text('{"kind": "fit", "schema_version": 9}')
    with pytest.raises(ValueError, match=r"fit.json \(fit\) has schema version 9; .* reads 1"):
        read_json(path, "fit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "plan", "schema_version": 1}', "is of kind 'plan'; expected 'fit'"),
        ("[1]", "is of kind None; expected 'fit'"),
        ('{"kind": "f', "is not readable JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(path, "fit")
    with pytest.raises(ValueError, match="does not exist; expected the fit"):
        read_json(tmp_path / "none.json", "fit")


def test_what_fails_to_serialise_leaves_the_old_file_whole(tmp_path):
    path = write_json(tmp_path / "fit.json", "fit", {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, "fit", {"value": float("nan")})
    assert read_json(path, "fit")["value"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["fit.json"]


def test_a_write_that_fails_leaves_what_was_there_and_says_where(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # bytes; as if the disk was full
    try:
        with pytest.raises(OSError, match=rf"cannot write {path}: File too large; .* start again"):
            write_text(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path):
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"cannot write .*runs/a/spec.json: .*; mend that and start"):
        write_text(tmp_path / "runs" / "a" / "spec.json", "{}")
