"""The trade between two objectives: mixtures at which neither can fall without the other rising.

    minimise   first(L(w)) + pull(w)
    subject to second(L(w)) <= level,  and the constraints of the choice

for levels from the second objective at the optimum of the first down to its own least. Weighted
sums of the two would do for convex laws, but crowd where the front is curved.
"""

# K domains, J validation sets, M rows

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .mixture import Mixture
from .mixture_objective import LossRows
from .mixture_program import Choice
from .optimum import solve
from .random_search import Search

Array = NDArray[np.float64]

NO_CONFLICT = 1e-9  # of the second objective, within which both objectives have one optimum
LAST_STEP = 1e-3  # share of the range that the last point leaves to the first objective


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoPoint:
    """A mixture of the front, with both objectives at it; the pull is in neither."""

    mixture: Mixture
    first: float
    second: float


def pareto_front(
    choice: Choice, second: LossRows, *, num_points: int, search: Search
) -> tuple[ParetoPoint, ...]:
    """Points of the front, from the optimum of the first objective to nearly that of the second.

    The levels of the second objective are equally far apart. The last leaves a thousandth of the
    range, so that of the mixtures that serve the second best it is one that serves the first.

    Args:
        choice: of the mixture by the first objective.
        second: rows of the second objective, of which the largest counts.
        num_points: 2 or more. Objectives that do not conflict have a front of one point.
        search: for surfaces that are not convex.

    Raises:
        InfeasibleError: no mixture satisfies the constraints.
        ValueError: fewer than two points are asked for, or the surface has no gradient: samples
            would leave gaps in the front.
    """
    if num_points < 2:
        raise ValueError(f"a front of {num_points} points is none; expected 2 or more")
    if not choice.surface.differentiable:
        raise ValueError(
            "the front between two objectives needs a law with a gradient, and trees have none; "
            "fit another law, e.g. 'auto'"
        )
    best = solve(choice, search).mixture
    most = _value(choice, second, best)
    least_of = solve(replace(choice, objective=second, pull=None), search).mixture
    least = _value(choice, second, least_of)
    mixtures = [best]
    if most - least > NO_CONFLICT * max(abs(most), 1.0):
        steps = np.linspace(0, 1, num_points)[1:]
        steps[-1] -= LAST_STEP
        mixtures += [
            solve(_limited(choice, second, most + step * (least - most)), search).mixture
            for step in steps
        ]
    return tuple(
        ParetoPoint(
            mixture=mixture,
            first=_value(choice, choice.objective, mixture),
            second=_value(choice, second, mixture),
        )
        for mixture in mixtures
    )


def _limited(choice: Choice, second: LossRows, level: float) -> Choice:
    return replace(choice, limits=choice.limits.and_rows(second.below(level)))


def _value(choice: Choice, rows: LossRows, mixture: Mixture) -> float:
    losses_J = choice.surface.losses(mixture.as_array())
    return float(rows.values(losses_J).max())
