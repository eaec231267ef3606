"""Batches a second in process, ours against each peer, and set-up and resume in fresh processes."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from data_path_measure import median_interval, paired_rounds, thousands, verdict
from data_path_worker import LoaderKind, LoaderProcess

OURS: Final = LoaderKind(title="ours, compiled kernel", environment=None, script="ours.py")
OURS_NUMPY: Final = LoaderKind(
    title="ours, numpy",
    environment=None,
    script="ours.py",
    variables={"AUTOSCALE_WITHOUT_KERNEL": "1"},
)
GRAIN: Final = LoaderKind(title="grain", environment="grain", script="peer_grain.py", goal=10)
GRAIN_MAP: Final = LoaderKind(
    title="grain over a memory map", environment="grain", script="peer_grain_map.py"
)
LITDATA: Final = LoaderKind(
    title="litdata `StreamingDataLoader`",
    environment="litdata",
    script="peer_litdata.py",
    goal=10,
)
LITDATA_ITERATED: Final = LoaderKind(
    title="litdata, dataset iterated",
    environment="litdata",
    script="peer_litdata.py",
    variables={"LITDATA_DIRECT": "1"},
    goal=10,
)
MEGATRON: Final = LoaderKind(
    title="Megatron `dataset[i]`", environment="megatron", script="peer_megatron.py", goal=10
)
MEGATRON_TEXT: Final = LoaderKind(
    title="Megatron, text only",
    environment="megatron",
    script="peer_megatron.py",
    variables={"MEGATRON_TEXT_ONLY": "1"},
    goal=10,
)
MEGATRON_FRESH: Final = LoaderKind(
    title="Megatron, index not cached",
    environment="megatron",
    script="peer_megatron.py",
    variables={"MEGATRON_FRESH": "1"},
)
STREAMING: Final = LoaderKind(
    title="MosaicML Streaming", environment="streaming", script="peer_streaming.py", goal=70
)
RIVALS: Final = (
    GRAIN,
    GRAIN_MAP,
    LITDATA,
    LITDATA_ITERATED,
    MEGATRON,
    MEGATRON_TEXT,
    STREAMING,
)
RESUMED: Final = (GRAIN, GRAIN_MAP, LITDATA, MEGATRON, MEGATRON_FRESH, STREAMING)
_RESUME_GOAL: Final = 20
_READ_BYTES: Final = 1 << 24
_SHARES_BATCHES: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a section needs to know.

    Attributes:
        peers: folder of the peers' environments.
        workload: folder of the tokens.
        rounds: pairs of rounds for each comparison.
        seconds: of a round.
        starts: fresh processes for each time of set-up.
    """

    peers: Path
    workload: Path
    rounds: int
    seconds: float
    starts: int

    def start(self, kind: LoaderKind) -> LoaderProcess:
        return LoaderProcess(kind, peers=self.peers, workload=self.workload)


def write_all(setting: Setting) -> None:
    """Every loader writes its files, once; then all files are read into the page cache."""
    for kind in (OURS, GRAIN, GRAIN_MAP, LITDATA, MEGATRON, STREAMING):
        with setting.start(kind) as loader:
            loader.ask("write")
    for path in setting.workload.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(_READ_BYTES):
                    pass


def throughput(setting: Setting) -> Iterator[str]:
    write_all(setting)
    described = json.loads((setting.workload / "workload.json").read_text(encoding="utf-8"))
    yield (
        f"Batches of int64 [{described['batch_size']}, {described['sequence_length']}] from "
        f"{len(described['domains'])} domains, {described['epoch_samples']} samples an epoch, "
        "documents of 256 to 3840 tokens (Megatron reads by document), page cache warm, each "
        "loader alone in a process of its own, in process (no workers): "
        f"{setting.rounds} pairs of rounds of {setting.seconds} s, in turn. Ratio: median over "
        "pairs, in brackets its 95% bootstrap interval. Share error: largest |share - weight| of a "
        f"domain in {_SHARES_BATCHES * described['batch_size']} samples."
    )
    yield ""
    yield "| loader | samples/s | ours beside it | ours is faster by | goal | share error |"
    yield "| --- | --- | --- | --- | --- | --- |"
    with setting.start(OURS) as ours:
        ours.ask("open")
        for kind in (OURS_NUMPY, *RIVALS):
            with setting.start(kind) as other:
                other.ask("open")
                shares = np.array(other.ask("shares", batches=_SHARES_BATCHES)["shares"])
                rates = paired_rounds(
                    lambda: _rate(ours, setting), lambda: _rate(other, setting), setting.rounds
                )
            error = np.abs(shares - described["weights"]).max()
            ratio, low, high = median_interval(rates[:, 0] / rates[:, 1])
            goal = "" if kind.goal is None else f"{kind.goal:g}: {verdict(ratio >= kind.goal)}"
            yield (
                f"| {kind.title} | {thousands(np.median(rates[:, 1]))} | "
                f"{thousands(np.median(rates[:, 0]))} | {ratio:.1f} ({low:.1f} to {high:.1f}) | "
                f"{goal} | {error:.4f} |"
            )
        error = np.abs(
            np.array(ours.ask("shares", batches=_SHARES_BATCHES)["shares"]) - described["weights"]
        ).max()
        yield ""
        yield f"Share error of ours: {error:.4f}."


def _rate(loader: LoaderProcess, setting: Setting) -> float:
    answer = loader.ask("round", seconds=setting.seconds)
    return answer["samples"] / answer["seconds"]


def resume(setting: Setting) -> Iterator[str]:
    write_all(setting)
    described = json.loads((setting.workload / "workload.json").read_text(encoding="utf-8"))
    position = described["epoch_samples"] * 9 // 10
    yield (
        f"Build the loader, go to sample {position} (90% of an epoch), first batch: milliseconds, "
        f"median of {setting.starts} fresh processes (lowest to highest). Not counted there: the "
        "start of the interpreter, imports at the top of the worker, and what is done once "
        "(Megatron's index cache and the saved states exist already). Whole process: from its "
        "start to the first batch at 90%, imports of the worker and its test harness counted."
    )
    yield ""
    yield (
        "| loader | from the start | at 90% of an epoch | ours is faster | whole process "
        "| ours is faster |"
    )
    yield "| --- | --- | --- | --- | --- | --- |"
    kinds = (OURS, OURS_NUMPY, *RESUMED)
    seconds = np.empty((len(kinds), 3, setting.starts))
    for start in range(setting.starts):
        for number, kind in enumerate(kinds):
            for which, at in enumerate((0, position)):
                begin = time.perf_counter()
                with setting.start(kind) as loader:
                    seconds[number, which, start] = loader.ask("open", position=at)["seconds"]
                    seconds[number, 2, start] = time.perf_counter() - begin
    medians = np.median(seconds, axis=2)
    factors = medians / medians[0]
    for kind, times, factor in zip(kinds, seconds, factors, strict=True):
        cells = [f"{np.median(t) * 1e3:.3g} ({_range(t)})" for t in times]
        yield (
            f"| {kind.title} | {cells[0]} | {cells[1]} | {factor[1]:.1f} | {cells[2]} | "
            f"{factor[2]:.1f} |"
        )
    own_format = [number for number, kind in enumerate(kinds) if kind.goal is not None]
    fastest = min(own_format, key=lambda number: medians[number, 1])
    factor = factors[fastest, 1]
    yield ""
    yield (
        f"Goal {_RESUME_GOAL} times the fastest peer with its own format: "
        f"{verdict(factor >= _RESUME_GOAL)} ({factor:.1f}, {kinds[fastest].title})."
    )


def _range(seconds: np.ndarray) -> str:
    return f"{seconds.min() * 1e3:.3g} to {seconds.max() * 1e3:.3g}"
