"""Keyed permutations: shuffle `[0, size)` without storing the order.

The order of a domain's windows in one epoch is `apply(index) -> window`, computed for any index on
its own. Each permutation is a generalised Feistel network on the grid `rows x columns >= size`:
a point `(row, column)` is moved by rounds that add to one coordinate a hash of the other,

    row    <- row    + hash(column, key, round)  mod rows       (even rounds)
    column <- column + hash(row, key, round)     mod columns    (odd rounds)

each of which can be undone, so that distinct points stay distinct. The grid has fewer than
`columns` points too many; a point that lands on one of them is moved again until it is inside
(cycle-walking). The hash is two multiply-and-fold steps of 64 bits: weaker ones leave visible
structure in the differences of successive windows.
"""

import hashlib
import json
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_SIZE: Final = 2**50
"""Largest permutation; every product below then fits 64 bits with room to spare."""

_NUM_ROUNDS: Final = 6
_FEW: Final = 1024  # below this many elements six rounds favour some orders (visibly so below 10)
_PASSES_OF_FEW: Final = 3
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
_HALF: Final = np.uint64(32)


def derive_key(purpose: str, seed: int, name: str = "") -> np.uint64:
    """A 64-bit key that depends on all of its arguments and on nothing else."""
    content = json.dumps([purpose, int(seed), name]).encode()
    return np.uint64(int.from_bytes(hashlib.sha256(content).digest()[:8], "little"))


def derive_subkeys(keys: NDArray[np.uint64], indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One key for each (key, index) pair, e.g. (domain, epoch); shapes broadcast."""
    mixed: NDArray[np.uint64] = keys + indices.astype(np.uint64) * np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class KeyedPermutations:
    """Permutations of several sizes, applied to arrays in which each element names its own.

    Args:
        sizes: number of elements of each permutation, at least 0 and at most 2**50.
    """

    def __init__(self, sizes: ArrayLike) -> None:
        size = np.atleast_1d(np.asarray(sizes, dtype=np.int64))
        assert size.min(initial=0) >= 0 and size.max(initial=0) <= MAX_SIZE, size
        rows = np.maximum(np.ceil(np.sqrt(size)).astype(np.int64), 1)
        self._size = size.astype(np.uint64)
        self._rows = rows.astype(np.uint64)
        self._columns = np.maximum(-(-size // rows), 1).astype(np.uint64)

    def apply(
        self, which: NDArray[np.int64], index: NDArray[np.int64], key: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Permute.

        Args:
            which: the permutation of each element, an index into `sizes`, shape (n,).
            index: the element, in `[0, sizes[which])`, shape (n,).
            key: the key of its permutation, shape (n,).

        Returns:
            The images, in `[0, sizes[which])`, shape (n,).
        """
        size, rows, columns = self._size[which], self._rows[which], self._columns[which]
        image = _walk(index.astype(np.uint64), size, rows, columns, key)
        few = np.flatnonzero(size < _FEW)
        if few.size:
            size, rows, columns, key = size[few], rows[few], columns[few], key[few]
            for further in range(1, _PASSES_OF_FEW):
                further_key = key + np.uint64(_GOLDEN * _NUM_ROUNDS * further & _MASK)
                image[few] = _walk(image[few], size, rows, columns, further_key)
        return image.view(np.int64)


def _walk(
    point: NDArray[np.uint64],
    size: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
    key: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Move each point over the grid until it lies below its size; all arrays of shape (n,)."""
    image = _feistel(point, rows, columns, key)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _feistel(image[outside], rows[outside], columns[outside], key[outside])
        outside = outside[image[outside] >= size[outside]]
    return image


def _feistel(
    point: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
    key: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """One pass over the grid; all arrays of shape (n,)."""
    row = point // columns
    column = point - row * columns
    for round_number in range(1, _NUM_ROUNDS + 1):
        round_key = key + np.uint64(_GOLDEN * round_number & _MASK)
        if round_number % 2:
            row = _shift(row, rows, _hash32(column + round_key))
        else:
            column = _shift(column, columns, _hash32(row + round_key))
    return row * columns + column


def _hash32(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """32 well-mixed bits of each value; overwrites its argument."""
    value ^= value >> _HALF
    value *= np.uint64(0xD6E8FEB86659FD93)
    value ^= value >> _HALF
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value >>= _HALF
    return value


def _shift(
    coordinate: NDArray[np.uint64], side: NDArray[np.uint64], hash32: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """`coordinate + hash` modulo the side, the hash first scaled from 32 bits to `[0, side)`."""
    hash32 *= side
    hash32 >>= _HALF
    coordinate = coordinate + hash32
    coordinate -= side * (coordinate >= side)
    return coordinate
