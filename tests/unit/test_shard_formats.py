"""Shards of other projects: what their own writers wrote is read; damage is one line of error."""

import itertools
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.pieces import Pieces
from autoscale.shard_formats.registry import find_token_files, open_token_file
from autoscale.shard_formats.token_file import TokenFile
from autoscale.token_store import TokenStore

FOREIGN = Path(__file__).parents[1] / "fixtures" / "foreign_shards"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOREIGN / "expected.json").read_text())
END_OF_TEXT = 1


def open_foreign(name: str, root: str = str(FOREIGN)) -> TokenFile:
    """As a user opens it: the type is told only where the file cannot tell it."""
    about = EXPECTED[name]
    dtype = about["dtype"] if about["format"] == "raw" else None
    return open_token_file(f"{root}/{name}", dtype=dtype, end_of_text_id=END_OF_TEXT)


def check_foreign(name: str, file: TokenFile) -> None:
    about = EXPECTED[name]
    assert (file.format, file.dtype) == (about["format"], about["dtype"])
    flat = [token for document in about["documents"] for token in document]
    assert file.tokens().tolist() == flat
    assert file.num_tokens == len(flat)
    assert np.concatenate(list(file.blocks(7))).tolist() == flat
    starts = file.document_starts()
    assert starts is not None
    assert [flat[a:b] for a, b in itertools.pairwise(starts)] == about["documents"]
    file.check_index()


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """The fixtures in fsspec's in-memory storage, by a URL, and by their path."""
    memory = fsspec.filesystem("memory")
    memory.put(str(FOREIGN), "/foreign_shards", recursive=True)
    yield {
        "memory": "memory://foreign_shards", "file": f"file://{FOREIGN}", "path": str(FOREIGN)
    }  # fmt: skip
    memory.rm("/foreign_shards", recursive=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_other_writers_wrote_is_read(name: str) -> None:
    check_foreign(name, open_foreign(name))


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_the_same_behind_a_url(urls: dict[str, str], protocol: str, name: str) -> None:
    file = open_foreign(name, urls[protocol])
    check_foreign(name, file)
    assert file.hash() == open_foreign(name).hash()


def test_every_format_and_writer_is_among_the_fixtures() -> None:
    assert {about["format"] for about in EXPECTED.values()} == {
        "indexed", "npy", "raw", "llm.c", "datatrove",
    }  # fmt: skip
    writers = {about["writer"].split()[0] for about in EXPECTED.values()}
    assert writers == {"deepspeed", "megatron-core", "datatrove", "dolma", "numpy"}


@pytest.mark.parametrize("protocol", ["memory", "file", "path"])
def test_a_folder_is_searched_for_shards_without_their_companions(
    urls: dict[str, str], protocol: str
) -> None:
    folder = urls[protocol]
    found = find_token_files(folder)
    root = found[0].removesuffix(sorted(EXPECTED)[0])  # storage may write its URL otherwise
    assert root.rstrip("/").endswith("foreign_shards")
    assert [each.removeprefix(root) for each in found] == sorted(EXPECTED)


def test_an_index_without_its_tokens_is_an_error(tmp_path: Path) -> None:
    shutil.copy(FOREIGN / "megatron" / "int32.idx", tmp_path)
    with pytest.raises(ValueError, match=r"int32\.idx is there but .*int32\.bin is not"):
        find_token_files(str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_a_pair_is_opened_by_prefix_or_either_file(suffix: str) -> None:
    file = open_token_file(f"{FOREIGN}/megatron/uint16{suffix}")
    check_foreign("megatron/uint16.bin", file)


def test_documents_are_found_by_end_of_text_alone() -> None:
    file = open_token_file(f"{FOREIGN}/layouts/nanogpt.bin", dtype="uint16")
    assert file.document_starts() is None  # nobody said which token ends a document


def test_text_after_the_last_end_of_text_is_a_document_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([5, 1, 1, 7, 8], dtype=np.uint16))
    file = open_token_file(f"{tmp_path}/a.npy", end_of_text_id=1)
    assert file.document_starts().tolist() == [0, 2, 3, 5]


def copied(name: str, tmp_path: Path) -> Path:
    """A fixture with its companions, to be damaged."""
    shutil.copytree((FOREIGN / name).parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / Path(name).name


DAMAGE = [
    ("layouts/nanogpt.bin", lambda path: path.write_bytes(b"123"), "3 bytes; expected a multiple"),
    ("layouts/nanogpt.bin", lambda path: path.write_bytes(b""), "0 bytes; expected a multiple"),
    ("layouts/llmc_gpt2.bin", lambda path: cut(path, 600), "600 bytes; expected at least llm.c's"),
    ("layouts/llmc_gpt2.bin", lambda path: cut(path, 1100), "its header announces 144 uint16"),
    ("layouts/llmc_gpt2.bin", lambda path: put(path, 4, struct.pack("<i", 9)), r"\(version 9\)"),
    ("layouts/llmc_gpt2.bin", lambda path: put(path, 8, struct.pack("<i", -4)), "announces -4"),
    ("layouts/saved.npy", lambda path: cut(path, 300), "header of 128 bytes announces 144 tokens"),
    ("layouts/saved.npy", lambda path: put(path, 20, b"\0\0\0\0"), "no readable numpy header"),
    ("layouts/saved.npy", lambda path: np.save(path, np.zeros((3, 4), np.uint16)), r"shape \(3, 4"),
    ("layouts/saved.npy", lambda path: np.save(path, np.zeros(4)), "items of type 'float64'"),
    ("layouts/saved.npy", lambda path: np.save(path, np.zeros(4, ">u2")), "little-endian"),
    ("layouts/saved.npy", lambda path: np.save(path, np.zeros(0, "<u2")), "damaged or empty"),
    ("datatrove/small.ds", lambda path: cut(path, 100), r"100 bytes; .*small\.ds\.index ends at"),
    ("datatrove/small.ds", lambda path: cut(path.with_name("small.ds.index"), 60), "8 for each"),
    ("datatrove/small.ds", lambda path: path.with_name("small.ds.index").unlink(), "ds.index cann"),
    ("megatron/int32.bin", lambda path: cut(path, 100), r"100 bytes; int32\.idx expects"),
]  # fmt: skip


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def put(path: Path, place: int, content: bytes) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:place] + content + old[place + len(content) :])


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damage_is_reported(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    path = copied(name, tmp_path)
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        open_token_file(str(path), dtype="uint16" if "nanogpt" in name else None)
    assert "\n" not in str(caught.value)


def test_ends_of_documents_that_go_down_are_found(tmp_path: Path) -> None:
    path = copied("datatrove/small.ds", tmp_path)
    put(path.with_name("small.ds.index"), 8, struct.pack("<Q", 10**6))
    with pytest.raises(ValueError, match="document 2 ends out of order"):
        open_token_file(str(path)).check_index()


@pytest.mark.parametrize(
    "rows",
    [
        "0,5,a,b,1\n6,144,a,b,2\n",
        "0,5\nx,y\n",
        "",
        "1,144,a,b,1\n",
        "0,200\n200,144\n",
        "0\n",
        "0,99999999999999999999\n",
        "\0\n",
    ],
)
def test_a_table_of_documents_that_does_not_fit(tmp_path: Path, rows: str) -> None:
    import gzip

    path = copied("layouts/olmo-00000.npy", tmp_path)
    with gzip.open(path.with_suffix(".csv.gz"), "wt") as table:
        table.write(rows)
    with pytest.raises(ValueError, match=r"olmo-00000\.csv\.gz"):
        open_token_file(str(path), dtype="uint16").document_starts()


@pytest.mark.parametrize(("name", "message"), [("a.txt", "no token shard"), ("a.bin", "no header")])
def test_what_is_no_shard(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"0123456789")
    with pytest.raises(ValueError, match=message):
        open_token_file(f"{tmp_path}/{name}")


def test_another_type_than_expected() -> None:
    with pytest.raises(ValueError, match="holds int32 tokens; expected uint16"):
        open_token_file(f"{FOREIGN}/megatron/int32.bin", dtype="uint16")


def test_a_file_that_is_cut_or_removed_while_it_is_known(tmp_path: Path) -> None:
    path = copied("layouts/llmc_gpt2.bin", tmp_path)
    file = open_token_file(str(path))
    cut(path, 1124)
    for read in (lambda: list(file.blocks(30)), file.tokens):
        with pytest.raises(ValueError, match=r"at byte 1\d\d4: expected .* 1312 bytes, found 1124"):
            read()
    path.unlink()
    for read in (lambda: list(file.blocks(30)), file.tokens, file.hash):
        with pytest.raises(ValueError, match=r"llmc_gpt2\.bin cannot be read .No such file"):
            read()


def test_a_read_that_fails_on_a_file_as_it_should_be() -> None:
    file = open_foreign("layouts/nanogpt.bin")
    assert re.search(r"at byte 6: .* 288 bytes, found 288; its storage failed", file.unreadable(6))


def copied_by_store(file: TokenFile, tokens: np.ndarray) -> None:
    """Both ends of a file, read by the store."""
    length = min(tokens.size, 5)
    zeros, ends = np.zeros(2, dtype=np.int64), np.array([0, tokens.size - length])
    pieces = Pieces(
        row=np.array([0, 1]), column=zeros, file=zeros, start=ends, length=np.full(2, length)
    )
    out = np.zeros((2, length), dtype=np.int64)
    TokenStore([file]).copy(pieces, 0, 2, out, 0)
    unsigned = tokens.view(f"<u{file.itemsize}").astype(np.int64)
    np.testing.assert_array_equal(out, [unsigned[:length], unsigned[-length:]])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=200)
@given(
    length=st.integers(0, 2**16 - 1),
    header=st.text(alphabet="{}()[]'\"descrfortran_orderhap: <>uif,0123456789\n", max_size=80)
    | st.builds(
        "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}, }}".format,
        st.sampled_from(["<u2", "|u1", "<i8", ">u4", "<f4", "|O", "<M8[s]", "<U5", [["a", "<u2"]]]),
        st.sampled_from(["True", "False", "1"]),
        st.sampled_from(["(3,)", "(-1,)", "()", "(2, 3)", "(10**30,)", "(True,)", "3", "(0,)"]),
    ),
    honest=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
)
def test_no_numpy_header_does_more_than_raise_value_error(
    tmp_path_factory: pytest.TempPathFactory,
    length: int, header: str, honest: bool, version: tuple[int, int],
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("fuzz") / "a.npy"
    text = header.encode("latin1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if honest else length)
    path.write_bytes(b"\x93NUMPY" + bytes(version) + size + text + bytes(6))
    try:
        opened = open_token_file(str(path))
        copied_by_store(opened, opened.tokens())
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in damaged numpy headers
@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(EXPECTED)),
    companion=st.booleans(),
    place=st.integers(0, 400),
    content=st.binary(min_size=1, max_size=16),
    size=st.none() | st.integers(0, 700),
)
def test_no_damage_does_more_than_raise_value_error(
    tmp_path_factory: pytest.TempPathFactory,
    name: str, companion: bool, place: int, content: bytes, size: int | None,
) -> None:  # fmt: skip
    path = copied(name, tmp_path_factory.mktemp("fuzz"))
    file = open_foreign(name)
    damaged = path.parent / Path(file.companions[0]).name if companion and file.companions else path
    put(damaged, place, content)
    if size is not None:
        cut(damaged, size)
    about = EXPECTED[name]
    try:
        opened = open_token_file(
            str(path),
            about["format"],
            dtype=about["dtype"] if about["format"] == "raw" else None,
            end_of_text_id=END_OF_TEXT,
        )
        tokens = opened.tokens()
        assert tokens.size == opened.num_tokens > 0
        copied_by_store(opened, tokens)
        starts = opened.document_starts()
        assert starts is not None and starts[0] == 0 and starts[-1] == tokens.size
        assert np.all(np.diff(starts) >= 0)
    except ValueError as error:
        assert "\n" not in str(error)
