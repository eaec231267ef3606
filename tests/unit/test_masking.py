"""Masks: as many and of the kinds that Devlin et al. prescribe, and a function of the row alone."""

import numpy as np
import pytest

from autoscale.masking import KEPT, Masking, num_chosen
from autoscale.sampler import Located

VOCABULARY, LENGTH = 1000, 128
DOMAINS = ("web", "code", "books")


def masking(**changes):
    settings = {
        "mask_token_id": VOCABULARY, "vocab_size": VOCABULARY, "sequence_length": LENGTH,
        "domains": DOMAINS, "seed": 5,
    }  # fmt: skip
    return Masking(**settings | changes)


def located(count=600):
    rng = np.random.default_rng(1)
    return Located(
        domain=rng.integers(0, 3, count), epoch=rng.integers(0, 4, count), window=np.arange(count)
    )


@pytest.mark.parametrize(("length", "expected"), [(2, 1), (8, 1), (32, 5), (128, 19), (512, 77)])
def test_fifteen_percent_of_every_row_is_chosen(length, expected):
    assert num_chosen(length) == expected
    masks = masking(sequence_length=length).training(located(50))
    assert masks.shape == (50, 2, expected)
    places = masks[:, 0]
    assert places.min() >= 0 and places.max() < length
    assert (np.diff(places, axis=1) > 0).all()


def test_places_and_replacements_have_the_shares_of_the_paper():
    """4000 rows: each share and each place within five standard deviations of its expectation."""
    places, seen = masking().training(located(4000)).swapaxes(0, 1)

    def check(count, total, share):
        assert abs(count - share * total) < 5 * np.sqrt(share * (1 - share) * total)

    check((seen == VOCABULARY).sum(), seen.size, 0.8)
    check((seen == KEPT).sum(), seen.size, 0.1)
    is_random = (seen >= 0) & (seen < VOCABULARY)
    check(is_random.sum(), seen.size, 0.1)
    for count in np.bincount(places.flatten(), minlength=LENGTH):
        check(count, 4000, num_chosen(LENGTH) / LENGTH)
    tokens = seen[is_random]
    for count in np.bincount(tokens // 100, minlength=10):
        check(count, tokens.size, 0.1)


def test_a_row_is_masked_alike_wherever_it_is_drawn():
    rows = located()
    whole = masking().training(rows)
    for rank in range(4):
        part = Located(
            domain=rows.domain[rank::4], epoch=rows.epoch[rank::4], window=rows.window[rank::4]
        )
        assert np.array_equal(masking().training(part), whole[rank::4])
    # By the name of its domain, not by the place of that among others.
    others = masking(domains=("new", *DOMAINS))
    moved = Located(domain=rows.domain + 1, epoch=rows.epoch, window=rows.window)
    assert np.array_equal(others.training(moved), whole)


@pytest.mark.parametrize("what", ["seed", "domain", "epoch", "window"])
def test_another_row_is_masked_otherwise(what):
    rows = located()
    other = {name: getattr(rows, name) for name in ("domain", "epoch", "window")}
    if what != "seed":
        other[what] = (other[what] + 1) % 3 if what == "domain" else other[what] + 1
    changed = masking(seed=6 if what == "seed" else 5).training(Located(**other))
    same = (changed == masking().training(rows)).all(axis=(1, 2))
    assert not same.any()


def test_validation_masks_are_those_of_every_run():
    windows = np.arange(0, 500, 7)
    masks = masking().validation(windows)
    other = masking(seed=9, domains=("a", "b"))
    assert np.array_equal(other.validation(windows[3:]), masks[3:])
    assert len(np.unique(masks.reshape(len(windows), -1), axis=0)) == len(windows)


def test_the_masks_do_not_change_with_the_code():
    """Pinned: runs that were trained before keep their identity, and so must their masks."""
    rows = Located(domain=np.array([1, 0]), epoch=np.array([2, 1]), window=np.array([3, 5]))
    assert masking(sequence_length=32).training(rows).tolist() == [
        [[1, 7, 10, 20, 23], [1000, 1000, KEPT, 1000, 1000]],
        [[16, 18, 20, 21, 26], [906, 1000, KEPT, 1000, 1000]],
    ]
