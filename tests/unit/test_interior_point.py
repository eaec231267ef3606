"""The interior point method on programs with known optima: convex, degenerate, and not convex."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.interior_point import minimise
from autoscale.primal_dual import LinearConstraints


@dataclass
class Plain:
    """A program of functions: f and c stacked, their Jacobian and the Hessian."""

    function: Any
    gradient: Any
    curvature: Any

    def values(self, x):
        with np.errstate(all="ignore"):
            return np.atleast_1d(self.function(x)).astype(float)

    def magnitudes(self, x):
        return 1 + np.abs(self.values(x))

    def jacobian(self, x):
        return np.atleast_2d(self.gradient(x)).astype(float)

    def hessian(self, x, multipliers):
        return np.array(self.curvature(x, multipliers), dtype=float)


def simplex(num, *, lower=0.0, upper=np.inf, rows=None, limits=()):
    return LinearConstraints(
        lower=np.broadcast_to(float(lower), num).copy(),
        upper=np.broadcast_to(float(upper), num).copy(),
        equalities=np.ones((1, num)),
        rows=np.zeros((0, num)) if rows is None else np.atleast_2d(rows),
        limits=np.asarray(limits, float),
    )


def nearest(target):
    """`|x - target|^2 / 2`."""
    return Plain(
        lambda x: 0.5 * ((x - target) ** 2).sum(),
        lambda x: x - target,
        lambda x, m: np.eye(len(target)),
    )


def euclidean_projection(target):
    """Onto the simplex, by sorting (Held, Wolfe and Crowder 1974)."""
    falling = np.sort(target)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(target) + 1)
    return np.maximum(target - excess[np.flatnonzero(falling > excess)[-1]], 0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(2, 40), scale=st.sampled_from([0.01, 1, 100]))
def test_projection_onto_the_simplex(seed, num, scale):
    target = scale * np.random.default_rng(seed).normal(size=num)
    found = minimise(nearest(target), simplex(num), np.full(num, 1 / num))
    wanted = euclidean_projection(target)
    np.testing.assert_allclose(found.x, wanted, atol=1e-6)
    assert found.complementarity < 1e-9 * (1 + scale**2) and found.num_iterations < 40
    clear = np.abs(target - wanted - (target - wanted)[wanted.argmax()]) > 1e-3 * scale
    assert (found.at_lower == (wanted == 0))[clear | (wanted > 1e-3)].all()


def powers(amounts, power):
    """`-sum a x^k`: infinite gradients at 0, optimum in proportion to `a^(1 / (1 - k))`."""
    return Plain(
        lambda x: -(amounts * x**power).sum(),
        lambda x: -amounts * power * x ** (power - 1),
        lambda x, m: np.diag(amounts * power * (1 - power) * x ** (power - 2)),
    )


@pytest.mark.parametrize("power", [0.1, 0.5, 0.9])
def test_gradients_may_be_infinite_on_the_boundary(power):
    amounts = np.array([1.0, 0.3, 1e-2, 1e-4, 1e-9])
    wanted = amounts ** (1 / (1 - power))
    found = minimise(powers(amounts, power), simplex(5), np.full(5, 0.2))
    np.testing.assert_allclose(found.x, wanted / wanted.sum(), atol=1e-8)
    assert (found.x > 0).all() and found.status == "converged"


def test_linear_objectives_end_at_vertices():
    costs = np.array([3.0, 1.0, 2.0, 5.0])
    linear = Plain(lambda x: costs @ x, lambda x: costs, lambda x, m: np.zeros((4, 4)))
    found = minimise(linear, simplex(4, lower=0.1, upper=0.5), np.full(4, 0.25))
    np.testing.assert_allclose(found.x, [0.1, 0.5, 0.3, 0.1], atol=1e-9)
    assert found.at_lower.tolist() == [True, False, False, True]
    assert found.at_upper.tolist() == [False, True, False, False]


def test_rows_that_hold_the_optimum_have_multipliers():
    target = np.array([0.7, 0.2, 0.1])
    rows = [[1, 0, 0], [0, 1, 1]]
    found = minimise(nearest(target), simplex(3, rows=rows, limits=[0.5, 0.9]), np.full(3, 1 / 3))
    np.testing.assert_allclose(found.x, [0.5, 0.3, 0.2], atol=1e-9)
    assert found.at_limit.tolist() == [True, False]
    assert found.row_multipliers == pytest.approx([0.3, 0], abs=1e-9)


def within_ball(costs, center, radius):
    """A linear objective within `|x - center|^2 <= radius^2`."""
    size = len(costs)
    return Plain(
        lambda x: [costs @ x, ((x - center) ** 2).sum() - radius**2],
        lambda x: [costs, 2 * (x - center)],
        lambda x, m: 2 * m[0] * np.eye(size),
    )


@pytest.mark.parametrize("radius", [0.1, 1e-3, 1e-5])
def test_curved_constraints_hold_the_optimum(radius):
    costs, center = np.array([1.0, -2, 0.5, 3]), np.array([0.4, 0.3, 0.2, 0.1])
    along = costs - costs.mean()
    wanted = center - radius * along / np.linalg.norm(along)
    found = minimise(within_ball(costs, center, radius), simplex(4, lower=1e-3), center)
    np.testing.assert_allclose(found.x, wanted, atol=1e-5 * radius)
    assert found.multipliers == pytest.approx(np.linalg.norm(along) / (2 * radius), rel=1e-4)


def test_a_start_may_violate_curved_constraints():
    center = np.array([0.6, 0.3, 0.1])
    program = within_ball(np.array([1.0, 0, 0]), center, 0.05)
    found = minimise(program, simplex(3), np.array([0.1, 0.1, 0.8]))
    assert program.values(found.x)[1] < 1e-10
    assert found.x[0] == pytest.approx(0.6 - 0.05 * np.sqrt(2 / 3), abs=1e-8)


def test_the_caller_may_stop_the_search():
    program = nearest(np.array([5.0, 0, 0]))
    found = minimise(program, simplex(3), np.full(3, 1 / 3), enough=lambda f, excess: excess < 0.5)
    assert found.status == "stopped" and found.complementarity < 0.5
    assert found.num_iterations < minimise(program, simplex(3), np.full(3, 1 / 3)).num_iterations


@pytest.mark.parametrize("start", [[0.2, 0.8], [0.8, 0.2], [0.5 + 1e-3, 0.5 - 1e-3]])
def test_programs_that_are_not_convex_give_local_optima(start):
    """A double well in the first variable with its hill at one half."""
    hill = np.array([[1.0, 0], [0, 0]])
    well = Plain(
        lambda x: ((x[0] - 0.5) ** 2 - 0.09) ** 2,
        lambda x: [4 * (x[0] - 0.5) * ((x[0] - 0.5) ** 2 - 0.09), 0],
        lambda x, m: hill * (12 * (x[0] - 0.5) ** 2 - 0.36),
    )
    found = minimise(well, simplex(2), np.array(start))
    assert min(abs(found.x[0] - 0.2), abs(found.x[0] - 0.8)) < 1e-5


def test_a_start_outside_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="the start is not inside"):
        minimise(nearest(np.ones(2)), simplex(2, upper=0.6), np.array([0.3, 0.7]))
