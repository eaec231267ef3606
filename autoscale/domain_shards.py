"""Tokenize the chosen documents of a domain into shards, or find them finished.

The folder of a domain's shards is named by a key: a hash of everything that decides their bytes
(the texts in order, the tokenizer, the data type, the shard size). A record beside the shards
lists the finished ones and is rewritten after each, so an interrupted call goes on with the next
shard, and shards of other settings are never mistaken for these.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from .documents import DomainText, Progress, batches
from .manifest import DomainShards, Shard
from .prepare_workers import PrepareWorkers
from .records import read_json, write_json
from .selection import Fate
from .shard_formats.indexed import hash_shard
from .shard_formats.indexed_writer import IndexedShardWriter
from .tokenizer import TextTokenizer, tokenizer_fingerprint

FORMAT = 1
"""Part of every key: raise it when the same input would give other bytes."""
RECORD_FILE = "progress.json"
RECORD_KIND = "prepared_shards"


class TokenizeProgress:
    """Bytes of text tokenized so far, over all domains."""

    def __init__(self, domains: Sequence[DomainText], report: Progress) -> None:
        fates = (Fate.TRAIN, Fate.VALIDATION)
        self._total = sum(d.bytes_of(d.select(fate)) for d in domains for fate in fates)
        self._done = 0
        self._report = report
        self.add(0)

    def add(self, text_bytes: int) -> None:
        self._done += text_bytes
        self._report("tokenize", self._done, self._total)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSettings:
    """What decides the bytes of shards, apart from the texts."""

    root: Path
    """Folder of the manifest."""
    tokenizer: TextTokenizer
    tokenizer_sha256: str
    shard_tokens: int

    @classmethod
    def of(cls, root: Path, tokenizer: TextTokenizer, *, shard_tokens: int) -> Self:
        fingerprint = tokenizer_fingerprint(tokenizer.folder)
        return cls(
            root=root,
            tokenizer=tokenizer,
            tokenizer_sha256=fingerprint,
            shard_tokens=shard_tokens,
        )

    @property
    def dtype(self) -> Literal["uint16", "int32"]:
        return "uint16" if self.tokenizer.vocab_size <= 2**16 else "int32"

    def key(self, domain: DomainText) -> str:
        settings = [FORMAT, self.tokenizer_sha256, self.dtype, self.shard_tokens]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for fate in (Fate.VALIDATION, Fate.TRAIN):
            hashes = domain.documents.hashes[domain.select(fate)]
            digest.update(hashlib.sha256(hashes.tobytes()).digest())
        return digest.hexdigest()


def write_domain_shards(
    domain: DomainText,
    settings: ShardSettings,
    workers: PrepareWorkers,
    progress: TokenizeProgress,
) -> DomainShards:
    """Write what is missing of a domain's shards: validation first, then train."""
    key = settings.key(domain)
    folder = settings.root / "shards" / domain.name / key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    record = ShardRecord.load(folder / RECORD_FILE, key, settings.root)
    record.remove_leftovers()
    shards = {}
    for split, fate in (("validation", Fate.VALIDATION), ("train", Fate.TRAIN)):
        selected = domain.select(fate)
        num_done = record.num_documents(split)
        progress.add(domain.bytes_of(selected[:num_done]))
        encoded = _encode(domain, selected[num_done:], settings.tokenizer, workers, progress)
        shards[split] = write_shards(
            encoded, record, split, dtype=settings.dtype, shard_tokens=settings.shard_tokens
        )
    return DomainShards(name=domain.name, train=shards["train"], validation=shards["validation"])


def _encode(
    domain: DomainText,
    selected: NDArray[np.int64],
    tokenizer: TextTokenizer,
    workers: PrepareWorkers,
    progress: TokenizeProgress,
) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Token ids and text bytes of every selected document, in order."""
    under_way: deque[list[int]] = deque()

    def texts_only() -> Iterator[list[str]]:
        for indices, texts in batches(domain.read(selected)):
            under_way.append(indices)
            yield texts

    for encoded in workers.encode(tokenizer.folder, texts_only()):
        indices = under_way.popleft()
        sizes = domain.documents.text_bytes[indices].tolist()
        yield from zip(encoded.documents(), sizes, strict=True)
        progress.add(domain.bytes_of(indices))


def write_shards(
    documents: Iterator[tuple[NDArray[np.integer], int | None]],
    record: "ShardRecord",
    split: str,
    *,
    dtype: str,
    shard_tokens: int,
) -> tuple[Shard, ...]:
    """Write shard after shard, each closed by the document that fills it, beside their record.

    Args:
        documents: token ids of each document that is not in the record yet, and the bytes of its
            text, None where they are not known.

    Returns:
        All shards of the split, those of earlier calls first.
    """
    following = next(documents, None)
    while following is not None:
        prefix = record.folder / f"{split}-{len(record.shards[split]):05d}"
        filled = 0
        text_bytes: int | None = 0
        with IndexedShardWriter(prefix, dtype) as writer:
            while following is not None and filled < shard_tokens:
                tokens, size = following
                writer.add_document(tokens)
                filled += len(tokens)
                text_bytes = None if text_bytes is None or size is None else text_bytes + size
                following = next(documents, None)
            written = writer.close()
        path = prefix.relative_to(record.root).as_posix()
        record.add(split, Shard(path=path, text_bytes=text_bytes, **written._asdict()))
    return tuple(record.shards[split])


class ShardRecord:
    """The finished shards of a folder, on disk after every shard.

    Attributes:
        root: folder of the manifest.
        shards: of each split, in order.
    """

    def __init__(self, path: Path, key: str, root: Path) -> None:
        self._path = path
        self._key = key
        self.root = root
        self.shards: dict[str, list[Shard]] = {"validation": [], "train": []}

    @property
    def folder(self) -> Path:
        return self._path.parent

    @classmethod
    def load(cls, path: Path, key: str, root: Path) -> Self:
        """The record of an earlier call, up to the first shard that is missing or damaged."""
        record = cls(path, key, root)
        try:
            saved = read_json(path, RECORD_KIND)
        except ValueError:
            return record
        if saved["key"] == key:
            for split, shards in record.shards.items():
                for fields in saved[split]:
                    shard = Shard(**fields)
                    if not _is_whole(root / shard.path, shard.sha256):
                        break
                    shards.append(shard)
        return record

    def add(self, split: str, shard: Shard) -> None:
        self.shards[split].append(shard)
        shards = {name: [asdict(each) for each in done] for name, done in self.shards.items()}
        write_json(self._path, RECORD_KIND, {"key": self._key, **shards})

    def num_documents(self, split: str) -> int:
        """Documents in the finished shards."""
        counts = [shard.documents for shard in self.shards[split]]
        return sum(count for count in counts if count is not None)

    def remove_leftovers(self) -> None:
        """Remove what a call that was interrupted left of a shard."""
        names = {Path(shard.path).name for shards in self.shards.values() for shard in shards}
        known = {f"{name}{suffix}" for name in names for suffix in (".bin", ".idx")}
        for found in self.folder.iterdir():
            if found.name not in known | {RECORD_FILE}:
                found.unlink()


def _is_whole(prefix: Path, sha256: str) -> bool:
    try:
        return hash_shard(prefix) == sha256
    except ValueError:
        return False
