"""Claims: which process trains a run, so that any number of jobs may share one folder of runs.

There is no server: a claim is a file in the run's folder, on a file system that the jobs share.

    claim-<generation>.json    its owner (host, process), a counter that the owner keeps raising,
                               and whether it was released

The newest generation holds the run. A claim is taken by making the next generation's file, which
only one process can do (a hard link fails when the name exists, on NFS too). It may be taken once
the one before is released or its owner is dead:

- on the same machine, as soon as no process with its number and start time exists;
- elsewhere, when its counter stood still for `DEAD_AFTER` seconds *of the observer's own clock*.
  Clocks of two hosts are never compared, so that skew between them does not matter.

An owner that was taken for dead (a suspended host) finds a newer generation at its next heartbeat,
and has to stop: `Claim.lost`.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from .processes import stat_fields
from .records import naming_what_is_written

HEARTBEAT_SECONDS: Final = 10.0
DEAD_AFTER: Final = 60.0
_NAME: Final = re.compile(r"^claim-(\d{6})\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """A process, unambiguously.

    Attributes:
        host: for people to read.
        machine: boot and process namespace, within which numbers of processes are unique.
        pid: number of the process.
        started: when it started, in clock ticks since boot: numbers are used again.
    """

    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """This process."""
        pid = os.getpid()
        started = _start_ticks(pid)
        assert started is not None
        return cls(host=socket.gethostname(), machine=_machine(), pid=pid, started=started)

    def is_gone(self) -> bool:
        """Whether it surely exists no more; False for processes of other machines."""
        return self.is_here and _start_ticks(self.pid) != self.started

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, so that its end can be seen."""
        return self.machine == _machine()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRecord:
    """A claim as its file says it.

    Attributes:
        generation: how often the run was claimed, this time included.
        beats: raised by the owner while it lives.
        released: whether the owner gave the run back.
    """

    generation: int
    owner: Owner
    beats: int = 0
    released: bool = False

    @property
    def is_given_up(self) -> bool:
        """Whether nobody holds the run for sure; False while it cannot be known."""
        return self.released or self.owner.is_gone()


def read_claim(folder: Path) -> ClaimRecord | None:
    """The newest claim of a run; None when nobody ever claimed it."""
    newest = max(_generations(folder), default=0)
    while newest:
        with contextlib.suppress(FileNotFoundError):
            return _read(folder, newest)
        newest = max(_generations(folder), default=0)  # its taker has tidied it away
    return None


class Claim:
    """A run that this process holds; a thread keeps the claim alive until `release`."""

    def __init__(self, folder: Path, record: ClaimRecord, *, heartbeat: float) -> None:
        self._folder, self._record, self._heartbeat = folder, record, heartbeat
        self._ended, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="claim")
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process took the run over: stop training it at once."""
        return self._lost.is_set()

    def release(self) -> None:
        """Give the run back, finished or not; where the disk is full, by ending this process."""
        self._ended.set()
        self._thread.join()
        if not self._is_overtaken():
            with contextlib.suppress(OSError):
                _write(self._folder, replace(self._record, released=True))

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat):
            if self._is_overtaken():
                self._lost.set()
                return
            self._record = replace(self._record, beats=self._record.beats + 1)
            with contextlib.suppress(OSError):  # a full disk must not end a run that is training
                _write(self._folder, self._record)

    def _is_overtaken(self) -> bool:
        return max(_generations(self._folder), default=0) > self._record.generation


@dataclass(slots=True)
class Claims:
    """Takes claims, and watches those of others for a sign of life.

    Attributes:
        heartbeat: seconds between two signs of life of the claims taken here.
        dead_after: seconds without one, after which a claim of another machine is taken over.
        clock: seconds, never set back.
    """

    heartbeat: float = HEARTBEAT_SECONDS
    dead_after: float = DEAD_AFTER
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[ClaimRecord, float]] = field(default_factory=dict)

    def take(self, folder: Path) -> Claim | None:
        """Claim the run in `folder`; None when another process holds it, or was faster."""
        held = read_claim(folder)
        if held is not None and not self.is_free(folder, held):
            return None
        generation = 1 if held is None else held.generation + 1
        record = ClaimRecord(generation=generation, owner=Owner.current())
        if not _create(folder, record):
            return None
        others = set(_generations(folder)) - {generation}
        if max(others, default=0) > generation:  # we read long ago; that file was tidied away since
            _path(folder, generation).unlink(missing_ok=True)
            return None
        for old in others:
            _path(folder, old).unlink(missing_ok=True)
        return Claim(folder, record, heartbeat=self.heartbeat)

    def is_free(self, folder: Path, held: ClaimRecord) -> bool:
        """Whether the claim read last is released, or its owner dead."""
        if held.is_given_up:
            return True
        before, since = self._seen.get(folder, (None, 0.0))
        if before != held:
            self._seen[folder] = (held, self.clock())
            return False
        return self.clock() - since > self.dead_after


def _path(folder: Path, generation: int) -> Path:
    return folder / f"claim-{generation:06d}.json"


def _generations(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [int(match[1]) for match in map(_NAME.match, names) if match]


def _read(folder: Path, generation: int) -> ClaimRecord:
    content = json.loads(_path(folder, generation).read_text(encoding="utf-8"))
    return ClaimRecord(**{**content, "owner": Owner(**content["owner"])})


def _create(folder: Path, record: ClaimRecord) -> bool:
    """Make the file of a generation, whole; False when it exists."""
    with naming_what_is_written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(folder, record)
        try:
            os.link(temporary, _path(folder, record.generation))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    return True


def _write(folder: Path, record: ClaimRecord) -> None:
    os.replace(_write_temporary(folder, record), _path(folder, record.generation))


def _write_temporary(folder: Path, record: ClaimRecord) -> Path:
    owner = record.owner
    name = f".claim-{record.generation:06d}.{owner.host}.{owner.pid}.{threading.get_ident()}.tmp"
    temporary = folder / name
    try:
        temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
    except OSError:  # half of it may have found room
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def _start_ticks(pid: int) -> int | None:
    """When a process started; None when there is no such process, or only its remains."""
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])
