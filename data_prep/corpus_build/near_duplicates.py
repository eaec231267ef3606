"""Near-duplicate removal with datatrove's MinHash: 14 buckets of 8 hashes over 5-grams of words.

    signatures   datatrove's MinhashDedupSignature, one task a domain and part
    buckets      datatrove's MinhashDedupBuckets: pairs of documents with an equal bucket
    keep first   groups of documents that pairs connect; the first of each group stays

datatrove's own third stage keeps whichever document heads the largest tree. `KeepFirst` keeps the
first in the order of ranks instead, that is of the earliest domain, since ranks go up with domains.
Within domains only, pairs across domains are ignored: documents of a domain that share a bucket
follow one another in it, so no pair within a domain is lost.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig

from .dropping import write_drop_list
from .words import WORDS

REASONS = ("near_duplicate_within_domain", "near_duplicate_across_domains")
DROPPED = "dropped"
CONFIG = MinhashConfig(
    n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(64, "sha1")
)
_PAIR = struct.Struct("<4I")
Place = tuple[int, int]
"""Rank and place in its file."""


def sign(folder: Path) -> MinhashDedupSignature:
    """The step that writes signatures of documents."""
    return MinhashDedupSignature(str(folder / "signatures"), config=CONFIG, language=WORDS)


def pair(folder: Path) -> MinhashDedupBuckets:
    """The step that pairs documents, one task a bucket."""
    return MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"), config=CONFIG)


class KeepFirst(PipelineStep):
    """Lists all but the first of every group of near-duplicates.

    Args:
        folder: with the pairs; the lists are written below it.
        tasks: ranks of a domain.
        across_domains: whether groups reach over domains.
    """

    type = "🫂 - DEDUP"
    name = "keep the first of near-duplicates"

    def __init__(self, folder: Path, tasks: int, *, across_domains: bool) -> None:
        super().__init__()
        self.folder = folder
        self.tasks = tasks
        self.across_domains = across_domains

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        first: dict[Place, Place] = {}
        for one, other in self._pairs():
            head, tail = sorted((_first(first, one), _first(first, other)))
            first[tail] = head
        dropped: dict[int, dict[int, int]] = defaultdict(dict)
        for document in list(first):
            head = _first(first, document)
            if head != document:
                across = document[0] // self.tasks != head[0] // self.tasks
                dropped[document[0]][document[1]] = int(across)
        for owner, rows in dropped.items():
            write_drop_list(self.folder / DROPPED, owner, rows)

    def _pairs(self) -> Iterator[tuple[Place, Place]]:
        for path in sorted((self.folder / "pairs").glob("*.dups")):
            for one_rank, one, other_rank, other in _PAIR.iter_unpack(path.read_bytes()):
                if self.across_domains or one_rank // self.tasks == other_rank // self.tasks:
                    yield (one_rank, one), (other_rank, other)


def _first(first: dict[Place, Place], document: Place) -> Place:
    """The first document of a group, by way of earlier ones; paths are halved on the way."""
    while (nearer := first.setdefault(document, document)) != document:
        first[document] = first[nearer]
        document = nearer
    return document
