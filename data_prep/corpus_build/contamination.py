"""Drop documents that share n-grams of words with evaluation sets, and note what they share.

Both sides are compared in datatrove's simplified form: lower case, without punctuation and accents,
numbers as 0. An n-gram's code is the polynomial sum_k code(word_k) P^(n-1-k) mod 2^64; equal codes
are confirmed by the words themselves.

    evaluation set   .jsonl (.gz, .zst): an entry is a record, its passages are all its strings;
                     anything else: an entry is a line, and its only passage
    <folder>/<rank>.jsonl    what was found: domain, document, evaluation set, entry, n-gram

A passage with fewer than n words has no n-gram and finds nothing: the index counts such entries.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.text import simplify_text
from numpy.typing import NDArray

from .ledger import Ledger, write_whole
from .words import WORDS

CONTAMINATED = "contaminated"
_P = np.uint64(0x9E3779B97F4A7C15)
_MOST_CACHED_WORDS = 1_000_000


class Found(NamedTuple):
    """One n-gram of a document that an evaluation set has too."""

    evaluation: str
    entry: int
    ngram: str


class EvaluationIndex:
    """All n-grams of the evaluation sets.

    Attributes:
        entries: of every file.
        too_short: entries of every file without a passage of n words.
    """

    def __init__(self, files: Sequence[str], ngram: int) -> None:
        self.ngram = ngram
        self.entries: dict[str, int] = {}
        self.too_short: dict[str, int] = {}
        self._word_codes: dict[str, int] = {}
        self._owner: dict[int, Found] = {}
        for file in files:
            self.entries[file] = self.too_short[file] = 0
            for number, passages in enumerate(read_entries(file)):
                self.entries[file] += 1
                added = [self._add(file, number, passage) for passage in passages]
                self.too_short[file] += not any(added)
        self._codes = np.array(sorted(self._owner), dtype=np.uint64)

    def find(self, text: str) -> list[Found]:
        """What a text shares with the evaluation sets: each entry at its first n-gram."""
        words = split(text)
        codes = self._ngram_codes(words)
        found: dict[tuple[str, int], Found] = {}
        if codes.size == 0 or self._codes.size == 0:
            return []
        nearest = np.minimum(np.searchsorted(self._codes, codes), self._codes.size - 1)
        for place in np.flatnonzero(self._codes[nearest] == codes).tolist():
            owner = self._owner[int(codes[place])]
            if " ".join(words[place : place + self.ngram]) == owner.ngram:
                found.setdefault((owner.evaluation, owner.entry), owner)
        return list(found.values())

    def _add(self, file: str, number: int, passage: str) -> bool:
        words = split(passage)
        codes = self._ngram_codes(words)
        for place, code in enumerate(codes.tolist()):
            ngram = " ".join(words[place : place + self.ngram])
            self._owner.setdefault(code, Found(file, number, ngram))
        return codes.size > 0

    def _ngram_codes(self, words: Sequence[str]) -> NDArray[np.uint64]:
        """Codes of all n-grams, shape (words - n + 1,) or (0,)."""
        size = len(words) - self.ngram + 1
        if size <= 0:
            return np.empty(0, dtype=np.uint64)
        if len(self._word_codes) > _MOST_CACHED_WORDS:
            self._word_codes.clear()
        known = self._word_codes
        single = np.array(
            [known.get(word) or known.setdefault(word, _word_code(word)) for word in words],
            dtype=np.uint64,
        )
        codes = np.zeros(size, dtype=np.uint64)
        for offset in range(self.ngram):
            codes = codes * _P + single[offset : offset + size]
        return codes


def split(text: str) -> list[str]:
    """Words of a text in the form in which texts are compared."""
    return WORDS.word_tokenize(simplify_text(text))


def read_entries(file: str) -> Iterator[list[str]]:
    """Passages of every entry of an evaluation set, given by path or fsspec URL."""
    is_json = file.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".ndjson"))
    try:
        with fsspec.open(file, "rt", encoding="utf-8", compression="infer") as lines:
            for line in lines:
                if line.strip():
                    yield list(_strings(json.loads(line))) if is_json else [line]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"evaluation set {file} cannot be read ({error}); expected JSON lines in UTF-8, or "
            "text with one entry a line"
        ) from error


def fingerprint(files: Sequence[str]) -> str:
    """Hash of the evaluation sets' contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(json.dumps([file, list(read_entries(file))]).encode())
    return digest.hexdigest()


class DropContaminated(PipelineStep):
    """Drops documents that share an n-gram with an evaluation set.

    Args:
        files: the evaluation sets.
        ngram: words of an n-gram.
        folder: for what was found, with `ledger` for the counts; None notes and counts nothing.
    """

    type = "🔻 - FILTER"
    name = "contaminated documents"

    def __init__(
        self,
        files: Sequence[str],
        ngram: int,
        folder: Path | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        self.files = tuple(files)
        self.ngram = ngram
        self.folder = folder
        self.ledger = ledger

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        index = _index(self.files, self.ngram)
        rows = []
        for document in data:
            found = index.find(document.text)
            if not found:
                yield document
                continue
            domain = document.metadata["domain"]
            for match in found:
                rows.append({"domain": domain, "document": document.id, **match._asdict()})
            if self.ledger is not None:
                size = len(document.text.encode("utf-8"))
                self.ledger.add(domain, CONTAMINATED, size)
        if self.folder is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_whole(self.folder / f"{rank:05d}.jsonl", lines)


@cache
def _index(files: tuple[str, ...], ngram: int) -> EvaluationIndex:
    """Built once a process, not once a task."""
    return EvaluationIndex(files, ngram)


def _word_code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
