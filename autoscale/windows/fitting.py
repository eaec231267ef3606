"""Rows of a fixed length filled with whole pieces: which piece goes into which row.

*Next fit* keeps the order: a piece that does not fit into the row at hand begins the next one.
*Best fit, decreasing* takes the longest pieces first, and gives each to the fullest row that still
has room for it (Ding et al. 2024, arXiv 2404.10830). Few tokens of padding are left then.

Both are exact. Best fit takes all pieces of one length at once: rows with equal room are alike, so
that the work grows with the number of distinct lengths and rooms, not with that of the pieces.
"""

import numpy as np
from numpy.typing import NDArray

from .ranges import begins_of

# P pieces, C capacity of a row


def next_fit(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The row of each piece, in order.

    Args:
        lengths: tokens of each piece, from 1 to `capacity`, shape (P,).
        capacity: tokens of a row.

    Returns:
        Rows, counted from 0, shape (P,).
    """
    begins = begins_of(lengths)
    # Were a row to begin with piece p, the next one would begin with piece next_row[p].
    next_row = np.searchsorted(begins, begins[:-1] + capacity, side="right") - 1
    following, piece = next_row.tolist(), 0
    is_first = np.zeros(lengths.size, dtype=np.int64)
    while piece < lengths.size:
        is_first[piece] = 1
        piece = following[piece]
    return np.cumsum(is_first) - 1


def best_fit(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The row of each piece, never more rows than `next_fit` needs.

    Args:
        lengths: tokens of each piece, from 1 to `capacity`, shape (P,).
        capacity: tokens of a row.

    Returns:
        Rows, counted from 0, shape (P,).
    """
    by_length = np.argsort(-lengths, kind="stable")
    distinct, count = np.unique(lengths, return_counts=True)
    row_by_length = np.empty(lengths.size, dtype=np.int64)
    rows, done = _OpenRows(), 0
    for length, pieces in zip(distinct[::-1].tolist(), count[::-1].tolist(), strict=True):
        end = done + pieces
        while done < end:
            taken = rows.fill(length, end - done, capacity)
            row_by_length[done : done + taken.size] = taken
            done += taken.size
    row = np.empty_like(row_by_length)
    row[by_length] = row_by_length
    in_order = next_fit(lengths, capacity)
    # Decreasing lengths are nearly always better, but there are texts that happen to lie right.
    return in_order if in_order.max(initial=-1) < rows.count - 1 else row


class _OpenRows:
    """Rows by the room that is left in them.

    Attributes:
        count: rows begun so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._with_room: dict[int, list[NDArray[np.int64]]] = {}
        self._rooms = 0  # bit r is set where there are rows with room r

    def fill(self, length: int, pieces: int, capacity: int) -> NDArray[np.int64]:
        """Place some of the pieces of one length, in the fullest rows that have room for them.

        Returns:
            The row of each piece that was placed, at least one and at most `pieces`.
        """
        enough = self._rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            rows = self._take(room)
        else:
            room = capacity
            rows = np.arange(self.count, self.count + -(-pieces // (capacity // length)))
            self.count += rows.size
        # A row that keeps room for another such piece is the fullest one again.
        times = room // length
        full = min(rows.size, pieces // times)
        self._put(room - times * length, rows[:full])
        placed = np.repeat(rows[:full], times)
        rest = pieces - placed.size
        if full < rows.size and rest:
            self._put(room - rest * length, rows[full : full + 1])
            placed = np.concatenate([placed, np.repeat(rows[full : full + 1], rest)])
            full += 1
        self._put(room, rows[full:])
        return placed

    def _take(self, room: int) -> NDArray[np.int64]:
        self._rooms ^= 1 << room
        return np.concatenate(self._with_room.pop(room))

    def _put(self, room: int, rows: NDArray[np.int64]) -> None:
        if room and rows.size:
            self._with_room.setdefault(room, []).append(rows)
            self._rooms |= 1 << room
