"""datatrove's `.ds`: flat tokens, with the end of every document (uint64) in `.ds.index`.

The size of a token is not written down where a writer leaves out `.ds.metadata`; it follows from
the bytes of the file and the end of its last document.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .token_file import TokenFile, known_size, read_range

_END_BYTES: Final = 8
_DTYPES: Final = {2: "uint16", 4: "uint32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatatroveFile(TokenFile):
    """The tokens of a `.ds` with its index."""

    @property
    def companions(self) -> tuple[str, ...]:
        return (index_of(self.location),)

    def document_starts(self) -> NDArray[np.int64]:
        starts = np.concatenate([np.zeros(1, dtype=np.int64), _ends(index_of(self.location))])
        falling = np.flatnonzero(np.diff(starts) < 0)
        if falling.size or starts[-1] != self.num_tokens:
            raise ValueError(
                f"{index_of(self.location)}: document {falling[0] if falling.size else 'the last'} "
                f"ends out of order; expected ends that go up to {self.num_tokens}. Tokenize again"
            )
        return starts

    def check_index(self) -> None:
        self.document_starts()


def index_of(location: str) -> str:
    return f"{location}.index"


def open_datatrove(location: str) -> TokenFile:
    """The tokens of a `.ds` file.

    Raises:
        ValueError: its index is missing or does not fit it.
    """
    size, index = known_size(location), index_of(location)
    last = int(_ends(index, _index_bytes(index) - _END_BYTES)[0])
    itemsize = size // last if last > 0 else 0
    if itemsize not in _DTYPES or itemsize * last != size:
        raise ValueError(
            f"{location} has {size} bytes; {index} ends at token {last}: expected 2 "
            "or 4 bytes a token. One of the two files is cut, or belongs to another; tokenize again"
        )
    return DatatroveFile(
        location=location,
        format="datatrove",
        dtype=_DTYPES[itemsize],
        offset=0,
        num_tokens=last,
        file_bytes=size,
    )


def _index_bytes(index: str) -> int:
    size = known_size(index)
    if size == 0 or size % _END_BYTES:
        raise ValueError(
            f"{index} has {size} bytes; expected {_END_BYTES} for each document, and at least one: "
            "the file is cut; tokenize again"
        )
    return size


def _ends(index: str, offset: int = 0) -> NDArray[np.int64]:
    """The ends of documents that stand in an index from a byte on, in tokens."""
    data = read_range(index, offset, _index_bytes(index) - offset)
    return np.frombuffer(data, dtype="<u8").astype(np.int64)
