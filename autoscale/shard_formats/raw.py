"""Flat token ids without a header: nanoGPT's `.bin`, and the `.npy` of OLMo (no numpy header).

OLMo's tokenizer (dolma) leaves the documents beside them, in `NAME.csv.gz`: a row a document,
whose first two columns are where it begins and ends.
"""

import csv
import gzip
import io
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..locations import named_errors, open_location
from .token_file import TokenFile, known_size, require_token_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class RawFile(TokenFile):
    """Flat tokens, with dolma's table of documents where there is one.

    Attributes:
        table: location of the `.csv.gz`, or None.
    """

    table: str | None = None

    @property
    def companions(self) -> tuple[str, ...]:
        return () if self.table is None else (self.table,)

    def document_starts(self) -> NDArray[np.int64] | None:
        if self.table is None:
            return TokenFile.document_starts(self)
        spans = _read_spans(self.table)
        starts = np.append(spans[:, 0], spans[-1, 1])
        if starts[0] != 0 or starts[-1] != self.num_tokens or np.any(spans[1:, 0] != spans[:-1, 1]):
            raise ValueError(
                f"{self.table}: its documents do not lie one after the other from token 0 to "
                f"{self.num_tokens}, the length of {self.location}; tokenize again, or remove it"
            )
        if np.any(np.diff(starts) < 0):
            raise ValueError(f"{self.table}: a document ends before it begins; tokenize again")
        return starts

    def check_index(self) -> None:
        if self.table is not None:
            self.document_starts()


def open_raw(
    location: str, *, dtype: str | None, table: str | None = None, end_of_text_id: int | None = None
) -> TokenFile:
    """Flat tokens of a known type.

    Args:
        table: location of dolma's `.csv.gz`, where it is there.

    Raises:
        ValueError: the type is not given, or the size is no whole number of tokens.
    """
    if dtype is None:
        raise ValueError(
            f"{location} has no header that tells the type of its tokens; give it (--dtype uint16 "
            "as nanoGPT and most of OLMo's files have it, or uint32)"
        )
    name = require_token_dtype(location, dtype)
    size, itemsize = known_size(location), np.dtype(name).itemsize
    if size == 0 or size % itemsize:
        raise ValueError(
            f"{location} has {size} bytes; expected a multiple of {itemsize} above 0, since a "
            f"{name} token has {itemsize}: the file is cut, or of another type"
        )
    return RawFile(
        location=location,
        format="raw",
        dtype=name,
        offset=0,
        num_tokens=size // itemsize,
        file_bytes=size,
        end_of_text_id=end_of_text_id,
        table=table,
    )


def _read_spans(table: str) -> NDArray[np.int64]:
    """Begin and end of every document, shape (num_documents, 2)."""
    try:
        with named_errors(table), open_location(table) as file:
            text = io.TextIOWrapper(gzip.GzipFile(fileobj=file), encoding="utf-8", newline="")
            spans = [(int(row[0]), int(row[1])) for row in csv.reader(text)]
        found = np.array(spans, dtype=np.int64)
    except (ValueError, IndexError, OverflowError, EOFError, csv.Error, zlib.error) as error:
        raise ValueError(
            f"{table} is no table of documents ({error}); expected dolma's rows "
            "start,end,id,src,loc: tokenize again, or remove it"
        ) from error
    if not found.size:
        raise ValueError(f"{table} lists no document; tokenize again, or remove it")
    return found
