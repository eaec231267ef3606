from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.schedule import evaluation_steps, learning_rate

SETTINGS = {"lr": 1.0, "min_lr_ratio": 0.1, "warmup_fraction": 0.1, "decay_fraction": 0.2}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_rises_then_never_rises_again_and_ends_at_the_minimum(schedule):
    rates = [learning_rate(step, 1000, schedule=schedule, **SETTINGS) for step in range(1000)]
    assert all(a < b for a, b in pairwise(rates[:100]))
    assert all(a >= b for a, b in pairwise(rates[100:]))
    assert max(rates) <= 1
    assert rates[-1] == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay():
    rates = [learning_rate(step, 1000, schedule="wsd", **SETTINGS) for step in range(1000)]
    assert rates[100:800] == [1.0] * 700
    assert rates[900] == pytest.approx((1 + 0.1) / 2, abs=0.01)


@given(st.integers(1, 10**6), st.integers(1, 50))
def test_evaluations_rise_and_end_with_the_run(num_steps, points):
    steps = evaluation_steps(num_steps, points)
    assert steps[-1] == num_steps
    assert steps == sorted(set(steps))
    assert len(steps) <= points
    assert steps[0] >= 1
