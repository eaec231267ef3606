"""Token shards as Megatron and DeepSpeed write them: a `.bin`/`.idx` pair ("MMIDIDX", version 1).

    X.bin   the tokens of all documents, one after the other, little-endian
    X.idx   magic (9 bytes), version (u64), dtype code (u8), sequences S (u64), boundaries D (u64),
            then S lengths (int32), S byte offsets into X.bin (int64), and the D boundaries of the
            documents (int64): indices of sequences, from 0 to S

In the shards that `prepare` writes a document is one sequence, so D = S + 1; files with several
sequences a document are read too.

Megatron and DeepSpeed disagree on what dtype codes above 5 mean (`Dialect`). The reader accepts
both, and tells them apart by the byte offsets.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .token_file import TokenFile, known_size, read_range

MAGIC: Final = b"MMIDIDX\x00\x00"
VERSION: Final = 1
HEADER: Final = struct.Struct("<9sQBQQ")

Dialect = Literal["megatron", "deepspeed"]
"""Whose dtype codes: uint16 is 8 in Megatron's files and 6 in DeepSpeed's."""

_COMMON_CODES: Final = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64"}
DTYPE_OF_CODE: Final[dict[Dialect, dict[int, str]]] = {
    "megatron": _COMMON_CODES | {6: "float64", 7: "float32", 8: "uint16"},
    "deepspeed": _COMMON_CODES | {6: "uint16", 7: "uint32", 8: "uint64"},
}


def shard_files(prefix: Path) -> tuple[Path, Path]:
    """The `.bin` and the `.idx` of a shard; the prefix may contain dots."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def open_indexed(location: str) -> "IndexedFile":
    """The tokens of a pair.

    Args:
        location: path or URL of the pair without suffix, or of either file.

    Raises:
        ValueError: a file is missing, damaged, or does not belong to the other.
    """
    prefix = location.removesuffix(".bin").removesuffix(".idx")
    shard = IndexedShard(prefix)
    return IndexedFile(
        location=f"{prefix}.bin",
        format="indexed",
        dtype=shard.dtype.name,
        offset=0,
        num_tokens=shard.num_tokens,
        file_bytes=shard.num_tokens * shard.dtype.itemsize,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedFile(TokenFile):
    """The tokens of a pair, with the documents of its index."""

    @property
    def prefix(self) -> str:
        return self.location.removesuffix(".bin")

    @property
    def companions(self) -> tuple[str, ...]:
        return (f"{self.prefix}.idx",)

    def document_starts(self) -> NDArray[np.int64]:
        shard = IndexedShard(self.prefix)
        shard.check()
        ends = np.cumsum(shard.lengths, dtype=np.int64)
        starts: NDArray[np.int64] = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        documents: NDArray[np.int64] = starts[shard.boundaries]
        return documents

    def check_index(self) -> None:
        IndexedShard(self.prefix).check()


def hash_shard(prefix: Path) -> str:
    """sha256 of the bytes of `.bin`, then of `.idx`, as a manifest records it."""
    return open_indexed(str(prefix)).hash()


class IndexedShard:
    """An index opened for reading.

    Opening compares the sizes of the files with what the index says, in constant time; the arrays
    are read when they are first looked at, and `check` looks at every entry.

    Args:
        prefix: path or URL without `.bin` and `.idx`.

    Attributes:
        dtype: of a token.
        num_tokens: of all sequences.
        lengths: tokens of each sequence, shape (num_sequences,).
        offsets: where each sequence begins in `.bin`, in bytes, shape (num_sequences,).
        boundaries: sequences at which documents begin, and the end, shape (num_documents + 1,).

    Raises:
        ValueError: a file is missing, is not such a file, is shorter or longer than the index
            says, or holds no tokens.
    """

    def __init__(self, prefix: Path | str) -> None:
        self._bin, self._idx = f"{prefix}.bin", f"{prefix}.idx"
        self._num_sequences, self._num_boundaries, code = _read_header(self._idx)
        size = _size(self._bin)
        self.dtype = self._infer_dtype(code, size)
        length, offset = self._sequence(self._num_sequences - 1)
        end = offset + length * self.dtype.itemsize
        if end != size or end % self.dtype.itemsize:
            raise ValueError(
                f"{self._bin} has {size} bytes; {Path(self._idx).name} expects {end}: the file is "
                "truncated or belongs to another index; write the shard again"
            )
        if size == 0:
            raise ValueError(f"{self._bin} holds no tokens; leave the shard out of the manifest")
        self.num_tokens = size // self.dtype.itemsize

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        return self._read("<i4", HEADER.size, self._num_sequences)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        return self._read("<i8", self._offsets_begin, self._num_sequences)

    @cached_property
    def boundaries(self) -> NDArray[np.int64]:
        begin = self._offsets_begin + 8 * self._num_sequences
        return self._read("<i8", begin, self._num_boundaries)

    @property
    def tokens(self) -> NDArray[np.integer[Any]]:
        """All tokens, shape (num_tokens,)."""
        return open_indexed(self._bin).tokens()

    @property
    def num_documents(self) -> int:
        return self._num_boundaries - 1

    def sequences(self) -> Iterator[NDArray[np.integer]]:
        """The tokens of each sequence, as views."""
        begin, tokens = 0, self.tokens
        for length in self.lengths.tolist():
            yield tokens[begin : begin + length]
            begin += length

    def check(self) -> None:
        """Check every entry of the index.

        Raises:
            ValueError: a length is negative, the sequences do not lie one after the other, or the
                documents' boundaries do not go up from the first sequence to the last.
        """
        lengths = self.lengths.astype(np.int64)
        negative = np.flatnonzero(lengths < 0)
        if negative.size:
            raise ValueError(
                f"{self._idx}: sequence {negative[0]} has length {lengths[negative[0]]}; expected "
                "at least 0. Write the shard again"
            )
        expected = (np.cumsum(lengths) - lengths) * self.dtype.itemsize
        moved = np.flatnonzero(expected != self.offsets)
        if moved.size:
            raise ValueError(
                f"{self._idx}: sequence {moved[0]} begins at byte {self.offsets[moved[0]]}; "
                f"expected {expected[moved[0]]}, right after the one before. Write the shard again"
            )
        ends = (int(self.boundaries[0]), int(self.boundaries[-1]))
        if ends != (0, lengths.size) or np.any(np.diff(self.boundaries) < 0):
            raise ValueError(
                f"{self._idx}: the documents' boundaries run from {ends[0]} to {ends[1]}; expected "
                f"a sequence that never goes down from 0 to {lengths.size}. Write the shard again"
            )

    def _infer_dtype(self, code: int, num_bytes: int) -> np.dtype[np.integer]:
        """The integer dtype of the code in the dialect that agrees with the byte offsets."""
        names = [table[code] for table in DTYPE_OF_CODE.values() if code in table]
        candidates = [np.dtype(name).newbyteorder("<") for name in dict.fromkeys(names)]
        candidates = [dtype for dtype in candidates if dtype.kind in "iu"]
        if not candidates:
            raise ValueError(
                f"{self._idx} has dtype code {code}; expected one of "
                f"{', '.join(str(known) for known in range(1, 9))}: it is no index of tokens"
            )
        if len(candidates) > 1:
            candidates = self._that_fit(candidates) or candidates
        length, offset = self._sequence(self._num_sequences - 1)
        for dtype in candidates:
            if offset + length * dtype.itemsize == num_bytes:
                return dtype
        return candidates[0]

    def _that_fit(self, candidates: list[np.dtype[np.integer]]) -> list[np.dtype[np.integer]]:
        """Dtypes for which the second sequence with tokens begins where the first one ends."""
        first = 0 if self._sequence(0)[0] else int(np.argmax(self.lengths != 0))
        if first == self._num_sequences - 1:
            return []
        length, offset = self._sequence(first)
        step = self._sequence(first + 1)[1] - offset
        return [dtype for dtype in candidates if dtype.itemsize * length == step]

    @property
    def _offsets_begin(self) -> int:
        return HEADER.size + 4 * self._num_sequences

    def _sequence(self, number: int) -> tuple[int, int]:
        """Length and byte offset of one sequence, without reading the others."""
        length = self._read("<i4", HEADER.size + 4 * number, 1)
        return int(length[0]), int(self._read("<i8", self._offsets_begin + 8 * number, 1)[0])

    def _read(self, dtype: str, offset: int, count: int) -> NDArray[Any]:
        data = read_range(self._idx, offset, count * np.dtype(dtype).itemsize)
        return np.frombuffer(data, dtype=dtype)


def _read_header(idx_path: str) -> tuple[int, int, int]:
    """Number of sequences, number of boundaries, and dtype code of an index of the right size."""
    size = _size(idx_path)
    if size < HEADER.size:
        raise ValueError(
            f"{idx_path} has {size} bytes; expected at least {HEADER.size}: the file is "
            "truncated; write the shard again"
        )
    header = HEADER.unpack(read_range(idx_path, 0, HEADER.size))
    magic, version, code, num_sequences, num_boundaries = header
    if magic != MAGIC:
        raise ValueError(
            f"{idx_path} begins with {magic!r}; expected {MAGIC!r}: it is no Megatron or DeepSpeed "
            "index; give the prefix of a .bin/.idx pair"
        )
    if version != VERSION:
        raise ValueError(f"{idx_path} has format version {version}; autoscale reads {VERSION}")
    if num_sequences == 0 or num_boundaries < 2:
        raise ValueError(
            f"{idx_path} lists {num_sequences} sequences and {num_boundaries} document boundaries; "
            "expected at least 1 and 2: it holds no document"
        )
    expected = HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if size != expected:
        raise ValueError(
            f"{idx_path} has {size} bytes; expected {expected} for {num_sequences} sequences "
            f"and {num_boundaries} document boundaries: the file is damaged; write the shard again"
        )
    return num_sequences, num_boundaries, code


def _size(location: str) -> int:
    try:
        return known_size(location)
    except ValueError as error:
        raise ValueError(f"{error}; expected the .bin/.idx pair of a shard") from error
