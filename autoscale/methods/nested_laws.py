"""Losses carried to the target's tokens and model size before a mixture law is fitted.

Ye et al., arXiv 2403.16952, section 4: for every mixture and validation set a power law

    L(D) = E + B D^-a

of the training tokens, then one of the model's parameters, with one exponent for all curves (as
`power_law_share_alpha` of github.com/yegcjs/mixinglaws), each evaluated at the target.
"""

# C curves, N points of a curve, P runs, J validation sets

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ..run_table import SAME_AMOUNT, RunTable

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LEAST_POINTS = 3  # of a curve
EXPONENTS = (0.02, 2.0)


def at_target(table: RunTable, tokens: float, parameters: float | None) -> RunTable:
    """One row a mixture, with its losses at the target as far as the runs can tell.

    Without several budgets there is no law of tokens and the losses stay those of the probes;
    likewise for sizes.

    Args:
        table: probe runs.
        tokens: of the target run.
        parameters: of the target model; None keeps the size of the probes.

    Raises:
        ValueError: budgets or sizes vary, but not three of each for every mixture; or sizes vary
            and the target's is not known.
    """
    if table.has_budgets:
        table = _extrapolated(table, "tokens", tokens)
    if table.has_sizes:
        if parameters is None:
            raise ValueError(
                "the probe runs have several model sizes; give the target's parameters to carry "
                "their losses to it"
            )
        table = _extrapolated(table, "parameters", parameters)
    return table


def _extrapolated(table: RunTable, what: str, target: float) -> RunTable:
    """The table with the law of one count evaluated at its target, one row a curve."""
    counts_P = np.asarray(getattr(table, what))
    curve_P = _curves(table, what)
    rows = [np.flatnonzero(curve_P == c) for c in range(curve_P.max() + 1)]
    for members in rows:
        points = counts_P[members]
        num_points = 1 + int((np.diff(np.log(np.sort(points))) > SAME_AMOUNT).sum())
        if num_points < LEAST_POINTS:
            raise ValueError(
                f"run {table.runs[members[0]]!r}: its mixture was trained at {num_points} "
                f"different {what}, and a law of {what} needs {LEAST_POINTS} of every mixture; "
                "add runs or checkpoints, or give the runs of one budget and size"
            )

    def fitted(exponent: float) -> tuple[float, Array]:
        """Squared error of all curves, and their values at the target, shape (C, J)."""
        error, values = 0.0, []
        for members in rows:
            powers_N = (counts_P[members] / target) ** -exponent  # 1 at the target
            losses_NJ = table.losses[members]
            slope_J = _slopes(powers_N, losses_NJ)
            mean_J, mean_power = losses_NJ.mean(axis=0), powers_N.mean()
            residual_NJ = losses_NJ - mean_J - np.outer(powers_N - mean_power, slope_J)
            error += float((residual_NJ**2).sum())
            values.append(mean_J + slope_J * (1 - mean_power))
        return error, np.stack(values)

    best = minimize_scalar(
        lambda log_exponent: fitted(float(np.exp(log_exponent)))[0],
        bounds=tuple(np.log(EXPONENTS)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    _, losses_CJ = fitted(float(np.exp(best.x)))
    table = table.select([members[-1] for members in rows])
    targets_C = np.full(len(rows), target)
    if what == "tokens":
        return replace(table, losses=losses_CJ, tokens=targets_C)
    return replace(table, losses=losses_CJ, parameters=targets_C)


def _slopes(powers_N: Array, losses_NJ: Array) -> Array:
    """B of each set by least squares, at least 0 (loss does not rise with tokens), and E >= 0."""
    centred_N = powers_N - powers_N.mean()
    slope_J = centred_N @ losses_NJ / float(centred_N @ centred_N)
    return np.asarray(np.clip(slope_J, 0.0, losses_NJ.mean(axis=0) / powers_N.mean()))


def _curves(table: RunTable, what: str) -> Index:
    """Number of the curve of each run, shape (P,): one mixture, and one of the other count."""
    other = table.parameters if what == "tokens" else table.tokens
    groups_P = table.mixture_groups()
    if other is None:
        return groups_P
    keys = np.column_stack([groups_P, np.round(np.log(other) / SAME_AMOUNT)])
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse.reshape(-1)])
