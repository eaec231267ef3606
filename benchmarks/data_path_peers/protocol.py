"""How a loader under test is served to the benchmark: one JSON command a line, one answer a line.

A worker is a script that runs in the peer's own environment and calls `serve` with two functions:
one writes the benchmark's tokens in the peer's format, with the peer's writer; the other builds the
loader, goes to a sample position, and gives an iterator over int64 batches of shape [8, 1024].
Only numpy and the standard library are needed here.

    {"command": "write"}                      once; the files stay for later runs
    {"command": "open", "position": 360000}   -> seconds until the first batch is there
    {"command": "round", "seconds": 0.5}      -> samples and seconds
    {"command": "shares", "batches": 2000}    -> share of each domain, and of distinct samples
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batches = Iterator[NDArray[np.int64]]
_WRITTEN = "written"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The tokens and the mixture that every loader serves.

    Attributes:
        folder: of the benchmark's files.
        domains: names.
        weights: of the domains, sum 1.
        sequence_length: tokens of a sample.
        batch_size: samples of a batch.
        epoch_samples: samples of an epoch; no domain is drawn twice in one.
        ids_per_domain: domain k has token ids from k to k + 1 times this, so that a batch shows
            where its samples came from.
        seed: of the loaders' order.
    """

    folder: Path
    domains: tuple[str, ...]
    weights: tuple[float, ...]
    sequence_length: int
    batch_size: int
    epoch_samples: int
    ids_per_domain: int
    seed: int

    @classmethod
    def load(cls, folder: Path) -> "Workload":
        fields = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
        for name in ("domains", "weights"):
            fields[name] = tuple(fields[name])
        return cls(folder=folder, **fields)

    def tokens(self, domain: str) -> NDArray[np.uint16]:
        """All tokens of a domain, as a view of the file."""
        return np.asarray(np.load(self.folder / "tokens" / f"{domain}.npy", mmap_mode="r"))

    def documents(self, domain: str) -> Iterator[NDArray[np.uint16]]:
        """The same tokens, document by document."""
        lengths = np.load(self.folder / "tokens" / f"{domain}.lengths.npy")
        yield from np.split(self.tokens(domain), np.cumsum(lengths)[:-1])

    def samples(self, domain: str) -> NDArray[np.uint16]:
        """The same tokens as rows of one sequence each, for formats that fix its length."""
        tokens = self.tokens(domain)
        rows = tokens.size // self.sequence_length
        return tokens[: rows * self.sequence_length].reshape(rows, self.sequence_length)

    @cached_property
    def num_batches(self) -> int:
        return self.epoch_samples // self.batch_size


def serve(
    write: Callable[[Workload, Path], None],
    open_at: Callable[[Workload, Path, int], Batches],
    *,
    name: str,
    keep: bool = True,
) -> None:
    """Answer commands until the input ends.

    Args:
        write: writes the workload into a folder in the peer's format.
        open_at: builds the loader from nothing and goes to a position (in samples).
        name: of the loader's folder beside the workload.
        keep: what an earlier run wrote.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    workload = Workload.load(Path(sys.argv[1]))
    folder = workload.folder / name
    if not keep:
        (folder / _WRITTEN).unlink(missing_ok=True)
    server = _Server(write, open_at, workload, folder)
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        answers.write(json.dumps(getattr(server, command)(**request)) + "\n")


class _Server:
    """The commands, as methods."""

    def __init__(
        self,
        write: Callable[[Workload, Path], None],
        open_at: Callable[[Workload, Path, int], Batches],
        workload: Workload,
        folder: Path,
    ) -> None:
        self._write, self._open_at = write, open_at
        self._workload, self._folder = workload, folder
        self._batches: Batches = iter(())

    def write(self) -> dict[str, Any]:
        done = self._folder / _WRITTEN
        if not done.exists():
            self._folder.mkdir(exist_ok=True)
            self._write(self._workload, self._folder)
            done.touch()
        return {}

    def open(self, position: int = 0) -> dict[str, Any]:
        start = time.perf_counter()
        self._batches = self._open_at(self._workload, self._folder, position)
        batch = next(self._batches)
        seconds = time.perf_counter() - start
        self._check(batch)
        return {"seconds": seconds}

    def round(self, seconds: float) -> dict[str, Any]:
        batches, clock, count = self._batches, time.perf_counter, 0
        start = clock()
        end = start + seconds
        while clock() < end:
            batch = next(batches)
            count += 1
        took = clock() - start
        self._check(batch)
        return {"samples": count * self._workload.batch_size, "seconds": took}

    def shares(self, batches: int) -> dict[str, Any]:
        heads = np.concatenate([next(self._batches)[:, :4].copy() for _ in range(batches)])
        domains = heads[:, 0] // self._workload.ids_per_domain
        counts = np.bincount(domains, minlength=len(self._workload.domains))
        distinct = len(np.unique(heads, axis=0)) / len(heads)
        return {"shares": (counts / counts.sum()).tolist(), "distinct": distinct}

    def _check(self, batch: NDArray[np.int64]) -> None:
        """A batch has the right shape, and each row comes from one domain."""
        expected = (self._workload.batch_size, self._workload.sequence_length)
        domains = batch // self._workload.ids_per_domain
        if batch.shape != expected or batch.dtype != np.int64:
            raise ValueError(f"batch is {batch.dtype} of {batch.shape}; expected int64 {expected}")
        if np.any(domains != domains[:, :1]):
            raise ValueError("a row holds tokens of two domains")
