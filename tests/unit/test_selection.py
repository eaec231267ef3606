"""Which documents are held out, dropped and kept: checked against the rules, written plainly."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoscale.selection import (
    DomainDocuments,
    Fate,
    cap_validation,
    count_fates,
    hash_text,
    keyed_hashes,
    settle_training,
    split_domains,
    validation_candidates,
)


def domain(name: str, train: list[str], validation: list[str] | None = None) -> DomainDocuments:
    texts = [*train, *(validation or [])]
    return DomainDocuments(
        name=name,
        hashes=np.array([hash_text(text.encode()) for text in texts], dtype=np.uint64),
        text_bytes=np.array([len(text.encode()) for text in texts], dtype=np.int64),
        from_validation_files=np.arange(len(texts)) >= len(train),
    )


def kept(documents: DomainDocuments, fate: np.ndarray, kind: Fate) -> set[int]:
    return set(documents.hashes[fate == kind].tolist())


TEXTS = [f"text {number}" for number in range(60)]
TEXT_LISTS = st.lists(st.sampled_from([*TEXTS, ""]), min_size=20)


@settings(max_examples=60, deadline=None)
@given(
    first=TEXT_LISTS,
    second=TEXT_LISTS,
    held_out=st.lists(st.sampled_from(TEXTS), max_size=6),
    seed=st.integers(-5, 2**40),
    deduplicate=st.booleans(),
    cap=st.booleans(),
)
def test_no_leak_no_duplicate_no_loss(
    first: list[str],
    second: list[str],
    held_out: list[str],
    seed: int,
    deduplicate: bool,
    cap: bool,
) -> None:
    domains = [domain("first", first), domain("second", second, held_out)]
    try:
        fates = split_domains(domains, fraction=0.3, seed=seed, deduplicate=deduplicate)
        if cap:
            for documents, fate in zip(domains, fates, strict=True):
                admitted = validation_candidates(documents, fate, seed=seed, max_bytes=20)
                cap_validation(documents, fate, admitted)
        settle_training(domains, fates, deduplicate=deduplicate)
    except ValueError:
        assume(False)
    train = [kept(d, f, Fate.TRAIN) for d, f in zip(domains, fates, strict=True)]
    validation = [kept(d, f, Fate.VALIDATION) for d, f in zip(domains, fates, strict=True)]
    assert not (train[0] | train[1]) & (validation[0] | validation[1])
    assert not (train[0] | train[1]) & {hash_text(text.encode()) for text in held_out}
    if deduplicate:
        assert not train[0] & train[1]
        assert not validation[0] & validation[1]
        for documents, fate in zip(domains, fates, strict=True):
            for kind in (Fate.TRAIN, Fate.VALIDATION):
                hashes = documents.hashes[fate == kind]
                assert len(set(hashes.tolist())) == len(hashes)
    if not cap:
        everything = {hash_text(text.encode()) for text in [*first, *second, *held_out] if text}
        assert train[0] | train[1] | validation[0] | validation[1] == everything
    for documents, fate in zip(domains, fates, strict=True):
        assert ((documents.text_bytes == 0) == (fate == Fate.EMPTY)).all()
        assert sum(count_fates(fate).values()) == len(fate)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations([f"document {number}" for number in range(60)]))
def test_the_side_of_a_text_depends_on_text_and_seed_alone(order: list[str]) -> None:
    listed, shuffled = sorted(order), order[:45]
    sides = []
    for texts in (listed, shuffled):
        (fate,) = split_domains([domain("web", texts)], fraction=0.5, seed=3, deduplicate=True)
        sides.append(dict(zip(texts, fate.tolist(), strict=True)))
    assert all(sides[0][text] == side for text, side in sides[1].items())


def test_the_split_has_its_fraction_and_differs_between_seeds() -> None:
    documents = domain("web", [f"document {number}" for number in range(20_000)])
    sides = [
        split_domains([documents], fraction=0.1, seed=seed, deduplicate=True)[0] for seed in (0, 1)
    ]
    for side in sides:
        assert abs(np.mean(side == Fate.VALIDATION) - 0.1) < 0.01
    both = np.mean((sides[0] == Fate.VALIDATION) & (sides[1] == Fate.VALIDATION))
    assert abs(both - 0.01) < 0.004
    assert len(np.unique(keyed_hashes(documents.hashes, 0))) == 20_000


def test_the_first_domain_keeps_a_shared_text_and_the_reason_is_counted() -> None:
    domains = [
        domain("a", ["x", "y", "y", ""], ["held"]),
        domain("b", ["x", "z", "held"], ["held", "own"]),
    ]
    fates = split_domains(domains, fraction=0.5, seed=0, deduplicate=True)
    settle_training(domains, fates, deduplicate=True)
    assert count_fates(fates[0]) == {
        "train": 2,
        "validation": 1,
        "empty": 1,
        "duplicate_within_domain": 1,
    }
    assert count_fates(fates[1]) == {
        "train": 1,
        "validation": 1,
        "duplicate_across_domains": 2,
        "in_validation": 1,
    }


def test_what_the_cap_leaves_over_is_trained_on_only_when_it_was_split_off() -> None:
    split = domain("split", [f"text {number}" for number in range(100)])
    files = domain("files", ["train"], ["held 1", "held 2", "held 3"])
    fates = split_domains([split, files], fraction=0.3, seed=0, deduplicate=True)
    for documents, fate in zip([split, files], fates, strict=True):
        admitted = validation_candidates(documents, fate, seed=0, max_bytes=14)
        assert documents.text_bytes[admitted].sum() <= 14
        cap_validation(documents, fate, admitted)
    settle_training([split, files], fates, deduplicate=True)
    counts = [count_fates(fate) for fate in fates]
    assert counts[0] == {"train": 98, "validation": 2}
    assert counts[1] == {"train": 1, "validation": 2, "over_validation_cap": 1}


def test_nothing_to_hold_out_or_to_train_on_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"domain 'web': validation_fraction 0.001 of 2 documents leaves none"
    ):
        split_domains([domain("web", ["a", "b"])], fraction=0.001, seed=0, deduplicate=True)
    shared = [domain("a", ["x"], ["held"]), domain("b", ["x"], ["kept"])]
    fates = split_domains(shared, fraction=0.5, seed=0, deduplicate=True)
    with pytest.raises(ValueError, match=r"domain 'b': no document is left to train on \(1 valid"):
        settle_training(shared, fates, deduplicate=True)
    shared = [domain("a", ["x"], ["held"]), domain("b", ["y"], ["held"])]
    fates = split_domains(shared, fraction=0.5, seed=0, deduplicate=True)
    with pytest.raises(ValueError, match=r"domain 'b': no document is left to hold out"):
        settle_training(shared, fates, deduplicate=True)
