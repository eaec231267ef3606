"""Sections of the experiment file on how jobs run: checkpoints and limits. None changes a loss."""

from pydantic import Field

from .config_data import FilePath, Section, TokenCount


class CheckpointConfig(Section):
    """When a run is saved, what is kept, and where it is written first."""

    save_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; by default only time decides."""
    save_minutes: float | None = Field(default=15.0, gt=0)
    """Most minutes between two checkpoints."""
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints of a run that are kept while it trains."""
    staging: FilePath | None = None
    """Folder on a disk of each host that checkpoints are written to first; they are copied to the
    run's folder while training goes on. By default they are written there at once."""
    keep_probe_checkpoints: bool = False
    """Keep a probe run's checkpoints when its result is written."""


class LimitsConfig(Section):
    """What an experiment may spend, and how long its jobs wait for a sign of life."""

    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Device hours of all runs together; jobs stop cleanly when they are spent."""
    max_tokens: TokenCount | None = None
    """Tokens of all runs together."""
    step_timeout_minutes: float = Field(default=30.0, gt=0)
    """A run that made no step for so long is taken for hung, and ended."""
    stop_before_end_minutes: float = Field(default=3.0, ge=0)
    """Save and stop so long before the end of the Slurm job; what a checkpoint takes, twice."""
    device_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of one device, for `plan`; by default that of the devices that it sees."""
