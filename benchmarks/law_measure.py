"""Fits as `autoscale fit --table` makes them, and rows of Markdown tables."""

# P runs, J validation sets

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autoscale.estimate import Estimate, Options, estimate
from autoscale.laws.records import Law
from autoscale.laws.trees import TreeLaw
from autoscale.objective import Objective
from autoscale.run_table import RunTable

Array = NDArray[np.float64]

SEED = 20261130  # subsets by other seeds were looked at while the laws were made
NUM_SUBSETS = 5
FEW_RUNS = 50  # up to which there are twice as many subsets, as they differ more
FEW_DRAWS = 2  # where no interval is wanted


def estimated(table: RunTable, law: str, draws: int) -> Estimate:
    """As `autoscale fit --table` makes it, for the mean loss."""
    objective = Objective.create("mean_loss", table.sets)
    return estimate(table, objective, Options(law=law, draws=draws))


def fitted_law(table: RunTable, law: str) -> Law:
    """The law alone."""
    return TreeLaw.fit(table) if law == TreeLaw.law else estimated(table, law, FEW_DRAWS).law


def subsets(num_runs: int, n: int) -> Iterator[NDArray[np.int64]]:
    """Random subsets of n runs, one where that is all of them."""
    num_subsets = 1 if n == num_runs else NUM_SUBSETS * (1 + (n <= FEW_RUNS))
    for seed in range(num_subsets):
        yield np.sort(np.random.default_rng([SEED, n, seed]).permutation(num_runs)[:n])


def heading(text: str, columns: Sequence[str]) -> Iterator[str]:
    """What a table shows, and its first two lines."""
    yield from ("", text, "", row(columns), row(["---"] * len(columns)))


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def with_spread(found: Sequence[Array], column: int, digits: int = 4) -> str:
    """Mean of one column over the repeats, with the standard deviation between them."""
    values = np.array(found)[:, column]
    spread = f" ({values.std(ddof=1):.{digits}f})" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def counts(names: Sequence[str]) -> str:
    """How often each name occurs."""
    return ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))
