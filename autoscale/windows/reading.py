"""Read windows: copy their tokens into rows, and say where in its document each token stands."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import kernel
from ..pieces import FileTable, Pieces
from ..token_store import TokenStore
from .form import Windows

# B windows asked for, T sequence length


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRows:
    """Rows that can be read.

    Attributes:
        pieces: of tokens, that fill the rows.
        places: the same places, as pieces of the numbers 0, 1, 2, ...; None where the windows have
            no positions.
    """

    pieces: Pieces
    places: Pieces | None


class WindowReader:
    """Rows of tokens, and their positions where every piece of a row stands for itself.

    Args:
        windows: what can be asked for.
        read_block_bytes: least amount that is fetched at once from storage behind a URL.
    """

    def __init__(self, windows: Windows, *, read_block_bytes: int = 0) -> None:
        self.windows = windows
        self._tokens = TokenStore(windows.files, read_block_bytes=read_block_bytes)
        self._numbers = _Numbers(windows.sequence_length + 1)

    def read(
        self, numbers: NDArray[np.int64], dtype: DTypeLike = np.int64
    ) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
        """Some windows by number, shape (B,).

        Returns:
            Tokens, shape (B, T + 1), and positions of the same shape or None, as `fill` makes them.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        shape = (numbers.size, self.windows.sequence_length + 1)
        tokens = np.empty(shape, dtype=dtype)
        positions = np.empty(shape, dtype=np.int32) if self.windows.resets else None
        rows = self.plan(numbers)
        self.fill(rows, 0, len(rows.pieces), 0, tokens, positions)
        return tokens, positions

    def plan(self, numbers: NDArray[np.int64]) -> PlannedRows:
        """What fills the rows of some windows, one after the other, shape (B,)."""
        pieces = self.windows.pieces(numbers, rows=np.arange(numbers.size))
        places = None
        if self.windows.resets:
            zeros = np.zeros_like(pieces.file)
            places = Pieces(
                row=pieces.row, column=pieces.column, file=zeros, start=zeros, length=pieces.length
            )
        return PlannedRows(pieces=pieces, places=places)

    def fill(
        self,
        rows: PlannedRows,
        first: int,
        last: int,
        first_row: int,
        tokens: NDArray[Any],
        positions: NDArray[np.int32] | None,
    ) -> None:
        """Fill some rows.

        Args:
            rows: as `plan` returns them.
            first, last: pieces that make up the rows.
            first_row: the row that is row 0 of the buffers.
            tokens: filled, shape (B, T + 1), C-contiguous; 0 at padding.
            positions: filled where documents are packed: the number of each token in its piece, -1
                at padding. The label of column j counts where `positions[:, j + 1] > 0`.
        """
        if rows.places is not None:
            assert positions is not None
            tokens.fill(0)
            positions.fill(-1)
            self._numbers.copy(rows.places, first, last, positions, first_row)
        self._tokens.copy(rows.pieces, first, last, tokens, first_row)


class _Numbers:
    """Copies the numbers 0, 1, 2, ... as `TokenStore` copies the tokens of a file.

    Args:
        count: of the numbers.
    """

    def __init__(self, count: int) -> None:
        self._numbers = np.arange(count, dtype=np.int32)
        self._table = FileTable(
            address=np.array([self._numbers.ctypes.data], dtype=np.uint64),
            num_tokens=np.array([count]),
            itemsize=np.array([self._numbers.itemsize]),
        )

    def __reduce__(self) -> tuple[type["_Numbers"], tuple[int]]:
        return _Numbers, (self._numbers.size,)  # they lie elsewhere in another process

    def copy(
        self, places: Pieces, first: int, last: int, out: NDArray[np.int32], first_row: int
    ) -> None:
        if kernel.compiled is not None:
            kernel.copy_pieces(self._table, places, first, last, out, first_row)
            return
        rows, columns, lengths = (
            values[first:last].tolist() for values in (places.row, places.column, places.length)
        )
        for row, column, length in zip(rows, columns, lengths, strict=True):
            out[row - first_row, column : column + length] = self._numbers[:length]
