"""Prepared tokens: fixed windows over shards, and the names that readers and writers need.

A window is what one sample of a run is made of: the inputs of the model and, one token further,
their labels. Windows tile a shard and share one token with the next, so that every token but the
first is predicted exactly once:

    window i of a shard = tokens[i * L : i * L + L + 1],   L the sequence length
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .indexed_shard import IndexedShard, IndexedShardWriter, WrittenShard
from .manifest import DomainShards, Manifest, Shard, TokenizerRecord

__all__ = [
    "DomainShards",
    "IndexedShard",
    "IndexedShardWriter",
    "Manifest",
    "Shard",
    "TokenWindows",
    "TokenizerRecord",
    "WrittenShard",
]

# B windows asked for, L sequence length


class TokenWindows:
    """The windows of one domain, numbered through its shards; none lies across two shards.

    Args:
        shards: prefixes of the shards, in order.
        sequence_length: L, tokens that a window feeds to the model.
        dtype: of a token in every shard.

    Raises:
        ValueError: a shard is damaged or of another dtype, or none is as long as one window.
    """

    def __init__(self, shards: Sequence[Path], *, sequence_length: int, dtype: str) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}; expected at least 1")
        self.sequence_length = sequence_length
        if not shards:
            raise ValueError("there are no shards: prepare some text for this split")
        self._views = []
        longest = 0
        for prefix in shards:
            shard = IndexedShard(prefix)
            if shard.dtype != np.dtype(dtype):
                raise ValueError(
                    f"shard {prefix} holds {shard.dtype.name} tokens; expected {dtype}: it belongs "
                    "to another manifest"
                )
            self._views.append(_windows_of(shard.tokens, sequence_length))
            longest = max(longest, shard.num_tokens)
        ends = np.cumsum([len(view) for view in self._views], dtype=np.int64)
        self._begins = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        if not len(self):
            named = str(shards[0]) if len(shards) == 1 else f"each of {len(shards)} shards"
            raise ValueError(
                f"sequence_length {sequence_length} needs {sequence_length + 1} tokens in a shard; "
                f"{named} has at most {longest}: shorten the sequences, or prepare more text"
            )

    def __len__(self) -> int:
        """Number of windows: the sum over the shards of (tokens - 1) // L."""
        return int(self._begins[-1])

    def gather(
        self, windows: NDArray[np.int64], out: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The tokens of some windows.

        Args:
            windows: indices in `[0, len(self))`, in any order, shape (B,).
            out: filled and returned if given, shape (B, L + 1).

        Returns:
            Tokens, shape (B, L + 1).
        """
        windows = np.asarray(windows, dtype=np.int64)
        if windows.ndim != 1:
            raise ValueError(f"windows have shape {windows.shape}; expected one row of numbers")
        outside = windows[(windows < 0) | (windows >= len(self))]
        if outside.size:
            raise ValueError(f"window {outside[0]} is outside the domain's {len(self)} windows")
        shape = (windows.size, self.sequence_length + 1)
        if out is None:
            out = np.empty(shape, dtype=np.int64)
        elif out.shape != shape or out.dtype != np.int64:
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}; expected int64 of shape {shape}"
            )
        if len(self._views) == 1:
            out[...] = self._views[0][windows]
            return out
        shard_of = np.searchsorted(self._begins, windows, side="right") - 1
        for number in np.unique(shard_of):
            rows = np.flatnonzero(shard_of == number)
            out[rows] = self._views[number][windows[rows] - self._begins[number]]
        return out


def _windows_of(tokens: NDArray[np.integer], sequence_length: int) -> NDArray[np.integer]:
    """All windows of a shard as overlapping rows of one view, shape (num_windows, L + 1)."""
    (stride,) = tokens.strides
    return np.lib.stride_tricks.as_strided(
        tokens,
        shape=(max(0, (tokens.size - 1) // sequence_length), sequence_length + 1),
        strides=(sequence_length * stride, stride),
        writeable=False,
    )
