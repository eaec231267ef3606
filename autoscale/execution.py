"""How a run is executed, as opposed to what it is (`runs.RunSpec`): nothing here changes a loss."""

from collections.abc import Callable, Mapping
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
        save_every: steps between two checkpoints; None when only time decides.
        save_seconds: most seconds between two checkpoints; None when only steps decide.
        keep_last: checkpoints kept while the run trains.
        staging: folder of each host that checkpoints are written to first; None for none.
        keep_checkpoints: leave them when the result is written.
        step_timeout: seconds without a step after which the run is taken for hung.
        peak_tflops: of one device, for MFU; None to look it up or measure it.
        start_from: folder of the weights to start from; None for random ones.
        export: folder for the final model with its tokenizer; None for no export.
        reference_model: folder of the model that a DoReMi proxy is compared with; None for none.
    """

    manifest: str
    folder: str
    deepspeed: Mapping[str, Any]
    micro_batch_size: int
    activation_checkpointing: bool
    save_every: int | None
    save_seconds: float | None
    keep_last: int
    staging: str | None
    keep_checkpoints: bool
    step_timeout: float
    peak_tflops: float | None
    start_from: str | None
    export: str | None
    reference_model: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A run as seen while it trains."""

    tokens: int
    total_tokens: int
    loss: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHooks:
    """What a run that trains tells, and asks.

    Attributes:
        progress: takes the run as it stands, a hundred times over the run.
        alive: called with the steps done, on every rank, as a sign of life: after each step, and
            from time to time during longer work.
        stop_reason: why the run shall save and stop; None while it shall go on. Ranks of a run may
            learn it at different times.
    """

    progress: Callable[[Progress], None]
    alive: Callable[[int], None]
    stop_reason: Callable[[], str | None]


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


def require_equal_groups(num_groups: int, num_ranks: int) -> None:
    """Refuse ranks that cannot form equal groups."""
    if num_ranks % num_groups:
        raise ValueError(
            f"train.diloco.groups is {num_groups}, and {num_ranks} rank"
            f"{'s' if num_ranks > 1 else ''} cannot form {num_groups} equal groups; train on a "
            "multiple of it, or change train.ranks_per_run or train.diloco.groups"
        )
