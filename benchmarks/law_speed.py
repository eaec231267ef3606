"""What fits and imports cost, beside LightGBM, numpy and scipy."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lightgbm
import numpy as np
from law_measure import estimated, heading, row
from law_tables import load_regmix

from autoscale.run_table import RunTable

REPEATS = 3
IMPORT_REPEATS = 11
DRAWS = 40
IMPORTS = ("numpy, scipy.optimize", "autoscale", "autoscale.estimate", "sys")


def speed(folder: Path) -> Iterator[str]:
    """Fits of 512 runs, 17 domains, 13 losses; then imports in fresh processes."""
    table = load_regmix(folder, "train", "1m")
    tasks = {
        "LightGBM, default settings (100 trees)": partial(_train_trees, table, {}, 100),
        "LightGBM, RegMix's settings (1000 trees, rate 0.01)": partial(
            _train_trees, table, {"learning_rate": 0.01}, 1000
        ),
        f"`eti`, 5 folds, {DRAWS} draws": partial(estimated, table, "eti", DRAWS),
        f"`auto`, 5 laws, 5 folds, {DRAWS} draws": partial(estimated, table, "auto", DRAWS),
    }
    seconds = _interleaved(tasks, REPEATS)
    default, published = list(seconds.values())[:2]
    yield from heading(
        "Fits of 512 runs, 17 domains and 13 losses in one thread; seconds of processor time, "
        f"median of {REPEATS} interleaved repeats. Goal: within 10 times LightGBM's plain fit.",
        ["fit", "seconds", "over default LightGBM", "over RegMix's"],
    )
    for name, took in seconds.items():
        yield row([name, f"{took:.2f}", f"{took / default:.2f}", f"{took / published:.2f}"])
    yield from _imports()


def _imports() -> Iterator[str]:
    commands = {name: [sys.executable, "-c", f"import {name}"] for name in IMPORTS}
    tasks = {name: partial(subprocess.run, words, check=True) for name, words in commands.items()}
    seconds = _interleaved(tasks, IMPORT_REPEATS)
    unit = seconds[IMPORTS[0]]
    yield from heading(
        "Imports in fresh processes; processor time, median of "
        f"{IMPORT_REPEATS} interleaved repeats, the start of the interpreter included (the last "
        "row is that alone). `import autoscale` loads what is used when it is used. Goal: at most "
        "1.5.",
        ["import", "milliseconds", "ratio"],
    )
    for name, took in seconds.items():
        yield row([f"`{name}`", f"{1e3 * took:.0f}", f"{took / unit:.2f}"])


def _interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of the processor time of each, run in turn: a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = _processor_seconds()
            task()
            seconds[name].append(_processor_seconds() - start)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def _processor_seconds() -> float:
    """Of this process and of children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _train_trees(table: RunTable, settings: dict[str, float], num_trees: int) -> None:
    fixed = {"objective": "regression", "verbosity": -1, "num_threads": 1, "seed": 0}
    for losses_P in table.losses.T:
        data = lightgbm.Dataset(table.weights, losses_P)
        lightgbm.train({**fixed, **settings}, data, num_trees)
