"""Fits a law by name, predicts runs it was not fitted to (K-fold), draws it again (bootstrap)."""

# F folds, S draws, J validation sets, P runs

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..run_table import RunTable
from .average import AveragedLaw
from .fitted_law import FittedLaw
from .fitter import LEAST_FREE, Fitter
from .frame import Form
from .repetition import Repetition
from .terms import TERMS

Array = NDArray[np.float64]
Index = NDArray[np.int64]
JointLaw = FittedLaw | AveragedLaw

FOLD_TOLERANCE = 1e-3  # falls of the cost, from warm starts
DRAW_TOLERANCE = 1e-3  # with 1e-2 draws stop so near to the fit that 90% intervals cover 87%


def fit_law(
    table: RunTable,
    law: str,
    *,
    forms: Sequence[Form],
    repetition: Repetition | None = None,
    run_weights: Array | None = None,
) -> JointLaw:
    """Fit one law to the runs of a table, in one form or as the mean of several.

    Args:
        table: the runs; `check_for_fit` is called.
        law: a key of `TERMS`.
        forms: where tokens and size enter; a term of theirs needs several budgets or sizes.
        repetition: worth of repeated tokens.
        run_weights: how much every run counts, shape (num_runs,); 1 by default.

    Raises:
        ValueError: the law is unknown, or the table cannot carry it.
    """
    table.check_for_fit()
    if law not in TERMS:
        raise ValueError(f"law {law!r} is unknown; known are {', '.join(TERMS)}")
    weights_P = np.ones(table.num_runs) if run_weights is None else run_weights
    members = tuple(_fit_form(table, law, form, repetition, weights_P) for form in forms)
    if len(members) == 1:
        return members[0]
    return average_law(members, [1.0] * len(members), table, weights_P)


def average_law(
    members: Sequence[FittedLaw], shares: Sequence[float], table: RunTable, run_weights: Array
) -> AveragedLaw:
    """The mean of several fits to one table, with shares in any unit; its noise is measured."""
    total = sum(shares)
    mean = AveragedLaw(
        members=tuple(members),
        shares=tuple(share / total for share in shares),
        noise=np.ones(table.num_sets),
    )
    return replace(mean, noise=_residual_noise(mean, table, run_weights))


def predict_held_out(
    fitted: JointLaw, table: RunTable, folds_P: Index, run_weights: Array | None = None
) -> Array:
    """Losses of every run by the law fitted to the other folds, shape (num_runs, num_sets).

    Args:
        fitted: the law fitted to all of the table's runs; folds begin from its parameters.
        folds_P: number of the fold of each run; a run with -1 is in every fit and not predicted
            (NaN).
        run_weights: as given to `fit_law`.
    """
    if isinstance(fitted, AveragedLaw):
        found = [predict_held_out(law, table, folds_P, run_weights) for law in fitted.members]
        return np.asarray(np.tensordot(fitted.shares, np.stack(found), axes=1))
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
    fitted: JointLaw,
    table: RunTable,
    *,
    num_draws: int,
    seed: int,
    run_weights: Array | None = None,
) -> JointLaw:
    """The law with draws of its parameters: every mixture weighed at random, then fitted.

    Weights are exponential (Rubin's Bayesian bootstrap, 1981). Drawing mixtures with replacement
    instead would leave out a third of them, often more than a fit of few runs can spare. Runs of
    one mixture (other seeds, budgets, sizes) share their weight, as their errors are alike, and all
    members of a mean see the same draws.
    """
    groups_P = table.mixture_groups()
    num_groups = int(groups_P.max()) + 1
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
    chance_SG = rng.exponential(size=(num_draws, num_groups))
    chance_SG /= chance_SG.mean(axis=1, keepdims=True)
    weights_P = np.ones(table.num_runs) if run_weights is None else run_weights
    weights_SP = chance_SG[:, groups_P] * weights_P
    if isinstance(fitted, AveragedLaw):
        members = tuple(_redrawn(law, table, weights_SP) for law in fitted.members)
        return replace(fitted, members=members)
    return _redrawn(fitted, table, weights_SP)


def _fit_form(
    table: RunTable, law: str, form: Form, repetition: Repetition | None, weights_P: Array
) -> FittedLaw:
    _check_counts(table, form, repetition)
    fitter = Fitter(table, TERMS[law], form, repetition)
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


def _residual_noise(law: AveragedLaw, table: RunTable, weights_P: Array) -> Array:
    """Residual standard deviation of a mean, shape (num_sets,)."""
    predicted_PJ = law.predict(table.weights, table.tokens, table.parameters)
    residual_PJ = predicted_PJ - table.losses
    if law.relative:
        residual_PJ = np.log(predicted_PJ / table.losses)
    free_J = np.maximum(weights_P.sum() - law.effective_parameters, LEAST_FREE * weights_P.sum())
    return np.asarray(np.sqrt(weights_P @ residual_PJ**2 / free_J))


def _redrawn(fitted: FittedLaw, table: RunTable, weights_SP: Array) -> FittedLaw:
    fits = _fitter(fitted, table).fit(
        weights_SP,
        noise_FJ=np.tile(fitted.noise, (len(weights_SP), 1)),
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


def _check_counts(table: RunTable, form: Form, repetition: Repetition | None) -> None:
    for counts, placement, what in (
        (table.tokens, form.tokens, "tokens"),
        (table.parameters, form.size, "parameters"),
    ):
        if counts is None and placement != "none":
            raise ValueError(
                f"a term of {what} cannot be fitted to runs whose {what} are not known; add a "
                f"column {what}, or fit without the term"
            )
    if repetition is None:
        return
    if table.tokens is None:
        raise ValueError(
            "the worth of repeated tokens needs the tokens of the runs, which are not known; add a "
            "column tokens, or fit without repetition"
        )
    if len(repetition.unique_tokens) != table.num_domains:
        raise ValueError(
            f"unique tokens are given for {len(repetition.unique_tokens)} domains; expected one "
            f"number for each of {', '.join(table.domains)}"
        )


def _fitter(fitted: FittedLaw, table: RunTable) -> Fitter:
    return Fitter(table, fitted.term, fitted.form, fitted.repetition)
