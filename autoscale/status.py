"""The state of a campaign from its folders alone, while its jobs run or after them; no torch.

`status` gives one JSON document, which `autoscale status --json` prints. Counts are runs, tokens
are positions as in budgets, and null stands for what is not known:

name            of the experiment
stages          probe and train, each:
                stage, runs, finished, running, interrupted, failed, waiting, tokens, total_tokens,
                seconds_left
runs            one for each planned run:
                stage, label, run_id, folder, state, tokens, total_tokens, step, num_steps, loss,
                tokens_per_second, seconds_left, device_hours, saved_step, reason (of a failure),
                and owner: null, or host, pid, is_here (a live process of this machine) and
                silent_seconds (since its claim last moved, between the looks of one process)
campaign        running, tokens_per_second (of all runs that are running), seconds_left,
                estimated_end (ISO 8601), device_hours, left_device_hours, max_gpu_hours, tokens,
                tokens_left, max_tokens
disk            bytes, checkpoint_bytes, of all runs in the output folder
other_runs      runs in the output folder that the experiment does not ask for (any more)
artifacts       whether plan, fit, mixture and report are written
problems        sentences
done            whether every run is finished or failed

A run is `running` while a process holds it that is not known to be gone. That a process of another
machine is alive cannot be seen in one look, and clocks of two hosts are never compared: ask again,
and `silent_seconds` tells how long it gave no sign of life by this process's own clock.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from .claims import ClaimRecord
from .config import ExperimentConfig
from .planning import Experiment
from .run_folder import STATES, RunFolders, RunView, disk_bytes
from .runs import RunSpec
from .spending import Ledger, PlannedRun, flops_left, left_to_do, make_ledger
from .stages import artifact, known_targets, planned_probes, stand_in_targets


def status(config: ExperimentConfig) -> dict[str, Any]:
    """What is done, running, left and failed, in one look."""
    return StatusReader(config).read()


@dataclass(slots=True)
class StatusReader:
    """Looks at a campaign again and again; it remembers what cannot change, and signs of life.

    Attributes:
        clock: seconds, never set back.
    """

    config: ExperimentConfig
    clock: Callable[[], float] = time.monotonic
    _experiment: Experiment = field(init=False)
    _folders: RunFolders = field(init=False)
    _claims: dict[Path, tuple[ClaimRecord, float]] = field(default_factory=dict)
    _disk: dict[Path, tuple[int, int]] = field(default_factory=dict)
    _probes: list[PlannedRun] = field(init=False)
    _targets: list[PlannedRun] = field(default_factory=list)
    _targets_of: object = ()
    _problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._experiment = Experiment(self.config)
        self._folders = RunFolders(self._experiment.store.root)
        self._probes = planned_probes(self._experiment)

    def read(self) -> dict[str, Any]:
        """Look once."""
        self._plan_targets()
        planned = self._probes + self._targets
        views = self._folders.look()
        ledger = make_ledger(self.config, planned, views)
        rows = [self._row(run, run.view(views)) for run in planned]
        stages = [self._stage(name, planned, rows, views) for name in ("probe", "train")]
        asked_for = {run.identity for run in planned}
        return {
            "name": self.config.name,
            "stages": stages,
            "runs": rows,
            "campaign": _campaign(stages, rows, ledger),
            "disk": self._disk_use(views),
            "other_runs": len(set(views) - asked_for),
            "artifacts": {
                name: artifact(self.config, name).is_file()
                for name in ("plan", "fit", "mixture", "report")
            },
            "problems": list(self._problems),
            "done": all(row["state"] in ("finished", "failed") for row in rows),
        }

    def _plan_targets(self) -> None:
        """The target runs, planned anew when the mixture was written since."""
        path = artifact(self.config, "mixture")
        try:
            written: object = path.stat().st_mtime_ns
        except FileNotFoundError:
            written = None
        if written == self._targets_of:
            return
        self._targets_of, self._targets, self._problems = written, [], []
        try:
            self._targets = known_targets(self._experiment) or []
        except ValueError as error:
            self._problems.append(f"{path.name} is no use any more: {error}")
        try:
            self._targets = self._targets or stand_in_targets(self._experiment)
        except ValueError as error:
            self._problems.append(str(error))

    def _row(self, run: PlannedRun, view: RunView) -> dict[str, Any]:
        spec = run.spec
        return {
            "stage": run.stage,
            "label": spec.label,
            "run_id": _run_id(run, view),
            "folder": None if view.folder is None else str(view.folder),
            "state": view.state,
            "tokens": view.tokens,
            "total_tokens": spec.total_tokens,
            "step": view.step,
            "num_steps": spec.num_steps,
            "loss": view.loss,
            "tokens_per_second": view.tokens_per_second,
            "seconds_left": _seconds_left(spec, view),
            "device_hours": view.device_seconds / 3600,
            "saved_step": view.saved_step,
            "reason": view.failure,
            "owner": self._owner(view),
        }

    def _owner(self, view: RunView) -> dict[str, Any] | None:
        if view.state != "running" or view.claim is None or view.folder is None:
            return None
        before, since = self._claims.get(view.folder, (None, 0.0))
        now = self.clock()
        if before != view.claim:
            self._claims[view.folder] = (view.claim, now)
        silent = None
        if before is not None:
            silent = now - since if before == view.claim else 0.0
        owner = view.claim.owner
        return {
            "host": owner.host,
            "pid": owner.pid,
            "is_here": owner.is_here,
            "silent_seconds": silent,
        }

    def _stage(
        self,
        name: str,
        planned: Sequence[PlannedRun],
        rows: Sequence[Mapping[str, Any]],
        views: Mapping[str, RunView],
    ) -> dict[str, Any]:
        of_stage = [row for row in rows if row["stage"] == name]
        left = left_to_do([run for run in planned if run.stage == name], views)
        return {
            "stage": name,
            "runs": len(of_stage),
            **{state: sum(row["state"] == state for row in of_stage) for state in STATES},
            "tokens": sum(row["tokens"] for row in of_stage),
            "total_tokens": sum(row["total_tokens"] for row in of_stage),
            "seconds_left": _stage_seconds_left(left, _rate_now(planned, views)),
        }

    def _disk_use(self, views: Mapping[str, RunView]) -> dict[str, int]:
        everything = checkpoints = 0
        for view in views.values():
            assert view.folder is not None
            used = self._disk.get(view.folder) or disk_bytes(view.folder)
            if view.state == "finished":
                self._disk[view.folder] = used
            everything, checkpoints = everything + used[0], checkpoints + used[1]
        return {"bytes": everything, "checkpoint_bytes": checkpoints}


def _run_id(run: PlannedRun, view: RunView) -> str | None:
    if view.folder is not None:
        return view.folder.name
    return run.spec.run_id if run.is_known else None


def _seconds_left(spec: RunSpec, view: RunView) -> float | None:
    if view.state != "running" or not view.tokens_per_second:
        return None
    return (spec.total_tokens - view.tokens) / view.tokens_per_second


def _rate_now(planned: Sequence[PlannedRun], views: Mapping[str, RunView]) -> float:
    """FLOP/s of all runs that are running: what is left may be of models of other sizes."""
    rate = 0.0
    for run in planned:
        view = run.view(views)
        if view.state == "running" and view.tokens_per_second:
            rate += view.tokens_per_second * run.flops_per_token
    return rate


def _stage_seconds_left(
    left: Sequence[tuple[PlannedRun, RunView]], flops_per_second: float
) -> float | None:
    """What is left of a stage at the rate of now, and at least its slowest run; None: unknown."""
    if not left:
        return 0.0
    if not flops_per_second:
        return None
    together = sum(flops_left(run, view) for run, view in left) / flops_per_second
    alone = (_seconds_left(run.spec, view) for run, view in left)
    return max(together, *(seconds for seconds in alone if seconds is not None), 0.0)


def _campaign(
    stages: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], ledger: Ledger
) -> dict[str, Any]:
    running = [row for row in rows if row["state"] == "running"]
    rates = [row["tokens_per_second"] for row in running if row["tokens_per_second"]]
    by_stage = [stage["seconds_left"] for stage in stages]  # they run after each other
    seconds = None if None in by_stage else sum(by_stage)
    end = None if seconds is None else datetime.now().astimezone() + timedelta(seconds=seconds)
    return {
        "running": len(running),
        "tokens_per_second": sum(rates) if rates else None,
        "seconds_left": seconds,
        "estimated_end": None if end is None else end.isoformat(timespec="seconds"),
        **ledger.to_dict(),
    }
