"""Ours and a bare C gather of the same windows, in turn in one process; prints rates as JSON.

    python ours_gather.py WORKLOAD ROUNDS BATCHES [-march=native]

Which of the three goes first changes from round to round. Both write into one int64 buffer each.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

if os.environ.get("AUTOSCALE_WITHOUT_KERNEL") == "1":
    sys.modules["autoscale._kernel"] = None  # its import fails, and numpy does the work
sys.path.insert(0, str(Path(__file__).parents[1]))

from data_path_bare import library
from ours import build
from protocol import Workload

from autoscale.batch_order import batch_positions


class Contest:
    """The three ways to get the batches of some steps; each returns samples a second."""

    def __init__(self, workload: Workload, options: list[str]) -> None:
        self.stream = build(workload)
        self._tokens = [
            np.memmap(workload.folder / "shards" / f"{name}.bin", dtype=np.uint16, mode="r")
            for name in workload.domains
        ]
        self._begin = np.array([tokens.ctypes.data for tokens in self._tokens], dtype=np.uint64)
        self._out, self._bare_out = (np.empty(self.stream.shape, dtype=np.int64) for _ in range(2))
        self._library = library(*options)
        self._workload = workload

    def addresses(self, first: int, batches: int) -> np.ndarray:
        """Where the windows of the steps lie, shape (batches, rows), uint64."""
        positions = batch_positions(
            step=np.arange(first, first + batches),
            batch_size=self._workload.batch_size,
            rank=0,
            world_size=1,
            seed=self._workload.seed,
        )
        located = self.stream.order.locate(positions)
        bytes_in = 2 * self.stream.windows.sequence_length * located.window
        return self._begin[located.domain] + bytes_in.astype(np.uint64)

    def ours(self, first: int, addresses: np.ndarray) -> float:
        batch, out = self.stream.batch, self._out
        start = time.perf_counter()
        for step in range(first, first + len(addresses)):
            batch(step, out)
        return addresses.size / (time.perf_counter() - start)

    def by_batch(self, first: int, addresses: np.ndarray) -> float:
        """The bare gather, called from Python once a batch."""
        gather, out = self._library.gather, self._bare_out.ctypes.data
        rows, length = self._bare_out.shape
        begin, bytes_of_batch = addresses.ctypes.data, 8 * rows
        start = time.perf_counter()
        for pointer in range(begin, begin + addresses.nbytes, bytes_of_batch):
            gather(pointer, rows, length, out)
        return addresses.size / (time.perf_counter() - start)

    def at_once(self, first: int, addresses: np.ndarray) -> float:
        """The bare gather, called once for all batches."""
        rows, length = self._bare_out.shape
        start = time.perf_counter()
        self._library.gather_batches(
            addresses.ctypes.data, len(addresses), rows, length, self._bare_out.ctypes.data
        )
        return addresses.size / (time.perf_counter() - start)

    def check(self, first: int, addresses: np.ndarray) -> None:
        """Both give the same tokens, bit for bit."""
        for step, row in enumerate(addresses[:50], first):
            self.by_batch(step, row[None])
            self.stream.batch(step, self._out)
            assert np.array_equal(self._out, self._bare_out), step


def main() -> None:
    folder, rounds, batches, *options = sys.argv[1:]
    contest = Contest(Workload.load(Path(folder)), options)
    ways = (contest.ours, contest.by_batch, contest.at_once)
    rates = np.empty((int(rounds), len(ways)))
    contest.check(0, contest.addresses(0, int(batches)))
    for number in range(int(rounds)):
        first = number * int(batches)
        addresses = contest.addresses(first, int(batches))
        for turn in range(len(ways)):
            which = (number + turn) % len(ways)
            rates[number, which] = ways[which](first, addresses)
    print(json.dumps(rates.tolist()))


if __name__ == "__main__":
    main()
