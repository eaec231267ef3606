"""R*, fitted by held-out error."""

import numpy as np
import pytest

from autoscale.law_choice import Judge
from autoscale.laws.repetition import Repetition
from autoscale.objective import Objective
from autoscale.repetition_rate import fitted_rate
from autoscale.run_table import RunTable

DOMAINS = ("web", "code", "books")
UNIQUE = np.array([2e6, 5e6, 40e6])


def judge(rate, tokens):
    """Runs of a law with repetition at this R*, and small noise."""
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.full(3, 2.0), 30)
    total = np.where(np.arange(30) % 2, tokens, tokens / 2)
    drawn = Repetition(rate=rate, unique_tokens=UNIQUE).effective(weights * total[:, None])
    effective = drawn.sum(axis=1, keepdims=True)
    transfer = 0.15 + 0.85 * np.eye(3)
    worth = ((drawn / effective) ** 0.65) @ transfer
    observed = 2 + 1.5 * (effective / 2e7) ** -0.35 * worth**-0.3
    runs = RunTable(
        runs=tuple(map(str, range(30))),
        domains=DOMAINS,
        sets=DOMAINS,
        weights=weights,
        tokens=total,
        losses=observed + 0.001 * rng.normal(size=observed.shape),
    )
    return Judge.create(runs, Objective.create("mean_loss", DOMAINS))


@pytest.mark.parametrize("rate", [2.0, 15.4])
def test_the_rate_of_the_runs_is_found(rate):
    start = Repetition(rate=99.0, unique_tokens=UNIQUE)
    assert fitted_rate(judge(rate, 4e7), start).rate == rate


def test_runs_that_hardly_repeat_are_refused():
    with pytest.raises(ValueError, match="R\\* cannot be fitted: fewer than two runs"):
        fitted_rate(judge(4.0, 2e6), Repetition(rate=99.0, unique_tokens=UNIQUE))
