"""grain's pipeline over a source made here: the rows of a memory-mapped array.

Not a format of grain's, and nothing is read, checked or decoded: what its mixing, shuffling and
batching cost by themselves.
"""

from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from protocol import Batches, Workload, serve


class _Rows:
    """A random-access source over the rows of a memory map."""

    def __init__(self, path: Path) -> None:
        self._rows = np.asarray(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._rows[index]


def write(workload: Workload, folder: Path) -> None:
    for name in workload.domains:
        np.save(folder / f"{name}.npy", workload.samples(name))


def open_at(workload: Workload, folder: Path, position: int) -> Batches:
    domains = [
        grain.MapDataset.source(_Rows(folder / f"{name}.npy"))
        .shuffle(seed=workload.seed + number)
        .repeat()
        for number, name in enumerate(workload.domains)
    ]
    mixed = grain.MapDataset.mix(domains, workload.weights)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    batches = iter(mixed.batch(workload.batch_size, batch_fn=_widen).to_iter_dataset(options))
    batches.set_state(batches.get_state() | {"next_index": position // workload.batch_size})
    return batches


def _widen(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(rows).astype(np.int64)


if __name__ == "__main__":
    serve(write, open_at, name="grain_map")
