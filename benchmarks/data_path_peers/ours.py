"""autoscale: `MixtureStream` over prepared shards, into one int64 buffer that is used again.

A row has 1024 tokens, as those of the other loaders: 1023 inputs and their labels. With
AUTOSCALE_WITHOUT_KERNEL=1 the compiled kernel is hidden, as where it was not built.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
from protocol import Batches, Workload, serve

if os.environ.get("AUTOSCALE_WITHOUT_KERNEL") == "1":
    sys.modules["autoscale._kernel"] = None  # its import fails, and numpy does the work

from autoscale import kernel
from autoscale.mixture_stream import MixtureStream


def write(workload: Workload, folder: Path) -> None:
    """The shards are there; save the states to begin from."""
    for position in (0, workload.epoch_samples * 9 // 10):
        content = json.dumps(build(workload).state_dict(position))
        (folder / f"state-{position}.json").write_text(content, encoding="utf-8")


def build(workload: Workload) -> MixtureStream:
    return MixtureStream(
        workload.folder / "shards" / "manifest.json",
        sequence_length=workload.sequence_length - 1,
        batch_size=workload.batch_size,
        weights=dict(zip(workload.domains, workload.weights, strict=True)),
        seed=workload.seed,
    )


def open_at(workload: Workload, folder: Path, position: int) -> Batches:
    stream = build(workload)
    state = (folder / f"state-{position}.json").read_text(encoding="utf-8")
    stream.load_state_dict(json.loads(state))
    return _batches(workload, stream)


def _batches(workload: Workload, stream: MixtureStream) -> Batches:
    out = np.empty(stream.shape, dtype=np.int64)
    for step in itertools.count(stream.step):
        yield stream.batch(step, out).tokens


if __name__ == "__main__":
    hidden = os.environ.get("AUTOSCALE_WITHOUT_KERNEL") == "1"
    if (kernel.compiled is None) != hidden:
        sys.exit("the compiled kernel was not built: install the package with a C compiler")
    serve(write, open_at, name="ours", keep=False)
