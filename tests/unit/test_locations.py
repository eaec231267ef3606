"""Locations: paths and URLs are listed, measured and joined alike."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from autoscale.locations import (
    file_size,
    file_stamp,
    find_files,
    is_url,
    join,
    open_location,
    path_from,
)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same three files on disk and behind a URL."""
    (tmp_path / "b").mkdir()
    for name in ("a.bin", "b/c.bin", "b/d.idx"):
        (tmp_path / name).write_bytes(name.encode())
    if request.param == "local":
        yield str(tmp_path)
        return
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path), "/autoscale-locations", recursive=True)
    yield "memory://autoscale-locations"
    files.rm("/autoscale-locations", recursive=True)


def test_files_are_listed_by_their_path_from_the_folder(folder: str) -> None:
    found = find_files(folder)
    assert [path_from(folder, each) for each in found] == ["a.bin", "b/c.bin", "b/d.idx"]
    assert find_files(join(folder, "a.bin")) == found[:1]
    assert find_files(join(folder, "nothing")) == []


def test_files_are_opened_and_measured(folder: str) -> None:
    path = join(folder, "b/c.bin")
    with open_location(path) as file:
        assert file.read() == b"b/c.bin"
    assert file_size(path) == 7
    assert file_stamp(path) != file_stamp(join(folder, "a.bin"))
    with pytest.raises(ValueError, match=r"none\.bin cannot be read"):
        file_size(join(folder, "none.bin"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        file_size(str(tmp_path))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"1")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "self.bin").symlink_to("self.bin")
    assert [Path(found).name for found in find_files(str(tmp_path))] == ["a.bin", "self.bin"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [("s3://bucket/a", True), ("/a/b", False), ("hf://name", False), ("memory://a", True)],
)
def test_hub_names_are_no_urls(location: str, expected: bool) -> None:
    assert is_url(location) is expected
