"""Fit R*, how fast repeated tokens lose their worth, by held-out error (a profile over R*)."""

from dataclasses import replace

import numpy as np

from .law_choice import Candidate, Judge, hypotheses
from .laws.repetition import Repetition

RATES = (1.0, 2.0, 4.0, 8.0, 15.4, 30.0, 60.0)
JUDGING_LAW = "etk"
ENOUGH_EPOCHS = 1.5  # of some domain in some runs, below which nothing was repeated to speak of


def fitted_rate(judge: Judge, repetition: Repetition) -> Repetition:
    """The repetition with the R* that predicts held-out runs best.

    Args:
        judge: the runs, with known tokens.
        repetition: unique tokens of every domain; its rate is not used.

    Raises:
        ValueError: no run repeats a domain enough to tell.
    """
    table = judge.table
    assert table.tokens is not None
    epochs_PK = table.weights * table.tokens[:, None] / repetition.unique_tokens
    if np.sort(epochs_PK.max(axis=1))[-2:].min() < ENOUGH_EPOCHS:
        raise ValueError(
            f"R* cannot be fitted: fewer than two runs pass over a domain {ENOUGH_EPOCHS:g} times "
            f"(most {epochs_PK.max():.2f}); give R* instead, or leave it at the published value"
        )
    errors = []
    for rate in RATES:
        tried = replace(repetition, rate=rate)
        forms = hypotheses(JUDGING_LAW, table, tried)
        judged = judge.judge(Candidate(law=JUDGING_LAW, forms=forms, repetition=tried))
        errors.append(float(judge.errors(judged)[1].mean()))
    return replace(repetition, rate=RATES[int(np.argmin(errors))])
