"""The Pareto front between two objectives: what one costs in terms of the other.

    minimise   first(w)   subject to   second(w) <= level

at levels evenly spread between the second objective's values at the two single optima, which are
the ends of the front. Unlike weighted sums of the two, levels find points on every part of it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from .constraints import Constraints, InfeasibleError
from .mixture_objective import LossSurface, MixtureObjective
from .optimum import DEFAULT_SEARCH, Optimum, make_choice, solve
from .random_search import Search

SAME = 1e-9  # difference of objectives that makes no point better than another


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrontPoint:
    """A mixture that no other betters in both objectives.

    Attributes:
        first: the first objective there.
        second: the second objective there.
        optimum: the mixture; its `objective` and certificate are those of the first objective at
            the level of the second, at the end that is best for the second those of the second.
    """

    first: float
    second: float
    optimum: Optimum


def pareto_front(
    surface: LossSurface,
    first: MixtureObjective,
    second: MixtureObjective,
    constraints: Constraints,
    *,
    num_points: int = 11,
    limits: ArrayLike | None = None,
    search: Search = DEFAULT_SEARCH,
) -> tuple[FrontPoint, ...]:
    """Mixtures from the best for the first objective to the best for the second.

    Args:
        surface: the law at one token count and model size.
        first: an objective.
        second: another.
        constraints: in the order of the surface's domains.
        num_points: at least 2; fewer are returned where points coincide, or where a surface that
            is not convex gives none at a level.
        limits: as of `optimise`.
        search: for surfaces that are not convex.

    Raises:
        InfeasibleError: see `optimise`.
        ValueError: fewer than two points, or see `optimise`.
    """
    if num_points < 2:
        raise ValueError(f"a front has two ends; expected at least 2 points, found {num_points}")
    choice = make_choice(surface, first, constraints, limits=limits)
    rows, other = choice.objective, second.rows(surface.sets)

    def point(optimum: Optimum) -> FrontPoint:
        values = [float(each.values(optimum.losses).max()) for each in (rows, other)]
        return FrontPoint(first=values[0], second=values[1], optimum=optimum)

    best = point(solve(choice, search))
    far = point(solve(make_choice(surface, second, constraints, limits=limits), search))
    points = [best, far]
    if best.second - far.second <= SAME:
        return _front(points)
    for level in np.linspace(best.second, far.second, num_points)[1:-1].tolist():
        bounded = replace(choice, limits=choice.limits.and_rows(other.below(level)))
        if surface.convex:
            points.append(point(solve(bounded, search)))
        else:
            with suppress(InfeasibleError):
                points.append(point(solve(bounded, search)))
    return _front(points)


def _front(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Those that no other dominates, the best for the first objective first."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda each: (each.first, each.second)):
        if not kept or point.second < kept[-1].second - SAME:
            kept.append(point)
    return tuple(kept)
