"""The tokens that the loaders serve: seven domains of random uint16 tokens, made from a seed.

Token ids show the domain (a range of ids each), documents have 256 to 3840 tokens. The same tokens
go to every loader, written in its own format by its own writer; the files stay for later runs.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autoscale.manifest import DomainShards, Manifest, Shard, TokenizerRecord
from autoscale.shard_formats.indexed_writer import IndexedShardWriter

WEIGHTS: Final = {
    "web": 0.40,
    "code": 0.20,
    "books": 0.12,
    "papers": 0.10,
    "forums": 0.08,
    "news": 0.06,
    "reference": 0.04,
}
SEQUENCE_LENGTH: Final = 1024
BATCH_SIZE: Final = 8
SEED: Final = 20261121
_SPARE: Final = 1.04  # tokens beyond one epoch: loaders that draw at random draw some domains more
_IDS_PER_DOMAIN: Final = 9000


def make_workload(folder: Path, num_tokens: int) -> Path:
    """Write the tokens, the description that workers read, and our own shards.

    Args:
        folder: gets a folder for this number of tokens.
        num_tokens: of all domains together.

    Returns:
        The folder of the workload.
    """
    folder = folder / f"tokens-{num_tokens}"
    if (folder / "workload.json").exists():
        return folder
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    for number, (name, weight) in enumerate(WEIGHTS.items()):
        _write_domain(folder / "tokens" / name, number, int(num_tokens * weight))
    documents = {name: _documents(folder, name) for name in WEIGHTS}
    write_manifest(folder / "shards", documents, vocab_size=2**16)
    epoch = int(num_tokens / _SPARE) // SEQUENCE_LENGTH // 40 * 40
    content = {
        "domains": list(WEIGHTS),
        "weights": list(WEIGHTS.values()),
        "sequence_length": SEQUENCE_LENGTH,
        "batch_size": BATCH_SIZE,
        "epoch_samples": epoch,
        "ids_per_domain": _IDS_PER_DOMAIN,
        "seed": SEED,
    }
    temporary = folder / "workload.json.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, folder / "workload.json")
    return folder


def _write_domain(path: Path, number: int, num_tokens: int) -> None:
    generator = np.random.default_rng([SEED, number])
    lengths = generator.integers(256, 3841, num_tokens // 256)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens))]
    low = number * _IDS_PER_DOMAIN
    tokens = generator.integers(low, low + _IDS_PER_DOMAIN, lengths.sum(), dtype=np.uint16)
    np.save(path.with_suffix(".npy"), tokens)
    np.save(path.with_suffix(".lengths.npy"), lengths)


def _documents(folder: Path, name: str) -> list[NDArray[np.uint16]]:
    tokens = np.load(folder / "tokens" / f"{name}.npy", mmap_mode="r")
    lengths = np.load(folder / "tokens" / f"{name}.lengths.npy")
    return np.split(tokens, np.cumsum(lengths)[:-1])


def write_manifest(
    folder: Path,
    documents: Mapping[str, Sequence[NDArray[np.uint16]]],
    *,
    vocab_size: int,
    validation_tokens: int = 256,
) -> Path:
    """Our `.bin`/`.idx` shards of each domain and their manifest; returns its path.

    The validation shards hold a few tokens each and are not read.
    """
    domains = []
    for number, (name, texts) in enumerate(documents.items()):
        train = _write_shard(folder, name, texts)
        ids = (np.arange(number, number + validation_tokens) % vocab_size).astype(np.uint16)
        validation = _write_shard(folder, f"{name}-validation", [ids])
        domains.append(DomainShards(name=name, train=(train,), validation=(validation,)))
    tokenizer = TokenizerRecord(
        path="tokenizer", vocab_size=vocab_size, end_of_text_id=vocab_size - 1, sha256="0" * 64
    )
    manifest = Manifest(dtype="uint16", tokenizer=tokenizer, domains=tuple(domains), root=folder)
    return manifest.save(folder / "manifest.json")


def _write_shard(folder: Path, name: str, documents: Sequence[NDArray[np.uint16]]) -> Shard:
    with IndexedShardWriter(folder / name, "uint16") as writer:
        for document in documents:
            writer.add_document(document)
    written = writer.close()
    return Shard(
        path=name,
        tokens=written.tokens,
        documents=written.documents,
        text_bytes=written.tokens,
        sha256=written.sha256,
    )
