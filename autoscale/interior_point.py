"""A primal-dual interior point method for smooth programs of a thousand variables, dense Newton.

From a point strictly inside the linear inequalities, iterates stay inside, so that gradients may be
infinite on the boundary. Each step aims at a complementarity mu that Mehrotra's predictor chooses
(Wright, Primal-Dual Interior-Point Methods, 1997), but not below what the dual residual warrants.
It is as long as it lowers either the merit function

    f - mu sum log s + penalty sum |c + s|

or the distance to the point aimed for (Waechter and Biegler 2006 for the first, with their
second-order correction). Where the Hessian is indefinite, as in programs that are not convex, a
multiple of the identity is added, and the point found is a local optimum.
"""

# N variables, M nonlinear constraints, R rows, E equalities, D = R + M

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .primal_dual import (
    MACHINE,
    LinearConstraints,
    Point,
    Problem,
    Program,
    Solver,
    Step,
    newton_solver,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Status = Literal["converged", "stopped", "stalled", "max_iterations"]

MAX_ITERATIONS = 200
TOLERANCE = 1e-12  # of the error, in units of the objective
TO_BOUNDARY = 0.995  # share of the way to the boundary that a step goes at most
LEAST_CENTERING = 1e-3  # lowest mu aimed for, in multiples of the mean complementarity
CAUTIOUS_CENTERING = 0.2  # where that led nowhere
RESIDUAL_SHARE = 0.3  # of the dual residual that complementarity does not fall below
ARMIJO = 1e-4  # share of the predicted descent that a step must reach
NEARER = 0.9  # or share of the distance that may be left
SHORTEST_STEP = 1e-12
PROGRESS = 0.9  # share of the least excess so far that counts as progress
PATIENCE = 8  # steps without progress before caution
GOOD_ENOUGH = 1e-10  # error at which caution is no use
MOST_VAIN = 40  # steps without progress after which rounding is taken to have the last word


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InteriorPoint:
    """Where the method ended, inside all linear inequalities.

    Attributes:
        x: the point, shape (N,).
        at_lower: bounds that hold it: with a multiplier above the slack, in units of the
            objective; shape (N,).
        at_upper: likewise.
        at_limit: rows that hold it, shape (R,).
        row_multipliers: at least 0, shape (R,).
        equality_multipliers: shape (E,).
        multipliers: of the nonlinear constraints, at least 0, shape (M,).
        complementarity: about what a convex objective may lie above its minimum.
        num_iterations: Newton steps.
        status: "stalled" where rounding stopped the search, "stopped" where the caller did.
    """

    x: Array
    at_lower: Mask
    at_upper: Mask
    at_limit: Mask
    row_multipliers: Array
    equality_multipliers: Array
    multipliers: Array
    complementarity: float
    num_iterations: int
    status: Status


def minimise(
    program: Program,
    linear: LinearConstraints,
    start_N: Array,
    *,
    enough: Callable[[float, float], bool] | None = None,
) -> InteriorPoint:
    """The optimum of a convex program, a local one of another.

    Args:
        program: objective and nonlinear constraints, twice differentiable inside.
        linear: the other constraints.
        start_N: strictly inside the linear inequalities; its `A x` is kept.
        enough: given the objective and its possible excess, whether to stop.
    """
    best = point = Problem(program, linear).start(start_N)
    least_excess, num_vain, centering = np.inf, 0, LEAST_CENTERING
    for num_iterations in range(MAX_ITERATIONS):
        excess = max(point.complementarity, point.lack)
        num_vain = 0 if excess < PROGRESS * least_excess else num_vain + 1
        least_excess = min(excess, least_excess)
        if point.error < best.error:
            best = point
        if point.error <= TOLERANCE:
            return _result(point, num_iterations, "converged")
        if enough is not None:
            missed = float(point.missed.max(initial=0.0))
            if enough(float(point.values[0]) + missed, point.complementarity):
                return _result(point, num_iterations, "stopped")
        if num_vain == PATIENCE and best.error <= GOOD_ENOUGH:
            return _result(best, num_iterations, "stalled")
        if num_vain == PATIENCE and centering < CAUTIOUS_CENTERING:
            centering = CAUTIOUS_CENTERING
            point = point.centred(excess / len(point.s))
        following = None if num_vain == MOST_VAIN else _step(point, centering)
        if following is None:
            return _result(best, num_iterations, "stalled")
        point = following
    return _result(best, MAX_ITERATIONS, "max_iterations")


def _result(point: Point, num_iterations: int, status: Status) -> InteriorPoint:
    problem, linear = point.problem, point.problem.linear
    below, above, rows, _ = problem.split(point.s * point.unit < point.z)
    at_lower, at_upper = np.zeros((2, len(point.x)), dtype=bool)
    at_lower[problem.below], at_upper[problem.above] = below, above
    _, _, row_multipliers, multipliers = problem.split(point.z)
    return InteriorPoint(
        x=np.clip(point.x, linear.lower, linear.upper),
        at_lower=at_lower,
        at_upper=at_upper,
        at_limit=rows,
        row_multipliers=row_multipliers,
        equality_multipliers=point.lagrangian[0],
        multipliers=multipliers,
        complementarity=point.complementarity,
        num_iterations=num_iterations,
        status=status,
    )


def _step(point: Point, centering: float) -> Point | None:
    """The point after a Newton step; None if there is none that rounding lets descend."""
    solve = newton_solver(point)
    count = len(point.s)
    mean = point.complementarity / count
    ahead = point.direction(solve, 0.0)
    s = point.s + _longest(point.s, ahead.s) * ahead.s
    z = point.z + _longest(point.z, ahead.z) * ahead.z
    mu = mean * min(max((float(s @ z) / count / mean) ** 3, centering), 1.0)
    most = min(RESIDUAL_SHARE * point.lack / count, mean)
    mu = max(mu, most, 0.01 * TOLERANCE * point.unit / count)
    return _search_line(point, point.direction(solve, mu), mu=mu, solve=solve)


def _search_line(point: Point, step: Step, *, mu: float, solve: Solver) -> Point | None:
    share = max(TO_BOUNDARY, 1 - mu / point.unit)
    num_curved = len(point.values) - 1
    penalty = 0.0
    if num_curved:
        z = point.z + _longest(point.z, step.z) * step.z
        penalty = 1.1 * float(np.maximum(z, point.z)[-num_curved:].max())

    def merit(at: Point) -> float:
        missed = np.abs(at.values[1:] + at.s[len(at.s) - num_curved :]).sum()
        return float(at.values[0] - mu * np.log(at.s).sum() + penalty * missed)

    before = merit(point)
    slope = point.jacobian[0] @ step.x - mu * (step.s / point.s).sum()
    slope -= penalty * np.abs(point.missed).sum()
    noise = 16 * MACHINE * (point.unit + mu * np.abs(np.log(point.s)).sum() + penalty)

    def moved(step: Step, alpha: float) -> Point | None:
        z_alpha = min(1.0, share * _longest(point.z, step.z))
        there = point.moved(step, alpha, z_alpha=z_alpha, mu=mu)
        return there if np.isfinite(there.values).all() else None

    def descends(there: Point | None, alpha: float) -> bool:
        return there is not None and merit(there) <= before + ARMIJO * alpha * slope + noise

    alpha = longest = min(1.0, share * _longest(point.s, step.s))
    while alpha > SHORTEST_STEP:
        there = moved(step, alpha)
        if descends(there, alpha):
            return there
        if there is not None and alpha == longest:
            if there.distance(mu) <= NEARER * point.distance(mu):
                return there
            if there.missed.any():
                corrected = point.direction(solve, mu, ahead=there.missed)
                there = moved(corrected, min(1.0, share * _longest(point.s, corrected.s)))
                if descends(there, alpha):
                    return there
        alpha /= 2
    return None


def _longest(values: Array, steps: Array) -> float:
    """The largest alpha of at most 1 for which no value + alpha step is negative."""
    falling = steps < 0
    return float((values[falling] / -steps[falling]).min(initial=1.0))
