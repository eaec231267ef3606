"""T61: how laws of mixture, tokens and model size predict what they were not fitted to."""

# P runs

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from law_measure import SEED, fitted_law, heading, row
from law_tables import load_t61
from numpy.typing import NDArray

from autoscale.laws.fit import fit_law, mixture_folds
from autoscale.laws.frame import Form
from autoscale.laws.records import Law
from autoscale.run_table import RunTable

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]

LAWS = ("auto", "eti", "etk", "inverse_sum", "separable", "log_linear", "trees")
FEW_LAWS = ("auto", "etk", "inverse_sum")
FORMS = tuple(
    Form(tokens=tokens, size=size)
    for tokens in ("product", "sum", "both")
    for size in ("product", "sum")
)
GOALS = {
    "held-out mixtures": "0.60",
    "up to 310M, to 1.2B": "1.00",
    "up to 310M, to final of 680M and more": "0.50",
    "up to 10B, to above 15B tokens": "1.50",
    "final only, held-out mixtures": "",
}


class Split(NamedTuple):
    """Rows to fit and rows to predict."""

    fitted: Rows
    tested: Rows


def t61(folder: Path) -> Iterator[str]:
    """7 domains, 8 losses, trajectories at 5 model sizes."""
    table = load_t61(folder)
    assert table.tokens is not None
    late = table.select(table.tokens >= 5e9)
    yield from heading(
        "31 mixtures of SlimPajama's domains, 122M to 1.2B parameters, 2B to 46B tokens; every "
        "last checkpoint is in the table twice. Mean relative error in %, over all losses of the "
        "rows predicted; in brackets the mean signed error. Held-out mixtures: 5 folds by mixture. "
        "Laws named have the forms that `auto` has.",
        ["rows", "law", *GOALS],
    )
    yield row(["", "goal", *GOALS.values()])
    for part, rows, laws in ((table, "all", LAWS), (late, "from 5B tokens", FEW_LAWS)):
        for law in laws:
            yield row([rows, f"`{law}`", *_cells(part, law)])
    yield from heading(
        "Law `etk` in single forms, rows from 5B tokens.", ["tokens", "size", *GOALS]
    )
    for form in FORMS:
        yield row([form.tokens, form.size, *_cells(late, form)])


def _cells(table: RunTable, law: str | Form) -> Iterator[str]:
    """A row's errors, in the order of the goals."""
    for splits in _splits(table):
        error = np.concatenate([_relative_errors(table, split, law) for split in splits])
        yield f"{100 * np.abs(error).mean():.2f} ({100 * error.mean():+.2f})"


def _splits(table: RunTable) -> list[list[Split]]:
    """In the order of the goals."""
    tokens, parameters = np.asarray(table.tokens), np.asarray(table.parameters)
    last_P = np.array([tokens[parameters == size].max() for size in parameters])
    final, small = tokens > 0.999 * last_P, parameters <= 320e6
    folds_P = mixture_folds(table, 5, SEED)
    by_mixture = [Split(folds_P != fold, folds_P == fold) for fold in range(5)]
    final_only = [Split((folds_P != fold) & final, (folds_P == fold) & final) for fold in range(5)]
    return [
        by_mixture,
        [Split(small, parameters >= 1.1e9)],
        [Split(small, final & (parameters >= 650e6))],
        [Split(tokens <= 10.1e9, tokens > 15e9)],
        final_only,
    ]


def _relative_errors(table: RunTable, split: Split, law: str | Form) -> Array:
    """Predicted over observed less 1, all rows and losses in one line."""
    part, tested = table.select(split.fitted), table.select(split.tested)
    if isinstance(law, Form):
        form = Form(
            tokens=law.tokens if part.has_budgets else "none",
            size=law.size if part.has_sizes else "none",
        )
        fitted: Law = fit_law(part, "etk", forms=(form,))
    else:
        fitted = fitted_law(part, law)
    predicted = fitted.predict(tested.weights, tested.tokens, tested.parameters)
    return np.asarray(predicted / tested.losses - 1).ravel()
