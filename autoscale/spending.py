"""What the runs of an experiment have spent, and whether what is left fits its limits.

Device hours are seconds of training times the ranks that trained (on CPU a rank counts as a
device); tokens are positions, as in budgets. All runs of the output folder count, also those that
an earlier version of the experiment file asked for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .config import ExperimentConfig
from .config_execution import LimitsConfig
from .model_shape import model_size
from .run_folder import NOT_THERE, RunFolders, RunView
from .runs import RunSpec

ASSUMED_MFU = 0.4
"""Share of the peak rate assumed where nothing was measured yet; a usual value for dense models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """Of some runs together."""

    tokens: int
    device_hours: float


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that the experiment needs.

    Attributes:
        spec: of the run; where its mixture is not known yet, of one with the same size.
        is_known: whether `spec` is the run's own.
    """

    stage: Literal["probe", "train"]
    spec: RunSpec
    is_known: bool = True

    @cached_property
    def identity(self) -> str:
        """What tells it from the other runs: stand-ins of one size are alike but in their label."""
        return self.spec.identity if self.is_known else self.spec.label

    @cached_property
    def flops_per_token(self) -> float:
        return model_size(self.spec.model, self.spec.sequence_length).flops_per_token

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.flops_per_token * self.spec.total_tokens

    def view(self, views: Mapping[str, RunView]) -> RunView:
        """The run among those that were looked at."""
        return views.get(self.identity, NOT_THERE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """An experiment's spending, what it still needs, and its limits.

    Attributes:
        left_device_hours: None while no rate is known.
        rate: FLOP/s of one device; None while it is not known.
        rate_basis: where the rate comes from.
    """

    limits: LimitsConfig
    spent: Spending
    left_tokens: int
    left_device_hours: float | None
    rate: float | None
    rate_basis: str

    def check(self) -> None:
        """Raise ValueError when a limit is spent, or is not enough for what is left."""
        if self.left_tokens == 0:
            return
        spent = hours_problem(self.limits, self.spent.device_hours)
        problem = spent or self._hours_short or self._tokens_short
        if problem:
            raise ValueError(problem)

    @property
    def _hours_short(self) -> str | None:
        limit, left = self.limits.max_gpu_hours, self.left_device_hours
        if limit is None or left is None or self.spent.device_hours + left <= limit:
            return None
        return (
            f"limits.max_gpu_hours is {limit:g}, but {self.spent.device_hours:.3g} device hours "
            f"are spent and the runs that are left need about {left:.3g} (rate of a device: "
            f"{self.rate_basis}); plan fewer or shorter runs, or raise limits.max_gpu_hours"
        )

    @property
    def _tokens_short(self) -> str | None:
        limit = self.limits.max_tokens
        if limit is None or self.spent.tokens + self.left_tokens <= limit:
            return None
        return (
            f"limits.max_tokens is {limit:_}, but {self.spent.tokens:_} tokens are spent and the "
            f"runs that are left need {self.left_tokens:_}; plan fewer runs, lower probe.budgets "
            "or train.budget, or raise limits.max_tokens"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "device_hours": self.spent.device_hours,
            "left_device_hours": self.left_device_hours,
            "max_gpu_hours": self.limits.max_gpu_hours,
            "tokens": self.spent.tokens,
            "tokens_left": self.left_tokens,
            "max_tokens": self.limits.max_tokens,
        }


def spending_of(views: Iterable[RunView]) -> Spending:
    listed = list(views)
    return Spending(
        tokens=sum(view.tokens for view in listed),
        device_hours=sum(view.device_seconds for view in listed) / 3600,
    )


def make_ledger(
    config: ExperimentConfig, planned: Sequence[PlannedRun], views: Mapping[str, RunView]
) -> Ledger:
    """Account for an experiment.

    Args:
        planned: the runs that it needs.
        views: a look at every run in its folder (`RunFolders.look`).
    """
    left = left_to_do(planned, views)
    rate, basis = device_rate(planned, views, config.trainer.peak_tflops)
    flops = sum(flops_left(run, view) for run, view in left)
    return Ledger(
        limits=config.limits,
        spent=spending_of(views.values()),
        left_tokens=sum(run.spec.total_tokens - view.tokens for run, view in left),
        left_device_hours=None if rate is None else flops / rate / 3600,
        rate=rate,
        rate_basis=basis,
    )


def left_to_do(
    planned: Iterable[PlannedRun], views: Mapping[str, RunView]
) -> list[tuple[PlannedRun, RunView]]:
    """The runs still to be trained, each once; those that diverged would do so again."""
    left: dict[str, tuple[PlannedRun, RunView]] = {}
    for run in planned:
        view = run.view(views)
        if view.state != "finished" and not view.diverged:
            left.setdefault(run.identity, (run, view))
    return list(left.values())


def flops_left(run: PlannedRun, view: RunView) -> float:
    """What a run still takes; one that nobody trains goes on from its newest checkpoint."""
    kept = (view.saved_step or 0) * run.spec.tokens_per_batch
    tokens = view.tokens if view.state == "running" else kept
    return run.flops_per_token * (run.spec.total_tokens - tokens)


def device_rate(
    planned: Iterable[PlannedRun], views: Mapping[str, RunView], peak_tflops: float | None
) -> tuple[float | None, str]:
    """FLOP/s that one device will do, and where the figure comes from."""
    looked = [(run, run.view(views)) for run in planned]
    finished = [(run, view) for run, view in looked if view.state == "finished"]
    if finished:
        seconds = sum(view.device_seconds for _, view in finished)
        runs = "1 run" if len(finished) == 1 else f"{len(finished)} runs"
        basis = f"measured in {runs} on {finished[0][1].device}"
        return sum(run.flops for run, _ in finished) / seconds, basis
    if peak_tflops is not None:
        basis = f"assumed {ASSUMED_MFU:.0%} of trainer.peak_tflops ({peak_tflops:g} TFLOP/s)"
        return ASSUMED_MFU * peak_tflops * 1e12, basis
    return None, "unknown until a run is finished; give trainer.peak_tflops for an estimate"


def hours_problem(limits: LimitsConfig, device_hours: float) -> str | None:
    """Why no run may go on; None while device hours are left, or not limited."""
    limit = limits.max_gpu_hours
    if limit is None or device_hours < limit:
        return None
    return (
        f"limits.max_gpu_hours is {limit:g} and the runs have spent {device_hours:.3g} device "
        "hours; raise limits.max_gpu_hours and start again to go on"
    )


def watch_hours(limits: LimitsConfig, folders: RunFolders) -> Callable[[], str | None]:
    """A function that says why the runs must stop, once their device hours are spent."""

    def problem() -> str | None:
        if limits.max_gpu_hours is None:
            return None
        return hours_problem(limits, folders.device_seconds() / 3600)

    return problem
