"""The optional compiled kernel of the data path.

`compiled` is the C extension `autoscale._kernel`, or None where it was not built (the install then
had no compiler). Each caller has a numpy path that gives the same integers bit for bit.
"""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pieces import FileTable, Pieces


def _load() -> ModuleType | None:
    try:
        return import_module("._kernel", __package__)
    except ModuleNotFoundError:  # the install had no compiler
        return None
    except ImportError as error:
        warnings.warn(f"the compiled kernel cannot be loaded, numpy is used: {error}", stacklevel=2)
        return None


compiled: ModuleType | None = _load()


def copy_pieces(
    table: FileTable, pieces: Pieces, first: int, last: int, out: NDArray[Any], first_row: int
) -> int:
    """Copy the tokens of `pieces[first:last]` into their rows of a batch; needs `compiled`.

    The GIL is released meanwhile. The arrays of the last `table` and `pieces` are kept open for the
    next call, so that it costs little: give the same two as long as possible. A file that was cut
    or lost while it was mapped is reported instead of ending the process with a bus error.

    Args:
        table: the files, memory-mapped; items of 1, 2, 4 or 8 bytes.
        pieces: where the tokens lie and where they go.
        first, last: the pieces to copy.
        out: the batch, shape (rows, columns), C-contiguous, uint16, uint32, int32 or int64; tokens
            are widened without a sign. Tokens outside the pieces stay as they are.
        first_row: the row number in `pieces` that is row 0 of `out`.

    Returns:
        -1, or the index of the first piece that cannot be read: it lies outside its file, the file
        is not mapped (address 0), or the file no longer has these bytes. Pieces after it are not
        copied.

    Raises:
        ValueError: a piece does not fit into `out`, or names no file of the table.
    """
    assert compiled is not None, "copy_pieces needs the compiled kernel"
    failed: int = compiled.copy_pieces(table, pieces, first, last, out, first_row)
    return failed


def descend(
    root: int,
    left_quota: NDArray[np.int64],
    total: NDArray[np.int64],
    left_share: NDArray[np.int64],
    total_share: NDArray[np.int64],
    children: NDArray[np.int32],
    draws: NDArray[np.int64],
    domain: NDArray[np.int64],
    rank: NDArray[np.int64],
) -> None:
    """`QuotaTree.locate` of `draws` into `domain` and `rank`, all of shape (n,).

    The other arrays are the tree's: one number an inner node, and two children.
    """
    assert compiled is not None, "descend needs the compiled kernel"
    compiled.descend(
        root, left_quota, total, left_share, total_share, children, draws, domain, rank
    )


def permute(
    index: NDArray[np.int64],
    size: NDArray[np.int64],
    key: NDArray[np.uint64],
    image: NDArray[np.int64],
) -> None:
    """`permutation.permute` into `image`, all of shape (n,)."""
    assert compiled is not None, "permute needs the compiled kernel"
    compiled.permute(index, size, key, image)


def draw_windows(
    num_windows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    domain: NDArray[np.int64],
    draws: NDArray[np.int64],
    epoch: NDArray[np.int64],
    window: NDArray[np.int64],
) -> None:
    """Epoch and window of draw number `draws` of each domain, as in `sampler`.

    Args:
        num_windows, keys: of the domains, shape (num_domains,).
        domain, draws: shape (n,).
        epoch, window: the result, shape (n,).
    """
    assert compiled is not None, "draw_windows needs the compiled kernel"
    compiled.draw_windows(num_windows, keys, domain, draws, epoch, window)


def shuffle(
    key: int,
    batch_size: int,
    first: int,
    steps: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> None:
    """`batch_order.batch_positions` into `positions`, shape (num_steps, share).

    Args:
        key: of the shuffle.
        batch_size: positions of a global batch.
        first: the first place of the shuffled batch that is wanted; `share` places follow.
        steps: the global batches, shape (num_steps,).
        positions: the result.
    """
    assert compiled is not None, "shuffle needs the compiled kernel"
    compiled.shuffle(key, batch_size, first, steps, positions)
