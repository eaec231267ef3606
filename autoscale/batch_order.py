"""Which positions of the mixture order a rank takes: its slice of every global batch.

The domains of an order follow each other periodically, and plain slices would give a rank always
the same ones. So a global batch is shuffled, by a key of its number, before it is cut.
"""

import numpy as np
from numpy.typing import NDArray

from . import kernel
from .permutation import derive_key, derive_subkeys


def batch_positions(
    *,
    step: int | NDArray[np.int64],
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
) -> NDArray[np.int64]:
    """Positions of this rank's slice of a global batch, after a keyed shuffle inside the batch.

    Where the ranks do not divide the batch, rank r takes the places from floor(r B / W) up to
    floor((r + 1) B / W) of the shuffled batch of B, so that slices differ by one at most.

    Another batch size keeps what stands at the positions `[0, n)`, for every n: a run that has
    consumed n samples has drawn the same windows, whatever its batches were. It does not keep the
    order inside a batch, and so not the slice that a rank is given.

    Args:
        step: number of the global batch, or an array of them.
        batch_size: windows in a global batch; global batch `s` holds the positions
            `[s * batch_size, (s + 1) * batch_size)`, whatever the world size.
        rank: this rank, below `world_size`.
        world_size: ranks that share the batch.
        seed: of the shuffle.

    Returns:
        Positions, shape (share,), after the shape of `step` if it is an array.

    Raises:
        ValueError: the batch is empty.
    """
    assert 0 <= rank < world_size, (rank, world_size)
    if batch_size < 1:
        raise ValueError(f"a global batch of {batch_size} windows; expected at least 1")
    first, end = (batch_size * edge // world_size for edge in (rank, rank + 1))
    key = derive_key("batch", seed)
    steps = np.asarray(step, dtype=np.int64)
    if kernel.compiled is not None:
        positions = np.empty((*steps.shape, end - first), dtype=np.int64)
        kernel.shuffle(int(key), batch_size, first, np.ascontiguousarray(steps), positions)
        return positions
    steps = steps[..., None]
    tickets = derive_subkeys(derive_subkeys(np.array([key]), steps), np.arange(batch_size))
    shuffled = np.argsort(tickets, axis=-1, kind="stable")
    return steps * batch_size + shuffled[..., first:end]
