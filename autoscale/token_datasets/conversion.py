"""Token data sets to `.bin`/`.idx` shards: found, read row by row, cut into documents, written.

What a row is, is seen from the first rows. Rows of unlike lengths are documents: each is closed by
the end-of-text token where it is not yet. Rows that are all equally long are windows which somebody
cut from a stream: they are put together again, and documents end at the end-of-text tokens.

    <output>/shards/<domain>/<key>/train-00000.bin .idx, validation-00000.bin .idx, progress.json

The folder's key is a hash of what decides the shards, so an interrupted call goes on, and data that
has changed is converted anew.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..documents import Progress
from ..domain_shards import RECORD_FILE, ShardRecord, write_shards
from ..locations import file_size, file_stamp, find_files
from ..manifest import DomainShards, Split
from .arrow import STATE_FILE, ArrowTable
from .mds import INDEX_FILE, MdsFolder

logger = logging.getLogger(__name__)

FORMAT: Final = 1
"""Part of every key: raise it when the same input would give other bytes."""
SHARD_TOKENS: Final = 1_000_000_000
MOST_TOKENS_OF_DOCUMENT: Final = 1 << 24
"""Where windows hold no end-of-text token for so long, a document ends all the same."""
PEEKED_ROWS: Final = 1000

TokenDataset = MdsFolder | ArrowTable


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionSettings:
    """What decides the bytes of the shards, apart from the rows."""

    root: Path
    """Folder of the manifest."""
    vocab_size: int
    end_of_text_id: int
    shard_tokens: int = SHARD_TOKENS

    @property
    def dtype(self) -> str:
        return "uint16" if self.vocab_size <= 2**16 else "int32"


def find_datasets(folder: str) -> list[str]:
    """Index of every MDS folder and saved data set in a folder, and every parquet file, sorted."""
    return [
        location
        for location in find_files(folder)
        if location.endswith((f"/{INDEX_FILE}", f"/{STATE_FILE}", ".parquet"))
    ]


def open_dataset(location: str, *, column: str | None, dtype: str | None) -> TokenDataset:
    """Open what `find_datasets` found; `dtype` is that of tokens in `bytes` columns.

    Raises:
        ValueError: it cannot be read, or has no column of tokens.
    """
    if location.endswith(f"/{INDEX_FILE}"):
        folder = location.removesuffix(f"/{INDEX_FILE}")
        return MdsFolder.open(folder, column=column, dtype=dtype)
    return ArrowTable.open(location.removesuffix(f"/{STATE_FILE}"), column=column)


def convert_domain(
    name: str,
    datasets: Mapping[Split, Sequence[TokenDataset]],
    settings: ConversionSettings,
    report: Progress,
) -> DomainShards:
    """Write what is missing of a domain's shards: validation first, then train.

    Args:
        datasets: those of `train` and of `validation`, in order.
    """
    key = _key(datasets, settings)
    folder = settings.root / "shards" / name / key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    record = ShardRecord.load(folder / RECORD_FILE, key, settings.root)
    record.remove_leftovers()
    follow = _Follow(f"convert {name}", datasets, report)
    shards = {}
    splits: tuple[Split, ...] = ("validation", "train")
    for split in splits:
        documents = chain.from_iterable(
            _documents(dataset, settings, follow) for dataset in datasets[split]
        )
        finished = record.num_documents(split)
        shards[split] = write_shards(
            ((tokens, None) for tokens in islice(documents, finished, None)),
            record,
            split,
            dtype=settings.dtype,
            shard_tokens=settings.shard_tokens,
        )
    return DomainShards(name=name, train=shards["train"], validation=shards["validation"])


class _Follow:
    """Reports the bytes of the rows that pass; compressed files hold more than their own size."""

    def __init__(
        self, stage: str, datasets: Mapping[Split, Sequence[TokenDataset]], report: Progress
    ) -> None:
        files = [file for parts in datasets.values() for each in parts for file in each.files]
        self._stage, self._report, self._done = stage, report, 0
        self._total = sum(file_size(file) or 0 for file in files)

    def __call__(self, rows: Iterator[NDArray[np.integer]]) -> Iterator[NDArray[np.integer]]:
        for number, row in enumerate(rows):
            yield row
            self._done += row.nbytes
            if number % PEEKED_ROWS == 0:
                self._report(self._stage, min(self._done, self._total), self._total)


def _documents(
    dataset: TokenDataset, settings: ConversionSettings, follow: _Follow
) -> Iterator[NDArray[np.integer]]:
    """The documents of a data set, each closed by end-of-text."""
    rows = _checked(dataset, follow(dataset.rows()), settings.vocab_size)
    first = list(islice(rows, PEEKED_ROWS))
    every = chain(first, rows)
    if len(first) > 1 and len({row.size for row in first}) == 1:
        logger.info(
            "rows of %s are windows of %d tokens: documents end at end-of-text",
            dataset.location,
            first[0].size,
        )
        yield from _cut_at_end_of_text(every, settings.end_of_text_id)
        return
    for row in every:
        closed = row[-1] == settings.end_of_text_id
        yield row if closed else np.append(row.astype(np.int64), settings.end_of_text_id)


def _checked(
    dataset: TokenDataset, rows: Iterator[NDArray[np.integer]], vocab_size: int
) -> Iterator[NDArray[np.integer]]:
    for number, row in enumerate(rows):
        if row.size == 0:
            raise ValueError(
                f"{dataset.location}, row {number}: it holds no tokens; expected at least one in "
                "every row: leave such rows out"
            )
        if row.min() < 0 or row.max() >= vocab_size:
            outside = row[(row < 0) | (row >= vocab_size)][0]
            raise ValueError(
                f"{dataset.location}, row {number}: it holds token id {outside}; expected ids from "
                f"0 to {vocab_size - 1}: it is of another tokenizer"
            )
        yield row


def _cut_at_end_of_text(
    windows: Iterator[NDArray[np.integer]], end_of_text_id: int
) -> Iterator[NDArray[np.integer]]:
    """Documents of a stream that arrives in windows; a last one may lack its end-of-text."""
    held: list[NDArray[np.integer]] = []
    size = 0
    for window in windows:
        begin = 0
        for end in (np.flatnonzero(window == end_of_text_id) + 1).tolist():
            yield np.concatenate([*held, window[begin:end]])
            held, size, begin = [], 0, end
        if begin < window.size:
            held.append(window[begin:])
            size += window.size - begin
        if size >= MOST_TOKENS_OF_DOCUMENT:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _key(datasets: Mapping[Split, Sequence[TokenDataset]], settings: ConversionSettings) -> str:
    """Hash of what decides the shards: files by their size and time, never read for it."""
    parts = [
        [split, dataset.decoding, *map(file_stamp, dataset.files)]
        for split, listed in datasets.items()
        for dataset in listed
    ]
    decisive = [FORMAT, settings.dtype, settings.end_of_text_id, settings.shard_tokens, parts]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
