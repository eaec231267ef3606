"""The domain schedule: exact, monotone, even, and the same as plain integer arithmetic."""

from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoscale.mixture import largest_remainder
from autoscale.quota_tree import MAX_DRAWS, QuotaTree
from autoscale.stage_quotas import Stage
from tests.unit.both_paths import both_paths  # noqa: F401  (every test runs on both)

FIBONACCI_BOUND = 1.68

QUOTAS = st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(any)
LONG_QUOTAS = st.lists(st.integers(0, MAX_DRAWS // 8), min_size=1, max_size=8).filter(any)


def deviation(weights: NDArray[np.float64], tree: QuotaTree, num_draws: int) -> float:
    """Largest |draws of a domain - weight x prefix| over all domains and all prefixes.

    The difference falls between draws and jumps at them, so both sides of each jump suffice.
    """
    draws = np.arange(num_draws)
    domain, rank = tree.locate(draws)
    before, after = rank - weights[domain] * draws, rank + 1 - weights[domain] * (draws + 1)
    counts = np.bincount(domain, minlength=len(weights))
    at_end = np.abs(counts - weights * num_draws).max()
    return float(max(np.abs(before).max(), np.abs(after).max(), at_end))


@settings(max_examples=80)
@given(quotas=QUOTAS)
def test_each_domain_is_drawn_its_quota_in_order(quotas: list[int]) -> None:
    domain, rank = QuotaTree(quotas).locate(np.arange(sum(quotas)))
    assert np.bincount(domain, minlength=len(quotas)).tolist() == quotas
    for number, quota in enumerate(quotas):
        assert np.array_equal(rank[domain == number], np.arange(quota))


@settings(max_examples=80)
@given(quotas=QUOTAS)
def test_no_prefix_is_further_from_its_share_than_the_bound(quotas: list[int]) -> None:
    shares = np.array(quotas) / sum(quotas)
    assert deviation(shares, QuotaTree(quotas), sum(quotas)) < FIBONACCI_BOUND


def test_fibonacci_quotas_stay_within_the_bound_and_descend_quickly() -> None:
    """The deepest tree: as many levels as domains."""
    quotas = [1, 1]
    while len(quotas) < 24:
        quotas.append(quotas[-1] + quotas[-2])
    shares = np.array(quotas) / sum(quotas)
    assert deviation(shares, QuotaTree(quotas), sum(quotas)) < FIBONACCI_BOUND


FAMILIES = ["dirichlet", "sparse", "zipf", "geometric", "equal"]


def weights_of(family: str, num_domains: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(num_domains)
    ranks = np.arange(num_domains)
    weights = {
        "dirichlet": generator.dirichlet(np.ones(num_domains)),
        "sparse": generator.dirichlet(np.full(num_domains, 0.1)),
        "zipf": 1 / (ranks + 1),
        "geometric": 0.7**ranks,
        "equal": np.ones(num_domains),
    }[family]
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("num_domains", [7, 22, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_usual_mixtures_stay_within_one_and_a_half_draws(num_domains: int, family: str) -> None:
    """From w*n over all prefixes, the rounding of the quotas included."""
    weights, num_draws = weights_of(family, num_domains), 250_000
    tree = QuotaTree(largest_remainder(weights, num_draws).tolist())
    assert deviation(weights, tree, num_draws) <= 1.5


@pytest.mark.parametrize("num_draws", [250_000, 249_983])
@pytest.mark.parametrize("num_domains", [7, 22, 100, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_shares_keep_the_schedule_at_the_weights(
    num_domains: int, family: str, num_draws: int
) -> None:
    """Also where the rounding of the quotas adds up, as for 1000 equal domains."""
    weights = weights_of(family, num_domains)
    stage = Stage.of_weights(weights.tolist(), num_draws)
    tree = QuotaTree(stage.quotas, stage.shares)
    assert tree.counts(num_draws).tolist() == list(stage.quotas)
    assert deviation(weights, tree, num_draws) <= 1.5


@settings(max_examples=80)
@given(quotas=QUOTAS, data=st.data())
def test_quotas_are_exact_whatever_the_shares(quotas: list[int], data: st.DataObject) -> None:
    """Even where they have nothing to do with each other."""
    number = len(quotas)
    shares = data.draw(
        st.lists(st.integers(0, 2**46), min_size=number, max_size=number).filter(any)
    )
    tree, draws = QuotaTree(quotas, shares), sum(quotas)
    domain, rank = tree.locate(np.arange(draws))
    assert tree.quotas().tolist() == quotas
    for domain_number, quota in enumerate(quotas):
        assert np.array_equal(rank[domain == domain_number], np.arange(quota))
    prefix = data.draw(st.integers(0, draws))
    assert tree.counts(prefix).tolist() == np.bincount(domain[:prefix], minlength=number).tolist()


@settings(max_examples=60)
@given(
    weights=st.lists(st.floats(1e-9, 1), min_size=1, max_size=9),
    num_draws=st.integers(1, 2**50),
    data=st.data(),
)
def test_long_stages_with_shares_are_exact(
    weights: list[float], num_draws: int, data: st.DataObject
) -> None:
    """Draws found in the middle of long stages are those that the counts of prefixes tell."""
    stage = Stage.of_weights(weights, num_draws)
    tree = QuotaTree(stage.quotas, stage.shares)
    assert tree.counts(num_draws).tolist() == list(stage.quotas)
    places = st.one_of(st.integers(0, num_draws - 1), st.integers(0, min(99, num_draws - 1)))
    draws = data.draw(st.lists(places, min_size=1, max_size=10))
    draws += [num_draws - 1 - draw for draw in draws]
    domain, rank = tree.locate(np.array(draws))
    for draw, found, place in zip(draws, domain.tolist(), rank.tolist(), strict=True):
        before, after = tree.counts(draw), tree.counts(draw + 1)
        assert place == before[found]
        assert np.flatnonzero(after - before).tolist() == [found]
        assert after[found] == place + 1


def count_by_integers(quotas: list[int], draws: int) -> list[int]:
    """`QuotaTree.counts` anew, in Python's unlimited integers, from the description alone."""
    nodes = [(quota, domain, (domain,)) for domain, quota in enumerate(quotas) if quota]
    splits = {}
    while len(nodes) > 1:
        left, right, *nodes = sorted(nodes)
        below = left[2] + right[2]
        splits[below] = (left, right)
        nodes.append((left[0] + right[0], min(left[1], right[1]), below))
    counts = [0] * len(quotas)
    pending = [(nodes[0][2], draws)]
    while pending:
        below, count = pending.pop()
        if below in splits:
            left, right = splits[below]
            total = left[0] + right[0]
            to_left = (count * left[0] + total // 2) // total
            pending += [(left[2], to_left), (right[2], count - to_left)]
        else:
            counts[below[0]] = count
    return counts


@settings(max_examples=60)
@given(quotas=LONG_QUOTAS, data=st.data())
def test_long_stages_are_exact(quotas: list[int], data: st.DataObject) -> None:
    """Far past 2**31 draws the float64 guesses are corrected to the integer result."""
    total = sum(quotas)
    anywhere = st.integers(0, total - 1)
    near_ends = st.sampled_from([0, total - 1, total // 2, total // 3])
    draws = data.draw(st.lists(st.one_of(anywhere, near_ends), min_size=1, max_size=20))
    tree = QuotaTree(quotas)
    domain, rank = tree.locate(np.array(draws))
    for draw, found, place in zip(draws, domain.tolist(), rank.tolist(), strict=True):
        before, after = count_by_integers(quotas, draw), count_by_integers(quotas, draw + 1)
        assert tree.counts(draw).tolist() == before
        assert after[found] == before[found] + 1 and sum(after) == sum(before) + 1
        assert place == before[found]
    assert tree.counts(total).tolist() == quotas


@settings(max_examples=60)
@given(total=st.integers(2**44, MAX_DRAWS), share=st.floats(0.01, 0.49))
def test_guesses_are_corrected_on_both_sides_of_a_jump(total: int, share: float) -> None:
    """Draws whose quotient is a whole number give or take 1/total: too near for float64."""
    left = int(total * share)
    while gcd(left, total) > 1:
        left += 1
    tree = QuotaTree([left, total - left])
    remainders = [0, 1, 2, total - 1, total - 2]
    draws = [(rest - total // 2) * pow(left, -1, total) % total for rest in remainders]
    domain, rank = tree.locate(np.array(draws))
    for draw, found, place in zip(draws, domain.tolist(), rank.tolist(), strict=True):
        before = (draw * left + total // 2) // total
        after = ((draw + 1) * left + total // 2) // total
        assert (found, place) == ((0, before) if after > before else (1, draw - before))


@settings(max_examples=40)
@given(quotas=QUOTAS, data=st.data())
def test_counts_are_a_recount_of_the_prefix(quotas: list[int], data: st.DataObject) -> None:
    draws = data.draw(st.integers(0, sum(quotas)))
    tree = QuotaTree(quotas)
    domain, _ = tree.locate(np.arange(draws))
    assert tree.counts(draws).tolist() == np.bincount(domain, minlength=len(quotas)).tolist()
