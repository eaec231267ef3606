"""Stretches laid end to end, and ranges written out: the index arithmetic of all windows."""

import numpy as np
from numpy.typing import NDArray


def begins_of(lengths: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    """Where each of some stretches laid end to end begins, and the end, shape (n + 1,)."""
    begins = np.zeros(lengths.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=begins[1:])
    return begins


def expand(
    first: NDArray[np.int64], count: NDArray[np.signedinteger]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers `first[i], first[i] + 1, ...`, `count[i]` of them, for each i in turn.

    Returns:
        The i of each number, and the numbers, both of shape (sum of count,).
    """
    index = np.repeat(np.arange(first.size), count)
    return index, np.arange(index.size) + (first - begins_of(count)[:-1])[index]
