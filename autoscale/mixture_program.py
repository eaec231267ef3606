"""A choice of mixture as a program for the interior point method, and what its answer proves.

    minimise   max_m row_m(L(w)) + pull(w)
    subject to limit_l(L(w)) <= 0,  w within the constraints

The variables are the weights of the domains that are not fixed and, where the objective has several
rows, their level t >= row_m.
"""

# K domains, N variables, J validation sets, M rows of losses

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .constraints import Constraints
from .feasible_set import FeasibleSet, least_linear
from .interior_point import InteriorPoint
from .mixture_objective import LossRows, LossSurface, Pull
from .primal_dual import LinearConstraints

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

ROUNDING = 1e-12  # in weight, and in nats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """What is to be minimised, and over which mixtures.

    Attributes:
        objective: rows of which the largest counts.
        limits: rows that must be at most 0.
        pull: in the order of the surface's domains.
        constraints: in the same order.
        feasible: what these leave.
    """

    surface: LossSurface
    objective: LossRows
    limits: LossRows
    pull: Pull | None
    constraints: Constraints
    feasible: FeasibleSet

    def values(self, weights: Array) -> Array:
        """The objective, pull included, of mixtures of shape (..., K); shape (...)."""
        with np.errstate(all="ignore"):
            rows = self.objective.values(self.surface.losses(weights)).max(axis=-1)
            return np.asarray(rows if self.pull is None else rows + self.pull.values(weights))

    def excess(self, weights: Array) -> Array:
        """By how much mixtures of shape (..., K) miss the limits, negative inside; shape (...)."""
        with np.errstate(all="ignore"):
            rows = self.limits.values(self.surface.losses(weights))
        return np.asarray(rows.max(axis=-1, initial=-np.inf))


class MixtureProgram:
    """A choice over at least one free domain; see `primal_dual.Program`.

    Laws may be infinite where a weight is 0, fixed there or at the end of a step: no floating point
    errors are raised here.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.free = np.flatnonzero(choice.feasible.free)
        self.rows = choice.objective.and_rows(choice.limits)
        self.num_objectives = len(choice.objective.offsets)
        self.has_level = self.num_objectives > 1

    def weights(self, x_N: Array) -> Array:
        """The mixture of the variables, shape (K,)."""
        weights_K = self.choice.feasible.inside.copy()
        weights_K[self.free] = x_N[: len(self.free)]
        return weights_K

    def variables(self, weights_K: Array) -> Array:
        """The variables of a mixture, the level well above its rows."""
        if not self.has_level:
            return np.asarray(weights_K[self.free])
        objective = self.choice.objective
        losses_J = self.choice.surface.losses(weights_K)
        rows = objective.values(losses_J)
        margin = 0.1 * np.ptp(rows) + 0.01 * np.abs(losses_J[objective.used]).max()
        level = rows.max() + max(margin, 1e-6)
        return np.append(weights_K[self.free], level)

    def linear(self) -> LinearConstraints:
        """Bounds and groups, without maximum weights that the other minimum weights imply."""
        feasible, free = self.choice.feasible, self.free
        lower, upper = feasible.lower[free], feasible.upper[free]
        implied = upper >= feasible.inside[free].sum() - (lower.sum() - lower)
        upper = np.where(implied, np.inf, upper)
        level = int(self.has_level)
        return LinearConstraints(
            lower=np.append(lower, [-np.inf] * level),
            upper=np.append(upper, [np.inf] * level),
            equalities=np.pad(feasible.equalities[:, free], ((0, 0), (0, level))),
            rows=np.pad(feasible.rows[:, free], ((0, 0), (0, level))),
            limits=feasible.limits - feasible.rows @ self.weights(np.zeros(len(free))),
        )

    @np.errstate(all="ignore")
    def values(self, x_N: Array) -> Array:
        weights_K = self.weights(x_N)
        values = self.rows.values(self.choice.surface.losses(weights_K))
        if self.has_level:
            values[: self.num_objectives] -= x_N[-1]
            values = np.append(x_N[-1], values)
        if self.choice.pull is not None:
            values[0] += self.choice.pull.values(weights_K)
        return values

    @np.errstate(all="ignore")
    def magnitudes(self, x_N: Array) -> Array:
        magnitudes = self.rows.magnitudes(self.choice.surface.losses(self.weights(x_N)))
        if self.has_level:
            magnitudes = np.append(magnitudes[: self.num_objectives].max(), magnitudes)
        if self.choice.pull is not None:
            magnitudes[0] += self.choice.pull.values(self.weights(x_N))
        return magnitudes

    @np.errstate(all="ignore")
    def jacobian(self, x_N: Array) -> Array:
        weights_K, num_free = self.weights(x_N), len(self.free)
        jacobian = np.zeros((len(self.rows.offsets) + self.has_level, len(x_N)))
        jacobian[self.has_level :, :num_free] = self._row_gradients(weights_K)
        if self.has_level:
            jacobian[0, -1] = 1
            jacobian[1 : 1 + self.num_objectives, -1] = -1
        if self.choice.pull is not None:
            jacobian[0, :num_free] += self.choice.pull.gradient(weights_K)[self.free]
        return jacobian

    @np.errstate(all="ignore")
    def hessian(self, x_N: Array, multipliers_M: Array) -> Array:
        weights_K, num_free = self.weights(x_N), len(self.free)
        surface = self.choice.surface
        if not self.has_level:
            multipliers_M = np.append(1.0, multipliers_M)
        losses_J = surface.losses(weights_K)
        slopes_J = multipliers_M @ self.rows.slopes(losses_J)
        hessian = surface.hessian(weights_K, slopes_J)
        if num_free < len(weights_K):
            hessian = hessian[np.ix_(self.free, self.free)]
        curvatures_J = self.rows.curvatures(losses_J, multipliers_M)
        curved = curvatures_J > 0
        if curved.any():
            gradients = surface.gradients(weights_K)[np.ix_(curved, self.free)]
            hessian += gradients.T @ (curvatures_J[curved][:, None] * gradients)
        if self.choice.pull is not None:
            np.einsum("ii->i", hessian)[:] += self.choice.pull.curvature(weights_K)[self.free]
        return np.pad(hessian, (0, 1)) if self.has_level else hessian

    def _row_gradients(self, weights_K: Array) -> Array:
        """d row / d weight of the free domains, shape (M, N)."""
        used = self.rows.used
        slopes = self.rows.slopes(self.choice.surface.losses(weights_K))
        gradients = self.choice.surface.gradients(weights_K)
        return np.asarray(slopes[:, used] @ gradients[np.ix_(used, self.free)])

    @np.errstate(all="ignore")
    def lower_bound(self, found: InteriorPoint) -> float:
        """A number that the objective of no feasible mixture is below, if the program is convex.

        With the multipliers found, the Lagrangian lies below the objective at every feasible
        mixture, and its linearisation below the Lagrangian; the minimum of that over the bounds is
        exact. The bound holds for any multipliers of at least 0 and is tight for those of the
        optimum.
        """
        choice, feasible = self.choice, self.choice.feasible
        weights_K = self.weights(found.x)
        multipliers = found.multipliers.copy()
        if self.has_level:
            multipliers[: self.num_objectives] /= multipliers[: self.num_objectives].sum()
        else:
            multipliers = np.append(1.0, multipliers)
        value = multipliers @ self.rows.values(choice.surface.losses(weights_K))
        gradient = multipliers @ self._row_gradients(weights_K)
        if choice.pull is not None:
            value += choice.pull.values(weights_K)
            gradient = gradient + choice.pull.gradient(weights_K)[self.free]
        gradient_K = found.row_multipliers @ feasible.rows
        gradient_K += found.equality_multipliers @ feasible.equalities
        gradient_K[self.free] += gradient
        best_K = least_linear(gradient_K, feasible.lower, feasible.upper)
        unused = found.row_multipliers @ (feasible.limits - feasible.rows @ weights_K)
        return float(value + gradient_K @ (best_K - weights_K) - unused)

    def settled(self, found: InteriorPoint) -> Array:
        """The mixture found, exactly on the bounds that hold it, shape (K,).

        Interior points only come near to their bounds. Where the objective minds the last step, as
        it does at bounds of 0 with a law that is infinite there, the domains nearest to theirs go.
        """
        weights_K = self.weights(found.x)
        feasible, free = self.choice.feasible, self.free
        ends_K = weights_K.copy()
        ends_K[free] = np.where(found.at_lower[: len(free)], feasible.lower[free], ends_K[free])
        ends_K[free] = np.where(found.at_upper[: len(free)], feasible.upper[free], ends_K[free])
        moved = np.flatnonzero(ends_K != weights_K)
        moved = moved[np.argsort(np.abs(ends_K - weights_K)[moved])]
        most = float(self.choice.values(weights_K)) + found.complementarity
        while True:
            settled_K = self._moved(weights_K, ends_K, moved, found.at_limit)
            if self._is_feasible(settled_K) and self.choice.values(settled_K) <= most:
                return settled_K
            if not len(moved):
                return weights_K
            moved = moved[: len(moved) // 2]

    def _moved(self, weights_K: Array, ends_K: Array, moved: Index, at_limit: Mask) -> Array:
        """Some weights at their ends and groups on their limits.

        What these take, the domains between bounds give, each by its room.
        """
        feasible = self.choice.feasible
        sums = np.vstack([feasible.equalities, feasible.rows[at_limit]])
        wanted = np.append(feasible.equalities @ feasible.inside, feasible.limits[at_limit])
        room_K = np.minimum(weights_K - feasible.lower, feasible.upper - weights_K)
        room_K[moved] = 0
        settled_K = weights_K.copy()
        settled_K[moved] = ends_K[moved]
        shares = room_K**2 * sums
        settled_K += np.linalg.pinv(shares @ sums.T) @ (wanted - sums @ settled_K) @ shares
        settled_K[room_K.argmax()] += 1 - settled_K.sum()
        return settled_K

    def _is_feasible(self, weights_K: Array) -> bool:
        feasible = self.choice.feasible
        return bool(
            (weights_K >= feasible.lower).all()
            and (weights_K <= feasible.upper).all()
            and abs(weights_K.sum() - 1) <= ROUNDING
            and (feasible.rows @ weights_K <= feasible.limits + ROUNDING).all()
            and self.choice.excess(weights_K) <= ROUNDING
        )
