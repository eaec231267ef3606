"""Mixtures drawn at random within constraints: starts for local search, and optima of trees.

A law that is piecewise constant has no gradient to follow. As RegMix does (Liu et al., arXiv
2407.01492), many mixtures are predicted and the best hundred averaged, which also averages out that
the very best prediction is the most lucky one. A second round draws around the first answer.
"""

# K domains, S samples

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .constraints import InfeasibleError
from .feasible_set import FeasibleSet
from .mixture import Mixture
from .mixture_program import Choice

Array = NDArray[np.float64]

PURPOSE = 0x6F707431  # of the random numbers drawn here
WIDE = (1.0, 100.0)  # Dirichlet concentrations of the first round: from near vertices to the centre
NARROW = (100.0, 10_000.0)  # of the second round
NUM_AVERAGED = 100
NUM_BISECTIONS = 60
LOG_SCALES = 60.0  # logarithm of the largest factor by which clipping changes a weight
INWARD = 0.95  # share of the way from the centre that a start keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How to look for the optimum of a surface that is not convex.

    Attributes:
        reference: mixture around which half of the samples lie; None for the constraints' centre.
        num_starts: local searches.
        num_samples: mixtures sampled in each of two rounds, where nothing is differentiable.
        seed: of the samples.
    """

    reference: Mixture | None = None
    num_starts: int = 8
    num_samples: int = 20_000
    seed: int = 0


def starts(choice: Choice, search: Search) -> Array:
    """Mixtures strictly inside the constraints: reference, centre, and the best of many samples.

    Returns:
        Shape (num_starts, K).
    """
    feasible = choice.feasible
    samples_SK = _first_round(choice, search, 200 * search.num_starts)
    values_S = choice.values(samples_SK) + 1e3 * np.maximum(choice.excess(samples_SK), 0)
    first_K = _within(feasible, _reference(choice, search)[None])
    chosen = np.vstack([feasible.inside, first_K, samples_SK[np.argsort(values_S)]])
    return np.asarray(feasible.inside + INWARD * (chosen[: search.num_starts] - feasible.inside))


def sampled_optimum(choice: Choice, search: Search) -> Array:
    """The mean of the best samples of two rounds, shape (K,).

    Raises:
        InfeasibleError: no sample keeps the limits.
    """
    samples_SK = _first_round(choice, search, search.num_samples)
    best_K, samples_SK = _mean_of_best(choice, samples_SK)
    rng = _generator(search, 1)
    again_SK = _sample(choice.feasible, best_K, search.num_samples, NARROW, rng)
    return _mean_of_best(choice, np.vstack([samples_SK, again_SK]))[0]


def _mean_of_best(choice: Choice, samples_SK: Array) -> tuple[Array, Array]:
    excess_S = choice.excess(samples_SK)
    if not (excess_S <= 0).any():
        raise InfeasibleError(
            f"none of {len(samples_SK)} mixtures sampled within the constraints keeps every "
            f"validation set within its limit; the nearest misses one by {excess_S.min():.3g} "
            "nats: allow that much more, or relax the bounds"
        )
    values_S = np.where(excess_S <= 0, choice.values(samples_SK), np.inf)
    best_SK = samples_SK[np.argsort(values_S, kind="stable")[:NUM_AVERAGED]]
    best_SK = best_SK[: int((excess_S <= 0).sum())]
    mean_K = best_SK.mean(axis=0)
    return (mean_K if choice.excess(mean_K) <= 0 else best_SK[0]), best_SK


def _first_round(choice: Choice, search: Search, num_samples: int) -> Array:
    rng = _generator(search, 0)
    near = _sample(choice.feasible, _reference(choice, search), num_samples // 2, WIDE, rng)
    rest = num_samples - num_samples // 2
    return np.vstack([near, _sample(choice.feasible, choice.feasible.inside, rest, WIDE, rng)])


def _generator(search: Search, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([search.seed, PURPOSE, index]))


def _reference(choice: Choice, search: Search) -> Array:
    if search.reference is None:
        return choice.feasible.inside
    return search.reference.reordered(choice.surface.domains).as_array()


def _sample(
    feasible: FeasibleSet,
    center_K: Array,
    num_samples: int,
    concentrations: tuple[float, float],
    rng: np.random.Generator,
) -> Array:
    """Dirichlet samples around a mixture, brought within the constraints, shape (S, K)."""
    low, high = np.log(concentrations)
    concentration_S = np.exp(rng.uniform(low, high, num_samples))
    samples_SK = rng.standard_gamma(concentration_S[:, None] * center_K) + 1e-12 * center_K
    return _within(feasible, samples_SK / samples_SK.sum(axis=1, keepdims=True))


def _within(feasible: FeasibleSet, samples_SK: Array) -> Array:
    """Scaled and clipped to the bounds, then moved toward the centre as far as groups require."""
    low_S, high_S = np.full((2, len(samples_SK), 1), LOG_SCALES) * [[[-1.0]], [[1.0]]]
    for _ in range(NUM_BISECTIONS):
        middle_S = (low_S + high_S) / 2
        clipped_SK = np.clip(np.exp(middle_S) * samples_SK, feasible.lower, feasible.upper)
        above_S = clipped_SK.sum(axis=1, keepdims=True) > 1
        low_S, high_S = np.where(above_S, low_S, middle_S), np.where(above_S, middle_S, high_S)
    away_SK = clipped_SK - feasible.inside
    room_K = np.minimum(feasible.inside - feasible.lower, feasible.upper - feasible.inside)
    shares = room_K * feasible.equalities  # what changes a constant sum goes back by room
    solved = np.linalg.solve(shares @ feasible.equalities.T, shares)
    away_SK -= away_SK @ feasible.equalities.T @ solved
    systems = (
        (away_SK, feasible.upper - feasible.inside),
        (-away_SK, feasible.inside - feasible.lower),
        (away_SK @ feasible.rows.T, feasible.limits - feasible.rows @ feasible.inside),
    )
    reach_S = np.ones(len(samples_SK))
    for step, room in systems:
        share = np.divide(room, step, out=np.ones_like(step), where=step > 0)
        reach_S = np.minimum(reach_S, share.min(axis=1, initial=1.0))
    return np.asarray(feasible.inside + reach_S[:, None] * away_SK)
