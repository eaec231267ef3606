"""The best mixture for any objective of a law's losses, with a certificate where the law is convex.

    minimise   objective(L(w)) + pull(w)
    subject to bounds, epoch caps, groups, L_j(w) <= limit_j,  sum_i w_i = 1

A convex surface has one optimum: the interior point method finds it, and its multipliers prove how
near it is. A surface that is not convex is searched from several starts, one that is not even
differentiable (trees) by sampling; neither gives a proof.
"""

# K domains, J validation sets, M limits

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .constraints import SUM_TOLERANCE, Constraints, InfeasibleError, round_up
from .feasible_set import feasible_set
from .interior_point import InteriorPoint, minimise
from .mixture import Mixture
from .mixture_objective import LossRows, LossSurface, MixtureObjective, Pull, single_losses
from .mixture_program import Choice, MixtureProgram
from .random_search import Search, sampled_optimum, starts

Array = NDArray[np.float64]

LIMIT_TOLERANCE = 1e-9  # nats by which limits may be missed: equality would leave no inside
INWARD = 0.9  # share of the way from a start to the limits
NAMED_SHARE = 1e-6  # share of the multipliers from which a set is part of a conflict
DEFAULT_SEARCH = Search()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optimum:
    """The best mixture found.

    Attributes:
        mixture: it.
        objective: what was minimised, the pull included.
        losses: of the surface there, in nats, shape (num_sets,).
        duality_gap: no mixture within the constraints has an objective below
            `objective - duality_gap`; None where the surface is not convex.
        at_lower: domains that rest on their minimum weight.
        at_upper: domains that rest on their maximum weight.
        num_iterations: Newton steps, or mixtures tried.
        message: how it was found, in a sentence.
    """

    mixture: Mixture
    objective: float
    losses: Array
    duality_gap: float | None
    at_lower: tuple[str, ...]
    at_upper: tuple[str, ...]
    num_iterations: int
    message: str


def optimise(
    surface: LossSurface,
    objective: MixtureObjective,
    constraints: Constraints,
    *,
    limits: ArrayLike | None = None,
    pull: Pull | None = None,
    search: Search = DEFAULT_SEARCH,
) -> Optimum:
    """The mixture that minimises an objective of a law's losses.

    Args:
        surface: the law at one token count and model size.
        objective: of its losses.
        constraints: in the order of the surface's domains.
        limits: greatest losses allowed in nats, shape (num_sets,), infinity for none; those at a
            reference mixture plus an allowance mean no harm. Kept to 1e-9 nats.
        pull: added to the objective.
        search: for surfaces that are not convex.

    Raises:
        InfeasibleError: no mixture satisfies the constraints and the limits, or a loss that is
            needed is infinite at all of them.
        ValueError: domains, weights, offsets, limits or pull do not fit the surface.
    """
    choice = make_choice(surface, objective, constraints, limits=limits, pull=pull)
    return solve(choice, search)


def make_choice(
    surface: LossSurface,
    objective: MixtureObjective,
    constraints: Constraints,
    *,
    limits: ArrayLike | None = None,
    pull: Pull | None = None,
) -> Choice:
    """The arguments of `optimise`, checked."""
    if constraints.domains != surface.domains:
        raise ValueError(
            f"the constraints are on domains {', '.join(constraints.domains)}; expected those of "
            f"the law, in its order: {', '.join(surface.domains)}"
        )
    feasible = feasible_set(constraints)
    limit_rows = LossRows.none(len(surface.sets))
    if limits is not None:
        limit_rows = single_losses(limits, surface.sets, what="limit").below(LIMIT_TOLERANCE)
    choice = Choice(
        surface=surface,
        objective=objective.rows(surface.sets),
        limits=limit_rows,
        pull=None if pull is None else pull.toward(surface.domains, feasible.upper),
        constraints=constraints,
        feasible=feasible,
    )
    _require_finite(choice)
    return choice


def solve(choice: Choice, search: Search) -> Optimum:
    """The optimum of a choice; see `optimise`."""
    inside_K = choice.feasible.inside
    if not choice.feasible.free.any():
        if choice.excess(inside_K) > 0:
            multipliers_M = np.ones(len(choice.limits.offsets))
            raise _limits_error(choice, inside_K, multipliers_M, proven=True)
        message = "the constraints leave a single mixture"
        return _optimum(choice, inside_K, gap=0.0, num_iterations=0, message=message)
    if not choice.surface.differentiable:
        tried = 2 * search.num_samples
        message = f"mean of the best of {tried} sampled mixtures; no certificate without a gradient"
        weights_K = sampled_optimum(choice, search)
        return _optimum(choice, weights_K, gap=None, num_iterations=tried, message=message)
    if not choice.surface.convex:
        return _best_of_several(choice, search)
    program, found = _search_from(choice, inside_K)
    weights_K = program.settled(found)
    gap = max(float(choice.values(weights_K)) - program.lower_bound(found), 0.0)
    return _optimum(
        choice,
        weights_K,
        gap=gap,
        num_iterations=found.num_iterations,
        message=f"{found.status} after {found.num_iterations} Newton steps; no feasible mixture "
        f"is better by more than {gap:.1e}",
    )


def _best_of_several(choice: Choice, search: Search) -> Optimum:
    """The best local optimum from several starts."""
    found, refused = [], []
    for start_K in starts(choice, search):
        try:
            program, point = _search_from(choice, start_K)
        except InfeasibleError as error:
            refused.append(error)
        else:
            found.append((program.settled(point), point.num_iterations))
    if not found:
        raise refused[-1]
    best_K = min((weights_K for weights_K, _ in found), key=lambda w: float(choice.values(w)))
    return _optimum(
        choice,
        best_K,
        gap=None,
        num_iterations=sum(steps for _, steps in found),
        message=f"best of the local optima from {len(found)} starts; no certificate, as the law "
        "is not convex",
    )


def _search_from(choice: Choice, start_K: Array) -> tuple[MixtureProgram, InteriorPoint]:
    """A local optimum, the optimum of a convex surface, from a mixture strictly inside."""
    start_K = _within_limits(choice, start_K)
    program = MixtureProgram(choice)
    return program, minimise(program, program.linear(), program.variables(start_K))


def _within_limits(choice: Choice, start_K: Array) -> Array:
    """A start inside the constraints, well away from bounds, and nearly within the limits.

    Raises:
        InfeasibleError: no mixture is within them.
    """
    if choice.excess(start_K) < -LIMIT_TOLERANCE / 4:
        return start_K
    none = LossRows.none(len(choice.surface.sets))
    program = MixtureProgram(replace(choice, objective=choice.limits, limits=none, pull=None))

    def far_enough(excess: float, more: float) -> bool:
        return excess < -more  # at least half of the way

    found = minimise(program, program.linear(), program.variables(start_K), enough=far_enough)
    weights_K = program.weights(found.x)
    if choice.excess(weights_K) >= 0:
        multipliers_M = found.multipliers if program.has_level else np.ones(1)
        proven = choice.surface.convex and program.lower_bound(found) > 0
        raise _limits_error(choice, weights_K, multipliers_M, proven=proven)
    return np.asarray(INWARD * weights_K + (1 - INWARD) * start_K)


def _limits_error(
    choice: Choice, weights_K: Array, multipliers_M: Array, *, proven: bool
) -> InfeasibleError:
    """Which limits contradict each other: those with a multiplier where all are missed least."""
    sets, limits = choice.surface.sets, choice.limits
    missed = float(choice.excess(weights_K)) + LIMIT_TOLERANCE
    named = [
        f"{sets[int(row.argmax())]!r} ({offset - LIMIT_TOLERANCE:.6g})"
        for row, offset, multiplier in zip(
            limits.weights, limits.offsets, multipliers_M, strict=True
        )
        if multiplier > NAMED_SHARE * multipliers_M.max()
    ]
    found = "no mixture within the constraints" if proven else "no mixture found"
    return InfeasibleError(
        f"{found} keeps the losses within the limits of {', '.join(named)}: the one that comes "
        f"nearest misses by {missed:.3g} nats; raise these limits by {round_up(missed):g}, or "
        "relax the constraints"
    )


@np.errstate(all="ignore")
def _require_finite(choice: Choice) -> None:
    """A law is finite where all weights are positive, so that only weights fixed at 0 do harm."""
    feasible, surface = choice.feasible, choice.surface
    used_J = choice.objective.and_rows(choice.limits).used
    infinite_J = used_J & ~np.isfinite(surface.losses(feasible.inside))
    if infinite_J.any():
        sets = _names_where(surface.sets, infinite_J)
        without = _names_where(surface.domains, feasible.inside == 0)
        raise InfeasibleError(
            f"the loss of {', '.join(map(repr, sets))} is infinite without tokens of "
            f"{', '.join(map(repr, without))}, whose weight the constraints fix at 0; allow them a "
            "positive weight or leave these validation sets out"
        )


def _optimum(
    choice: Choice, weights_K: Array, *, gap: float | None, num_iterations: int, message: str
) -> Optimum:
    constraints = choice.constraints
    domains = constraints.domains
    return Optimum(
        mixture=Mixture(domains=domains, weights=tuple(weights_K.tolist())),
        objective=float(choice.values(weights_K)),
        losses=choice.surface.losses(weights_K),
        duality_gap=gap,
        at_lower=_names_where(domains, weights_K <= constraints.lower + SUM_TOLERANCE),
        at_upper=_names_where(domains, weights_K >= constraints.upper - SUM_TOLERANCE),
        num_iterations=num_iterations,
        message=message,
    )


def _names_where(names: tuple[str, ...], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, hit in zip(names, mask, strict=True) if hit)
