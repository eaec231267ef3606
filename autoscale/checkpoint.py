"""Checkpoints of a run in progress: taken in a moment, written beside the training, then verified.

`CheckpointWriter.save` copies the state of all ranks to host memory; a thread of each rank writes
its copy while training goes on. The ranks' threads agree through a process group of their own, and
the first publishes the record (`checkpoint_files`) once all files are on disk. A save that fails on
any rank fails on all of them, leaves the earlier checkpoints as they are, and training goes on.

DeepSpeed loads checkpoints with pickle: they are code. None is opened before its fingerprints were
checked; even so, only load those that your own jobs wrote.
"""

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .checkpoint_files import (
    CheckpointRecord,
    FileMark,
    MarkedFile,
    copy_synced,
    discard,
    make_room,
    newest_step,
    problem_of,
    prune,
    saved_steps,
    share_of,
    sync_folder,
)
from .elastic import loadable_folder, require_carried
from .snapshot import Snapshots, described, tensor_bytes

logger = logging.getLogger(__name__)

WRITING_TIMEOUT = timedelta(days=1)
"""How long a rank's thread waits for the others' files; the run's own watch ends it sooner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOutcome:
    """How a save ended.

    Attributes:
        bytes: of all ranks together.
        blocked_seconds: that training stood still.
        write_seconds: until it was published, beside training.
        problem: why there is no checkpoint of this step; None when there is one.
    """

    step: int
    bytes: int
    blocked_seconds: float
    write_seconds: float
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """A checkpoint that model and optimiser were restored from.

    Attributes:
        world_size: ranks that wrote it.
    """

    step: int
    world_size: int
    progress: dict[str, Any]
    folder: Path

    def extra(self, rank: int) -> dict[str, Any] | None:
        """What the rank that wrote it gave besides; None when it gave nothing."""
        path = next(self.folder.rglob(_extra_name(rank)), None)  # in the folder of its group
        if path is None:
            return None
        return torch.load(path, map_location="cpu", weights_only=False)


@dataclass(kw_only=True, slots=True)
class _Save:
    """One save on its way; `files` empties as they are written."""

    record: CheckpointRecord
    files: dict[str, Any]
    problem: str | None
    blocked_seconds: float = 0.0


class CheckpointWriter:
    """Saves one run; every rank makes one and calls it alike."""

    def __init__(
        self,
        engine: Any,
        folder: Path,
        *,
        keep_last: int,
        staging: str | None,
        group: int = 0,
        groups: int = 1,
    ) -> None:
        """Take over the saving of `engine`.

        Args:
            keep_last: whole checkpoints that stay.
            staging: folder of this host that files are written to first; None for none.
            group: of ranks with weights of their own that this rank belongs to, of `groups`.

        Raises:
            ValueError: the optimiser's state lies on NVMe, which DeepSpeed copies by itself.
        """
        if engine.zero_nvme_offload_optimizer():
            raise ValueError(
                "trainer.deepspeed: an optimiser offloaded to nvme cannot be checkpointed; set "
                "zero_optimization.offload_optimizer.device to cpu"
            )
        self._engine, self._folder, self._keep_last = engine, folder, keep_last
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._groups, self._inner = groups, group_folder(group, groups)
        self._staging = None if staging is None else _staging_folder(staging, folder, self._rank)
        self._threads_group = None
        if self._world_size > 1:
            self._threads_group = dist.new_group(backend="gloo", timeout=WRITING_TIMEOUT)
        self._thread: threading.Thread | None = None
        self._outcomes: list[SaveOutcome] = []
        self._last: SaveOutcome | None = None
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)  # of a job that was killed
        # The scripts that DeepSpeed copies into every checkpoint are part of its installation.
        engine._copy_recovery_script = lambda save_path: None

    def save(
        self, step: int, progress: dict[str, Any], extra: dict[str, Any] | None = None
    ) -> None:
        """Copy the state after `step` completed steps and have it written; all ranks call.

        Waits for the save before, if that is still being written.

        Args:
            progress: of the run, JSON, the same on all ranks.
            extra: further state of this rank; what `torch.save` takes.
        """
        begin = time.perf_counter()
        self.finish()
        record = CheckpointRecord(
            step=step,
            world_size=self._world_size,
            zero_stage=int(self._engine.zero_optimization_stage()),
            groups=self._groups,
            progress=progress,
            files={},
        )
        own = self._engine.checkpoint_engine
        self._engine.checkpoint_engine = snapshots = Snapshots(self._inner)
        try:
            self._engine.save_checkpoint(str(self._folder), tag=record.name, save_latest=False)
        finally:
            self._engine.checkpoint_engine = own
        if extra is not None:
            snapshots.save(extra, _extra_name(self._rank))
        save = _Save(record=record, files=snapshots.files, problem=snapshots.problem)
        save.blocked_seconds = time.perf_counter() - begin
        self._thread = threading.Thread(
            target=self._write, args=(save,), daemon=True, name="checkpoint"
        )
        self._thread.start()

    def finish(self) -> str | None:
        """Wait for the save under way; why the last one failed, or None. All ranks call."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return None if self._last is None else self._last.problem

    def outcomes(self) -> list[SaveOutcome]:
        """The saves that ended since the last call."""
        ended, self._outcomes = self._outcomes, []
        return ended

    def _write(self, save: _Save) -> None:
        """Body of the thread: nothing may leave it but an outcome."""
        begin = time.perf_counter()
        size, problem = 0, None
        try:
            size, problem = self._write_together(save)
        except Exception as error:  # another rank ended, or waited too long
            problem = described(error)
        save.files.clear()
        seconds = time.perf_counter() - begin
        if problem is not None and self._rank == 0:
            last = newest_step(self._folder)
            remains = "there is none yet" if last is None else f"step-{last} is still whole"
            logger.warning(
                "no checkpoint %s: %s; %s and training goes on",
                self._folder / save.record.name, problem, remains,
            )  # fmt: skip
        self._last = SaveOutcome(
            step=save.record.step, bytes=size, blocked_seconds=save.blocked_seconds,
            write_seconds=seconds, problem=problem,
        )  # fmt: skip
        self._outcomes.append(self._last)

    def _write_together(self, save: _Save) -> tuple[int, str | None]:
        """Write the files of all ranks, then the record; total bytes, and what went wrong."""
        needed = sum(map(tensor_bytes, save.files.values()))
        shares = self._gather((needed, save.problem))
        size = sum(share[0] for share in shares)
        problem = _first_problem(share[1] for share in shares)
        step = save.record.step
        if problem is None:
            problem = self._on_first_rank(lambda: make_room(self._folder, step, size))
        if problem is None:
            written = self._gather(self._write_files(save))
            problem = _first_problem(share[1] for share in written)
        if problem is None:
            marks = {name: mark for share in written for name, mark in share[0].items()}
            record = replace(save.record, files=marks)
            problem = self._on_first_rank(lambda: self._publish(record))
        if problem is not None:
            self._on_first_rank(lambda: discard(self._folder, step))
        return size, problem

    def _write_files(self, save: _Save) -> tuple[dict[str, FileMark], str | None]:
        """Write this rank's files, on the staging disk first where there is one."""
        target = self._folder / save.record.name
        marks: dict[str, FileMark] = {}
        try:
            for name in list(save.files):
                path = (self._staging or target) / name
                with MarkedFile(path) as file:
                    torch.save(save.files.pop(name), file)
                marks[name] = file.mark
            if self._staging is not None:
                for name in marks:
                    copy_synced(self._staging / name, target / name)
            for inner in {(target / name).parent for name in marks}:
                sync_folder(inner)
            return marks, None
        except Exception as error:
            return {}, described(error)
        finally:
            if self._staging is not None:
                shutil.rmtree(self._staging, ignore_errors=True)

    def _publish(self, record: CheckpointRecord) -> None:
        record.save(self._folder)
        prune(self._folder, record.step, self._keep_last)

    def _gather(self, value: Any) -> list[Any]:
        """The values of all ranks; in the thread."""
        values = [value]
        if self._threads_group is not None:
            values = [None] * self._world_size
            dist.all_gather_object(values, value, group=self._threads_group)
        return values

    def _on_first_rank(self, action: Callable[[], None]) -> str | None:
        """Do something on rank 0; what went wrong there, on every rank. In the thread."""
        problem = None
        if self._rank == 0:
            try:
                action()
            except Exception as error:
                problem = described(error)
        return self._gather(problem)[0]


def load_checkpoint(
    engine: Any, folder: Path, *, group: int = 0, groups: int = 1
) -> Restored | None:
    """Restore the newest whole checkpoint; None when there is none. All ranks call.

    Args:
        group: of ranks with weights of their own that this rank belongs to, of `groups`.

    Raises:
        ValueError: a change since it was written that it cannot carry, or an older version of
            autoscale wrote it.
    """
    if (folder / "latest.json").is_file():
        raise ValueError(
            f"{folder} holds a checkpoint of an older version of autoscale, without fingerprints; "
            "start the run again with --no-resume"
        )
    record = _newest_whole(folder)
    if record is None:
        return None
    require_carried(engine, folder / record.name, record, groups)
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in engine.optimizer.param_groups
    ]
    with loadable_folder(engine, folder, record) as loadable:
        parent, tag = loadable, group_folder(group, groups)
        if groups == 1:
            parent, tag = loadable.parent, loadable.name
        path, _ = engine.load_checkpoint(str(parent), tag=tag)
        assert path is not None, (parent, tag)
    _keep_settings(engine, settings)
    return Restored(
        step=record.step,
        world_size=record.world_size,
        progress=dict(record.progress),
        folder=folder / record.name,
    )


def _newest_whole(folder: Path) -> CheckpointRecord | None:
    """The newest checkpoint that all ranks found whole, each a share of its files."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    steps = _from_first_rank(lambda: saved_steps(folder))
    for step in steps:
        record, problem = _from_first_rank(partial(_read, folder, step))
        if record is not None:
            found = [None] * world_size
            mine = share_of(record, rank, world_size)
            dist.all_gather_object(found, problem_of(folder, record, mine))
            problem = _first_problem(found)
            if problem is None:
                return record
        if rank == 0:
            logger.warning(
                "checkpoint %s is broken and skipped: %s", folder / f"step-{step}", problem
            )
    if steps and rank == 0:
        logger.warning("no checkpoint in %s is whole; the run starts from its first step", folder)
    return None


def _read(folder: Path, step: int) -> tuple[CheckpointRecord | None, str | None]:
    try:
        return CheckpointRecord.load(folder, step), None
    except ValueError as error:
        return None, str(error)


def _from_first_rank(compute: Callable[[], Any]) -> Any:
    values = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]


def _keep_settings(engine: Any, settings: list[dict[str, Any]]) -> None:
    """Undo what loading does to the optimiser beyond its state.

    A universal checkpoint gives every group the settings of one and one count of steps to all, so
    that each step counts twice (ZeRO-3); and it leaves that count on the CPU, where a fused AdamW
    on a device does not look for it.
    """
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, state in engine.basic_optimizer.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device, copy=True)


def group_folder(group: int, groups: int) -> str:
    """Folder of a group's files inside a checkpoint; groups use the same file names."""
    return "" if groups == 1 else f"group-{group}"


def _extra_name(rank: int) -> str:
    return f"extra-rank-{rank}.pt"


def _staging_folder(staging: str, folder: Path, rank: int) -> Path:
    """A folder of this run and rank alone, on a disk that runs share."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return Path(staging) / f"{folder.parent.name}-{digest}-rank{rank}"


def _first_problem(problems: Iterable[str | None]) -> str | None:
    """The first problem that a rank has, with its name."""
    return next(
        (f"rank {rank}: {text}" for rank, text in enumerate(problems) if text is not None), None
    )
