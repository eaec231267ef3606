"""MosaicML Streaming: `StreamingDataset` over an MDS `Stream` a domain, with proportions.

Samples are uint16 arrays of one sequence. The state is the one that `state_dict` gives; the samples
of an epoch are `epoch_size`, shuffled by the default algorithm.
"""

import os
from pathlib import Path

import numpy as np
from protocol import Batches, Workload, serve
from streaming import MDSWriter, Stream, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


def write(workload: Workload, folder: Path) -> None:
    columns = {"tokens": f"ndarray:uint16:{workload.sequence_length}"}
    for name in workload.domains:
        with MDSWriter(out=str(folder / name), columns=columns) as writer:
            for row in workload.samples(name):
                writer.write({"tokens": row})


def open_at(workload: Workload, folder: Path, position: int) -> Batches:
    dataset = StreamingDataset(
        streams=[
            Stream(local=str(folder / name), proportion=weight)
            for name, weight in zip(workload.domains, workload.weights, strict=True)
        ],
        epoch_size=workload.epoch_samples,
        batch_size=workload.batch_size,
        shuffle=True,
        shuffle_seed=workload.seed,
        num_canonical_nodes=1,
    )
    if position:
        dataset.load_state_dict(dataset.state_dict(position, True))
    return _batches(workload, dataset)


def _batches(workload: Workload, dataset: StreamingDataset) -> Batches:
    size = workload.batch_size
    while True:
        rows: list[np.ndarray] = []
        for sample in dataset:
            rows.append(sample["tokens"])
            if len(rows) == size:
                yield np.stack(rows).astype(np.int64)
                rows = []


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    clean_stale_shared_memory()
    serve(write, open_at, name="streaming")
