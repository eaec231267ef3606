"""The `.bin`/`.idx` format: what is written is read, and damage is an error with numbers."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoscale.shard_formats.indexed import Dialect, IndexedShard, hash_shard, shard_files
from autoscale.shard_formats.indexed_writer import IndexedShardWriter

DOCUMENTS = [[5, 6, 7, 0], [8, 0], [9, 9, 9, 9, 0]]
HEADER_BYTES = 34


def write(
    prefix: Path,
    documents: list[list[int]] = DOCUMENTS,
    dtype: str = "uint16",
    dialect: Dialect = "megatron",
) -> Path:
    with IndexedShardWriter(prefix, dtype, dialect=dialect) as writer:
        for document in documents:
            writer.add_document(np.array(document))
    return prefix


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.integers(0, 65535), min_size=1, max_size=30), min_size=1, max_size=20
    ),
    dtype=st.sampled_from(["uint16", "int32"]),
    dialect=st.sampled_from(["megatron", "deepspeed"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    dtype: str,
    dialect: Dialect,
) -> None:
    prefix = write(tmp_path_factory.mktemp("shard") / "a", documents, dtype, dialect)
    shard = IndexedShard(prefix)
    shard.check()
    assert shard.dtype == np.dtype(dtype)
    assert [sequence.tolist() for sequence in shard.sequences()] == documents
    assert shard.num_documents == len(documents)
    assert shard.num_tokens == sum(map(len, documents))
    assert shard.tokens.tolist() == [token for document in documents for token in document]


def test_the_files_have_megatrons_layout(tmp_path: Path) -> None:
    bin_path, idx_path = shard_files(write(tmp_path / "a"))
    assert bin_path.read_bytes() == np.concatenate(DOCUMENTS).astype("<u2").tobytes()
    assert idx_path.read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 3, 4)
        + struct.pack("<3i", 4, 2, 5)
        + struct.pack("<3q", 0, 8, 12)
        + struct.pack("<4q", 0, 1, 2, 3)
    )


@pytest.mark.parametrize(
    ("dtype", "dialect", "code"),
    [
        ("uint16", "megatron", 8),
        ("uint16", "deepspeed", 6),
        ("int32", "megatron", 4),
        ("int32", "deepspeed", 4),
    ],
)
def test_dtype_codes(tmp_path: Path, dtype: str, dialect: Dialect, code: int) -> None:
    assert shard_files(write(tmp_path / "a", DOCUMENTS, dtype, dialect))[1].read_bytes()[17] == code


@pytest.mark.parametrize(
    ("code", "dtype"), [(1, "u1"), (2, "i1"), (3, "<i2"), (5, "<i8"), (7, "<u4"), (8, "<u8")]
)
@pytest.mark.parametrize("documents", [[[1, 2, 3]], [[1, 2, 3], [4], [5, 6]]])
def test_integer_dtypes_of_other_writers_are_read(
    tmp_path: Path, code: int, dtype: str, documents: list[list[int]]
) -> None:
    """DeepSpeed's uint64 and Megatron's uint16 share code 8; the byte offsets tell them apart."""
    lengths = np.array([len(document) for document in documents])
    offsets = (np.cumsum(lengths) - lengths) * np.dtype(dtype).itemsize
    bin_path, idx_path = shard_files(tmp_path / "a")
    bin_path.write_bytes(np.concatenate(documents).astype(dtype).tobytes())
    idx_path.write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
        + lengths.astype("<i4").tobytes()
        + offsets.astype("<i8").tobytes()
        + np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    )
    shard = IndexedShard(tmp_path / "a")
    shard.check()
    assert shard.dtype == np.dtype(dtype)
    assert [sequence.tolist() for sequence in shard.sequences()] == documents


@pytest.mark.parametrize(("dialect", "dtype"), [("megatron", "<u2"), ("deepspeed", "<u8")])
@pytest.mark.parametrize("lengths", [[0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 3, 2, 0]])
def test_empty_sequences_do_not_hide_the_dtype(
    tmp_path: Path, dialect: str, dtype: str, lengths: list[int]
) -> None:
    """Code 8 means both; the offsets of sequences with tokens tell which."""
    sizes = np.array(lengths)
    offsets = (np.cumsum(sizes) - sizes) * np.dtype(dtype).itemsize
    bin_path, idx_path = shard_files(tmp_path / "a")
    bin_path.write_bytes(np.arange(sizes.sum()).astype(dtype).tobytes())
    idx_path.write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, sizes.size, sizes.size + 1)
        + sizes.astype("<i4").tobytes()
        + offsets.astype("<i8").tobytes()
        + np.arange(sizes.size + 1, dtype="<i8").tobytes()
    )
    shard = IndexedShard(tmp_path / "a")
    shard.check()
    assert shard.dtype == np.dtype(dtype)
    assert [sequence.size for sequence in shard.sequences()] == lengths


def test_an_index_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    """Its arrays are read when they are looked at, and never mapped."""
    idx_path = shard_files(write(tmp_path / "a"))[1]
    shard = IndexedShard(tmp_path / "a")
    idx_path.write_bytes(idx_path.read_bytes()[:90])
    assert shard.lengths.tolist() == [4, 2, 5]
    with pytest.raises(ValueError, match=r"a\.idx ends at byte 90; expected 32 bytes from byte 70"):
        shard.check()
    idx_path.unlink()
    with pytest.raises(ValueError, match=r"a\.idx cannot be read .No such file or directory."):
        shard.check()


def test_close_reports_the_shard_and_the_hash_of_its_bytes(tmp_path: Path) -> None:
    with IndexedShardWriter(tmp_path / "deep" / "a.v1", "uint16") as writer:
        for document in DOCUMENTS:
            writer.add_document(np.array(document, dtype=np.int32))
        written = writer.close()
        assert writer.close() == written
    tokens, documents, sha256 = written
    assert (tokens, documents) == (11, 3)
    content = b"".join(path.read_bytes() for path in shard_files(tmp_path / "deep" / "a.v1"))
    assert sha256 == hashlib.sha256(content).hexdigest() == hash_shard(tmp_path / "deep" / "a.v1")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.v1.bin", "a.v1.idx"]


def test_nothing_has_the_final_name_before_close(tmp_path: Path) -> None:
    writer = IndexedShardWriter(tmp_path / "a", "uint16")
    writer.add_document(np.array([1, 0]))
    assert not any(path.exists() for path in shard_files(tmp_path / "a"))
    writer.close()
    assert all(path.exists() for path in shard_files(tmp_path / "a"))


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a")
    before = hash_shard(tmp_path / "a")
    with pytest.raises(RuntimeError, match="text ended early"):
        with IndexedShardWriter(tmp_path / "a", "uint16") as writer:
            writer.add_document(np.array([1, 2, 0]))
            raise RuntimeError("text ended early")
    assert hash_shard(tmp_path / "a") == before
    assert len(list(tmp_path.iterdir())) == 2


# --- errors of the writer -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([], dtype=np.int64), "document 0 of shard .* has 0 tokens; expected between 1"),
        (np.array([1.0]), "is a float64 array of shape .1,.; expected one row of integers"),
        (np.array([[1, 2]]), "is a int64 array of shape .1, 2.; expected one row of integers"),
        (np.array([1, 65536]), "has token id 65536; uint16 holds 0 to 65535"),
        (np.array([1, -1]), "has token id -1; uint16 holds 0 to 65535"),
    ],
)
def test_documents_that_do_not_fit_are_refused(
    tmp_path: Path, tokens: NDArray[np.integer], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with IndexedShardWriter(tmp_path / "a", "uint16") as writer:
            writer.add_document(tokens)
    assert not list(tmp_path.iterdir())


def test_a_shard_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a has no documents; expected at least one"):
        IndexedShardWriter(tmp_path / "a", "uint16").close()
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be written as 'uint32'; expected 'uint16' or 'in"):
        IndexedShardWriter(tmp_path / "a", "uint32")


# --- errors of the reader -------------------------------------------------------------------------


def patch(offset: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + content + data[offset + len(content) :]


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".idx", lambda data: b"", "idx has 0 bytes; expected at least 34"),
        (".idx", lambda data: data[:33], "idx has 33 bytes; expected at least 34"),
        (".idx", lambda data: data[:-1], "idx has 101 bytes; expected 102 for 3 sequences"),
        (".idx", lambda data: data + b"\0", "idx has 103 bytes; expected 102 for 3 sequences"),
        (".idx", patch(0, b"TNTIDX\0\0\0"), "idx begins with b'TNTIDX.*; expected b'MMIDIDX"),
        (".idx", patch(9, b"\2"), "idx has format version 2; autoscale reads 1"),
        (".idx", patch(17, b"\0"), "idx has dtype code 0; expected one of 1, 2, 3, 4"),
        (".idx", patch(17, b"\x63"), "idx has dtype code 99; expected one of 1, 2, 3, 4"),
        (".idx", patch(17, b"\4"), "bin has 22 bytes; a.idx expects 32"),
        (".idx", patch(18, b"\xff" * 8), "idx has 102 bytes; expected 2213609288845146"),
        (".idx", patch(18, b"\0" * 8), "idx lists 0 sequences and 4 document boundaries"),
        (".idx", patch(26, b"\1" + b"\0" * 7), "idx lists 3 sequences and 1 document boundaries"),
        (".idx", patch(HEADER_BYTES + 8, b"\6"), "bin has 22 bytes; a.idx expects 24"),
        (".bin", lambda data: data[:-2], "bin has 20 bytes; a.idx expects 22"),
        (".bin", lambda data: data[:-1], "bin has 21 bytes; a.idx expects 22"),
        (".bin", lambda data: data + b"\0\0", "bin has 24 bytes; a.idx expects 22"),
        (".bin", lambda data: b"", "bin has 0 bytes; a.idx expects 22"),
    ],
)
def test_damage_is_reported_with_file_expected_and_found(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = write(tmp_path / "a").with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        IndexedShard(tmp_path / "a")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_reported(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "a").with_suffix(suffix)
    path.unlink()
    with pytest.raises(ValueError, match=f"a{suffix} cannot be read .No such file or directory."):
        IndexedShard(tmp_path / "a")
    path.symlink_to(path)
    with pytest.raises(ValueError, match=f"a{suffix} cannot be read .Too many levels of symbolic"):
        IndexedShard(tmp_path / "a")


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (HEADER_BYTES, b"\xff\xff\xff\xff", "sequence 0 has length -1; expected at least 0"),
        (HEADER_BYTES + 4, b"\1", "sequence 2 begins at byte 12; expected 10, right after"),
        (HEADER_BYTES + 20, b"\7", "sequence 1 begins at byte 7; expected 8, right after"),
        (HEADER_BYTES + 36, b"\1", "boundaries run from 1 to 3; .* never goes down from 0 to 3"),
        (HEADER_BYTES + 36 + 24, b"\4", "boundaries run from 0 to 4; .* never goes down from 0 to"),
        (HEADER_BYTES + 36 + 8, b"\3", "boundaries run from 0 to 3; .* never goes down from 0"),
    ],
)
def test_check_finds_damage_inside_the_index(
    tmp_path: Path, offset: int, content: bytes, message: str
) -> None:
    path = write(tmp_path / "a").with_suffix(".idx")
    path.write_bytes(patch(offset, content)(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        IndexedShard(tmp_path / "a").check()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_the_index_does_more_than_raise_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    prefix = write(tmp_path_factory.mktemp("shard") / "a")
    bin_path, idx_path = shard_files(prefix)
    index = bytearray(idx_path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    idx_path.write_bytes(index[: data.draw(st.sampled_from([len(index), 0, 20, 34, 90]))])
    try:
        shard = IndexedShard(prefix)
        shard.check()
    except ValueError as error:
        assert str(prefix) in str(error)
    else:
        assert shard.tokens.tobytes() == bin_path.read_bytes()
