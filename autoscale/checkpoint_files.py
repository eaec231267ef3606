"""Checkpoints on disk: which are whole, what is wrong with the others, how many are kept.

A checkpoint is a folder `step-<N>` with the files of all ranks, and beside it the record
`step-<N>.json` with the size and the SHA-256 of each. The record is written last and through a
temporary name, so a checkpoint without one is not whole, however it came about. Nothing here loads
what a checkpoint holds.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from .records import read_json, write_json

logger = logging.getLogger(__name__)

CHUNK = 1 << 22  # bytes that are read at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMark:
    """Size and SHA-256 of one file."""

    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """What a whole checkpoint consists of.

    Attributes:
        step: completed steps.
        world_size: ranks that wrote it.
        zero_stage: of the engines that wrote it.
        groups: of ranks with weights of their own (DiLoCo); 1 where all ranks have the same.
        progress: of the run, JSON; what is needed to go on besides model and optimiser.
        files: by path inside the checkpoint's folder.
    """

    step: int
    world_size: int
    zero_stage: int
    groups: int
    progress: Mapping[str, Any]
    files: Mapping[str, FileMark]

    @property
    def name(self) -> str:
        return f"step-{self.step}"

    def save(self, folder: Path) -> Path:
        content = json.loads(json.dumps(asdict(self)))
        document = {**content, "digest": _digest_of(content)}
        path = write_json(folder / f"{self.name}.json", "checkpoint", document)
        sync_folder(folder)
        return path

    @classmethod
    def load(cls, folder: Path, step: int) -> Self:
        """Read the record of a step.

        Raises:
            ValueError: it is unreadable, or not as it was written.
        """
        path = folder / f"step-{step}.json"
        try:
            content = read_json(path, "checkpoint")
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from error
        digest = content.pop("digest", None)
        del content["kind"], content["schema_version"]
        if digest != _digest_of(content) or content.get("step") != step:
            raise ValueError(f"{path} is not as it was written: its own digest differs")
        files = {name: FileMark(**mark) for name, mark in content.pop("files").items()}
        return cls(**content, files=files)


class MarkedFile:
    """A new file that is written from its beginning to its end, flushed to disk when closed.

    Attributes:
        mark: size and digest of what was written so far.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        self._hash.update(rest)
        size = rest.nbytes
        try:
            while rest.nbytes:  # a nearly full disk takes a part
                written = self._file.write(rest)
                rest = rest[written:]
        except OSError as error:
            self._error = error
            raise
        self._bytes += size
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def mark(self) -> FileMark:
        return FileMark(bytes=self._bytes, digest=self._hash.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if self._error is not None:  # `torch.save` says less: that a position is not as expected
            raise self._error


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a record, whole or not, newest first."""
    matches = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in folder.glob("step-*.json"))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def newest_step(folder: Path) -> int | None:
    """The newest step whose record is readable and whose files have their sizes."""
    return next((step for step in saved_steps(folder) if _seems_whole(folder, step)), None)


def problem_of(folder: Path, record: CheckpointRecord, names: Iterable[str]) -> str | None:
    """What is wrong with the named files of a checkpoint; None when they are as written."""
    for name in names:
        path, mark = folder / record.name / name, record.files[name]
        try:
            size = path.stat().st_size
            if size != mark.bytes:
                return f"{path} has {size} bytes; expected {mark.bytes}"
            if _digest(path) != mark.digest:
                return f"{path} is not as it was written: its SHA-256 differs from the record's"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return None


def share_of(record: CheckpointRecord, rank: int, world_size: int) -> list[str]:
    """The files that a rank checks: about as many bytes as every other rank."""
    loads = [0] * world_size
    mine = []
    for name in sorted(record.files, key=lambda name: (-record.files[name].bytes, name)):
        least = loads.index(min(loads))
        loads[least] += record.files[name].bytes
        if least == rank:
            mine.append(name)
    return mine


def make_room(folder: Path, step: int, needed: int) -> None:
    """Prepare the folder of a new checkpoint of `needed` bytes; what an earlier attempt left goes.

    Raises:
        OSError: the disk has less free, or cannot be written to.
    """
    discard(folder, step)
    (folder / f"step-{step}").mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free", str(folder)
        )


def discard(folder: Path, step: int) -> None:
    """Remove a checkpoint; first its record, so that it is never taken for whole meanwhile."""
    (folder / f"step-{step}.json").unlink(missing_ok=True)
    path = folder / f"step-{step}"
    if path.exists():
        shutil.rmtree(path)


def prune(folder: Path, newest: int, keep_last: int) -> None:
    """Keep the `keep_last` newest whole checkpoints up to step `newest`, and remove all else.

    Later ones were broken, or the run would not have gone back behind them. What cannot be removed
    stays, with a warning.
    """
    whole = [s for s in saved_steps(folder) if s <= newest and _seems_whole(folder, s)]
    kept = {f"step-{step}" for step in whole[:keep_last]}
    try:
        for step in saved_steps(folder):
            if f"step-{step}" not in kept:
                discard(folder, step)
        for path in folder.glob("step-*"):
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)
        for path in folder.glob(".step-*.json.*.tmp"):  # of a job that was killed
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("old checkpoints in %s could not all be removed: %s", folder, error)


def copy_synced(source: Path, target: Path) -> None:
    """Copy a file so that its bytes are on disk when this returns."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _seems_whole(folder: Path, step: int) -> bool:
    try:
        record = CheckpointRecord.load(folder, step)
        return all(
            (folder / record.name / name).stat().st_size == mark.bytes
            for name, mark in record.files.items()
        )
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
