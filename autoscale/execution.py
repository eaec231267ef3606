"""How a run is executed, as opposed to what it is (`runs.RunSpec`): nothing here changes a loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Settings of one run's processes.

    Attributes:
        manifest: path of the shards' manifest.
        folder: of the run.
        deepspeed: DeepSpeed settings, without what the experiment owns.
        micro_batch_size: most sequences that a rank holds at a time.
        activation_checkpointing: recompute activations in the backward pass.
        checkpoints: saved over the run, evenly spaced.
        peak_tflops: of one device, for MFU; None to look it up or measure it.
        export: folder for the final model with its tokenizer; None for no export.
    """

    manifest: str
    folder: str
    deepspeed: Mapping[str, Any]
    micro_batch_size: int
    activation_checkpointing: bool
    checkpoints: int
    peak_tflops: float | None
    export: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A run as seen while it trains."""

    tokens: int
    total_tokens: int
    loss: float | None


def micro_batch_size(sequences_per_batch: int, world_size: int, most: int) -> int:
    """The largest micro-batch of at most `most` sequences that divides each rank's share.

    Raises:
        ValueError: the ranks do not divide the batch.
    """
    if sequences_per_batch % world_size:
        raise ValueError(
            f"a batch of {sequences_per_batch} sequences cannot be shared by {world_size} ranks; "
            "make trainer.global_batch_tokens a multiple of data.sequence_length x ranks, or "
            "change ranks_per_run"
        )
    share = sequences_per_batch // world_size
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)
