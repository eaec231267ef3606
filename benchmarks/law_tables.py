"""The public tables that the laws are measured on, as run tables."""

# P runs, K domains, J validation sets

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoscale.run_table import RunTable

Array = NDArray[np.float64]

OFFICIAL_TOKENS = 1.2e9
OFFICIAL_FACTORS = (0.2, 3.0)  # of the runs with less and with more of a domain, in the fit's code


def load_regmix(folder: Path, split: str, size: str) -> RunTable:
    """RegMix's runs, all of 1B tokens: split `train` or `test`, size `1m` or `60m`."""
    mixtures = _rows(folder / "regmix" / f"{split}_mixture_{size}.csv")
    losses = _rows(folder / "regmix" / f"{split}_pile_loss_{size}.csv")
    domains = _columns(mixtures, "train_the_pile_", "")
    sets = _columns(losses, "metric/the_pile_", "_val_loss")
    return RunTable(
        runs=tuple(f"{split}-{size}-{row['index']}" for row in mixtures),
        domains=domains,
        sets=sets,
        weights=_numbers(mixtures, [f"train_the_pile_{name}" for name in domains]),
        parameters=np.full(len(mixtures), {"1m": 1e6, "60m": 60e6}[size]),
        losses=_numbers(losses, [f"metric/the_pile_{name}_val_loss" for name in sets]),
    )


def load_t61(folder: Path) -> RunTable:
    """31 mixtures of SlimPajama's domains at several model sizes, with their checkpoints."""
    rows = _rows(folder / "t61" / "train.csv")
    domains, sets = _columns(rows, "weight_", ""), _columns(rows, "", "_loss")
    return RunTable(
        runs=tuple(str(number) for number in range(len(rows))),
        domains=domains,
        sets=sets,
        weights=_numbers(rows, [f"weight_{name}" for name in domains]),
        tokens=_numbers(rows, ["n_tokens"])[:, 0],
        parameters=_numbers(rows, ["model_size"])[:, 0],
        losses=_numbers(rows, [f"{name}_loss" for name in sets]),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Official:
    """The authors' 15 runs, and what their notebooks make of them.

    Attributes:
        table: losses are logarithms of the perplexities; totals differ from run to run.
        record: the notebooks' numbers.
    """

    table: RunTable
    record: dict[str, Any]

    @property
    def mean_perplexity(self) -> Array:
        """As the notebooks have it, shape (num_runs,)."""
        return np.array([run["ppl_avg"] for run in self.record["runs"]])


def load_official(folder: Path) -> Official:
    """The reference run, the seven with less of a domain, the seven with more."""
    path = folder / "autoscale" / "autoscale_notebooks.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    domains = tuple(record["domains"])
    num_domains = len(domains)
    tokens_PK = np.full((1 + 2 * num_domains, num_domains), OFFICIAL_TOKENS / num_domains)
    for block, factor in enumerate(OFFICIAL_FACTORS):
        for domain in range(num_domains):
            tokens_PK[1 + block * num_domains + domain, domain] *= factor
    total_P = tokens_PK.sum(axis=1)
    table = RunTable(
        runs=tuple(run["run"] for run in record["runs"]),
        domains=domains,
        sets=domains,
        weights=tokens_PK / total_P[:, None],
        tokens=total_P,
        losses=np.log([run["ppl"] for run in record["runs"]]),
    )
    return Official(table=table, record=record)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _columns(rows: list[dict[str, str]], start: str, end: str) -> tuple[str, ...]:
    """What stands between prefix and suffix in the columns that have both."""
    names = [name for name in rows[0] if name.startswith(start) and name.endswith(end)]
    return tuple(name.removeprefix(start).removesuffix(end) for name in names)


def _numbers(rows: list[dict[str, str]], columns: list[str]) -> Array:
    return np.array([[float(row[name]) for name in columns] for row in rows])
