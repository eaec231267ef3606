"""Small prepared data for the tests of windows and streams: every token says where it stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autoscale.manifest import DomainShards, Manifest, Shard, TokenizerRecord
from autoscale.shard_formats.indexed_writer import IndexedShardWriter

Lengths = Sequence[Sequence[int]]
"""Tokens of each document of each shard."""


def write_data(
    folder: Path, domains: Mapping[str, Lengths], *, vocab_size: int = 65_536
) -> Manifest:
    """Data whose token ids count up through all training documents of all domains.

    Validation is one document of 40 tokens for each domain.
    """
    dtype = "uint16" if vocab_size <= 65_536 else "int32"
    token, records = 0, []
    for name, shards in domains.items():
        train = []
        for number, lengths in enumerate(shards):
            ids = (token + np.arange(sum(lengths))) % vocab_size
            train.append(write_shard(folder, f"{name}/train-{number}", ids, lengths, dtype))
            token += ids.size
        held_out = write_shard(folder, f"{name}/validation-0", np.arange(40), [40], dtype)
        records.append(DomainShards(name=name, train=tuple(train), validation=(held_out,)))
    manifest = Manifest(
        dtype=dtype,
        tokenizer=TokenizerRecord(
            path="tokenizer", vocab_size=vocab_size, end_of_text_id=0, sha256="0" * 64
        ),
        domains=tuple(records),
        root=folder,
    )
    manifest.save(folder / "manifest.json")
    return manifest


def write_shard(
    folder: Path, path: str, ids: np.ndarray, lengths: Sequence[int], dtype: str
) -> Shard:
    """One shard of documents of these lengths."""
    with IndexedShardWriter(folder / path, dtype) as writer:
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            writer.add_document(ids[end - length : end])
    written = writer.close()
    return Shard(
        path=path,
        tokens=written.tokens,
        documents=written.documents,
        text_bytes=written.tokens,
        sha256=written.sha256,
    )
