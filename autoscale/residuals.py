"""Whether a law's errors look like noise: tests that reject it in words.

Held-out errors are compared with the noise between seeds, where replicates measured it, and with
the predictions themselves: errors that grow or fall along the predictions show a wrong shape.
"""

# P runs, J validation sets

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr

from .law_choice import Judge, Judged
from .laws.fitter import LEAST_FREE
from .laws.trees import TreeLaw
from .run_table import ReplicateNoise

Array = NDArray[np.float64]

SIGNIFICANT = 0.01  # over all tests of a kind together (Bonferroni)
WORTH_A_WORD = 1.5  # error in multiples of the noise below which a rejection changes no decision
FEWEST_FOR_TREND = 8  # runs
STRONG_TREND = 0.3  # rank correlation below which a trend changes no decision


def misfits(judge: Judge, judged: Judged, noise: ReplicateNoise | None) -> Iterator[str]:
    """Sentences on how the held-out errors differ from noise; none when they do not.

    Args:
        noise: between seeds, or None when no replicates measured it.
    """
    rows = judge.judged
    error_PJ = (judged.held_out - judge.table.losses)[rows]
    if noise is not None:
        yield from _beyond_seed_noise(judge, judged, error_PJ, noise)
    yield from _trends(judge, error_PJ, judged.held_out[rows])


def _beyond_seed_noise(
    judge: Judge, judged: Judged, error_PJ: Array, noise: ReplicateNoise
) -> Iterator[str]:
    """Lack of fit: mean square error over the square of the noise between seeds, an F test.

    A right law errs on held-out runs by more than the noise too, by about n / (n - p): its p
    parameters come from n mixtures.
    """
    floor_J = np.maximum(noise.standard_deviation, 1e-12)
    ratio_J = (error_PJ**2).mean(axis=0) / floor_J**2
    lack_J = ratio_J / _held_out_factor(judge, judged) ** 2
    chance_J = fdtrc(len(error_PJ), noise.degrees_of_freedom, lack_J)
    level = SIGNIFICANT / len(ratio_J)
    rejected = (chance_J < level) & (lack_J > WORTH_A_WORD**2)
    for j in np.flatnonzero(rejected):
        yield (
            f"The law is rejected for {judge.table.sets[j]}: its held-out error is "
            f"{np.sqrt(ratio_J[j]):.1f} times the noise between seeds."
        )


def _held_out_factor(judge: Judge, judged: Judged) -> Array:
    """Held-out error of a right law in multiples of the noise, shape (num_sets,)."""
    if isinstance(judged.law, TreeLaw):
        return np.ones(judge.table.num_sets)
    num_mixtures = len(np.unique(judge.table.mixture_groups()))
    free_J = num_mixtures - judged.law.effective_parameters
    return num_mixtures / np.maximum(free_J, LEAST_FREE * num_mixtures)


def _trends(judge: Judge, error_PJ: Array, predicted_PJ: Array) -> Iterator[str]:
    """Rank correlation of errors with predictions, by set."""
    if len(error_PJ) < FEWEST_FOR_TREND:
        return
    table = judge.table
    for j, name in enumerate(table.sets):
        if not (np.ptp(error_PJ[:, j]) and np.ptp(predicted_PJ[:, j])):
            continue  # no ranks to correlate
        trend, chance = _rank_correlation(error_PJ[:, j], predicted_PJ[:, j])
        if abs(trend) > STRONG_TREND and chance < SIGNIFICANT / table.num_sets:
            side = "high" if trend > 0 else "low"
            yield (
                f"The law's held-out errors for {name} are not random: it predicts too {side} "
                f"where losses are high (rank correlation {trend:+.2f})."
            )


def _rank_correlation(first_P: Array, second_P: Array) -> tuple[float, float]:
    """Spearman's, with its two-sided p-value by Student's t; scipy.stats would load for seconds."""
    first_P, second_P = (
        np.argsort(np.argsort(values_P)).astype(np.float64) for values_P in (first_P, second_P)
    )
    correlation = float(np.corrcoef(first_P, second_P)[0, 1])
    free = len(first_P) - 2
    t = correlation * np.sqrt(free / max(1 - correlation**2, 1e-300))
    return correlation, float(2 * stdtr(free, -abs(t)))
