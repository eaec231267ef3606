"""Comparison of runs: crossings, savings, paired intervals, pooled noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autoscale.comparison import paired_difference, pooled_seed_noise, savings, tokens_to_reach


@given(st.floats(2.01, 3.99))
def test_crossing_inverts_a_curve_linear_in_log_tokens(target: float) -> None:
    tokens = np.geomspace(1e6, 1e9, 10)
    losses = np.interp(np.log(tokens), np.log([1e6, 1e9]), [4, 2])
    exact = 1e6 * 1e3 ** ((4 - target) / 2)
    assert tokens_to_reach(tokens, losses, target) == pytest.approx(exact, rel=1e-9)


def test_crossing_is_the_first_and_never_extrapolated() -> None:
    assert tokens_to_reach([1, 10, 100, 1000], [4, 3, 3.5, 2], 3) == 10
    assert tokens_to_reach([1, 10], [4, 3], 2.999) is None
    assert tokens_to_reach([5, 10], [2, 1], 3) == 5
    assert tokens_to_reach([0, 10, 100], [9, 3, 2], 4) == 10


def test_savings() -> None:
    found = savings([100, 200, 400], [3, 2.5, 2], baseline_tokens=400, baseline_final_loss=2.5)
    assert found.tokens == pytest.approx(200) and found.reached
    assert found.tokens_saved == pytest.approx(0.5) and found.speed_up == pytest.approx(2)
    never = savings([100, 200], [3, 2.5], baseline_tokens=200, baseline_final_loss=2)
    assert (never.reached, never.tokens, never.tokens_saved, never.speed_up) == (False,) + (
        None,
    ) * 3
    slower = savings([100, 400], [3, 2], baseline_tokens=200, baseline_final_loss=2)
    assert slower.tokens_saved == pytest.approx(-1) and slower.speed_up == pytest.approx(0.5)


def test_paired_difference_is_students_interval() -> None:
    ours, theirs = [2.0, 2.1, 1.9, 2.05], [2.2, 2.25, 2.15, 2.2]
    found = paired_difference(ours, theirs, confidence=0.95)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.verdict == "better" and found.num_pairs == 4 and found.mean < 0
    assert paired_difference(theirs, ours).verdict == "worse"
    assert paired_difference([2.0, 2.3], [2.2, 2.2]).verdict == "not distinguishable"


def test_common_noise_cancels_in_pairs() -> None:
    noise = np.array([0.5, -0.4, 0.1])
    found = paired_difference(2 + noise, 2.01 + noise)
    assert found.verdict == "better" and found.standard_error == pytest.approx(0, abs=1e-12)


def test_one_pair_needs_known_noise() -> None:
    unknown = paired_difference([2.0], [2.1])
    assert unknown.verdict == "not distinguishable"
    assert unknown.standard_error is unknown.low is unknown.high is None
    quiet = paired_difference([2.0], [2.1], noise=0.01)
    assert quiet.verdict == "better" and quiet.standard_error == pytest.approx(0.01 * np.sqrt(2))
    assert paired_difference([2.0], [2.1], noise=0.06).verdict == "not distinguishable"
    # a noise measured from two seeds is itself uncertain
    measured = paired_difference([2.0], [2.1], noise=0.02, noise_degrees=1)
    assert measured.verdict == "not distinguishable" and measured.mean == pytest.approx(-0.1)
    assert paired_difference([2.0], [2.1], noise=0.02).verdict == "better"


def test_pooled_seed_noise() -> None:
    rng = np.random.default_rng(0)
    groups = [(5 * k + rng.normal(scale=0.3, size=4)).tolist() for k in range(500)]
    assert pooled_seed_noise(groups) == pytest.approx(0.3, rel=0.05)
    assert pooled_seed_noise([[1.0, 2.0, 3.0]]) == pytest.approx(1)
    assert pooled_seed_noise([[1.0, 3.0], [7.0], []]) == pytest.approx(np.sqrt(2))
    assert pooled_seed_noise([[1.0], [2.0]]) is None


def test_errors() -> None:
    with pytest.raises(ValueError, match="token counts of a loss curve must increase"):
        tokens_to_reach([10, 10], [3, 2], 2)
    with pytest.raises(ValueError, match="not finite: it diverged"):
        tokens_to_reach([10, 20], [3, float("nan")], 2)
    with pytest.raises(ValueError, match="expected at least one evaluation"):
        tokens_to_reach([], [], 2)
    with pytest.raises(ValueError, match="baseline was trained on 0 tokens"):
        savings([10], [3], baseline_tokens=0, baseline_final_loss=2)
    with pytest.raises(ValueError, match="expected a loss for each seed of both"):
        paired_difference([2.0], [2.0, 2.1])
    with pytest.raises(ValueError, match="leave out the seed that diverged"):
        paired_difference([2.0, np.inf], [2.0, 2.1])
    with pytest.raises(ValueError, match="confidence is 90; expected a number between 0 and 1"):
        paired_difference([2.0], [2.0], confidence=90)
    with pytest.raises(ValueError, match="seed noise is -1"):
        paired_difference([2.0], [2.0], noise=-1)
