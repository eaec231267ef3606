"""RegMix: how well laws rank and predict mixtures that they were not fitted to.

Every section yields the lines of its Markdown as they come.
"""

# P runs, J validation sets

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from law_measure import (
    NUM_SUBSETS,
    SEED,
    counts,
    estimated,
    fitted_law,
    heading,
    row,
    subsets,
    with_spread,
)
from law_tables import load_regmix
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autoscale.estimate import Estimate, Options
from autoscale.run_table import RunTable
from autoscale.uncertainty import predict_interval, predict_objective_interval

Array = NDArray[np.float64]

LAWS = ("auto", "eti", "etk", "inverse_sum", "separable", "log_linear", "trees")
NUM_RUNS = (17, 35, 64, 128, 512)
GOALS = (0.955, 0.978, 0.985, 0.990, 0.992)
COLUMNS = ("mean of 13", "mean loss", "error", "mean of 13, 60M", "mean loss, 60M")
SIZES = ((512, 128), (512, 17), (64, 17), (512, 0), (0, 128), (0, 17))


def regmix(folder: Path) -> Iterator[str]:
    """RegMix: 17 domains, 13 losses; from n runs of a model of 1M parameters."""
    train, larger = load_regmix(folder, "train", "1m"), load_regmix(folder, "test", "60m")
    test = load_regmix(folder, "test", "1m")
    found: dict[tuple[str, int], list[Array]] = {}
    chosen: dict[int, list[str]] = {n: [] for n in NUM_RUNS}
    yield from heading(
        f"Fitted to n of the 512 runs at 1M ({2 * NUM_SUBSETS} random subsets for 17 and 35, "
        f"{NUM_SUBSETS} for 64 and 128), tested on the 256 test runs at 1M. Mean Spearman "
        "correlation over the 13 losses; in brackets its standard deviation between subsets.",
        ["law", *map(str, NUM_RUNS)],
    )
    yield row(["goal", *(f"{goal:.3f}" for goal in GOALS)])
    for law in LAWS:
        for n in NUM_RUNS:
            fits = [fitted_law(train.select(rows), law) for rows in subsets(train.num_runs, n)]
            chosen[n] += [fit.law for fit in fits] if law == "auto" else []
            here = [_scores(fit.predict(test.weights, None, None), test) for fit in fits]
            there = [_scores(fit.predict(test.weights, None, None), larger)[:2] for fit in fits]
            found[law, n] = [np.concatenate(pair) for pair in zip(here, there, strict=True)]
        yield _law_row(found, law, 0)
    for column, what in (
        (1, "Spearman correlation of the mean of the 13 losses, at 1M."),
        (2, "Mean absolute error in nats, at 1M."),
        (3, "Mean Spearman over the 13 losses, the same laws against the 256 test runs at 60M."),
        (4, "Spearman of the mean loss at 60M."),
    ):
        yield from heading(what, ["law", *map(str, NUM_RUNS)])
        for law in LAWS:
            yield _law_row(found, law, column)
    picked = "; ".join(f"{n}: {counts(chosen[n])}" for n in NUM_RUNS)
    yield from ("", f"Laws that `auto` chose, by n: {picked}.")
    yield from _sizes(train, larger)


def _law_row(found: dict[tuple[str, int], list[Array]], law: str, column: int) -> str:
    return row([f"`{law}`", *(with_spread(found[law, n], column) for n in NUM_RUNS)])


def _sizes(train: RunTable, larger: RunTable) -> Iterator[str]:
    """Two model sizes in one fit."""
    yield from heading(
        "Two sizes in one fit: runs at 1M and at 60M, tested on the other half of the 256 runs at "
        f"60M ({NUM_SUBSETS} random halves). Mean Spearman over 13 losses, of the mean loss, and "
        "mean absolute error in nats; law `auto`.",
        ["runs at 1M", "runs at 60M", "mean of 13", "mean loss", "error"],
    )
    half = larger.num_runs // 2
    for num_small, num_large in SIZES:
        found = []
        for seed in range(NUM_SUBSETS):
            rng = np.random.default_rng([SEED, seed])
            order_P, small_P = rng.permutation(larger.num_runs), rng.permutation(train.num_runs)
            tested = larger.select(np.sort(order_P[:half]))
            sources = ((train, small_P[:num_small]), (larger, order_P[half : half + num_large]))
            parts = [table.select(np.sort(rows)) for table, rows in sources if len(rows)]
            law = fitted_law(RunTable.concatenate(parts), "auto")
            found.append(_scores(law.predict(tested.weights, None, tested.parameters), tested))
        cells = [with_spread(found, column) for column in range(3)]
        yield row([str(num_small), str(num_large), *cells])


def _scores(predicted_PJ: Array, table: RunTable) -> Array:
    """Spearman, mean over the losses and of their mean; and the mean absolute error."""
    pairs = zip(predicted_PJ.T, table.losses.T, strict=True)
    single = [spearmanr(one, other).statistic for one, other in pairs]
    mean = spearmanr(predicted_PJ.mean(axis=1), table.losses.mean(axis=1)).statistic
    return np.array([np.mean(single), mean, np.abs(predicted_PJ - table.losses).mean()])


def coverage(folder: Path) -> Iterator[str]:
    """Intervals on held-out runs of RegMix at 1M."""
    train, test = load_regmix(folder, "train", "1m"), load_regmix(folder, "test", "1m")
    yield from heading(
        "Share of the 256 test runs at 1M within 90% intervals, law `auto`, 40 draws; goal 87% to "
        "95%. Half width: of the interval, in nats, mean over runs.",
        ["n", "single losses", "mean loss", "half width, single", "half width, mean"],
    )
    for n in NUM_RUNS:
        found = []
        for rows in subsets(train.num_runs, n):
            made = estimated(train.select(rows), "auto", Options().draws)
            found.append(np.array(_covered(made, test)))
        cells = [with_spread(found, column, digits=3) for column in range(4)]
        yield row([str(n), *cells])


def _covered(made: Estimate, test: RunTable) -> tuple[float, float, float, float]:
    single = predict_interval(made, test.weights, None, None)
    mean = predict_objective_interval(made, test.weights, None, None)
    observed = made.objective.values(test.losses, test.sets)
    return (
        float(((test.losses > single.low) & (test.losses < single.high)).mean()),
        float(((observed > mean.low) & (observed < mean.high)).mean()),
        float((single.high - single.mean).mean()),
        float((mean.high - mean.mean).mean()),
    )
