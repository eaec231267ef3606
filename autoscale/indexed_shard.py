"""Token shards on disk: Megatron's `.bin`/`.idx` pair ("MMIDIDX", version 1), read and written.

    X.bin   the tokens of all documents, one after the other, little-endian
    X.idx   magic (9 bytes), version (u64), dtype code (u8), sequences S (u64), boundaries D (u64),
            then S lengths (int32), S byte offsets into X.bin (int64), and the D boundaries of the
            documents (int64): indices of sequences, from 0 to S

Here a document is one sequence, so D = S + 1; files with several sequences a document are read too.

Megatron and DeepSpeed disagree on what dtype codes above 5 mean (`Dialect`). The writer's default
is Megatron's; the reader accepts both, and tells them apart by the byte offsets.
"""

import hashlib
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

MAGIC: Final = b"MMIDIDX\x00\x00"
VERSION: Final = 1

Dialect = Literal["megatron", "deepspeed"]
"""Whose dtype codes: uint16 is 8 in Megatron's files and 6 in DeepSpeed's."""

_COMMON_CODES: Final = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64"}
_DTYPE_OF_CODE: Final[dict[Dialect, dict[int, str]]] = {
    "megatron": _COMMON_CODES | {6: "float64", 7: "float32", 8: "uint16"},
    "deepspeed": _COMMON_CODES | {6: "uint16", 7: "uint32", 8: "uint64"},
}
_WRITABLE: Final = ("uint16", "int32")
_HEADER: Final = struct.Struct("<9sQBQQ")
_MOST_TOKENS_OF_SEQUENCE: Final = 2**31 - 1
_BLOCK_BYTES: Final = 1 << 20


class WrittenShard(NamedTuple):
    """What a finished shard holds.

    Attributes:
        tokens: number of tokens, end-of-text tokens included.
        documents: number of documents.
        sha256: of the bytes of `.bin`, then of `.idx`.
    """

    tokens: int
    documents: int
    sha256: str


def shard_files(prefix: Path) -> tuple[Path, Path]:
    """The `.bin` and the `.idx` of a shard; the prefix may contain dots."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def hash_shard(prefix: Path) -> str:
    """sha256 of the bytes of `.bin`, then of `.idx`, as a manifest records it."""
    digest = hashlib.sha256()
    for path in shard_files(prefix):
        with _open(path) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


class IndexedShardWriter:
    """Writes one shard document by document; nothing stands under its name until `close`.

    Used as a context manager, it closes at the end of the block, or leaves nothing after an error.

    Args:
        prefix: path of the shard without `.bin` and `.idx`; its folder is made if missing.
        dtype: "uint16" or "int32".
        dialect: whose dtype codes to write.
    """

    def __init__(self, prefix: Path, dtype: str, *, dialect: Dialect = "megatron") -> None:
        if dtype not in _WRITABLE:
            raise ValueError(
                f"shard {prefix} cannot be written as {dtype!r}; expected "
                f"{' or '.join(map(repr, _WRITABLE))} (int32 for vocabularies above 65536)"
            )
        self.prefix = Path(prefix)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._range = np.iinfo(self._dtype)
        codes = {name: code for code, name in _DTYPE_OF_CODE[dialect].items()}
        self._code = codes[dtype]
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        self._written: WrittenShard | None = None
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = [
            path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in shard_files(self.prefix)
        ]
        self._bin: BinaryIO = self._temporary[0].open("wb")

    def add_document(self, tokens: NDArray[np.integer]) -> None:
        """Append one document, which ends with the end-of-text token that the caller appended.

        Args:
            tokens: token ids, shape (num_tokens,).
        """
        tokens = np.asarray(tokens)
        number = len(self._lengths)
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"document {number} of shard {self.prefix} is a {tokens.dtype} array of shape "
                f"{tokens.shape}; expected one row of integers"
            )
        if not 0 < tokens.size <= _MOST_TOKENS_OF_SEQUENCE:
            raise ValueError(
                f"document {number} of shard {self.prefix} has {tokens.size} tokens; expected "
                f"between 1 and {_MOST_TOKENS_OF_SEQUENCE}: leave it out, or split it"
            )
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most > self._range.max:
            raise ValueError(
                f"document {number} of shard {self.prefix} has token id "
                f"{least if least < 0 else most}; {self._dtype.name} holds 0 to {self._range.max}"
            )
        content = tokens.astype(self._dtype, copy=False).tobytes()
        self._bin.write(content)
        self._digest.update(content)
        self._lengths.append(tokens.size)

    def close(self) -> WrittenShard:
        """Write the index and give both files their names; a second call returns the same."""
        if self._written is not None:
            return self._written
        try:
            if not self._lengths:
                raise ValueError(
                    f"shard {self.prefix} has no documents; expected at least one. Write no shard "
                    "where there is no text"
                )
            self._written = self._finish()
        except BaseException:
            self._discard()
            raise
        return self._written

    def _finish(self) -> WrittenShard:
        lengths = np.array(self._lengths, dtype=np.int64)
        ends = np.cumsum(lengths)
        index = b"".join(
            [
                _HEADER.pack(MAGIC, VERSION, self._code, lengths.size, lengths.size + 1),
                lengths.astype("<i4").tobytes(),
                ((ends - lengths) * self._dtype.itemsize).astype("<i8").tobytes(),
                np.arange(lengths.size + 1, dtype="<i8").tobytes(),
            ]
        )
        self._digest.update(index)
        with self._temporary[1].open("wb") as file:
            file.write(index)
            _flush_to_disk(file)
        _flush_to_disk(self._bin)
        self._bin.close()
        for temporary, final in zip(self._temporary, shard_files(self.prefix), strict=True):
            os.replace(temporary, final)
        return WrittenShard(
            tokens=int(ends[-1]), documents=lengths.size, sha256=self._digest.hexdigest()
        )

    def _discard(self) -> None:
        self._bin.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._written is None:
            self._discard()


class IndexedShard:
    """A shard opened for reading; its arrays are views of the files, nothing is copied.

    Opening compares the sizes of the files with what the index says, in constant time; `check`
    reads the whole index.

    Attributes:
        prefix: path without `.bin` and `.idx`.
        dtype: of a token.
        tokens: all tokens, shape (num_tokens,).
        lengths: tokens of each sequence, shape (num_sequences,).
        offsets: where each sequence begins in `.bin`, in bytes, shape (num_sequences,).
        boundaries: sequences at which documents begin, and the end, shape (num_documents + 1,).

    Raises:
        ValueError: a file is missing, is not such a file, is shorter or longer than the index
            says, or holds no tokens.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        bin_path, idx_path = shard_files(self.prefix)
        index = _map(idx_path)
        num_sequences, code = _read_header(idx_path, index)
        index = index[_HEADER.size :]
        self.lengths = index[: 4 * num_sequences].view("<i4")
        self.offsets = index[4 * num_sequences : 12 * num_sequences].view("<i8")
        self.boundaries = index[12 * num_sequences :].view("<i8")
        content = _map(bin_path)
        self.dtype = self._infer_dtype(idx_path, code, content.size)
        end = int(self.offsets[-1]) + int(self.lengths[-1]) * self.dtype.itemsize
        if end != content.size or end % self.dtype.itemsize:
            raise ValueError(
                f"{bin_path} has {content.size} bytes; {idx_path.name} expects {end}: the file is "
                "truncated or belongs to another index; write the shard again"
            )
        if content.size == 0:
            raise ValueError(f"{bin_path} holds no tokens; leave the shard out of the manifest")
        self.tokens = content.view(self.dtype)

    @property
    def num_tokens(self) -> int:
        return self.tokens.size

    @property
    def num_documents(self) -> int:
        return self.boundaries.size - 1

    def sequences(self) -> Iterator[NDArray[np.integer]]:
        """The tokens of each sequence, as views."""
        begin = 0
        for length in self.lengths.tolist():
            yield self.tokens[begin : begin + length]
            begin += length

    def check(self) -> None:
        """Check every entry of the index.

        Raises:
            ValueError: a length is negative, the sequences do not lie one after the other, or the
                documents' boundaries do not go up from the first sequence to the last.
        """
        idx_path = shard_files(self.prefix)[1]
        lengths = self.lengths.astype(np.int64)
        negative = np.flatnonzero(lengths < 0)
        if negative.size:
            raise ValueError(
                f"{idx_path}: sequence {negative[0]} has length {lengths[negative[0]]}; expected "
                "at least 0. Write the shard again"
            )
        expected = (np.cumsum(lengths) - lengths) * self.dtype.itemsize
        moved = np.flatnonzero(expected != self.offsets)
        if moved.size:
            raise ValueError(
                f"{idx_path}: sequence {moved[0]} begins at byte {self.offsets[moved[0]]}; "
                f"expected {expected[moved[0]]}, right after the one before. Write the shard again"
            )
        ends = (int(self.boundaries[0]), int(self.boundaries[-1]))
        if ends != (0, lengths.size) or np.any(np.diff(self.boundaries) < 0):
            raise ValueError(
                f"{idx_path}: the documents' boundaries run from {ends[0]} to {ends[1]}; expected "
                f"a sequence that never goes down from 0 to {lengths.size}. Write the shard again"
            )

    def _infer_dtype(self, idx_path: Path, code: int, num_bytes: int) -> np.dtype[np.integer]:
        """The integer dtype of the code in the dialect that agrees with the byte offsets."""
        names = [table[code] for table in _DTYPE_OF_CODE.values() if code in table]
        candidates = [np.dtype(name).newbyteorder("<") for name in dict.fromkeys(names)]
        candidates = [dtype for dtype in candidates if dtype.kind in "iu"]
        if not candidates:
            raise ValueError(
                f"{idx_path} has dtype code {code}; expected one of "
                f"{', '.join(str(known) for known in range(1, 9))}: it is no index of tokens"
            )
        if len(candidates) > 1 and self.lengths.size > 1 and self.lengths[0] > 0:
            step = int(self.offsets[1]) - int(self.offsets[0])
            candidates = [
                dtype for dtype in candidates if dtype.itemsize * int(self.lengths[0]) == step
            ] or candidates
        length, offset = int(self.lengths[-1]), int(self.offsets[-1])
        for dtype in candidates:
            if offset + length * dtype.itemsize == num_bytes:
                return dtype
        return candidates[0]


def _read_header(idx_path: Path, index: NDArray[np.uint8]) -> tuple[int, int]:
    """Number of sequences and dtype code of an index of the right size."""
    if index.size < _HEADER.size:
        raise ValueError(
            f"{idx_path} has {index.size} bytes; expected at least {_HEADER.size}: the file is "
            "truncated; write the shard again"
        )
    magic, version, code, num_sequences, num_boundaries = _HEADER.unpack(
        index[: _HEADER.size].tobytes()
    )
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
    expected = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if index.size != expected:
        raise ValueError(
            f"{idx_path} has {index.size} bytes; expected {expected} for {num_sequences} sequences "
            f"and {num_boundaries} document boundaries: the file is damaged; write the shard again"
        )
    return num_sequences, code


def _map(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, read when they are looked at."""
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype=np.uint8)
        return np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); expected the .bin/.idx pair of a shard. "
            "Run prepare again, or correct the manifest"
        ) from error


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
