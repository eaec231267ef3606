"""Megatron: `GPTDataset` in a `BlendedDataset`, indices cached by the writer, `dataset[i]`.

A sample is what Megatron's own loop reads: a dictionary of int64 tokens and labels, a loss mask and
position ids (both cached by the dataset); a batch stacks the tokens. With MEGATRON_TEXT_ONLY=1 only
the text is asked for, by the method below `__getitem__`: not what a user calls, but less work.
Resuming is free of cost beyond opening the cached indices: a batch is asked for by its number. With
MEGATRON_FRESH=1 the cache is empty, as at a first start or with other weights.
"""

import logging
import os
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from protocol import Batches, Workload, serve

FRESH = os.environ.get("MEGATRON_FRESH") == "1"
TEXT_ONLY = os.environ.get("MEGATRON_TEXT_ONLY") == "1"


def write(workload: Workload, folder: Path) -> None:
    for name in workload.domains:
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=np.uint16)
        for document in workload.documents(name):
            builder.add_document(document, [document.size])
        builder.finalize(str(folder / f"{name}.idx"))
    build(workload, folder)  # fills the cache of indices, which is not counted later


def build(workload: Workload, folder: Path) -> torch.utils.data.Dataset:
    # What GPTDataset asks of a tokenizer: nothing here is tokenized.
    tokenizer = SimpleNamespace(
        vocab_size=2**16, eod=2**16 - 1, pad=2**16 - 2, unique_identifiers={"class": "none"}
    )
    prefixes = [str(folder / name) for name in workload.domains]
    config = GPTDatasetConfig(
        random_seed=workload.seed,
        sequence_length=workload.sequence_length,
        blend_per_split=[(prefixes, list(workload.weights)), None, None],
        path_to_cache=mkdtemp() if FRESH else str(folder / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = [workload.epoch_samples, 0, 0]
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]


def open_at(workload: Workload, folder: Path, position: int) -> Batches:
    return _batches(workload, build(workload, folder), position)


def _batches(workload: Workload, dataset: torch.utils.data.Dataset, position: int) -> Batches:
    size = workload.batch_size
    while True:
        for first in range(position, workload.epoch_samples, size):
            if TEXT_ONLY:
                rows = [_text(dataset, index) for index in range(first, first + size)]
                yield np.stack(rows).astype(np.int64)[:, :-1]
            else:
                rows = [dataset[index]["tokens"] for index in range(first, first + size)]
                yield torch.stack(rows).numpy()
        position = 0


def _text(dataset: torch.utils.data.Dataset, index: int) -> np.ndarray:
    source = dataset.datasets[dataset.dataset_index[index]]
    return source._query_document_sample_shuffle_indices(dataset.dataset_sample_index[index])[0]


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    # The cache of a blend's indices is only used within a process group, here of one process.
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    serve(write, open_at, name="megatron")
