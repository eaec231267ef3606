"""Writes Megatron's `.bin`/`.idx` pair (its layout is in `indexed`), document by document."""

import hashlib
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .indexed import DTYPE_OF_CODE, HEADER, MAGIC, VERSION, Dialect, shard_files

_WRITABLE: Final = ("uint16", "int32")
_MOST_TOKENS_OF_SEQUENCE: Final = 2**31 - 1


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
        codes = {name: code for code, name in DTYPE_OF_CODE[dialect].items()}
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
                HEADER.pack(MAGIC, VERSION, self._code, lengths.size, lengths.size + 1),
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


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
