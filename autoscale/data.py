"""Batches of this rank: the sampler says which windows, the shards hold their tokens."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest
from .runs import RunSpec
from .sampler import Located, MixtureOrder, Stage, batch_positions
from .shards import TokenWindows

PLANNED_STEPS = 256

# B sequences of this rank's batch, T sequence length, K domains


class BatchStream:
    """The batches of one run on one rank; any step can be asked for, in any order.

    Args:
        spec: the run.
        manifest: its shards.
        rank, world_size: of this process within the run.
    """

    def __init__(self, spec: RunSpec, manifest: Manifest, *, rank: int, world_size: int) -> None:
        self._windows_K = [
            _windows(manifest, name, "train", spec.sequence_length) for name in spec.domains
        ]
        self.order = MixtureOrder(
            domains=spec.domains,
            num_windows=[len(windows) for windows in self._windows_K],
            seed=spec.seed,
            stages=[Stage(quotas=spec.sequences)],
        )
        self._spec = spec
        self._rank, self._world_size = rank, world_size
        self._planned_from = -1
        self._planned: tuple[Located, ...] = ()

    def batch(self, step: int) -> NDArray[np.int64]:
        """Tokens of this rank's share of global batch `step`, shape (B, T + 1)."""
        located = self._locate(step)
        shape = (len(located.domain), self._spec.sequence_length + 1)
        tokens_BT = np.empty(shape, dtype=np.int64)
        for domain in np.unique(located.domain):
            rows = np.flatnonzero(located.domain == domain)
            tokens_BT[rows] = self._windows_K[domain].gather(located.window[rows])
        return tokens_BT

    def _locate(self, step: int) -> Located:
        """The windows of one step; many steps are planned at once, since numpy calls are dear."""
        offset = step - self._planned_from
        if not 0 <= offset < len(self._planned):
            steps = np.arange(step, min(step + PLANNED_STEPS, self._spec.num_steps))
            positions = batch_positions(
                step=steps,
                batch_size=self._spec.sequences_per_batch,
                rank=self._rank,
                world_size=self._world_size,
                seed=self._spec.seed,
            )
            every = self.order.locate(positions)
            self._planned_from, offset = step, 0
            self._planned = tuple(
                Located(domain=domain, epoch=epoch, window=window)
                for domain, epoch, window in zip(
                    every.domain, every.epoch, every.window, strict=True
                )
            )
        return self._planned[offset]


def validation_windows(
    manifest: Manifest, domains: Sequence[str], *, sequence_length: int, limit: int
) -> dict[str, NDArray[np.int64]]:
    """The fixed validation windows of each domain, evenly spread, shape (<= limit, T + 1)."""
    chosen = {}
    for name in domains:
        windows = _windows(manifest, name, "validation", sequence_length)
        count = min(limit, len(windows))
        chosen[name] = windows.gather(np.arange(count, dtype=np.int64) * len(windows) // count)
    return chosen


def _windows(manifest: Manifest, name: str, split: str, sequence_length: int) -> TokenWindows:
    shards = getattr(manifest.domain(name), split)
    return TokenWindows(
        [manifest.root / shard.path for shard in shards],
        sequence_length=sequence_length,
        dtype=manifest.dtype,
    )
