"""grain: a weighted mixture of shuffled, repeated ArrayRecord sources, read in process.

ArrayRecord is the format that grain brings; a record is one sample, uncompressed, in groups of one
as grain asks for where records are read in random order. Choices that made it faster on two cores:
many small files (a read costs time in proportion to the records of its file), no read threads
(`num_threads=0`), and batching after the records are read (before, each batch starts threads).
"""

from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from protocol import Batches, Workload, serve

_RECORDS_OF_FILE = 2000


def write(workload: Workload, folder: Path) -> None:
    for name in workload.domains:
        rows = workload.samples(name)
        for number, first in enumerate(range(0, len(rows), _RECORDS_OF_FILE)):
            path = folder / f"{name}-{number:04}.arrayrecord"
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for row in rows[first : first + _RECORDS_OF_FILE]:
                writer.write(row.tobytes())
            writer.close()


def open_at(workload: Workload, folder: Path, position: int) -> Batches:
    domains = [
        grain.MapDataset.source(
            grain.sources.ArrayRecordDataSource(sorted(map(str, folder.glob(f"{name}-*"))))
        )
        .shuffle(seed=workload.seed + number)
        .repeat()
        for number, name in enumerate(workload.domains)
    ]
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    records = grain.MapDataset.mix(domains, workload.weights).to_iter_dataset(options)
    batches = iter(records.batch(workload.batch_size, batch_fn=_decode))
    batches.set_state(batches.get_state() | {"next_index": position})
    return batches


def _decode(records: list[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(record, np.uint16) for record in records]).astype(np.int64)


if __name__ == "__main__":
    serve(write, open_at, name="grain")
