"""The front between two objectives: efficient, evenly spaced, within the constraints."""

import numpy as np
import pytest

from autoscale.constraints import Constraints, Group
from autoscale.mixture_objective import WeightedSum, Worst
from autoscale.pareto import pareto_front
from tests.unit.synthetic_runs import DOMAINS, SETS, simplex_grid, true_law

SURFACE = true_law("eti").surface(None, None)
WEB, MAIL = (WeightedSum(weights=row) for row in (np.eye(4)[0], np.eye(4)[3]))
OBJECTIVES = {
    "sets": (WEB, MAIL),
    "perplexity": (WeightedSum(weights=np.eye(4)[0], of="perplexity"), MAIL),
    "worst": (Worst(offsets=np.zeros(4)), WeightedSum(weights=np.full(4, 0.25))),
    "mean and worst": (WeightedSum(weights=np.eye(4)[2]), Worst(offsets=np.zeros(4))),
}


def constraints(groups=()):
    return Constraints(domains=DOMAINS, lower=np.zeros(5), upper=np.ones(5), groups=groups)


def front(first, second, *, num_points=6, surface=SURFACE, groups=(), limits=None):
    return pareto_front(
        surface, first, second, constraints(groups), num_points=num_points, limits=limits
    )


def values(objective, weights):
    return objective.rows(SETS).values(SURFACE.losses(weights)).max(axis=-1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_mixture_is_better_by_both(name):
    first, second = OBJECTIVES[name]
    points = front(first, second)
    assert len(points) == 6
    grid = np.vstack([simplex_grid(), [point.optimum.mixture.as_array() for point in points]])
    ones, others = values(first, grid), values(second, grid)
    for point in points:
        weights_K = point.optimum.mixture.as_array()
        assert point.first == pytest.approx(float(values(first, weights_K)))
        assert point.second == pytest.approx(float(values(second, weights_K)))
        assert not ((ones < point.first - 1e-6) & (others < point.second - 1e-6)).any()
    assert (np.diff([point.first for point in points]) > 0).all()


def test_the_second_objective_falls_in_even_steps_from_one_optimum_to_the_other():
    points = front(WEB, MAIL, num_points=11)
    steps = np.diff([point.second for point in points])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert points[-1].second == pytest.approx(front(MAIL, WEB)[0].first, abs=1e-7)


def test_constraints_and_limits_hold_along_the_front():
    uniform_K = np.full(5, 0.2)
    limits = SURFACE.losses(uniform_K) + 0.02
    group = Group(name="g", domains=("wiki", "math"), lower=0.3)
    for point in front(WEB, MAIL, groups=(group,), limits=limits):
        weights_K = point.optimum.mixture.as_array()
        assert weights_K[3:].sum() >= 0.3 - 1e-9
        assert (SURFACE.losses(weights_K) <= limits + 1e-8).all()


def test_objectives_that_agree_have_one_point():
    twice = WeightedSum(weights=2 * np.eye(4)[0])
    [point] = front(WEB, twice)
    assert point.second == pytest.approx(2 * point.first)


def test_one_point_is_no_front():
    with pytest.raises(ValueError, match="expected at least 2 points, found 1"):
        front(WEB, MAIL, num_points=1)
