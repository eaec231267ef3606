"""A point of the interior point method: variables, slacks and multipliers, and its Newton steps.

    minimise   f(x)
    subject to c(x) <= 0,   R x <= r,   lower <= x <= upper,   A x = A x_start

Every inequality has a slack s > 0 and a multiplier z > 0. With G for the gradients of the
inequalities and H for the Hessian of f + z . c, a step toward complementarity s_i z_i = mu solves

    H dx + G^T dz + A^T dy = -(grad f + G^T z + A^T y),   G dx + ds = -(c + s),   A dx = 0
    s dz + z ds = mu - s z
"""

# N variables, M nonlinear constraints, R rows, E equalities, I inequalities: bounds, rows, c;
# D = R + M, the inequalities with dense gradients

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

MACHINE = float(np.finfo(np.float64).eps)
FREE_ROOM = 1.0  # of a variable without bounds
FIRST_SLACK = 1e-3  # least of a constraint at the start, in its magnitude, whatever c is
SPREAD = 1e10  # most by which s z may differ from mu after a step


class Program(Protocol):
    """A smooth function with constraints, `[f, c_1 .. c_M]`."""

    def values(self, x_N: Array) -> Array:
        """Shape (1 + M,); not finite where the program is not defined."""

    def magnitudes(self, x_N: Array) -> Array:
        """Sizes of the terms that the values are sums of: rounding is relative to them."""

    def jacobian(self, x_N: Array) -> Array:
        """Shape (1 + M, N)."""

    def hessian(self, x_N: Array, multipliers_M: Array) -> Array:
        """Of `f + multipliers . c`, a new array of shape (N, N)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearConstraints:
    """`lower <= x <= upper` (infinite where there is none), `rows x <= limits`, `A x` constant.

    Attributes:
        equalities: A, of full rank, shape (E, N).
    """

    lower: Array
    upper: Array
    equalities: Array
    rows: Array
    limits: Array


class Step(NamedTuple):
    """Changes of variables, slacks and multipliers."""

    x: Array
    s: Array
    z: Array


Solver = Callable[[Array, Array, Array], tuple[Array, Array]]


class Problem:
    """A program with its constraints; inequalities in the order lower, upper bounds, rows, c."""

    def __init__(self, program: Program, linear: LinearConstraints) -> None:
        self.program, self.linear = program, linear
        self.below = np.flatnonzero(np.isfinite(linear.lower))
        self.above = np.flatnonzero(np.isfinite(linear.upper))
        self.num_bounds = len(self.below) + len(self.above)

    def split(self, values_I: NDArray[Any]) -> list[NDArray[Any]]:
        """What belongs to lower bounds, upper bounds, rows and c."""
        num_rows = len(self.linear.limits)
        return np.split(values_I, [len(self.below), self.num_bounds, self.num_bounds + num_rows])

    def of_bounds(self, values_I: Array) -> Array:
        """`G^T values` of the bounds alone, shape (N,)."""
        below, above, _, _ = self.split(values_I)
        product_N = np.zeros(len(self.linear.lower))
        product_N[self.below] -= below
        product_N[self.above] += above
        return product_N

    def start(self, x_N: Array) -> "Point":
        """A point with about the slacks of x, and the mu at which f and barrier pull equally."""
        linear, values = self.linear, self.program.values(x_N)
        parts = (
            x_N[self.below] - linear.lower[self.below],
            linear.upper[self.above] - x_N[self.above],
            linear.limits - linear.rows @ x_N,
            np.maximum(-values[1:], FIRST_SLACK * self.program.magnitudes(x_N)[1:]),
        )
        s = np.concatenate(parts)
        assert np.isfinite(values).all() and (s > 0).all(), "the start is not inside"
        self.constant = linear.equalities @ x_N
        point = Point(self, x_N, s, np.ones_like(s))
        below, above, *_ = self.split(s**-2)
        curvature_N = s[self.num_bounds :] ** -2 @ point.dense**2
        curvature_N[self.below] += below
        curvature_N[self.above] += above
        _, pull_N = point.along_equalities(point.jacobian[0])
        return point.centred(float(np.sqrt(np.mean(pull_N**2 / curvature_N))))


class Point:
    """Variables x, slacks s and multipliers z, with what follows from them.

    Slacks are variables of their own. Those of linear inequalities stay exact where `limit - x`
    would cancel, and `c(x) + s` may differ from 0 for a while, so that curved constraints do not
    hold up the steps.
    """

    def __init__(self, problem: Problem, x_N: Array, s_I: Array, z_I: Array) -> None:
        self.problem, self.x, self.s, self.z = problem, x_N, s_I, z_I
        self.values = problem.program.values(x_N)

    @cached_property
    def jacobian(self) -> Array:
        """Of f and c, shape (1 + M, N)."""
        return self.problem.program.jacobian(self.x)

    @cached_property
    def dense(self) -> Array:
        """Gradients of rows and c, shape (D, N)."""
        return np.concatenate([self.problem.linear.rows, self.jacobian[1:]])

    @property
    def complementarity(self) -> float:
        """`s . z`: in a convex program about what f lies above its minimum."""
        return float(self.s @ self.z)

    @cached_property
    def magnitudes(self) -> Array:
        """Of f and c, shape (1 + M,)."""
        return self.problem.program.magnitudes(self.x)

    @cached_property
    def noise(self) -> Array:
        """What rounding may leave of `c + s`, shape (D,)."""
        rows = np.ones(len(self.problem.linear.limits))
        return 64 * MACHINE * np.concatenate([rows, self.magnitudes[1:]])

    @cached_property
    def missed(self) -> Array:
        """`c + s` of rows and constraints, 0 where rounding explains it, shape (D,)."""
        linear = self.problem.linear
        values = np.concatenate([linear.rows @ self.x - linear.limits, self.values[1:]])
        missed = values + self.s[self.problem.num_bounds :]
        return np.where(np.abs(missed) <= self.noise, 0.0, missed)

    @cached_property
    def room(self) -> Array:
        """Distance of each variable to the nearer bound, shape (N,)."""
        below, above, _, _ = self.problem.split(self.s)
        room_N = np.full(len(self.x), np.inf)
        room_N[self.problem.below] = below
        room_N[self.problem.above] = np.minimum(room_N[self.problem.above], above)
        return np.where(np.isfinite(room_N), room_N, FREE_ROOM)

    def along_equalities(self, gradient_N: Array) -> tuple[Array, Array]:
        """The y for which `gradient + A^T y` is smallest where there is room, and that sum."""
        A = self.problem.linear.equalities
        least = np.linalg.lstsq((A * self.room).T, -gradient_N * self.room, rcond=None)[0]
        y = np.asarray(least, dtype=np.float64)
        return y, np.asarray(gradient_N + y @ A)

    @cached_property
    def lagrangian(self) -> tuple[Array, Array]:
        """Equality multipliers, and the gradient of the Lagrangian: 0 at an optimum."""
        problem = self.problem
        gradient_N = self.jacobian[0] + self.z[problem.num_bounds :] @ self.dense
        return self.along_equalities(gradient_N + problem.of_bounds(self.z))

    @property
    def unit(self) -> float:
        """The size of the objective."""
        return max(float(self.magnitudes[0]), 1e-300)

    @cached_property
    def lack(self) -> float:
        """What f may change by because dual residual and `c + s` are not 0."""
        missed = float(self.z[self.problem.num_bounds :] @ np.abs(self.missed))
        return float(np.abs(self.lagrangian[1]) @ self.room) + missed

    @cached_property
    def error(self) -> float:
        """How far f may be above the minimum of a convex program over a simplex, in its unit."""
        _, residual_N = self.lagrangian
        down_N = np.full(len(self.x), FREE_ROOM)
        down_N[self.problem.below] = self.s[: len(self.problem.below)]
        by_residual = np.maximum(residual_N, 0) @ down_N - min(float(residual_N.min()), 0.0)
        missed = self.z[self.problem.num_bounds :] @ np.abs(self.missed)
        return float(max(self.complementarity, by_residual, missed)) / self.unit

    def distance(self, mu: float) -> float:
        """To the point of complementarity mu: the norm of what a step to it makes 0."""
        parts = (
            self.lagrangian[1] * self.room,
            self.s * self.z - mu,
            self.z[self.problem.num_bounds :] * self.missed,
        )
        return float(np.linalg.norm(np.concatenate(parts)))

    def centred(self, mu: float) -> "Point":
        """The same point with `s z = mu`."""
        return Point(self.problem, self.x, self.s, max(mu, 1e-300) / self.s)

    def direction(self, solve: Solver, mu: float, *, ahead: Array | float = 0.0) -> Step:
        """The Newton step toward complementarity mu.

        Args:
            ahead: of `c + s` where a step would end, to be removed too, shape (D,): the
                second-order correction for curved constraints.
        """
        problem, s, z = self.problem, self.s, self.z
        cut = problem.num_bounds
        rhs_N = -self.jacobian[0] - problem.of_bounds(mu / s) - z[cut:] @ self.dense
        drift = problem.linear.equalities @ self.x - problem.constant
        x, dense = solve(rhs_N, drift, s[cut:] - mu / z[cut:] - self.missed - ahead)
        along = mu / z[cut:] - s[cut:] - s[cut:] / z[cut:] * dense
        ds = np.concatenate([x[problem.below], -x[problem.above], along])
        dz = mu / s - z - z / s * ds
        dz[cut:] = dense
        return Step(x, ds, dz)

    def moved(self, step: Step, alpha: float, *, z_alpha: float, mu: float) -> "Point":
        """The point after a step; slacks of c that are too small become `-c`."""
        s = self.s + alpha * step.s
        point = Point(self.problem, self.x + alpha * step.x, s, self.z)
        curved = slice(len(s) - len(point.values) + 1, None)
        noise = self.noise[len(self.problem.linear.limits) :]
        s[curved] = np.where(-point.values[1:] > s[curved] + noise, -point.values[1:], s[curved])
        z = self.z + z_alpha * step.z
        point.z = np.clip(z, mu / SPREAD / s, mu * SPREAD / s)
        return point


def newton_solver(point: Point) -> Solver:
    """Factors the Newton system; the function solves it for dx and the dz of rows and c.

    Bounds are eliminated into the diagonal. Rows and constraints stay in a system of their own,
    since their ratios z / s may dwarf the Hessian, but for a share that makes it definite.
    """
    problem = point.problem
    *_, curved = problem.split(point.z)
    matrix = problem.program.hessian(point.x, curved)
    diagonal = np.einsum("ii->i", matrix)
    typical = max(float(np.median(diagonal)), 1e-3 * point.unit)
    ratio = point.z / point.s
    below, above, *_ = problem.split(ratio)
    diagonal[problem.below] += below
    diagonal[problem.above] += above
    A, G, ratio_D = problem.linear.equalities, point.dense, ratio[problem.num_bounds :]
    share_D = np.minimum(ratio_D / 2, typical / np.maximum((G**2).mean(axis=1), 1e-300))
    if len(G):
        matrix += G.T @ (share_D[:, None] * G)
    factor = _positive_factor(matrix)
    both = np.concatenate([A, G])
    inner = cho_solve(factor, both.T, check_finite=False)
    outer = both @ inner
    left_D = 1 - share_D / ratio_D
    np.einsum("ii->i", outer)[len(A) :] += 1 / ratio_D / left_D
    scale = 1 / np.sqrt(np.diag(outer))
    outer *= scale * scale[:, None]

    def solve(rhs_N: Array, drift: Array, rhs_D: Array) -> tuple[Array, Array]:
        direct_N = cho_solve(factor, rhs_N + (share_D * rhs_D) @ G, check_finite=False)
        missing = both @ direct_N
        missing[: len(A)] += drift
        missing[len(A) :] -= rhs_D
        multipliers = scale * np.linalg.solve(outer, scale * missing)
        return direct_N - inner @ multipliers, multipliers[len(A) :] / left_D

    return solve


def _positive_factor(matrix: Array) -> tuple[Array, bool]:
    """Cholesky factor, of the matrix with a multiple of the identity added if it is indefinite."""
    assert np.isfinite(matrix).all(), "the Hessian is not finite inside the constraints"
    diagonal = np.einsum("ii->i", matrix)
    sizes = np.abs(diagonal)
    shift = 1e-8 * max(float(sizes.min()), 1e-12 * float(sizes.max()))
    while True:
        try:
            lower: tuple[Array, bool] = cho_factor(matrix, lower=True, check_finite=False)
            return lower
        except np.linalg.LinAlgError:
            diagonal += shift
            shift *= 10
