"""Which documents are trained on, which are held out, and which are dropped, from their hashes.

A document is known by a 64-bit hash of its text, so that every rule below depends on texts alone:
not on file names, formats, or how many processes read them.

    held out     documents of separate validation files, or, where a domain has none, those whose
                 keyed hash lies below `fraction`: the same text falls on the same side for ever
    duplicates   the first of equal texts stays, in the order of the domains
    no leak      a text that is held out in any domain is trained on in none
    cap          validation beyond the cap goes back to training (split) or is dropped (own files)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MASK = 2**64 - 1


class Fate(IntEnum):
    """What becomes of a document; the names are the keys of the counts in prepare.json."""

    TRAIN = 0
    VALIDATION = 1
    EMPTY = 2
    DUPLICATE_WITHIN_DOMAIN = 3
    DUPLICATE_ACROSS_DOMAINS = 4
    IN_VALIDATION = 5
    OVER_VALIDATION_CAP = 6


@dataclass(frozen=True, slots=True)
class DomainDocuments:
    """All documents of a domain in reading order: train sources, then validation sources."""

    name: str
    hashes: NDArray[np.uint64]
    """Of each text, shape (documents,)."""
    text_bytes: NDArray[np.int64]
    """UTF-8 bytes of each text; 0 marks an empty document."""
    from_validation_files: NDArray[np.bool_]

    @property
    def has_validation_files(self) -> bool:
        return bool(self.from_validation_files.any())

    @property
    def is_trained_on(self) -> bool:
        """Whether there are train sources: a validation set of its own has none."""
        return not self.from_validation_files.all()


def hash_text(encoded: bytes) -> int:
    """64-bit hash of a text: among 1e8 documents one falsely dropped has odds of 1 in 3,700."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def keyed_hashes(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Order of the documents for the split: uniform, and another one for every seed."""
    key = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & MASK)
    mixed = hashes ^ key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def split_domains(
    domains: Sequence[DomainDocuments], *, fraction: float, seed: int, deduplicate: bool
) -> list[NDArray[np.uint8]]:
    """Fates before the cap, and before training documents are compared with anything.

    Returns:
        For each domain the `Fate` of every document, where TRAIN means "not held out".

    Raises:
        ValueError: a domain has no document to hold out.
    """
    threshold = np.uint64(min(int(fraction * 2.0**64), MASK))
    fates = []
    for domain in domains:
        if domain.has_validation_files:
            held_out = domain.from_validation_files
        else:
            held_out = keyed_hashes(domain.hashes, seed) < threshold
        fate = np.where(held_out, Fate.VALIDATION, Fate.TRAIN).astype(np.uint8)
        fate[domain.text_bytes == 0] = Fate.EMPTY
        fates.append(fate)
        if not (fate == Fate.VALIDATION).any():
            documents = int(np.count_nonzero(fate != Fate.EMPTY))
            raise ValueError(
                f"domain {domain.name!r}: validation_fraction {fraction} of {documents} documents "
                "leaves none for validation; raise the fraction, add documents, or give "
                "validation files"
            )
    if deduplicate:
        _drop_repeated(domains, fates, Fate.VALIDATION)
    return fates


def validation_candidates(
    domain: DomainDocuments, fate: NDArray[np.uint8], *, seed: int, max_bytes: int
) -> NDArray[np.int64]:
    """Held-out documents in the order in which the cap admits them, up to `max_bytes` of text."""
    held_out = np.flatnonzero((fate == Fate.VALIDATION) & (domain.text_bytes <= max_bytes))
    order = np.argsort(keyed_hashes(domain.hashes[held_out], seed), kind="stable")
    ordered = held_out[order]
    inside = np.cumsum(domain.text_bytes[ordered]) <= max_bytes
    return ordered[inside].astype(np.int64)


def cap_validation(
    domain: DomainDocuments, fate: NDArray[np.uint8], kept: NDArray[np.int64]
) -> None:
    """Hold out the documents `kept` alone; the others go back to training or are dropped."""
    over = fate == Fate.VALIDATION
    over[kept] = False
    fate[over] = Fate.OVER_VALIDATION_CAP if domain.has_validation_files else Fate.TRAIN


def settle_training(
    domains: Sequence[DomainDocuments], fates: list[NDArray[np.uint8]], *, deduplicate: bool
) -> None:
    """Drop what may not be trained on: held-out texts, and duplicates.

    Raises:
        ValueError: a domain is left without a document to train on or to hold out.
    """
    untouchable = np.unique(
        np.concatenate(
            [
                domain.hashes[
                    (fate == Fate.VALIDATION)
                    | (domain.from_validation_files & (fate != Fate.EMPTY))
                ]
                for domain, fate in zip(domains, fates, strict=True)
            ]
        )
    )
    for domain, fate in zip(domains, fates, strict=True):
        leaks = (fate == Fate.TRAIN) & np.isin(domain.hashes, untouchable)
        fate[leaks] = Fate.IN_VALIDATION
    if deduplicate:
        _drop_repeated(domains, fates, Fate.TRAIN)
    for domain, fate in zip(domains, fates, strict=True):
        purposes = {Fate.VALIDATION: "hold out"}
        if domain.is_trained_on:
            purposes[Fate.TRAIN] = "train on"
        for needed, purpose in purposes.items():
            if not (fate == needed).any():
                counts = ", ".join(f"{count} {name}" for name, count in count_fates(fate).items())
                raise ValueError(
                    f"domain {domain.name!r}: no document is left to {purpose} ({counts}); add "
                    "documents, change validation_fraction, or remove what it shares with others"
                )


def count_fates(fate: NDArray[np.uint8]) -> dict[str, int]:
    """Documents of each fate that occurs, by name."""
    counts = np.bincount(fate, minlength=len(Fate))
    return {kind.name.lower(): int(counts[kind]) for kind in Fate if counts[kind]}


def _drop_repeated(
    domains: Sequence[DomainDocuments], fates: list[NDArray[np.uint8]], among: Fate
) -> None:
    """Keep the first of equal texts among the documents of one fate, in domain order."""
    places = [np.flatnonzero(fate == among) for fate in fates]
    hashes = np.concatenate([d.hashes[place] for d, place in zip(domains, places, strict=True)])
    owner = np.repeat(np.arange(len(domains)), [len(place) for place in places])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    winner = first[inverse]
    repeated = winner != np.arange(len(hashes))
    kind = np.where(
        owner[winner] == owner, Fate.DUPLICATE_WITHIN_DOMAIN, Fate.DUPLICATE_ACROSS_DOMAINS
    ).astype(np.uint8)
    for index, place in enumerate(places):
        mine = owner == index
        dropped = repeated & mine
        fates[index][place[repeated[mine]]] = kind[dropped]
