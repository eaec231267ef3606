"""Losses carried from small models to larger ones, on public tables, as dated Markdown.

    python benchmarks/size_transfer.py ../shared/tables [--only regmix] [--output FILE]

Sections that are not asked for stay in the file as they were, each with its own date.
"""

# P runs, J validation sets

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the figures are of one core

import numpy as np
from law_measure import SEED, counts, fitted_law, heading, row, with_spread
from law_tables import load_regmix, load_t61
from numpy.typing import NDArray
from result_sections import read_sections, write_sections
from scipy.stats import spearmanr

from autoscale.loss_curves import NUM_PARAMETERS
from autoscale.provenance import commit
from autoscale.run_table import RunTable
from autoscale.size_transfer import carry_runs, fit_size_transfer

Array = NDArray[np.float64]
Section = Callable[[Path], Iterator[str]]

NUM_PAIRS = (2, 3, 5, 8, 16, 32, 64)
FEW_PAIRS = 16  # up to which there are 10 random choices, as they differ more; else 4
NUM_DRAWS = 60
FORMS = ("auto", *NUM_PARAMETERS)
COLUMNS = ["error", "mean loss, rank", "sets, rank", "inside 90%"]
LAW_SUBSETS = 3
LAW_SMALL = 128
TITLE = """# Losses carried to a larger model: figures on public tables

Written by `python benchmarks/size_transfer.py ../shared/tables`. n mixtures are trained at both
sizes, curves are fitted to these pairs, and the losses of all other mixtures are carried to the
larger size and compared with the losses measured there. Error: mean absolute error over runs and
validation sets, in nats a token. Ranks: Spearman correlation over the runs carried, of the mean
loss, and the mean over the single sets (which a rising curve leaves as it is). Inside: share of the
measured losses within their 90% intervals. Not carried: the small model's losses, as they are.
In brackets the standard deviation between random choices of the n mixtures.

**Reading.** On RegMix 8 pairs and a line predict the losses at 60M to 0.05 nats (1.46 not carried)
and lift the rank of the mean loss from 0.966 to 0.982: the small model weighs the sets otherwise.
More pairs and the shifted power law add little over that range of losses; with five pairs it is
worse than the line, and `auto` does not take it. On T61, between 122M and larger models, one factor
is enough, to 0.01 nats; the rank of the mean loss gains nothing there (0.94 to 0.96, carried or
not), and the shifted power law with five pairs loses some of it. Along trajectories, where losses
span more, it is the better form. A law of carried losses is no better than a joint law of both
sizes.
How intervals widen with held-out errors was chosen on other random subsets of these tables.
"""


def main() -> None:
    """Run the sections asked for and write the file after every line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, help="folder with regmix/ and t61/")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    content = read_sections(arguments.output)
    for name in arguments.only.split(","):
        title, section = SECTIONS[name]
        start = time.process_time()
        lines: list[str] = []
        for line in section(arguments.tables):
            print(line, flush=True)
            lines.append(line)
            took = f"{time.process_time() - start:.0f} s of processor time."
            content[title] = "\n".join([f"{_circumstances()}, {took}", *lines]) + "\n"
            write_sections(
                arguments.output, TITLE, content, [title for title, _ in SECTIONS.values()]
            )


def regmix(folder: Path) -> Iterator[str]:
    """256 mixtures of 17 domains, 13 losses, 1B tokens at 1M and at 60M parameters."""
    small, large = load_regmix(folder, "test", "1m"), load_regmix(folder, "test", "60m")
    yield from _carried(small, large, NUM_PAIRS, "RegMix's 256 test mixtures, from 1M to 60M.")


def t61(folder: Path) -> Iterator[str]:
    """31 mixtures of 7 domains, 8 losses; trajectories, and last checkpoints of larger models."""
    table = load_t61(folder)
    assert table.tokens is not None and table.parameters is not None
    small, large = (table.select(_once(table, size)) for size in (122e6, 310e6))
    yield from _carried(
        small,
        large,
        (2, 3, 5, 8, 16),
        "31 mixtures with their checkpoints, 2B to 20B tokens, paired at the same tokens, from "
        "122M to 310M; n counts mixtures.",
    )
    last = small.select(small.tokens == small.tokens.max())
    for size in (310e6, 680e6, 937e6):
        there = table.select(_once(table, size))
        there = there.select(there.tokens == there.tokens.max())
        paired = np.array([np.abs(last.weights - w).max(axis=1).argmin() for w in there.weights])
        yield from _carried(
            replace(last.select(paired), tokens=None),
            replace(there, tokens=None),
            (2, 3, 5, 10),
            f"Last checkpoints only, from 122M (20B tokens) to {size / 1e6:.0f}M "
            f"({there.tokens.max() / 1e9:.0f}B tokens), {there.num_runs} mixtures.",
        )


def law(folder: Path) -> Iterator[str]:
    """A law fitted to carried losses, beside a joint law of both sizes."""
    train = load_regmix(folder, "train", "1m")
    small, large = load_regmix(folder, "test", "1m"), load_regmix(folder, "test", "60m")
    yield from heading(
        f"Law `auto` on {LAW_SMALL} of RegMix's training runs at 1M and n test mixtures at both "
        f"sizes, predicting the other test mixtures at 60M ({LAW_SUBSETS} random choices). Error "
        "in nats and rank of the mean loss. Joint: one law of both sizes, with its term of size "
        "and the correction at the larger. Carried: the runs at 1M carried first, then a law of "
        "one size.",
        ["n", "joint: error", "rank", "carried: error", "rank", "1M alone: rank"],
    )
    for n in (4, 16, 64):
        found = []
        for seed in range(LAW_SUBSETS):
            rng = np.random.default_rng([SEED, n, seed])
            order = rng.permutation(large.num_runs)
            paired, tested = np.sort(order[:n]), large.select(np.sort(order[n:]))
            runs = train.select(np.sort(rng.permutation(train.num_runs)[:LAW_SMALL]))
            parts = [runs, small.select(paired), large.select(paired)]
            both = RunTable.concatenate(parts)
            transfer = fit_size_transfer(both, to_parameters=60e6)
            carried = carry_runs(both, transfer).table
            scores = []
            for table in (both, carried, RunTable.concatenate(parts[:2])):
                predicted_PJ = fitted_law(table, "auto").predict(
                    tested.weights, None, tested.parameters
                )
                error = np.abs(predicted_PJ - tested.losses).mean()
                scores += [error, _rank(predicted_PJ.mean(axis=1), tested.losses.mean(axis=1))]
            found.append(np.array([*scores[:4], scores[5]]))
        yield row([str(n), *(with_spread(found, column) for column in range(5))])


SECTIONS: dict[str, tuple[str, Section]] = {
    "regmix": ("RegMix: 1M to 60M parameters", regmix),
    "t61": ("T61: 122M to 310M parameters and more", t61),
    "law": ("RegMix: a law of carried losses beside a joint law", law),
}


def _carried(
    small: RunTable, large: RunTable, num_pairs: tuple[int, ...], what: str
) -> Iterator[str]:
    """Every form with n paired mixtures, beside the losses of the small model."""
    partner_P = _partners(small, large)
    small, partner_P = small.select(partner_P >= 0), partner_P[partner_P >= 0]
    number_P = large.mixture_groups()
    small_number_P = number_P[partner_P]
    num_mixtures = int(number_P.max()) + 1
    yield from heading(what, ["n", "form", *COLUMNS, "`auto` chose"])
    for n in num_pairs:
        found: dict[str, list[Array]] = {form: [] for form in FORMS}
        uncarried, chosen = [], []
        for seed in range(10 if n <= FEW_PAIRS else 4):
            order = np.random.default_rng([SEED, n, seed]).permutation(num_mixtures)
            paired_P = np.isin(number_P, order[:n])
            alone_P = ~np.isin(small_number_P, order[:n])
            alone, truth = small.select(alone_P), large.losses[partner_P[alone_P]]
            uncarried.append(_scores(alone.losses, truth, None))
            both = RunTable.concatenate([small, large.select(paired_P)])
            for form in FORMS:
                if form in NUM_PARAMETERS and n < NUM_PARAMETERS[form] + 1:
                    continue
                transfer = fit_size_transfer(
                    both, to_parameters=_size(large), form=form, num_draws=NUM_DRAWS
                )
                half_PJ = transfer.half_widths(alone.losses)
                predicted_PJ = transfer.curves.at(alone.losses)
                found[form].append(_scores(predicted_PJ, truth, half_PJ))
                chosen += [transfer.form] if form == "auto" else []
        yield row([str(n), "not carried", *_cells(uncarried, 3), "", ""])
        for form in FORMS:
            if found[form]:
                picked = counts(chosen) if form == "auto" else ""
                yield row([str(n), f"`{form}`", *_cells(found[form], 4), picked])


def _scores(predicted_PJ: Array, truth_PJ: Array, half_PJ: Array | None) -> Array:
    """In the order of `COLUMNS`."""
    error_PJ = np.abs(predicted_PJ - truth_PJ)
    single = [_rank(one, other) for one, other in zip(predicted_PJ.T, truth_PJ.T, strict=True)]
    inside = np.nan if half_PJ is None else (error_PJ < half_PJ).mean()
    mean = _rank(predicted_PJ.mean(axis=1), truth_PJ.mean(axis=1))
    return np.array([error_PJ.mean(), mean, np.mean(single), inside])


def _rank(one_P: Array, other_P: Array) -> float:
    """Spearman's correlation; 0 where all are predicted alike."""
    return float(spearmanr(one_P, other_P).statistic) if np.ptp(one_P) > 0 else 0.0


def _cells(found: list[Array], num_columns: int) -> list[str]:
    return [with_spread(found, column) for column in range(num_columns)]


def _size(table: RunTable) -> float:
    assert table.parameters is not None
    return float(table.parameters[0])


def _partners(small: RunTable, large: RunTable) -> NDArray[np.int64]:
    """The large run of the same mixture and tokens, for every small run; -1 where there is none."""
    found = np.full(small.num_runs, -1)
    for number, weights in enumerate(small.weights):
        apart = np.abs(large.weights - weights).max(axis=1)
        if large.tokens is not None and small.tokens is not None:
            apart = apart + np.abs(large.tokens / small.tokens[number] - 1)
        if apart.min() < 1e-3:
            found[number] = apart.argmin()
    return found


def _once(table: RunTable, size: float) -> NDArray[np.bool_]:
    """Runs of one size, each mixture once at each token count; last checkpoints are there twice."""
    assert table.tokens is not None and table.parameters is not None
    here = np.flatnonzero(np.abs(table.parameters / size - 1) < 0.01)
    budget = np.round(table.tokens[here] / 1e8)
    keys = np.column_stack([table.mixture_groups()[here], budget])
    first = here[np.unique(keys, axis=0, return_index=True)[1]]
    return np.isin(np.arange(table.num_runs), first)


def _circumstances() -> str:
    code, _, changes = (commit() or "unknown").partition("+")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    return (
        f"{date.today()}, commit {code[:7]}{' with changes' * bool(changes)}, seed {SEED}, Python "
        f"{platform.python_version()}, {libraries}, {os.cpu_count()} cores ({platform.machine()}), "
        "one thread"
    )


if __name__ == "__main__":
    main()
