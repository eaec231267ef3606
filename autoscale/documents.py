"""The documents of every domain: found and hashed once, then read again by index.

`resolve_domain` finds the sources of a domain; `scan_domains` reads them all in parallel, and
keeps a hash and a size of every document instead of its text; `DomainText.read` yields the texts
of chosen documents, and refuses a file that has changed since it was scanned.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .config_data import SourceConfig
from .prepare_workers import PrepareWorkers, ScannedSource
from .selection import DomainDocuments, Fate, hash_text
from .text import TextSource, read_texts, resolve_sources

BATCH_BYTES = 1 << 19
GROUP_BYTES = 1 << 24
GROUP_SOURCES = 1000


class Progress(Protocol):
    """Hears how far `prepare` is: stages `read`, `train tokenizer` and `tokenize`, in bytes."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainSources:
    """Where the documents of a domain come from: train sources, if any, then validation sources."""

    name: str
    text_field: str
    sources: tuple[TextSource, ...]
    num_train_sources: int


@dataclass(slots=True)
class DomainText:
    """A domain whose documents are known, and what becomes of each."""

    inputs: DomainSources
    documents: DomainDocuments
    starts: NDArray[np.int64]
    """Index of the first document of each source, and the total; shape (sources + 1,)."""
    fate: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def name(self) -> str:
        return self.inputs.name

    def select(self, fate: Fate) -> NDArray[np.int64]:
        """Indices of the documents of one fate, ascending."""
        return np.flatnonzero(self.fate == fate).astype(np.int64)

    def bytes_of(self, indices: NDArray[np.int64] | Sequence[int]) -> int:
        """UTF-8 bytes of the texts at `indices`."""
        return int(self.documents.text_bytes[indices].sum())

    def read(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
        """The documents at the ascending indices `wanted`; a file without any is not opened."""
        for number, source in enumerate(self.inputs.sources):
            start, end = int(self.starts[number]), int(self.starts[number + 1])
            first, last = np.searchsorted(wanted, (start, end))
            if first == last:
                continue
            texts = enumerate(read_texts(source, self.inputs.text_field), start)
            for index in wanted[first:last].tolist():
                text = next((text for place, (text, _) in texts if place == index), None)
                if text is None or hash_text(text.encode()) != int(self.documents.hashes[index]):
                    raise ValueError(
                        f"{source.location} changed while it was being prepared (document "
                        f"{index - start + 1} is another one now); run prepare again"
                    )
                yield index, text


def resolve_domain(config: SourceConfig) -> DomainSources:
    """Find the sources of a domain, before anything is read.

    Raises:
        ValueError: a source is missing, empty, of an unknown format, or listed twice.
    """
    train = resolve_sources(config.train, domain=config.name, split=config.split)
    validation = resolve_sources(config.validation, domain=config.name, split=config.split)
    shared = {(s.location, s.split) for s in train} & {(s.location, s.split) for s in validation}
    if shared:
        raise ValueError(
            f"domain {config.name!r}: {min(shared)[0]} is listed under train and under validation; "
            "list it under one of them (without validation files, documents are split off train)"
        )
    return DomainSources(
        name=config.name,
        text_field=config.text_field,
        sources=train + validation,
        num_train_sources=len(train),
    )


def scan_domains(
    inputs: Sequence[DomainSources], workers: PrepareWorkers, report: Progress
) -> list[DomainText]:
    """Read every source once.

    Raises:
        ValueError: a source cannot be read, or holds no text.
    """
    sources = [(source, each.text_field) for each in inputs for source in each.sources]
    total = sum(source.size for source, _ in sources)
    report("read", 0, total)
    scanned: list[ScannedSource] = []
    for group in workers.scan(
        list(_grouped(sources)), lambda done: report("read", min(done, total), total)
    ):
        scanned.extend(group)
    report("read", total, total)
    domains = []
    for each in inputs:
        mine, scanned = scanned[: len(each.sources)], scanned[len(each.sources) :]
        domains.append(_join(each, mine))
    return domains


def batches(documents: Iterable[tuple[int, str]]) -> Iterator[tuple[list[int], list[str]]]:
    """Runs of documents of about `BATCH_BYTES`, as indices and texts."""
    indices: list[int] = []
    texts: list[str] = []
    size = 0
    for index, text in documents:
        indices.append(index)
        texts.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield indices, texts
            indices, texts, size = [], [], 0
    if texts:
        yield indices, texts


def _grouped(sources: list[tuple[TextSource, str]]) -> Iterator[list[tuple[TextSource, str]]]:
    """Runs of sources of about `GROUP_BYTES`: many small files make one call."""
    group: list[tuple[TextSource, str]] = []
    size = 0
    for source, text_field in sources:
        group.append((source, text_field))
        size += source.size
        if size >= GROUP_BYTES or len(group) >= GROUP_SOURCES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _join(inputs: DomainSources, scanned: Sequence[ScannedSource]) -> DomainText:
    counts = [len(source.hashes) for source in scanned]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    documents = DomainDocuments(
        name=inputs.name,
        hashes=np.concatenate([source.hashes for source in scanned]),
        text_bytes=np.concatenate([source.text_bytes for source in scanned]),
        from_validation_files=np.arange(starts[-1]) >= starts[inputs.num_train_sources],
    )
    return DomainText(inputs, documents, starts)
