"""One view of every format: where the tokens of a shard lie, and where its documents begin.

A `TokenFile` says that `num_tokens` tokens of type `dtype` begin `offset` bytes into the file at
`location`. Nothing is read or copied to say so; `token_store` reads the tokens themselves.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..locations import file_size, file_system, is_url, named_errors, open_location

FormatName = Literal["indexed", "npy", "raw", "llm.c", "datatrove"]
TOKEN_DTYPES: Final = (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
)  # fmt: skip
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFile:
    """The tokens of one shard.

    Attributes:
        location: path or URL of the file that holds the tokens.
        format: who wrote it.
        dtype: numpy's name of a token's type; little-endian.
        offset: bytes before the first token.
        num_tokens: tokens in the file.
        file_bytes: size that the file must have.
        end_of_text_id: last token of each document; documents of a format without an index are
            found by it. None where it is not known.
    """

    location: str
    format: FormatName
    dtype: str
    offset: int
    num_tokens: int
    file_bytes: int
    end_of_text_id: int | None = None

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def companions(self) -> tuple[str, ...]:
        """Files that belong to it, in the order in which they are hashed after it."""
        return ()

    def document_starts(self) -> NDArray[np.int64] | None:
        """Where documents begin, and the end of the last: shape (num_documents + 1,), int64.

        None where the format has no index and no end-of-text id is known.

        Raises:
            ValueError: the index does not fit the tokens, or cannot be read.
        """
        if self.end_of_text_id is None:
            return None
        found = [np.zeros(1, dtype=np.int64)]
        begin = 0
        for block in self.blocks():
            found.append(np.flatnonzero(block == self.end_of_text_id) + begin + 1)
            begin += block.size
        starts = np.concatenate(found)
        return starts if starts[-1] == self.num_tokens else np.append(starts, self.num_tokens)

    def check_index(self) -> None:
        """Read the whole index, where there is one, and check every entry.

        Raises:
            ValueError: an entry is impossible.
        """

    def blocks(self, tokens: int = _BLOCK_BYTES) -> Iterator[NDArray[np.integer[Any]]]:
        """All tokens in order, in arrays of at most `tokens`.

        Raises:
            ValueError: the file cannot be read, or is shorter than it was.
        """
        dtype = np.dtype(self.dtype).newbyteorder("<")
        with named_errors(self.location), open_location(self.location) as file:
            file.seek(self.offset)
            left = self.num_tokens
            while left:
                wanted = min(left, tokens)
                data = file.read(wanted * dtype.itemsize)
                if len(data) != wanted * dtype.itemsize:
                    raise ValueError(
                        self.unreadable(self.offset + (self.num_tokens - left) * dtype.itemsize)
                    )
                yield np.frombuffer(data, dtype=dtype)
                left -= wanted

    def tokens(self) -> NDArray[np.integer[Any]]:
        """All tokens, shape (num_tokens,): mapped if the file is local, else read."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        if is_url(self.location):
            return np.concatenate(list(self.blocks()))
        with named_errors(self.location):
            found = os.path.getsize(self.location)
            if found != self.file_bytes:
                raise ValueError(self.unreadable(min(found, self.file_bytes)))
            mapped = np.memmap(
                self.location, dtype=dtype, mode="r", offset=self.offset, shape=(self.num_tokens,)
            )
        return np.asarray(mapped)

    def hash(self) -> str:
        """sha256 of the bytes of the file, then of its companions."""
        digest = hashlib.sha256()
        for location in (self.location, *self.companions):
            with named_errors(location), open_location(location) as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        return digest.hexdigest()

    def unreadable(self, offset: int) -> str:
        """What to say when the bytes from `offset` on cannot be read (any more)."""
        try:
            size = file_size(self.location)
        except ValueError:
            size = None
        found = "no file" if size is None else f"{size}"
        remedy = (
            "its storage failed: look at the disk or the network, and start again"
            if size == self.file_bytes
            else "it was changed, cut or removed: put it back, or prepare the data again"
        )
        return (
            f"{self.location} cannot be read at byte {offset}: expected a file of "
            f"{self.file_bytes} bytes, found {found}; {remedy}"
        )


def require_token_dtype(location: str, dtype: str) -> str:
    """The name of an integer type that tokens may have.

    Raises:
        ValueError: it is none.
    """
    if dtype not in TOKEN_DTYPES:
        raise ValueError(
            f"{location} has items of type {dtype!r}; expected token ids, one of "
            f"{', '.join(TOKEN_DTYPES)}"
        )
    return dtype


def known_size(location: str) -> int:
    """Bytes of a file.

    Raises:
        ValueError: there is no such file, or its storage does not say.
    """
    size = file_size(location)
    if size is None:
        raise ValueError(f"{location}: its storage does not tell its size; copy the file first")
    return size


def read_range(location: str, offset: int, count: int) -> bytes:
    """Some bytes of a file; what is read cannot change any more, as mapped memory can.

    Raises:
        ValueError: the file has no such bytes, or cannot be read.
    """
    with named_errors(location):
        if is_url(location):
            files, path = file_system(location)
            data = bytes(files.cat_file(path, start=offset, end=offset + count))
        else:
            with open(location, "rb") as file:
                file.seek(offset)
                data = file.read(count)
    if len(data) != count:
        raise ValueError(
            f"{location} ends at byte {offset + len(data)}; expected {count} bytes from byte "
            f"{offset} on: it was cut while it was read; put it back"
        )
    return data


def read_head(location: str, count: int) -> bytes:
    """The first bytes of a file, fewer if it is shorter."""
    with named_errors(location), open_location(location) as file:
        return file.read(count)
