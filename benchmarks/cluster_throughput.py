"""Probe runs of a campaign beside bare training processes on the same machine."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from cluster_jobs import (
    ROOT,
    Setting,
    logged_rate,
    make_bench,
    make_tokens,
    run_probes,
    run_together,
)
from data_path_measure import median_interval, verdict

_GOAL: Final = 0.95
_SHAPE: Final = {"layers": 4, "width": 256}
_BARE: Final = {"torch": "bare PyTorch loop", "deepspeed": "bare DeepSpeed loop, ZeRO-1"}
_SHORT_STEPS: Final = 4


def measure_throughput(setting: Setting) -> dict[str, Any]:
    """Tokens a second of every arm in every round; `<arm>-<processes>`."""
    manifest = make_tokens(setting.folder / "tokens")
    rates: dict[str, list[float]] = {}
    for number in range(setting.rounds):
        arms: list[tuple[str, Callable[[], float]]] = []
        for processes in (1, 2):
            for engine in _BARE:
                arms.append((f"{engine}-{processes}", _bare(setting, engine, processes)))
            arms.append((f"campaign-{processes}", _campaign(setting, manifest, processes)))
        turn = number % len(arms)
        for name, arm in arms[turn:] + arms[:turn]:
            rates.setdefault(name, []).append(arm())
            print(f"round {number}: {name} {rates[name][-1]:.0f} tokens/s", flush=True)
    return {"steps": setting.steps, "rates": rates}


def measure_overhead(setting: Setting) -> dict[str, Any]:
    """Seconds of campaigns of one and of four runs of a few steps each, on one rank."""
    manifest = make_tokens(setting.folder / "tokens")
    seconds: dict[str, list[float]] = {"1": [], "4": []}
    for _ in range(setting.rounds):
        for runs in (1, 4):
            folder = _fresh(setting.folder / "overhead")
            bench = make_bench(folder, manifest, steps=_SHORT_STEPS, **_SHAPE)
            more = ("--set", "probe.reference_seeds=4")
            took = run_probes(bench, 1, more, runs=runs)
            trained = sum(result["seconds"] for result in bench.results())
            seconds[str(runs)].append(took - trained)
            print(f"{runs} runs: {took:.1f} s, of them {trained:.1f} s in training", flush=True)
    return {"seconds": seconds}


def throughput_lines(data: dict[str, Any]) -> Iterator[str]:
    rates = {name: np.array(values) for name, values in data["rates"].items()}
    yield (
        f"Runs of {data['steps']} steps of 4 x 256 tokens, {_SHAPE['layers']} layers of width "
        f"{_SHAPE['width']}, fp32, AdamW, one thread a rank; {len(rates['campaign-1'])} rounds of "
        "all arms in turn. Tokens a second of all processes together from a tenth to nine tenths "
        "of each run; ratio: `autoscale probe` beside the arm, median of rounds and 95% bootstrap "
        "interval. The campaign reads shards, logs and reduces its loss; the bare loops take "
        "random tokens from memory and do nothing else."
    )
    yield ""
    yield "| processes | arm | tokens/s | `autoscale probe`, tokens/s | ratio | goal |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for processes in (1, 2):
        ours = rates[f"campaign-{processes}"]
        for engine, title in _BARE.items():
            other = rates[f"{engine}-{processes}"]
            ratio, low, high = median_interval(ours / other)
            goal = f"{_GOAL}: {verdict(ratio >= _GOAL)}"
            yield (
                f"| {processes} | {title} | {np.median(other):.0f} | {np.median(ours):.0f} | "
                f"{ratio:.3f} ({low:.3f} to {high:.3f}) | {goal} |"
            )


def overhead_lines(data: dict[str, Any]) -> Iterator[str]:
    one, four = (np.array(data["seconds"][runs]) for runs in ("1", "4"))
    each, low, high = median_interval((four - one) / 3)
    start, start_low, start_high = median_interval(one - (four - one) / 3)
    yield (
        f"`autoscale probe` on one rank by the local launcher, runs of {_SHORT_STEPS} steps, "
        f"{len(one)} rounds of one run and of four: seconds outside of training (the clock of "
        "`result.json`). Medians and 95% bootstrap intervals."
    )
    yield ""
    yield "| what | seconds |"
    yield "| --- | --- |"
    yield f"| launcher, imports, checks, end | {start:.1f} ({start_low:.1f} to {start_high:.1f}) |"
    yield f"| each run: claim, process, engine, result | {each:.1f} ({low:.1f} to {high:.1f}) |"


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _bare(setting: Setting, engine: str, processes: int) -> Callable[[], float]:
    def arm() -> float:
        folder = _fresh(setting.folder / "bare")
        folder.mkdir()
        script = str(ROOT / "benchmarks" / "cluster_bare.py")
        shape = [str(_SHAPE["layers"]), str(_SHAPE["width"])]
        commands = [
            [sys.executable, script, engine, str(setting.steps), *shape, str(number),
             str(processes), str(folder)]
            for number in range(processes)
        ]  # fmt: skip
        said = run_together(commands, folder / "log.txt")
        return sum(float(text.splitlines()[-1]) for text in said)

    return arm


def _campaign(setting: Setting, manifest: Path, ranks: int) -> Callable[[], float]:
    """As many runs as ranks, each on one."""

    def arm() -> float:
        bench = make_bench(
            _fresh(setting.folder / "campaign"), manifest, steps=setting.steps, **_SHAPE
        )
        run_probes(bench, ranks, runs=ranks)
        runs = bench.records("training")
        assert len(runs) == ranks
        return sum(logged_rate(records) for records in runs)

    return arm
