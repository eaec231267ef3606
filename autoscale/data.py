"""What a run trains on and is measured on: its mixture stream, and its fixed validation windows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .delivery import Delivery
from .manifest import Manifest
from .masking import Masking
from .mixture_stream import MixtureStream, TokenBatch
from .runs import RunSpec
from .stage_quotas import Stage
from .windows.form import Packing
from .windows.opening import open_windows
from .windows.reading import WindowReader

# B windows, T sequence length


class RunStream(MixtureStream):
    """The batches of one run on one rank, and the record of those that were handed over.

    Args:
        spec: the run.
        manifest: its shards.
        rank, world_size: of this process within the run.

    Attributes:
        delivery: what this rank was given.
    """

    def __init__(
        self, spec: RunSpec, manifest: Manifest, *, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(
            manifest,
            sequence_length=spec.sequence_length,
            batch_size=spec.sequences_per_batch,
            stages=[Stage(quotas=quotas) for quotas in spec.quotas],
            domains=spec.domains,
            seed=spec.seed,
            rank=rank,
            world_size=world_size,
            packing=spec.packing,
            shares=dict.fromkeys(spec.domains, spec.share),
            locality=spec.locality,
        )
        self.delivery = Delivery.nothing(len(spec.domains))

    def hand_over(self, batch: TokenBatch) -> None:
        """Count a batch as consumed."""
        super().hand_over(batch)
        self.delivery.add(batch)


class Rows(NamedTuple):
    """Windows in memory."""

    tokens: NDArray[np.int64]
    """Shape (B, T + 1)."""
    positions: NDArray[np.int32] | None
    """Of each token in its document where documents are packed, as in `TokenBatch`."""
    masks: NDArray[np.int64] | None = None
    """What a masked language model predicts, as `Masking.draw` gives it."""


def validation_windows(
    manifest: Manifest,
    domains: Sequence[str],
    *,
    sequence_length: int,
    limit: int,
    packing: Packing = "contiguous",
    masking: Masking | None = None,
) -> dict[str, Rows]:
    """The fixed validation windows of each domain, evenly spread, at most `limit` of them.

    Args:
        masking: of a masked language model.
    """
    chosen = {}
    for name in domains:
        windows = open_windows(
            manifest, name, "validation", sequence_length=sequence_length, packing=packing
        )
        count = min(limit, len(windows))
        spread = np.arange(count, dtype=np.int64) * len(windows) // count
        masks = None if masking is None else masking.validation(spread)
        chosen[name] = Rows(*WindowReader(windows).read(spread), masks)
    return chosen
