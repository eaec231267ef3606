"""Repeated tokens: the published formula, its shape and its limits, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.laws.repetition import PUBLISHED_RATE, Repetition

UNIQUE = np.array([1e6, 2e7, 3e8])


def repetition(rate=PUBLISHED_RATE):
    return Repetition(rate=rate, unique_tokens=UNIQUE)


def published(tokens, unique, rate):
    """Muennighoff et al., arXiv 2305.16264: `D' = U_D + U_D R* (1 - exp(-R_D / R*))`."""
    used = min(tokens, unique)
    repeats = tokens / used - 1
    return used + used * rate * (1 - np.exp(-repeats / rate))


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1, 1.5, 4, 16, 44, 1000])
@pytest.mark.parametrize("rate", [0.5, 4.0, PUBLISHED_RATE])
def test_the_published_formula(epochs, rate):
    expected = [published(epochs * unique, unique, rate) for unique in UNIQUE]
    assert repetition(rate).effective(epochs * UNIQUE) == pytest.approx(expected, rel=1e-12)


def test_four_epochs_are_almost_as_good_as_new_tokens_and_sixteen_are_not():
    effective = repetition().effective(np.outer([4, 16], UNIQUE)) / UNIQUE
    assert effective[0] == pytest.approx(3.73, abs=0.01)
    assert effective[1] == pytest.approx(10.6, abs=0.05)


def test_the_first_epoch_counts_in_full():
    tokens = UNIQUE * np.linspace(0, 1, 11)[:, None]
    np.testing.assert_array_equal(repetition().effective(tokens), tokens)


def test_endless_repetition_is_worth_the_rate_in_epochs():
    assert repetition(3.0).effective(1e9 * UNIQUE) == pytest.approx(4 * UNIQUE, rel=1e-12)
    fast = repetition(1e-3).effective(10 * UNIQUE)
    assert fast == pytest.approx(UNIQUE, rel=2e-3)
    slow = repetition(1e9).effective(10 * UNIQUE)
    assert slow == pytest.approx(10 * UNIQUE, rel=1e-6)


@given(
    first=st.floats(0, 50), second=st.floats(0, 50), rate=st.floats(0.1, 100), share=st.floats(0, 1)
)
def test_effective_tokens_are_concave_rising_and_no_more_than_drawn(first, second, rate, share):
    def effective(epochs):
        return repetition(rate).effective(epochs * UNIQUE) / UNIQUE

    between = effective(share * first + (1 - share) * second)
    chord = share * effective(first) + (1 - share) * effective(second)
    assert (between >= chord - 1e-9).all()
    low, high = sorted((first, second))
    assert (effective(high) >= effective(low) - 1e-12).all()
    assert (effective(high) <= high + 1e-12).all()


def test_effective_tokens_and_their_slope_are_continuous_at_one_epoch():
    below, above = (repetition(2.0).effective(UNIQUE * x) for x in (1 - 1e-9, 1 + 1e-9))
    assert above == pytest.approx(below, rel=1e-8)
    slopes = [repetition(2.0).slopes(UNIQUE * x)[0] for x in (1 - 1e-9, 1 + 1e-9)]
    assert slopes[0] == pytest.approx(1, abs=1e-12)
    assert slopes[1] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("epochs", [0.3, 1.7, 5.0, 20.0])
def test_slopes_are_derivatives(epochs):
    law, tokens, step = repetition(3.0), epochs * UNIQUE, 1e-5 * UNIQUE
    first, second = law.slopes(tokens)
    by_difference = (law.effective(tokens + step) - law.effective(tokens - step)) / (2 * step)
    assert first == pytest.approx(by_difference, rel=1e-8, abs=1e-9)
    of_slope = (law.slopes(tokens + step)[0] - law.slopes(tokens - step)[0]) / (2 * step)
    assert second == pytest.approx(of_slope, rel=1e-6, abs=1e-30)


def test_rows_of_runs():
    tokens = np.outer([1, 3, 10], UNIQUE)
    rows = [repetition().effective(row) for row in tokens]
    np.testing.assert_array_equal(repetition().effective(tokens), rows)


def test_json_round_trip():
    again = Repetition.from_dict(repetition(1 / 3).to_dict())
    assert again.rate == 1 / 3
    np.testing.assert_array_equal(again.unique_tokens, UNIQUE)


@pytest.mark.parametrize("rate", [0, -1.0, np.nan, np.inf])
def test_a_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match=r"repetition rate R\* is .*published 15.4"):
        repetition(rate)


@pytest.mark.parametrize("unique", [0, -5.0, np.nan])
def test_unique_tokens_must_be_positive(unique):
    with pytest.raises(ValueError, match=r"unique tokens by domain are .*epochs of them"):
        Repetition(rate=4.0, unique_tokens=np.array([1e6, unique]))
