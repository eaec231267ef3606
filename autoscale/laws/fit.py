"""Fit a law by name, predict runs it was not fitted to (K-fold), redraw its parameters (bootstrap)."""

# F folds, S draws, J validation sets, P runs

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..run_table import RunTable
from .fitted_law import FittedLaw
from .fitter import Fitter
from .frame import Form
from .repetition import Repetition
from .terms import TERMS

Array = NDArray[np.float64]
Index = NDArray[np.int64]

FOLD_TOLERANCE = 1e-3  # falls of the cost, from warm starts
DRAW_TOLERANCE = 1e-2


def fit_law(
    table: RunTable,
    law: str,
    *,
    form: Form,
    repetition: Repetition | None = None,
    run_weights: Array | None = None,
) -> FittedLaw:
    """Fit one law in one form to the runs of a table.

    Args:
        table: the runs; `check_for_fit` is called.
        law: a key of `TERMS`.
        form: where tokens and size enter; a term of theirs needs several budgets or sizes.
        repetition: worth of repeated tokens.
        run_weights: how much every run counts, shape (num_runs,); 1 by default.

    Raises:
        ValueError: the law is unknown, or the table cannot carry it.
    """
    table.check_for_fit()
    if law not in TERMS:
        raise ValueError(f"law {law!r} is unknown; known are {', '.join(TERMS)}")
    fitter = Fitter(table, TERMS[law], form, repetition)
    weights_P = np.ones(table.num_runs) if run_weights is None else run_weights
    fits = fitter.fit(weights_P[None])
    return FittedLaw(
        law=law,
        form=form,
        domains=table.domains,
        sets=table.sets,
        metric=table.metric,
        units=fitter.units,
        repetition=repetition,
        theta=fits.theta[0],
        draws=None,
        noise=fits.noise[0],
        relative=fitter.relative,
        effective_parameters=fits.effective_parameters[0],
        converged=tuple(fits.converged[0].tolist()),
    )


def predict_held_out(
    fitted: FittedLaw, table: RunTable, folds_P: Index, run_weights: Array | None = None
) -> Array:
    """Losses of every run by the law fitted to the other folds, shape (num_runs, num_sets).

    Args:
        fitted: the law fitted to all of the table's runs; folds begin from its parameters.
        folds_P: number of the fold of each run; a run with -1 is in every fit and not predicted
            (NaN).
        run_weights: as given to `fit_law`.
    """
    fitter = _fitter(fitted, table)
    weights_P = np.ones(table.num_runs) if run_weights is None else run_weights
    numbers = np.unique(folds_P[folds_P >= 0])
    weights_FP = np.where(folds_P == numbers[:, None], 0.0, weights_P)
    fits = fitter.fit(
        weights_FP,
        noise_FJ=np.tile(fitted.noise, (len(numbers), 1)),
        start_FJQ=fitted.theta,
        tolerance=FOLD_TOLERANCE,
    )
    value_FJP = fitter.values(fits.theta)
    predicted_PJ = np.full((table.num_runs, table.num_sets), np.nan)
    for number, value_JP in zip(numbers, value_FJP, strict=True):
        rows = folds_P == number
        predicted_PJ[rows] = value_JP[:, rows].T
    return predicted_PJ


def bootstrap(
    fitted: FittedLaw,
    table: RunTable,
    *,
    num_draws: int,
    seed: int,
    run_weights: Array | None = None,
) -> FittedLaw:
    """The law with draws of its parameters: mixtures drawn again with replacement, then fitted.

    Runs of one mixture (other seeds, budgets, sizes) are drawn together, as their errors are alike.
    """
    fitter = _fitter(fitted, table)
    groups_P = table.mixture_groups()
    num_groups = int(groups_P.max()) + 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
    counts_SG = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_draws)
    weights_P = np.ones(table.num_runs) if run_weights is None else run_weights
    fits = fitter.fit(
        counts_SG[:, groups_P] * weights_P,
        noise_FJ=np.tile(fitted.noise, (num_draws, 1)),
        start_FJQ=fitted.theta,
        tolerance=DRAW_TOLERANCE,
    )
    return replace(fitted, draws=fits.theta)


def mixture_folds(table: RunTable, num_folds: int, seed: int) -> Index:
    """A fold for every run, shape (num_runs,); runs of one mixture share theirs."""
    groups_P = table.mixture_groups()
    num_groups = int(groups_P.max()) + 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xF01D]))
    return np.asarray((rng.permutation(num_groups) % min(num_folds, num_groups))[groups_P])


def _fitter(fitted: FittedLaw, table: RunTable) -> Fitter:
    return Fitter(table, fitted.term, fitted.form, fitted.repetition)
