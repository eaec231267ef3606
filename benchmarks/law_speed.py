"""What fits and the import cost, beside what everybody knows."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from law_measure import estimated
from law_tables import load_regmix

from autoscale.run_table import RunTable

REPEATS = 3
IMPORT_REPEATS = 11
DRAWS = 40
IMPORTS = ("numpy, scipy.optimize", "autoscale", "autoscale.estimate", "sys")


def speed(folder: Path) -> Iterator[str]:
    """Fits of 512 runs, 17 domains, 13 losses; then imports in fresh processes."""
    table = load_regmix(folder, "train", "1m")
    tasks: dict[str, Callable[[], object]] = {
        "LightGBM, default settings (100 trees)": lambda: _lightgbm(table, {}, 100),
        "LightGBM, RegMix's settings (1000 trees, rate 0.01)": lambda: _lightgbm(
            table, {"learning_rate": 0.01}, 1000
        ),
        f"`eti`, 5 folds, {DRAWS} draws": lambda: estimated(table, "eti", DRAWS),
        f"`auto`, 5 laws, 5 folds, {DRAWS} draws": lambda: estimated(table, "auto", DRAWS),
    }
    seconds = _interleaved(tasks, REPEATS)
    default, published = list(seconds.values())[:2]
    yield ""
    yield (
        f"Fits of 512 runs, 17 domains and 13 losses, one thread, median of {REPEATS} interleaved "
        "repeats; goal within 10 times LightGBM's plain fit."
    )
    yield from (
        "",
        "| fit | seconds | times default LightGBM | times RegMix's |",
        "|---|---|---|---|",
    )
    for name, took in seconds.items():
        yield f"| {name} | {took:.2f} | {took / default:.2f} | {took / published:.2f} |"
    yield from _imports()


def _imports() -> Iterator[str]:
    commands = {name: [sys.executable, "-c", f"import {name}"] for name in IMPORTS}
    seconds = _interleaved(
        {
            name: lambda command=command: subprocess.run(command, check=True)
            for name, command in commands.items()
        },
        IMPORT_REPEATS,
    )
    unit = seconds[IMPORTS[0]]
    yield ""
    yield (
        f"Imports in fresh processes, median of {IMPORT_REPEATS} interleaved repeats, start of the "
        "interpreter included (the last row is that alone); goal at most 1.5."
    )
    yield from ("", "| import | milliseconds | ratio |", "|---|---|---|")
    for name, took in seconds.items():
        yield f"| {name} | {1e3 * took:.0f} | {took / unit:.2f} |"


def _interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn so that a busy moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def _lightgbm(table: RunTable, settings: dict[str, float], num_trees: int) -> None:
    import lightgbm

    fixed = {"objective": "regression", "verbosity": -1, "num_threads": 1, "seed": 0}
    for losses_P in table.losses.T:
        data = lightgbm.Dataset(table.weights, losses_P)
        lightgbm.train({**fixed, **settings}, data, num_trees)
