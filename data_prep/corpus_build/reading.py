"""Read a corpus: documents by domain into JSON lines of one form, without what filters refuse.

    <folder>/documents/<domain>/<task>.jsonl.gz    {"text", "id", "metadata": {"domain"}}
    <folder>/counts/<task>.json                    read, and dropped by reason
    <folder>/unreadable/<task>.json                lines that are no JSON, by file

Every later step reads these files: task t of domain d is rank d * tasks + t there, so that ranks go
up in the order of the domains.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from corpora import SourceFile
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.base_filter import get_filter_result
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.writers import JsonlWriter

from .ledger import COUNTS, READ, Ledger, write_whole
from .words import WORDS

EMPTY = "empty"
DOCUMENTS = "documents"
UNREADABLE = "unreadable"


class LineReader(JsonlReader):
    """datatrove's reader of JSON lines, which counts the lines that are no JSON object."""

    unreadable = 0

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Documents of one file; unreadable lines are passed over."""
        with self.data_folder.open(
            filepath,
            "rt",
            compression=self.compression,
            encoding="utf-8",
            errors="surrogateescape",  # bytes that are no UTF-8 make a line unreadable
            newline="\n",
        ) as file:
            for number, line in enumerate(file):
                if not line.strip():
                    continue
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    self.unreadable += 1
                    continue
                if not isinstance(record, dict):
                    self.unreadable += 1
                    continue
                document = self.get_document_from_dict(record, filepath, number)
                if document is not None:
                    yield document


class ReadSources(PipelineStep):
    """Documents of this task's files, filtered and counted.

    Args:
        files: of all tasks; task r of n reads files r, r + n, ...
        folder: for the counts.
        filtered: domains that the quality filters see: Gopher's quality and repetition rules.
    """

    type = "📖 - READER"
    name = "corpus files"

    def __init__(self, files: Sequence[SourceFile], folder: Path, filtered: Sequence[str]) -> None:
        super().__init__()
        self.files = list(files)
        self.folder = folder
        self.filtered = set(filtered)
        self.filters = (
            [GopherQualityFilter(language=WORDS), GopherRepetitionFilter(language=WORDS)]
            if filtered
            else []
        )

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        ledger = Ledger()
        unreadable: dict[str, int] = {}
        for file in self.files[rank::world_size]:
            reader = _reader(file, ledger)
            for document in reader.read_file(file.path):
                domain = document.metadata["domain"]
                size = len(document.text.encode("utf-8"))
                ledger.add(domain, READ, size)
                reason = self._refusal(document) if domain in self.filtered else None
                if reason is None:
                    yield document
                else:
                    ledger.add(domain, reason, size)
            if isinstance(reader, LineReader) and reader.unreadable:
                unreadable[f"{file.root}/{file.path}"] = reader.unreadable
        write_whole(self.folder / UNREADABLE / f"{rank:05d}.json", json.dumps(unreadable))
        ledger.save(self.folder / COUNTS / f"{rank:05d}.json")

    def _refusal(self, document: Document) -> str | None:
        """Why a filter refuses a document, or None."""
        for rule in self.filters:
            passed, reason = get_filter_result(rule.filter(document))
            if not passed:
                return reason or rule.name
        return None


def write_documents(folder: Path) -> JsonlWriter:
    """The step that writes what was read, one file a domain and task."""
    return JsonlWriter(
        str(folder / DOCUMENTS), output_filename="${domain}/${rank}.jsonl.gz", compression="gzip"
    )


class ReadDomain(PipelineStep):
    """The documents that one task of the reading stage wrote for one domain.

    `metadata["place"]` is the number of a document in its file: what lists of documents to drop
    refer to.
    """

    type = "📖 - READER"
    name = "documents of a domain"

    def __init__(self, folder: Path, domains: Sequence[str], tasks: int) -> None:
        super().__init__()
        self.folder = folder / DOCUMENTS
        self.domains = list(domains)
        self.tasks = tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        domain, task = self.domains[rank // self.tasks], rank % self.tasks
        path = f"{domain}/{task:05d}.jsonl.gz"
        if not (self.folder / path).is_file():
            return  # none of this task's files had documents of the domain
        reader = JsonlReader(str(self.folder), compression="gzip", add_file_path=False)
        for place, document in enumerate(reader.read_file(path)):
            document.metadata["place"] = place
            yield document


def _reader(file: SourceFile, ledger: Ledger) -> BaseDiskReader:
    """datatrove's reader of the file's format; `ledger` counts its empty documents."""
    adapter = partial(_adapt, file=file, ledger=ledger)
    if file.layout.format == "jsonl":
        return LineReader(file.root, adapter=adapter, add_file_path=False)
    return ParquetReader(
        file.root,
        adapter=adapter,
        text_key=file.layout.text_field,
        read_metadata=bool(file.layout.domain_field),
    )


def _adapt(
    reader: BaseDiskReader,
    record: Mapping[str, Any],
    path: str,
    number: int | str,
    *,
    file: SourceFile,
    ledger: Ledger,
) -> dict[str, Any]:
    """A record as fields of a document; those without text, which datatrove skips, are counted."""
    domain = file.domain_of(record)
    if domain is None:
        return {"text": ""}
    if file.layout.text_field not in record:
        raise ValueError(
            f"{file.root}/{path}: document {number} has no {file.layout.text_field!r}, only "
            f"{', '.join(record)}; give the field with --text-field"
        )
    text = record[file.layout.text_field]
    if not isinstance(text, str) or not text.strip():
        size = len(text.encode("utf-8")) if isinstance(text, str) else 0
        ledger.add(domain, READ, size)
        ledger.add(domain, EMPTY, size)
        return {"text": ""}
    name = record.get("id")
    return {
        "text": text,
        "id": str(name) if name is not None else f"{path}/{number}",
        "metadata": {"domain": domain},
    }
