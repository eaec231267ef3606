"""Keyed permutations: shuffle `[0, size)` without storing the order.

The order of a domain's windows in one epoch is `permute(index) -> window`, computed for any index
on its own. Each permutation is a generalised Feistel network on the grid `rows x columns >= size`:
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
from numpy.typing import NDArray

from . import kernel

MAX_SIZE: Final = 2**50
"""Largest permutation; every product below then fits 64 bits with room to spare."""

_NUM_ROUNDS: Final = 6
_FEW: Final = 1024  # below this many elements six rounds favour some orders (visibly so below 10)
_PASSES_OF_FEW: Final = 3
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
_HALF: Final = np.uint64(32)
_LAST_BLOCK: Final = np.array([-1])  # the number that stands for it in a key; others are from 0


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


def permute(
    index: NDArray[np.int64], size: NDArray[np.int64], key: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The image of each element under the permutation of its size and key.

    Args:
        index: the element, in `[0, size)`, shape (n,).
        size: number of elements of its permutation, at most 2**50, shape (n,).
        key: of its permutation, shape (n,).

    Returns:
        The images, in `[0, size)`, shape (n,).
    """
    if kernel.compiled is not None:
        image = np.empty(index.shape, dtype=np.int64)
        kernel.permute(index, size, key, image)
        return image
    rows = np.ceil(np.sqrt(size)).astype(np.int64)
    columns = (-(-size // rows)).view(np.uint64)
    of, rows_of = size.view(np.uint64), rows.view(np.uint64)
    point = _walk(index.astype(np.uint64), of, rows_of, columns, key)
    few = np.flatnonzero(size < _FEW)
    if few.size:
        of, rows_of, columns, key = of[few], rows_of[few], columns[few], key[few]
        for further in range(1, _PASSES_OF_FEW):
            further_key = key + np.uint64(_GOLDEN * _NUM_ROUNDS * further & _MASK)
            point[few] = _walk(point[few], of, rows_of, columns, further_key)
    return point.view(np.int64)


def permute_blocks(
    index: NDArray[np.int64],
    size: NDArray[np.int64],
    key: NDArray[np.uint64],
    block: int,
) -> NDArray[np.int64]:
    """As `permute`, but blocks of neighbours stay together, for storage that reads far ahead.

    The blocks are permuted, and the elements inside each block. The last one, of 1 to `block`
    elements, comes at a place of its own among the others, chosen by the key.

    Args:
        index, size, key: as of `permute`.
        block: elements in a block.
    """
    num_whole = (size - 1) // block
    length_of_last = size - num_whole * block
    place_of_last = (derive_subkeys(key, _LAST_BLOCK) % (num_whole + 1).view(np.uint64)).view(
        np.int64
    )
    begin_of_last = place_of_last * block
    after_last = index >= begin_of_last + length_of_last
    in_last = (index >= begin_of_last) & ~after_last
    among_whole = index - length_of_last * after_last
    place, offset = among_whole // block, among_whole % block
    moved = num_whole.copy()
    whole = np.flatnonzero(~in_last)
    moved[whole] = permute(place[whole], num_whole[whole], key[whole])
    offset = np.where(in_last, index - begin_of_last, offset)
    length = np.where(in_last, length_of_last, block)
    return moved * block + permute(offset, length, derive_subkeys(key, moved))


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
