"""Many runs over the ranks of a job: side by side, longest first, none of them twice.

The ranks form groups of `ranks_per_run`. A group that is free takes the next run from a counter in
the job's store, so no rank waits for a slower one. Which runs are left is decided on rank 0 from
the run folders alone; what a run gave is in its folder when the campaign returns.

Other jobs may work on the same folder. A group claims a run before it trains it (`claims.py`) and
passes over those that others hold; when no other is left it looks at these again, since their
owners may have finished or died.

When the job is told to stop, or its budget is spent, no further run is taken, those in progress
save after their next step, and every rank raises `StopRequested` once all have ended.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from .claims import Claim, Claims
from .distributed import Job, free_port
from .execution import Execution, Progress
from .runs import RunFailure, RunSpec, RunStore
from .shared_errors import RemoteError, SharedMistake
from .stop_request import Stop, StopRequest, StopRequested
from .worker import (
    Assignment,
    Child,
    ChildError,
    Worker,
    decode_progress,
    encode_progress,
)

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_LOOK_AGAIN_SECONDS = 2.0
_GIVE_WAY_SECONDS = 3.0
_BUDGET_SECONDS = 30.0
_OUT_OF_BUDGET = 2  # the status of what the user has to change: started again it would stop again


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignProgress:
    """A campaign as rank 0 sees it.

    Attributes:
        finished, total: runs.
        tokens, total_tokens: trained so far and in all, of the runs that were left to do.
        active: labels of the runs in progress, with their own progress once there is some.
    """

    stage: str
    finished: int
    total: int
    tokens: int
    total_tokens: int
    active: tuple[tuple[str, Progress | None], ...]


Observer = Callable[[CampaignProgress], None]


def unobserved(progress: CampaignProgress) -> None:
    """The observer of a job that shows nothing."""


def unlimited() -> str | None:
    """The budget of a campaign that has none."""
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One run to do."""

    spec: RunSpec
    execution: Execution


class Campaign:
    """Runs `tasks` on the ranks of `job`; every rank makes one and calls `run`.

    Args:
        wait: stay until the runs that other jobs hold are done too, and take over those whose owner
            dies; else leave them to these jobs.
        stop: tells when to stop.
        out_of_budget: why nothing more may be trained; None while it may. The first rank of every
            group asks before it takes a run, and every `_BUDGET_SECONDS` while one trains.
    """

    def __init__(
        self,
        job: Job,
        store: RunStore,
        *,
        stage: str,
        ranks_per_run: int,
        observer: Observer,
        wait: bool,
        stop: StopRequest,
        out_of_budget: Callable[[], str | None] = unlimited,
    ) -> None:
        self._job, self._store, self._stage = job, store, stage
        self._wait, self._stop, self._out_of_budget = wait, stop, out_of_budget
        self._budget_asked = 0.0
        self._claims = Claims()
        self._ranks_per_run = ranks_per_run
        self._observer = observer
        self._num_groups = job.world_size // ranks_per_run
        self._group, self._rank_in_group = divmod(job.rank, ranks_per_run)
        self._tasks: Sequence[Task] = ()
        self._claim: Claim | None = None
        self._worker = Worker(fork=os.environ.get("DS_ACCELERATOR") == "cpu")
        idle = job.world_size - self._num_groups * ranks_per_run
        if idle and job.is_root:
            logger.warning("%s: %d ranks stay idle (%d a run)", stage, idle, ranks_per_run)

    def run(self, tasks: Sequence[Task]) -> None:
        """Do what is left of `tasks`.

        Raises:
            ValueError: on every rank, when a run stopped on a user's mistake.
            RemoteError: on every rank, when a run crashed, after the others were done; and at once
                when a rank of the job is lost.
            StopRequested: on every rank, when the job was told to stop or its budget is spent.
        """
        unfinished = self._job.from_root(lambda: self._unfinished(tasks))
        self._tasks = [tasks[index] for index in unfinished]
        # Keys of an earlier campaign of this job must not be seen by this one.
        self._prefix = f"{self._stage}/{self._job.from_root(lambda: os.urandom(8).hex())}"
        if self._tasks:
            if self._group < self._num_groups:
                self._work()
            self._observe_until_all_arrive()
        outcome = self._job.from_root(self._outcome)
        if outcome["mistake"] is not None:
            raise SharedMistake(outcome["mistake"])
        if outcome["stop"] is not None:
            raise StopRequested(Stop(**outcome["stop"]), outcome["saved"])
        if outcome["crashed"] is not None:
            raise RemoteError(f"run {outcome['crashed']}")

    def _outcome(self) -> dict[str, Any]:
        """How the campaign ended; rank 0 asks when all groups are done."""
        stop = self._stop.agreed()
        saved = [self._read_text(f"saved/{number + 1}") for number in range(self._count("saved"))]
        return {
            "mistake": self._read("mistake"),
            "crashed": self._read_text("crashed"),
            "stop": stop and asdict(stop),
            "saved": saved,
        }

    def _unfinished(self, tasks: Sequence[Task]) -> list[int]:
        """Indices of the tasks to do, longest first; the same run is done once."""
        left: dict[str, int] = {}
        for index, task in enumerate(tasks):
            status = self._store.status(task.spec)
            diverged = status == "failed" and self._store.failure(task.spec).reason == "diverged"
            if status != "finished" and not diverged:
                left.setdefault(task.spec.identity, index)
        return sorted(left.values(), key=lambda index: -tasks[index].spec.total_tokens)

    def _work(self) -> None:
        """Take runs until none is left."""
        turn = 0
        while True:
            taken = self._take_next(turn)
            if taken is None:
                return
            index, master = taken
            spec = self._tasks[index].spec
            try:
                self._train(self._tasks[index], master, turn)
            finally:
                if self._claim is not None:
                    self._claim.release()
                    self._claim = None
            if self._rank_in_group == 0 and self._store.status(spec) != "interrupted":
                self._count_done(index)
            turn += 1

    def _take_next(self, turn: int) -> tuple[int, str] | None:
        """The group's next task and the address of its first rank, agreed in the group."""
        key = f"{self._prefix}/group{self._group}/{turn}"
        if self._rank_in_group == 0:
            index = self._claim_next()
            master = f"{self._job.address}:{free_port()}"
            self._job.store.set(key, json.dumps(None if index is None else [index, master]))
        taken = json.loads(self._job.store.get(key))
        return None if taken is None else (int(taken[0]), str(taken[1]))

    def _claim_next(self) -> int | None:
        """The next task that nobody trains, now claimed by this rank; None when none is left."""
        while not self._ends:
            index = int(self._job.store.add(f"{self._prefix}/next", 1)) - 1
            if index >= len(self._tasks):
                return self._claim_left()
            if self._try_to_claim(index):
                return index
        return None

    def _claim_left(self) -> int | None:
        """One of the runs that others held, once its owner gave it up or died."""
        while not self._ends:
            left = [
                index
                for index, task in enumerate(self._tasks)
                if self._store.status(task.spec) in ("waiting", "interrupted")
            ]
            for index in left:
                if self._try_to_claim(index):
                    return index
            for index in set(range(len(self._tasks))) - set(left):
                self._count_done(index)
            if not (left and self._wait):
                return None
            self._observe()
            self._stop.wait(_LOOK_AGAIN_SECONDS)
        return None

    @property
    def _ends(self) -> bool:
        """Whether no further run is to be taken."""
        return self._stop.stop is not None or self._read("mistake") is not None

    def _within_budget(self) -> bool:
        self._budget_asked = time.monotonic()
        reason = self._out_of_budget()
        if reason is not None:
            self._stop.request(Stop(reason=reason, status=_OUT_OF_BUDGET))
        return reason is None

    def _try_to_claim(self, index: int) -> bool:
        spec = self._tasks[index].spec
        if self._store.status(spec) == "finished":  # by another job, since this one began
            self._count_done(index)
            return False
        if not self._within_budget():
            return False
        self._claim = self._claims.take(self._store.folder(spec))
        if self._claim is not None and self._store.status(spec) == "finished":
            self._claim.release()  # it was finished between the two looks
            self._claim = None
        return self._claim is not None

    @property
    def _overtaken(self) -> bool:
        """Whether another job holds the run that this rank claimed."""
        return self._claim is not None and self._claim.lost

    def _count_done(self, index: int) -> None:
        if self._job.store.add(f"{self._prefix}/counted/{index}", 1) == 1:
            self._job.store.add(f"{self._prefix}/done", 1)

    def _train(self, task: Task, master: str, turn: int) -> None:
        """This rank's part of one run, until it ends or fails on any rank of the group."""
        leads = self._rank_in_group == 0
        error_key = f"error/{self._group}/{turn}"
        if leads:
            self._store.start(task.spec)
        child = self._worker.start(
            Assignment(
                spec=task.spec,
                execution=task.execution,
                rank=self._rank_in_group,
                world_size=self._ranks_per_run,
                local_rank=self._job.local_rank,
                master=master,
            )
        )
        asked = False
        try:
            while not child.poll(_POLL_SECONDS):
                # A rank that lost its peer may wait for it until a time-out: end it now.
                if self._ranks_per_run > 1 and self._read_text(error_key) is not None:
                    break
                if self._overtaken:
                    lost = "another job took the run over: this one gave no sign of life for long"
                    child.error = ChildError(message=lost, user_mistake=False)
                    break
                if leads:
                    self._publish(task, child)
                    if time.monotonic() - self._budget_asked > _BUDGET_SECONDS:
                        self._within_budget()
                if self._stop.stop is not None and not asked:
                    child.ask_to_stop(self._stop.stop.reason)
                    asked = True
                self._observe()
        finally:
            child.stop()
        if child.error is not None:
            self._report(child.error, error_key)
        if leads:
            error = self._read_text(error_key)
            self._conclude(task, child, ChildError(**json.loads(error)) if error else None)

    def _report(self, error: ChildError, error_key: str) -> None:
        """Tell the group why its run ends: with the first cause, which another rank may know."""
        end = time.monotonic() + _GIVE_WAY_SECONDS
        while error.follows and self._ranks_per_run > 1 and time.monotonic() < end:
            if self._read_text(error_key) is not None:
                return
            time.sleep(_POLL_SECONDS)
        text = json.dumps(asdict(error))
        self._job.store.compare_set(f"{self._prefix}/{error_key}", "", text)

    def _publish(self, task: Task, child: Child) -> None:
        text = encode_progress(task.spec.label, child.progress)
        self._job.store.set(f"{self._prefix}/progress/{self._group}", text)

    def _conclude(self, task: Task, child: Child, error: ChildError | None) -> None:
        """Account for a run that ended: its tokens, or why there is no result."""
        status = self._store.status(task.spec)
        if status == "finished":
            self._job.store.add(f"{self._prefix}/tokens", task.spec.total_tokens)
        elif error is not None and error.user_mistake:
            self._job.store.set(f"{self._prefix}/mistake", json.dumps(error.message))
        elif child.stopped is not None:
            if child.progress is not None:
                self._job.store.add(f"{self._prefix}/tokens", child.progress.tokens)
            number = self._job.store.add(f"{self._prefix}/saved", 1)
            text = f"{task.spec.label} {child.stopped}"
            self._job.store.set(f"{self._prefix}/saved/{number}", text)
        elif status != "failed" and not self._overtaken:
            cause = error.message if error else "it ended without a result"
            folder = self._store.folder(task.spec)
            message = f"{cause}; see log-rank*.txt in {folder}"
            self._job.store.set(f"{self._prefix}/crashed", f"{task.spec.label}: {message}")
            try:
                RunFailure(reason="crashed", message=message).save(folder)
            except OSError as error_of_disk:
                logger.error("run %s crashed (%s), and %s", task.spec.label, cause, error_of_disk)
        self._job.store.set(f"{self._prefix}/progress/{self._group}", encode_progress("", None))

    def _observe_until_all_arrive(self) -> None:
        """Wait for the other groups, showing their progress; a rank that died ends the wait."""
        arrival = dist.barrier(async_op=True)
        while not arrival.is_completed():
            self._observe()
            time.sleep(_POLL_SECONDS)
        with self._job.waiting():
            arrival.wait()
        self._observe()

    def _observe(self) -> None:
        self._job.require_all()
        if not self._job.is_root:
            return
        active = []
        for group in range(self._num_groups):
            text = self._read_text(f"progress/{group}")
            label, progress = decode_progress(text) if text else ("", None)
            if label:
                active.append((label, progress))
        in_progress = sum(progress.tokens for _, progress in active if progress)
        total = sum(task.spec.total_tokens for task in self._tasks)
        self._observer(
            CampaignProgress(
                stage=self._stage,
                finished=self._count("done"),
                total=len(self._tasks),
                tokens=min(total, self._count("tokens") + in_progress),
                total_tokens=total,
                active=tuple(active),
            )
        )

    def _count(self, name: str) -> int:
        return int(self._job.store.add(f"{self._prefix}/{name}", 0))

    def _read(self, name: str) -> str | None:
        text = self._read_text(name)
        return None if text is None else json.loads(text)

    def _read_text(self, name: str) -> str | None:
        key = f"{self._prefix}/{name}"
        return self._job.store.get(key).decode() if self._job.store.check([key]) else None
