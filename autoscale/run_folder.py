"""A run as its folder shows it at this moment, read while the run's processes write there.

Nothing here disturbs a run or waits for one. A file may be half written, replaced, or gone between
the listing and the reading: what cannot be read is passed over, and the next look finds it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .checkpoint_files import newest_step
from .claims import ClaimRecord, read_claim

State = Literal["finished", "running", "interrupted", "failed", "waiting"]
STATES: Final[tuple[State, ...]] = ("finished", "running", "interrupted", "failed", "waiting")
_FIRST_BLOCK: Final = 16_384  # bytes; holds the last few records of a run over dozens of domains


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """One look at a run.

    Attributes:
        state: `running` while a process holds the run that is not known to be gone.
        step, tokens: done, as last logged; tokens count positions, as budgets do.
        loss: of the last record, nats a token; of a finished run the mean validation loss.
        tokens_per_second: as last logged; of a finished run over all of it.
        device_seconds: seconds of training times the ranks that trained, as last logged. On CPU a
            rank counts as a device. What a killed attempt did after its last checkpoint is in it
            until the run goes on from there.
        claim: of the process that trains it, or did; None when nobody ever did.
        saved_step: of the newest checkpoint; None without one.
        failure: why it has no result, as `reason: message`.
        diverged: whether it would fail again.
        device: that a finished run was trained on.
        folder: where it lies; None before there is one.
    """

    state: State
    step: int = 0
    tokens: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    device_seconds: float = 0.0
    claim: ClaimRecord | None = None
    saved_step: int | None = None
    failure: str | None = None
    diverged: bool = False
    device: str | None = None
    folder: Path | None = None


NOT_THERE: Final = RunView(state="waiting")


@dataclass(slots=True)
class RunFolders:
    """All runs below `root`, looked at again and again; results are read once."""

    root: Path
    _finished: dict[Path, RunView] = field(default_factory=dict)

    def look(self) -> dict[str, RunView]:
        """Every run that has a folder, by its identity, which the folder's name ends in."""
        views: dict[str, RunView] = {}
        for folder in sorted(_folders(self.root)):
            identity = folder.name.rpartition("-")[2]
            # `RunStore` takes the first of several; what the others spent is spent nevertheless.
            views[folder.name if identity in views else identity] = self._view(folder)
        return views

    def device_seconds(self) -> float:
        """Spent by all runs, from as few files as can be: jobs ask again and again."""
        total = 0.0
        for folder in _folders(self.root):
            view = self._finished.get(folder) or _result_view(folder)
            if view is not None:
                self._finished[folder] = view
                total += view.device_seconds
            else:
                total += _device_seconds(last_training_record(folder / "metrics.jsonl"))
        return total

    def _view(self, folder: Path) -> RunView:
        known = self._finished.get(folder)
        if known is not None:
            return known
        view = view_run(folder)
        if view.state == "finished":
            self._finished[folder] = view
        return view


def view_run(folder: Path) -> RunView:
    """Look at one run."""
    finished = _result_view(folder)
    if finished is not None:
        return finished
    record = last_training_record(folder / "metrics.jsonl") or {}
    failure = _read_object(folder / "failed.json")
    claim = _claim(folder)
    state: State = "waiting"
    if failure is not None:
        state = "failed"
    elif claim is not None and not claim.is_given_up:
        state = "running"
    elif (folder / "spec.json").is_file():
        state = "interrupted"
    return RunView(
        folder=folder,
        state=state,
        step=int(record.get("step", 0)),
        tokens=int(record.get("tokens", 0)),
        loss=record.get("train_loss"),
        tokens_per_second=record.get("tokens_per_second"),
        device_seconds=_device_seconds(record),
        claim=claim,
        saved_step=newest_step(folder / "checkpoints"),
        failure=None if failure is None else f"{failure['reason']}: {failure['message']}",
        diverged=failure is not None and failure["reason"] == "diverged",
    )


def _device_seconds(record: Mapping[str, Any] | None) -> float:
    return float(record.get("device_seconds", 0.0)) if record else 0.0


def _result_view(folder: Path) -> RunView | None:
    """A finished run; None while there is no result."""
    result = _read_object(folder / "result.json")
    if result is None:
        return None
    windows, length = sum(result["spec"]["sequences"]), result["spec"]["sequence_length"]
    return RunView(
        folder=folder,
        state="finished",
        step=windows // result["spec"]["optimisation"]["sequences_per_batch"],
        tokens=windows * length,
        loss=result["final_mean_loss"],
        tokens_per_second=result["tokens_per_second"],
        device_seconds=result["seconds"] * result["world_size"],
        device=result["device"],
    )


def last_training_record(path: Path) -> dict[str, Any] | None:
    """The last whole training record of a `metrics.jsonl`, of which only the end is read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            size = _FIRST_BLOCK
            while True:
                start = max(0, end - size)
                file.seek(start)
                lines = file.read(end - start).split(b"\n")
                # The first line of a block is cut somewhere, the last one may still be written.
                for line in reversed(lines[1:] if start else lines):
                    record = _parse(line)
                    if record is not None and record.get("kind") == "training":
                        return record
                if not start:
                    return None
                size *= 4
    except OSError:
        return None


def disk_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of all files below a run's folder, and of its checkpoints among them."""
    everything = checkpoints = 0
    for entry in _scan(folder):
        used = _bytes_below(entry)
        everything += used
        if entry.name == "checkpoints":
            checkpoints += used
    return everything, checkpoints


def _bytes_below(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return sum(_bytes_below(inner) for inner in _scan(Path(entry.path)))
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:  # it was removed since it was listed
        return 0


def _folders(root: Path) -> Iterator[Path]:
    for entry in _scan(root):
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # not there yet, or not any more
        return []


def _claim(folder: Path) -> ClaimRecord | None:
    try:
        return read_claim(folder)
    except OSError:
        return None


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
