"""Shards are exchanged with DeepSpeed's own reader and writer of the format."""

from pathlib import Path

import numpy as np
import pytest
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import (
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
)
from numpy.typing import NDArray

from autoscale.shard_formats.indexed import IndexedShard
from autoscale.shard_formats.indexed_writer import IndexedShardWriter
from autoscale.shard_formats.registry import open_token_file
from autoscale.windows.contiguous import ContiguousWindows
from autoscale.windows.reading import WindowReader

DTYPES = ["uint16", "int32"]


def documents(dtype: str) -> list[NDArray[np.integer]]:
    generator = np.random.default_rng(1)
    most = 65536 if dtype == "uint16" else 200_000
    return [generator.integers(0, most, size=size) for size in [5, 1, 300, 17, 64]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_deepspeed_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    with IndexedShardWriter(tmp_path / "a", dtype, dialect="deepspeed") as writer:
        for document in documents(dtype):
            writer.add_document(document)
    dataset = MMapIndexedDataset(str(tmp_path / "a"), skip_warmup=True)
    assert dataset.dtype == np.dtype(dtype)
    assert dataset.doc_idx.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.sizes.tolist() == [5, 1, 300, 17, 64]
    for number, document in enumerate(documents(dtype)):
        assert np.array_equal(dataset[number], document)


def test_int32_shards_are_the_same_bytes_in_both_dialects(tmp_path: Path) -> None:
    """Megatron and DeepSpeed number the dtypes alike up to int64."""
    written = []
    for dialect in ("megatron", "deepspeed"):
        with IndexedShardWriter(tmp_path / dialect, "int32", dialect=dialect) as writer:
            writer.add_document(np.array([1, 200_000, 0]))
            written.append(writer.close())
    assert written[0] == written[1]


@pytest.mark.parametrize("dtype", [*DTYPES, "uint32", "uint64", "int64"])
@pytest.mark.parametrize("sequences_per_document", [1, 5])
def test_we_read_what_deepspeed_writes(
    tmp_path: Path, dtype: str, sequences_per_document: int
) -> None:
    sequences = documents("uint16")
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.dtype(dtype).type)
    for number, sequence in enumerate(sequences, start=1):
        builder.add_item_numpy(sequence)
        if number % sequences_per_document == 0:
            builder.end_document()
    builder.finalize(str(tmp_path / "a.idx"))
    shard = IndexedShard(tmp_path / "a")
    shard.check()
    assert shard.dtype == np.dtype(dtype)
    assert shard.num_documents == len(sequences) // sequences_per_document
    for found, expected in zip(shard.sequences(), sequences, strict=True):
        assert np.array_equal(found, expected)
    file = open_token_file(str(tmp_path / "a"))
    starts = file.document_starts()
    assert starts is not None and len(starts) == shard.num_documents + 1
    reader = WindowReader(ContiguousWindows.of_files([file], sequence_length=32))
    stream = np.concatenate(sequences)
    gathered, _ = reader.read(np.arange(len(reader.windows)))
    assert np.array_equal(gathered[:, :-1].reshape(-1), stream[: gathered[:, :-1].size])
    assert gathered.shape == ((stream.size - 1) // 32, 33)
