"""How close batches come to a bare C gather of the same windows, which does nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import numpy as np
from data_path_measure import median_interval, thousands, verdict
from data_path_throughput import Setting
from data_path_worker import SCRIPTS

_GOAL: Final = 0.85
_BATCHES_A_SECOND: Final = 80_000  # so that a round takes about as long as elsewhere


def gather(setting: Setting) -> Iterator[str]:
    batches = int(_BATCHES_A_SECOND * setting.seconds)
    yield (
        f"The same windows from the same pages into a reused int64 [8, 1024], in turn in one "
        f"process, {setting.rounds} rounds of {batches} batches; first checked to be the same bit "
        "for bit. Bare: a C loop over addresses found beforehand (`cc -O3`), called from Python "
        "once a batch, or once for a whole round. Share: of ours in the bare rate, median over "
        "rounds and 95% bootstrap interval."
    )
    yield ""
    yield (
        "| ours | compiler options | ours, samples/s | bare, by batch | share | goal "
        "| bare, at once | share |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for title, hidden in (("compiled kernel", "0"), ("numpy", "1")):
        for options in ([], ["-march=native"]):
            rates = _rates(setting, batches, hidden, options)
            ours, by_batch, at_once = (thousands(rate) for rate in np.median(rates, axis=0))
            share, *interval = median_interval(rates[:, 0] / rates[:, 1])
            share_at_once, *interval_at_once = median_interval(rates[:, 0] / rates[:, 2])
            goal = verdict(share >= _GOAL) if hidden == "0" and not options else ""
            yield (
                f"| {title} | {' '.join(['-O3', *options])} | {ours} | {by_batch} | "
                f"{_percent(share, interval)} | {goal} | {at_once} | "
                f"{_percent(share_at_once, interval_at_once)} |"
            )
    yield ""
    yield f"Goal: {_GOAL:.0%} of the bare gather called once a batch, with the compiled kernel."


def _rates(setting: Setting, batches: int, hidden: str, options: list[str]) -> np.ndarray:
    script = str(SCRIPTS / "ours_gather.py")
    command = [sys.executable, script, str(setting.workload), str(setting.rounds), str(batches)]
    environment = {**os.environ, "AUTOSCALE_WITHOUT_KERNEL": hidden}
    finished = subprocess.run(
        [*command, *options], check=True, capture_output=True, text=True, env=environment
    )
    return np.array(json.loads(finished.stdout))


def _percent(share: float, interval: list[float]) -> str:
    low, high = interval
    return f"{share:.1%} ({low:.1%} to {high:.1%})"
