"""The front between two objectives: efficient, evenly spaced, within the constraints."""

import numpy as np
import pytest

from autoscale.constraints import Constraints, Group
from autoscale.mixture import Mixture
from autoscale.mixture_objective import Pull, WeightedSum, Worst
from autoscale.optimum import DEFAULT_SEARCH, make_choice
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


def front(first, second, *, num_points=6, surface=SURFACE, groups=(), **options):
    choice = make_choice(surface, first, constraints(groups), **options)
    return pareto_front(
        choice, second.rows(surface.sets), num_points=num_points, search=DEFAULT_SEARCH
    )


def values(objective, weights):
    return objective.rows(SETS).values(SURFACE.losses(weights)).max(axis=-1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_mixture_is_better_by_both(name):
    first, second = OBJECTIVES[name]
    points = front(first, second)
    assert len(points) == 6
    grid = np.vstack([simplex_grid(), [point.mixture.as_array() for point in points]])
    ones, others = values(first, grid), values(second, grid)
    for point in points:
        weights_K = point.mixture.as_array()
        assert point.first == pytest.approx(float(values(first, weights_K)))
        assert point.second == pytest.approx(float(values(second, weights_K)))
        assert not ((ones < point.first - 1e-6) & (others < point.second - 1e-6)).any()
    assert (np.diff([point.first for point in points]) > 0).all()


def test_the_second_objective_falls_in_even_steps_from_one_optimum_to_the_other():
    points = front(WEB, MAIL, num_points=11)
    steps = np.diff([point.second for point in points])
    np.testing.assert_allclose(steps[:-1], steps[0], rtol=1e-3)
    least = front(MAIL, WEB)[0].first
    assert points[-1].second - least < 2e-3 * (points[0].second - least)


def test_constraints_limits_and_pull_hold_along_the_front():
    uniform_K = np.full(5, 0.2)
    limits = SURFACE.losses(uniform_K) + 0.02
    group = Group(name="g", domains=("wiki", "math"), lower=0.3)
    for point in front(WEB, MAIL, groups=(group,), limits=limits):
        weights_K = point.mixture.as_array()
        assert weights_K[3:].sum() >= 0.3 - 1e-9
        assert (SURFACE.losses(weights_K) <= limits + 1e-8).all()
    pull = Pull(kind="l2", strength=100.0, mixture=Mixture.uniform(DOMAINS))
    np.testing.assert_allclose(front(WEB, MAIL, pull=pull)[0].mixture.as_array(), 0.2, atol=0.01)


def test_objectives_that_agree_have_one_point():
    twice = WeightedSum(weights=2 * np.eye(4)[0])
    [point] = front(WEB, twice)
    assert point.second == pytest.approx(2 * point.first)


def test_what_has_no_front_is_refused():
    with pytest.raises(ValueError, match="a front of 1 points is none; expected 2 or more"):
        front(WEB, MAIL, num_points=1)

    class Steps:
        convex = differentiable = False
        domains, sets = DOMAINS, SETS
        losses = staticmethod(SURFACE.losses)

    with pytest.raises(ValueError, match="needs a law with a gradient, and trees have none"):
        front(WEB, MAIL, surface=Steps())
