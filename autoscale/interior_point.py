"""A primal-dual interior point method for smooth programs of a thousand variables, dense Newton.

    minimise   f(x)
    subject to c(x) <= 0,   R x <= r,   lower <= x <= upper,   A x = A x_start

From a point strictly inside all inequalities, iterates stay inside: gradients may be infinite on
the boundary. With slacks s > 0 and multipliers z > 0 of all inequalities a step solves the
optimality conditions, linearised, at complementarity s_i z_i = mu (Mehrotra's choice of mu):

    [ H + G^T (z / s) G   A^T ] [ dx ]     [ grad f + mu G^T (1 / s) ]
    [ A                   0   ] [ y  ] = - [ 0                       ]

H is the Hessian of f + z . c and G has the gradients of all inequalities. The direction descends
on `f - mu sum log s`, which the line search requires (Wright, Primal-Dual Interior-Point Methods,
1997; Waechter and Biegler 2006 for the line search). Where H is indefinite, as in programs that are
not convex, a multiple of the identity is added and the point found is a local optimum.
"""

# N variables, M nonlinear constraints, R rows, E equalities, I inequalities: bounds, rows, c

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Status = Literal["converged", "stopped", "stalled", "max_iterations"]

MAX_ITERATIONS = 200
TOLERANCE = 1e-12  # of complementarity and dual residual, in units of the objective
TO_BOUNDARY = 0.995  # share of the way to the boundary that a step goes at most
LEAST_CENTERING = 1e-3  # lowest mu aimed for, in multiples of the mean complementarity
ARMIJO = 1e-4  # share of the predicted descent that a step must reach
SHORTEST_STEP = 1e-12
NORM=True
CAUTION=0.2

ROOM=1.0
MOST_VAIN = 25  # steps without progress, after which there will be none
ROUNDING = 4 * float(np.finfo(np.float64).eps)


class Program(Protocol):
    """A smooth function with constraints, `[f, c_1 .. c_M]`."""

    def values(self, x_N: Array) -> Array:
        """Shape (1 + M,); not finite where the program is not defined."""

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InteriorPoint:
    """Where the method ended, strictly inside all inequalities.

    Attributes:
        x: the point, shape (N,).
        at_lower: bounds that hold it: with a multiplier above the slack, in units of the
            objective; shape (N,).
        at_upper: likewise.
        at_limit: rows that hold it, shape (R,).
        row_multipliers: at least 0, shape (R,).
        equality_multipliers: shape (E,).
        multipliers: of the nonlinear constraints, at least 0, shape (M,).
        complementarity: `s . z`, in a convex program the objective's excess, nearly.
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
        start_N: strictly inside all inequalities; its `A x` is kept.
        enough: given objective and complementarity, whether to stop.
    """
    search = _Search(program, linear, start_N)
    best_error = least_error = np.inf; num_vain = 0
    best = search.result(0, "max_iterations")
    for num_iterations in range(MAX_ITERATIONS):
        error = search.error()
        num_vain = 0 if error < 0.9 * least_error else num_vain + 1
        if error <= best_error:
            best_error = error
            best = search.result(num_iterations, "max_iterations")
        least_error = min(error, least_error)
        if error <= TOLERANCE:
            return search.result(num_iterations, "converged")
        if enough is not None and enough(float(search.values[0]), search.complementarity):
            return search.result(num_iterations, "stopped")
        if num_vain >= 8 and not search.cautious and error > 1e-9:
            search.become_cautious()
            num_vain=0; least_error=np.inf
        if num_vain == MOST_VAIN or not search.step():
            return replace(best, status="stalled", num_iterations=num_iterations)
    return replace(best, num_iterations=MAX_ITERATIONS)


class _Search:
    """An iterate. Inequalities are ordered as lower bounds, upper bounds, rows, c.

    Slacks are variables of their own: those of linear inequalities stay exact where `limit - x`
    would cancel, and steps may leave `c(x) + s` different from 0 for a while, so that curved
    constraints do not hold them up.
    """

    def __init__(self, program: Program, linear: LinearConstraints, start_N: Array) -> None:
        self.program, self.linear = program, linear
        self.below = np.flatnonzero(np.isfinite(linear.lower))
        self.above = np.flatnonzero(np.isfinite(linear.upper))
        self.num_bounds = len(self.below) + len(self.above)
        self.curved = slice(self.num_bounds + len(linear.limits), None)
        self.x, self.values = start_N, program.values(start_N)
        self.jacobian = program.jacobian(start_N)
        parts = (
            start_N[self.below] - linear.lower[self.below],
            linear.upper[self.above] - start_N[self.above],
            linear.limits - linear.rows @ start_N,
            -self.values[1:],
        )
        self.s = np.concatenate(parts)
        assert np.isfinite(self.values).all() and (self.s > 0).all(), "the start is not inside"
        # The mu at which objective and barrier pull equally hard at the start.
        b_, a_, st_ = np.split(self.s**-2, [len(self.below), self.num_bounds])
        cur = st_ @ self.steep**2
        cur[self.below] += b_
        cur[self.above] += a_
        room_N = cur**-.5
        self.y = self._equality_multipliers(self.jacobian[0])
        pull_N = self.jacobian[0] + self.y @ linear.equalities
        mu = max(float(np.sqrt(np.mean((pull_N * room_N) ** 2))), 1e-300)
        self.z = mu / self.s
        self.cautious = False
        self.unit = max(abs(float(self.values[0])), mu * len(self.s))

    @property
    def complementarity(self) -> float:
        return float(self.s @ self.z)

    @property
    def steep(self) -> Array:
        """Gradients of rows and c, shape (R + M, N)."""
        return np.concatenate([self.linear.rows, self.jacobian[1:]])

    def missed(self) -> Array:
        """`c + s` where rounding does not explain it, 0 for rows; shape (R + M,)."""
        rows = self.linear.rows @ self.x - self.linear.limits
        missed = np.concatenate([rows, self.values[1:]]) + self.s[self.num_bounds:]
        missed[np.abs(missed) <= self.noise()] = 0
        return missed

    def noise(self):
        steep = self.steep
        steep[:, self.below] *= self.s[:len(self.below)]
        return 16*ROUNDING*(1 + np.abs(steep).sum(axis=1))

    def lagrangian(self) -> Array:
        """The gradient of the Lagrangian, 0 at the optimum, shape (N,)."""
        gradient_N = self.jacobian[0] + self.z[self.num_bounds :] @ self.steep
        gradient_N = gradient_N + self._of_bounds(self.z)
        self.y = self._equality_multipliers(gradient_N)
        return gradient_N + self.y @ self.linear.equalities

    def error(self) -> float:
        self.y = self._equality_multipliers(self.jacobian[0])
        pull_N = self.jacobian[0] + self.y @ self.linear.equalities
        self.unit = max(abs(float(self.values[0])), np.abs(pull_N)@self._room())
        """By how much the point may be off the optimum, in units of the objective."""
        residual_N = self.lagrangian()
        missed = self.z[self.num_bounds:] @ np.abs(self.missed())
        down = np.full(len(self.x), ROOM)
        down[self.below] = self.s[:len(self.below)]
        pos, neg = np.maximum(residual_N,0), np.maximum(-residual_N,0)
        errors = (self.complementarity, pos@down + neg.max(), missed)
        self.res = np.abs(residual_N)@self._room()+missed
        return float(max(errors)) / self.unit

    def become_cautious(self):
        self.cautious = True
        mu = max(self.complementarity, self.res)/len(self.s)
        self.z = mu/self.s

    def step(self) -> bool:
        """A Newton step; False if there is none that rounding lets descend."""
        solve = self._solver()
        count = len(self.s)
        mean = self.complementarity / count
        _, ds, dz = self._direction(solve, 0.0)
        reached = (self.s + _longest(self.s, ds) * ds) @ (self.z + _longest(self.z, dz) * dz)
        mu = mean * min(max((reached / count / mean) ** 3, CAUTION if self.cautious else LEAST_CENTERING), 1.0)
        mu = max(mu, 0.3 * self.res / count)
        mu = max(mu, 0.01 * TOLERANCE * self.unit / count)
        dx, ds, dz = self._direction(solve, mu)
        share = max(TO_BOUNDARY, 1 - mu / self.unit)
        z = self.z + min(1.0, share * _longest(self.z, dz)) * dz
        longest = min(1.0, share * _longest(self.s, ds))
        if not self._search_line(dx, ds, z, mu=mu, longest=longest):
            return False
        self.z = np.clip(z, 1e-10 * mu / self.s, 1e10 * mu / self.s)
        return True

    def result(self, num_iterations: int, status: Status) -> InteriorPoint:
        holds = self.s * self.unit < self.z
        cuts = [len(self.below), self.num_bounds, self.curved.start]
        below, above, rows, _ = np.split(holds, cuts)
        at_lower, at_upper = np.zeros((2, len(self.x)), dtype=bool)
        at_lower[self.below], at_upper[self.above] = below, above
        _, _, row_multipliers, multipliers = np.split(self.z, cuts)
        return InteriorPoint(
            x=self.x,
            at_lower=at_lower,
            at_upper=at_upper,
            at_limit=rows,
            row_multipliers=row_multipliers,
            equality_multipliers=self.y,
            multipliers=multipliers,
            complementarity=self.complementarity,
            num_iterations=num_iterations,
            status=status,
        )

    def _of_bounds(self, values_I: Array) -> Array:
        """`G^T values` of the bounds, shape (N,)."""
        product_N = np.zeros(len(self.x))
        product_N[self.below] -= values_I[: len(self.below)]
        product_N[self.above] += values_I[len(self.below) : self.num_bounds]
        return product_N

    def _room(self) -> Array:
        """About how far a variable may go, shape (N,)."""
        inverse_N = np.zeros(len(self.x))
        inverse_N[self.below] = 1/self.s[: len(self.below)]
        inverse_N[self.above] = np.maximum(inverse_N[self.above], 1/self.s[len(self.below) : self.num_bounds])
        return np.divide(1.0, inverse_N, out=np.full(len(self.x), ROOM), where=inverse_N>0)

    def _equality_multipliers(self, gradient_N: Array) -> Array:
        """The y that makes `gradient + A^T y` smallest where there is room, shape (E,)."""
        room_N = self._room()
        weighted = (self.linear.equalities * room_N).T
        return np.asarray(np.linalg.lstsq(weighted, -gradient_N * room_N, rcond=None)[0])

    def _direction(self, solve, mu: float) -> tuple[Array, Array, Array]:
        """Steps of x, s and z toward complementarity mu."""
        s, z = self.s, self.z
        cut = self.num_bounds
        missed = self.missed()
        rhs_N = -self.jacobian[0] - self._of_bounds(mu / s) - z[cut:] @ self.steep
        dx_N, dz_steep = solve(rhs_N, s[cut:] - mu / z[cut:] - missed)
        ds = np.concatenate([dx_N[self.below], -dx_N[self.above], np.zeros(len(dz_steep))])
        ds[cut:] = mu / z[cut:] - s[cut:] - s[cut:] / z[cut:] * dz_steep
        dz = mu / s - z - z / s * ds
        dz[cut:] = dz_steep
        return dx_N, ds, dz

    def _solver(self):
        """Solves the Newton system for dx and dz of the steep ones.

        Their ratios z / s may dwarf the Hessian, so these stay in a system of their own.
        """
        matrix = self.program.hessian(self.x, self.z[self.curved])
        typical = max(float(np.median(np.einsum("ii->i", matrix))), 1e-3*self.unit)
        ratio = self.z / self.s
        below, above, steep = np.split(ratio, [len(self.below), self.num_bounds])
        matrix[self.below, self.below] += below
        matrix[self.above, self.above] += above
        A, G = self.linear.equalities, self.steep
        share = np.minimum(steep / 2, typical/np.maximum((G**2).mean(axis=1),1e-300))
        matrix += G.T @ (share[:, None] * G)
        factor = _positive_factor(matrix)
        both = np.concatenate([A, G])
        inner = cho_solve(factor, both.T, check_finite=False)
        schur = both @ inner
        diagonal = np.einsum("ii->i", schur)
        diagonal[len(A) :] += 1 / steep / (1 - share / steep)
        scale = 1/np.sqrt(diagonal)
        schur = schur*scale*scale[:,None]

        def solve(rhs_N: Array, rhs_steep: Array) -> tuple[Array, Array]:
            direct_N = cho_solve(factor, rhs_N + (share * rhs_steep) @ G, check_finite=False)
            rest = both @ direct_N
            rest[len(A) :] -= rhs_steep
            multipliers = scale*np.linalg.solve(schur, rest*scale)
            return direct_N - inner @ multipliers, multipliers[len(A) :] / (1 - share / steep)

        return solve

    def _search_line(self, dx_N: Array, ds: Array, z: Array, *, mu: float, longest: float) -> bool:
        """Go along a step as far as `f - mu sum log s + penalty |c + s|` descends."""
        penalty = 1.1 * np.maximum(z, self.z)[self.curved].max(initial=0.0)

        def merit(values, s):
            return values[0] - mu * np.log(s).sum() + penalty * np.abs(values[1:] + s[self.curved]).sum()

        before = merit(self.values, self.s)
        slope = self.jacobian[0] @ dx_N - mu * (ds / self.s).sum() - penalty * np.abs(self.missed()).sum()
        noise = ROUNDING * (abs(self.values[0]) + mu * np.abs(np.log(self.s)).sum() + penalty*self.unit)
        alpha = longest
        while alpha > SHORTEST_STEP:
            x, s = self.x + alpha * dx_N, self.s + alpha * ds
            values = self.program.values(x)
            if np.isfinite(values).all():
                free = -values[1:]
                s[self.curved] = np.where(free > s[self.curved] + self.noise()[len(self.linear.limits):], free, s[self.curved])
                if merit(values, s) <= before + ARMIJO * alpha * slope + noise or (NORM and self._closer(x, s, values, z, mu)):
                    self.x, self.values, self.s = x, values, s
                    self.jacobian = self.program.jacobian(x)
                    return True
            alpha /= 2
        return False

    def _norm(self, mu):
        r = self.lagrangian()*self._room()
        return np.sqrt(r@r + ((self.s*self.z-mu)**2).sum()+ ((self.z[self.num_bounds:]*self.missed())**2).sum())

    def _closer(self, x, s, values, z, mu):
        before = self._norm(mu)
        old = self.x, self.s, self.values, self.z, self.jacobian
        self.x, self.s, self.values, self.z, self.jacobian = x, s, values, z, self.program.jacobian(x)
        after = self._norm(mu)
        self.x, self.s, self.values, self.z, self.jacobian = old
        return after <= .99*before

def _longest(values: Array, steps: Array) -> float:
    """The largest alpha of at most 1 for which no value + alpha step is negative."""
    falling = steps < 0
    return float((values[falling] / -steps[falling]).min(initial=1.0))


def _positive_factor(matrix: Array) -> tuple[Array, bool]:
    """Cholesky factor, of the matrix with a multiple of the identity added if it is indefinite."""
    assert np.isfinite(matrix).all(), "the Hessian is not finite inside the constraints"
    diagonal = np.einsum("ii->i", matrix)
    sizes = np.abs(diagonal)
    shift = 1e-8 * max(float(sizes.min()), 1e-12 * float(sizes.max()))
    while True:
        try:
            return cho_factor(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            diagonal += shift
            shift *= 10
