"""litdata: `CombinedStreamingDataset` over `StreamingDataset`s with `TokensLoader`, in process.

Read through its `StreamingDataLoader` without workers, which is also what saves the mixture's
state; the state at 90% of an epoch is saved once, by reading up to there, and loading it is what
counts. With LITDATA_DIRECT=1 the dataset is iterated and its samples are stacked here. The combined
dataset ends when one of its datasets does; the next epoch follows.
"""

import os
from pathlib import Path

import numpy as np
import torch
from litdata import (
    CombinedStreamingDataset,
    StreamingDataLoader,
    StreamingDataset,
    TokensLoader,
    optimize,
)
from protocol import Batches, Workload, serve

DIRECT = os.environ.get("LITDATA_DIRECT") == "1"
_CHUNK_BYTES = "64MB"


def write(workload: Workload, folder: Path) -> None:
    for name in workload.domains:
        optimize(
            fn=_tensor,
            inputs=list(workload.documents(name)),
            output_dir=str(folder / name),
            num_workers=1,
            chunk_bytes=_CHUNK_BYTES,
            item_loader=TokensLoader(block_size=workload.sequence_length),
        )
    _save_state(workload, folder, workload.epoch_samples * 9 // 10)


def _tensor(document: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(document.copy())


def open_at(workload: Workload, folder: Path, position: int) -> Batches:
    combined = _combine(workload, folder)
    if DIRECT:
        return _batches(workload, combined)
    loader = StreamingDataLoader(combined, batch_size=workload.batch_size, num_workers=0)
    if position:
        loader.load_state_dict(torch.load(_state_file(folder, position)))
    return _loaded(loader)


def _combine(workload: Workload, folder: Path) -> CombinedStreamingDataset:
    return CombinedStreamingDataset(
        [
            StreamingDataset(
                str(folder / name),
                item_loader=TokensLoader(block_size=workload.sequence_length),
                shuffle=True,
                seed=workload.seed,
            )
            for name in workload.domains
        ],
        seed=workload.seed,
        weights=list(workload.weights),
        iterate_over_all=False,
    )


def _loaded(loader: StreamingDataLoader) -> Batches:
    while True:
        for batch in loader:
            if len(batch) == loader.batch_size:  # the last one of an epoch may be short
                yield batch.numpy().astype(np.int64)


def _batches(workload: Workload, combined: CombinedStreamingDataset) -> Batches:
    size, epoch = workload.batch_size, 0
    while True:
        rows: list[torch.Tensor] = []
        for sample in combined:
            rows.append(sample)
            if len(rows) == size:
                yield np.stack(rows).astype(np.int64)
                rows = []
        epoch += 1
        combined.set_epoch(epoch)


def _state_file(folder: Path, position: int) -> Path:
    return folder / f"state-{position}.pt"


def _save_state(workload: Workload, folder: Path, position: int) -> None:
    combined = _combine(workload, folder)
    loader = StreamingDataLoader(combined, batch_size=workload.batch_size, num_workers=0)
    for _ in zip(range(position // workload.batch_size), loader, strict=False):
        pass
    torch.save(loader.state_dict(), _state_file(folder, position))


if __name__ == "__main__":
    serve(write, open_at, name="litdata")
