"""Tokenize what is left of the documents, and describe the shards in a manifest.

    <shards>/<domain>/train-<task>.bin .idx, validation-<task>.bin .idx
    <shards>/.build/records/<rank>.json    shards of a rank: tokens, documents, bytes, sha256
    <shards>/.build/counts/<rank>.json     what became of the rank's documents

One shard a task, domain and split. Its name is given to a shard when it is whole; a task that is
run again writes the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from autoscale.manifest import DomainShards, Manifest, Shard, TokenizerRecord
from autoscale.shard_formats.indexed_writer import IndexedShardWriter
from autoscale.tokenizer import TextTokenizer, tokenizer_fingerprint

from .ledger import COUNTS, TRAIN, VALIDATION, Ledger, write_whole
from .splitting import Split

BUILD_FOLDER = ".build"
RECORDS = "records"
BATCH_BYTES = 4_000_000
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """Where shards lie and what makes them.

    Attributes:
        output: folder of the manifest.
        shards: folder of the shards, below `output`.
        tokenizer: folder of the tokenizer, below `output`.
        domains: in their order.
        tasks: ranks of a domain.
        split: which documents are held out.
    """

    output: Path
    shards: Path
    tokenizer: Path
    domains: tuple[str, ...]
    tasks: int
    split: Split

    @property
    def folder(self) -> Path:
        """For counts and records: it goes when the shards go."""
        return self.shards / BUILD_FOLDER


class WriteShards(PipelineStep):
    """Writes the shards of one rank.

    Args:
        plan: where and how.
        ledger: of the steps before; this step adds what is kept, and saves it.
    """

    type = "💽 - WRITER"
    name = "token shards"

    def __init__(self, plan: ShardPlan, ledger: Ledger) -> None:
        super().__init__()
        self.plan = plan
        self.ledger = ledger

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        plan = self.plan
        domain, task = plan.domains[rank // plan.tasks], rank % plan.tasks
        tokenizer = TextTokenizer.open(plan.tokenizer)
        dtype = _dtype(tokenizer)
        folder = plan.shards / domain
        for leftover in folder.glob(f".*-{task:05d}.*.tmp"):
            leftover.unlink()  # of a task that was killed
        writers: dict[str, IndexedShardWriter] = {}
        text_bytes = dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:
            for batch in _batches(data):
                encoded = tokenizer.encode([document.text for document in batch])
                for document, tokens in zip(batch, encoded.documents(), strict=True):
                    side = VALIDATION if plan.split.holds_out(document.text) else TRAIN
                    if side not in writers:
                        prefix = folder / f"{side}-{task:05d}"
                        writers[side] = stack.enter_context(IndexedShardWriter(prefix, dtype))
                    writers[side].add_document(tokens)
                    size = len(document.text.encode("utf-8"))
                    text_bytes[side] += size
                    self.ledger.add(domain, side, size)
            written = {side: writer.close() for side, writer in writers.items()}
        record = {
            side: {
                "path": (folder / f"{side}-{task:05d}").relative_to(plan.output).as_posix(),
                "text_bytes": text_bytes[side],
                **shard._asdict(),
            }
            for side, shard in written.items()
        }
        write_whole(plan.folder / RECORDS / f"{rank:05d}.json", json.dumps(record, indent=1))
        self.ledger.save(plan.folder / COUNTS / f"{rank:05d}.json")
        self.ledger.counts.clear()  # the next rank of the same process counts for itself


def make_manifest(plan: ShardPlan, present: Sequence[str]) -> Manifest:
    """The manifest of the shards of the domains that are present in the corpus.

    Raises:
        ValueError: a domain has nothing to train on or to validate with.
    """
    tokenizer = TextTokenizer.open(plan.tokenizer)
    return Manifest(
        dtype=_dtype(tokenizer),
        tokenizer=TokenizerRecord(
            path=plan.tokenizer.relative_to(plan.output).as_posix(),
            vocab_size=tokenizer.vocab_size,
            end_of_text_id=tokenizer.end_of_text_id,
            sha256=tokenizer_fingerprint(plan.tokenizer),
        ),
        domains=tuple(
            _domain(plan, number, domain)
            for number, domain in enumerate(plan.domains)
            if domain in present
        ),
        root=plan.output,
    )


def _domain(plan: ShardPlan, number: int, name: str) -> DomainShards:
    shards: dict[str, list[Shard]] = {side: [] for side in SPLITS}
    for rank in range(number * plan.tasks, (number + 1) * plan.tasks):
        record = json.loads((plan.folder / RECORDS / f"{rank:05d}.json").read_text("utf-8"))
        for side, fields in record.items():
            shards[side].append(Shard(**fields))
    for side, purpose in ((TRAIN, "train on"), (VALIDATION, "hold out")):
        if not shards[side]:
            raise ValueError(
                f"domain {name!r}: no document is left to {purpose}; add documents, change "
                "--validation-fraction or what drops them (report.json), or leave the domain out "
                "with --domains"
            )
    return DomainShards(name=name, train=tuple(shards[TRAIN]), validation=tuple(shards[VALIDATION]))


def _dtype(tokenizer: TextTokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 2**16 else "int32"


def _batches(documents: Iterator[Document]) -> Iterator[Sequence[Document]]:
    """Documents in groups of a few megabytes, as the tokenizer likes them."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
