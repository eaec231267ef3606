"""Packed windows: rows filled with whole documents, each of which stands for itself.

A document of at most T + 1 tokens lies in one row. A longer one is cut into pieces of T + 1 tokens,
each of which shares one token with the next, so that every token but the first of a document is
predicted exactly once. Attention and positions begin anew at every piece. What the pieces of a row
leave over is padding.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..pieces import Pieces
from ..shard_formats.token_file import TokenFile
from .documents import Documents
from .fitting import best_fit, next_fit
from .form import Packing, check_windows
from .ranges import begins_of, expand

_FITTING: dict[Packing, Callable[[NDArray[np.int64], int], NDArray[np.int64]]] = {
    "whole_documents": next_fit,
    "best_fit": best_fit,
}

# B windows asked for, P pieces, W windows


class PackedWindows:
    """Rows of pieces of documents; memory grows with the documents, about 24 bytes each.

    Args:
        files: what the pieces lie in.
        sequence_length: T.
        file, start, length: where each piece lies, in the order of the rows, shape (P,).
        row_pieces: number of pieces of each row, shape (W,).
    """

    resets: ClassVar[bool] = True

    def __init__(
        self,
        files: Sequence[TokenFile],
        *,
        sequence_length: int,
        file: NDArray[np.int32],
        start: NDArray[np.int64],
        length: NDArray[np.int32],
        row_pieces: NDArray[np.int32],
    ) -> None:
        self.files = tuple(files)
        self.sequence_length = sequence_length
        self._file, self._start, self._length, self._row_pieces = file, start, length, row_pieces
        self._row_begin = begins_of(row_pieces)
        self.num_tokens = int(length.sum(dtype=np.int64)) - length.size

    @classmethod
    def of_documents(
        cls,
        files: Sequence[TokenFile],
        documents: Documents,
        *,
        sequence_length: int,
        packing: Packing,
    ) -> Self:
        """Rows of these documents; one of a single token has no label and is left out."""
        labels = documents.length - 1
        document, number = expand(np.zeros_like(labels), -(-labels // sequence_length))
        begin = number * sequence_length
        length = np.minimum(labels[document] - begin, sequence_length) + 1
        row = _FITTING[packing](length, sequence_length + 1)
        by_row = np.argsort(row, kind="stable")
        document = document[by_row]
        return cls(
            files,
            sequence_length=sequence_length,
            file=documents.file[document].astype(np.int32),
            start=documents.start[document] + begin[by_row],
            length=length[by_row].astype(np.int32),
            row_pieces=np.bincount(row).astype(np.int32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The windows of all parts, numbered through."""
        first_file = np.cumsum([0] + [len(part.files) for part in parts], dtype=np.int32)
        return cls(
            [file for part in parts for file in part.files],
            sequence_length=parts[0].sequence_length,
            file=np.concatenate(
                [part._file + first for part, first in zip(parts, first_file, strict=False)]
            ),
            start=np.concatenate([part._start for part in parts]),
            length=np.concatenate([part._length for part in parts]),
            row_pieces=np.concatenate([part._row_pieces for part in parts]),
        )

    def __len__(self) -> int:
        return self._row_pieces.size

    def pieces(
        self, windows: NDArray[np.int64], *, rows: NDArray[np.int64], first_file: int = 0
    ) -> Pieces:
        """What fills the rows of some windows, as `Windows.pieces` says."""
        check_windows(windows, len(self))
        count_B = self._row_pieces[windows]
        window, piece = expand(self._row_begin[windows], count_B)
        length = self._length[piece].astype(np.int64)
        begin = begins_of(length)[:-1]
        return Pieces(
            row=rows[window],
            column=begin - begin[begins_of(count_B)[:-1]][window],
            file=self._file[piece].astype(np.int64) + first_file,
            start=self._start[piece],
            length=length,
        )
