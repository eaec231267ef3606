"""Which checkpoints count as whole, and what is left of the others."""

import errno
import hashlib
import json
import os
import resource
import shutil

import pytest

from autoscale.checkpoint_files import (
    CheckpointRecord,
    FileMark,
    MarkedFile,
    copy_synced,
    discard,
    make_room,
    newest_step,
    problem_of,
    prune,
    saved_steps,
    share_of,
)

SIZES = {"model.pt": 5000, "group-0/optimizer.pt": 70_000, "group-1/optimizer.pt": 64_000}


def write_checkpoint(folder, step):
    """A whole checkpoint as a run of two ranks leaves it."""
    make_room(folder, step, sum(SIZES.values()))
    marks = {}
    for name, size in SIZES.items():
        with MarkedFile(folder / f"step-{step}" / name) as file:
            file.write(bytes([step % 256]) * (size - 10))
            file.write(memoryview(b"0123456789"))
        marks[name] = file.mark
    record = CheckpointRecord(
        step=step, world_size=2, zero_stage=1, groups=1,
        progress={"seconds": 1.5, "evaluations": [], "order": {"seed": 3}}, files=marks,
    )  # fmt: skip
    record.save(folder)
    return record


def problem(folder, step):
    record = CheckpointRecord.load(folder, step)
    return problem_of(folder, record, record.files)


def test_a_whole_one_is_read_as_it_was_written(tmp_path):
    record = write_checkpoint(tmp_path, 12)
    assert CheckpointRecord.load(tmp_path, 12) == record
    assert problem(tmp_path, 12) is None
    path = tmp_path / "step-12" / "model.pt"
    assert record.files["model.pt"] == FileMark(
        bytes=5000, digest=hashlib.sha256(path.read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("name", SIZES)
def test_each_file_is_checked(name, tmp_path):
    write_checkpoint(tmp_path, 12)
    path = tmp_path / "step-12" / name
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    assert problem(tmp_path, 12) == f"{path} has {len(whole) - 1} bytes; expected {len(whole)}"
    assert newest_step(tmp_path) is None

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    assert problem(tmp_path, 12).startswith(f"{path} is not as it was written: its SHA-256")

    path.unlink()
    assert problem(tmp_path, 12) == f"{path} cannot be read (No such file or directory)"
    path.mkdir()
    assert str(path) in problem(tmp_path, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not readable JSON"),
        ("{", "is not readable JSON"),
        ("\xff\xfe", "is of kind|is not readable JSON"),
        ("[]", "is of kind None"),
        ('{"kind": "checkpoint", "schema_version": 99}', "has schema version 99"),
        ('{"kind": "checkpoint", "schema_version": 1}', "not as it was written"),
    ],
)
def test_a_record_that_is_garbage_is_named(text, message, tmp_path):
    write_checkpoint(tmp_path, 12)
    path = tmp_path / "step-12.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        CheckpointRecord.load(tmp_path, 12)
    assert str(path) in str(caught.value)
    assert newest_step(tmp_path) is None


def test_every_changed_value_of_a_record_is_found(tmp_path):
    write_checkpoint(tmp_path, 12)
    path = tmp_path / "step-12.json"
    whole = json.loads(path.read_text())
    for key, value in [("step", 13), ("world_size", 1), ("zero_stage", 3), ("progress", {})]:
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(ValueError, match="not as it was written"):
            CheckpointRecord.load(tmp_path, 12)
    path.write_text(json.dumps(whole))
    shutil.copy(path, tmp_path / "step-13.json")
    with pytest.raises(ValueError, match="not as it was written"):
        CheckpointRecord.load(tmp_path, 13)


def test_steps_are_listed_newest_first_by_number(tmp_path):
    for step in (9, 100, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step-x.json").write_text("{}")
    (tmp_path / "step-300").mkdir()
    assert saved_steps(tmp_path) == [100, 20, 9]
    assert newest_step(tmp_path) == 100
    assert saved_steps(tmp_path / "none") == []


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pruning_keeps_the_newest_whole_ones_and_clears_what_else_lies_about(tmp_path):
    for step in (10, 20, 30, 40, 50):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step-30" / "model.pt").unlink()  # broken: does not count as kept
    (tmp_path / "step-25").mkdir()  # of a job that was killed while it saved
    (tmp_path / ".step-25.json.123.tmp").write_text("{")
    (tmp_path / "notes.txt").write_text("of the user")
    # The run went back behind step 50, which a rank had found broken.
    prune(tmp_path, 40, 2)
    assert names(tmp_path) == ["notes.txt", "step-20", "step-20.json", "step-40", "step-40.json"]
    assert problem(tmp_path, 20) is None and problem(tmp_path, 40) is None


def test_the_record_goes_before_its_files(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 10)
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: seen.append(names(tmp_path)))
    discard(tmp_path, 10)
    assert seen == [["step-10"]]


def test_room_is_made_anew_and_a_disk_too_small_is_refused(tmp_path):
    write_checkpoint(tmp_path, 10)
    (tmp_path / "step-10" / "left.pt").write_text("of an earlier attempt")
    make_room(tmp_path, 10, 1000)
    assert names(tmp_path) == ["step-10"] and names(tmp_path / "step-10") == []
    with pytest.raises(
        OSError, match=r"9,000,000,000,000,000,000 bytes are needed and .* are free"
    ):
        make_room(tmp_path, 11, 9 * 10**18)


def test_a_path_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match=str(tmp_path / "checkpoints")):
        make_room(tmp_path / "checkpoints", 10, 1)


def test_a_write_that_fails_is_the_error_even_when_its_writer_says_another(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught, MarkedFile(tmp_path / "file.pt") as file:
            try:
                file.write(bytes(20_000))
            except OSError as error:
                raise RuntimeError("unexpected pos 64 vs 0") from error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert os.path.getsize(tmp_path / "file.pt") == 10_000


def test_a_copy_has_the_same_bytes(tmp_path):
    data = os.urandom(5_000_000)
    (tmp_path / "a").write_bytes(data)
    copy_synced(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").read_bytes() == data


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_check_of_every_file_once(world_size, tmp_path):
    files = {f"file-{i}": FileMark(bytes=100 + i, digest="") for i in range(20)}
    record = CheckpointRecord(
        step=1, world_size=4, zero_stage=1, groups=1, progress={}, files=files
    )
    shares = [share_of(record, rank, world_size) for rank in range(world_size)]
    assert sorted(name for share in shares for name in share) == sorted(files)
    loads = [sum(files[name].bytes for name in share) for share in shares]
    assert max(loads) - min(loads) <= 119
