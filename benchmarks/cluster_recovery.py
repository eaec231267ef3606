"""What saving costs, how long a restart takes, and how many kills lose nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from cluster_jobs import (
    LIMIT,
    ROOT,
    Bench,
    Setting,
    environment,
    make_bench,
    make_tokens,
    run_probes,
    run_together,
)
from data_path_measure import median_interval, verdict

sys.path.insert(0, str(ROOT))
from tests.integration.jobs import living

_SHAPE: Final = {"layers": 6, "width": 512}
_STEPS: Final = 40
_SAVE_EVERY: Final = 10
_GOAL: Final = 0.05
_DEFAULT_SECONDS: Final = 15 * 60
_LOGGED_STEPS: Final = 199  # of a longer run not every step is logged
_ARMS: Final = {
    "none": "none",
    "direct": "to the run's folder",
    "staging": "to `checkpoint.staging`, then the run's folder",
}
_SURVIVED: Final = re.compile(r"survived (\d+) kills \(seed (\d+)\): (.*)")


def measure_checkpoints(setting: Setting) -> dict[str, Any]:
    """Seconds of runs on two ranks without checkpoints, and with them written in both ways."""
    manifest = make_tokens(setting.folder / "tokens")
    rounds = []
    for number in range(setting.rounds):
        names = list(_ARMS)
        for name in names[number % 3 :] + names[: number % 3]:
            folder = setting.folder / "saving"
            shutil.rmtree(folder, ignore_errors=True)
            bench = make_bench(folder, manifest, steps=_STEPS, **_SHAPE)
            overrides = ["--set", "probe.ranks_per_run=2"]
            if name != "none":
                overrides += ["--set", f"checkpoint.save_every={_SAVE_EVERY}"]
            if name == "staging":
                overrides += ["--set", f"checkpoint.staging='{folder / 'staging'}'"]
            run_probes(bench, 2, overrides, runs=1)
            (saves,) = bench.records("checkpoint")
            (result,) = bench.results()
            rounds.append({"arm": name, "seconds": result["seconds"], "saves": saves})
            print(f"{name}: {result['seconds']:.1f} s, {len(saves)} checkpoints", flush=True)
    return {"rounds": rounds}


def checkpoint_lines(data: dict[str, Any]) -> Iterator[str]:
    rounds = data["rounds"]
    plain = [each["seconds"] for each in rounds if each["arm"] == "none"]
    size = max(save["bytes"] for each in rounds for save in each["saves"])
    yield (
        f"{_SHAPE['layers']} layers of width {_SHAPE['width']} (19M parameters), fp32, ZeRO-1, 2 "
        f"ranks, {_STEPS} steps of 4 x 256 tokens, a checkpoint of {size / 1e6:.0f} MB every "
        f"{_SAVE_EVERY}; {len(plain)} rounds of all ways in turn. Blocked: that training stood "
        "still. Added: the run's seconds beyond those of the run without checkpoints beside it, by "
        "checkpoint: what blocked, and what writing in the background took from training. Medians "
        "and 95% bootstrap intervals."
    )
    yield ""
    yield (
        "| checkpoints | run, s | blocked by one, s | written after, s | share blocked at this "
        "interval | added by one, s | share of 15 minutes: blocked | added | goal |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    yield f"| {_ARMS['none']} | {np.median(plain):.1f} | | | | | | | |"
    for name in ("direct", "staging"):
        runs = [each for each in rounds if each["arm"] == name]
        saves = [save for each in runs for save in each["saves"]]
        blocked, low, high = median_interval(np.array([save["blocked_seconds"] for save in saves]))
        share = sum(save["blocked_seconds"] for save in saves) / sum(e["seconds"] for e in runs)
        added, added_low, added_high = median_interval(
            np.array([
                (each["seconds"] - bare) / len(each["saves"])
                for each, bare in zip(runs, plain, strict=True)
            ])
        )  # fmt: skip
        yield (
            f"| {_ARMS[name]} | {np.median([each['seconds'] for each in runs]):.1f} | "
            f"{blocked:.2f} ({low:.2f} to {high:.2f}) | "
            f"{np.median([save['write_seconds'] for save in saves]):.2f} | {share:.1%} | "
            f"{added:.2f} ({added_low:.2f} to {added_high:.2f}) | "
            f"{blocked / _DEFAULT_SECONDS:.3%} | {added / _DEFAULT_SECONDS:.3%} | "
            f"{_GOAL:.0%}: {verdict(max(blocked, added) / _DEFAULT_SECONDS < _GOAL)} |"
        )
    yield ""
    yield (
        "The shares of 15 minutes, the default interval, are the seconds of one checkpoint divided "
        "by the interval: calculated, not run. They grow with the size of a rank's part and fall "
        "with the speed of the disk."
    )


def measure_restarts(setting: Setting) -> dict[str, Any]:
    """Seconds from a kill to the first new step, of one job that is killed again and again."""
    manifest = make_tokens(setting.folder / "tokens")
    folder = setting.folder / "restarts"
    shutil.rmtree(folder, ignore_errors=True)
    bench = make_bench(folder, manifest, steps=8, layers=4, width=256)
    log = folder / "job.log"
    job = subprocess.Popen(
        [
            "launch/supervise.sh", str(2 * setting.kills), "launch/local.sh", str(bench.path), "2",
            "--set", "checkpoint.save_every=5", "--set", f"train.budget={_LOGGED_STEPS * 1024}",
        ],
        stdout=log.open("ab"), stderr=subprocess.STDOUT, cwd=ROOT, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    times = []
    try:
        for number in range(setting.kills):
            path = _wait_for_step(bench, job, log)
            times.append(_kill_and_wait(path, job, log, rank=number % 2))
            print(f"kill of rank {number % 2}: {times[-1]}", flush=True)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGTERM)  # the script; its launcher has a group of its own
        try:
            job.wait(60)
        except subprocess.TimeoutExpired:
            for process in living(job.pid):
                with suppress(psutil.Error):
                    process.kill()
    return {"times": times}


def restart_lines(data: dict[str, Any]) -> Iterator[str]:
    times = data["times"]
    yield (
        "`launch/supervise.sh N launch/local.sh EXPERIMENT 2` in target training (2 ranks, 4 "
        "layers of width 256, a checkpoint every 5 steps), a job rank killed with -9, ranks 0 and "
        f"1 in turn, {len(times)} kills. Medians and ranges."
    )
    yield ""
    yield "| from the kill to | seconds |"
    yield "| --- | --- |"
    for key, title in (
        ("restart", "the restart, all processes having ended"),
        ("step", "the first new training step"),
    ):
        values = [each[key] for each in times]
        yield f"| {title} | {np.median(values):.1f} ({min(values):.1f} to {max(values):.1f}) |"


def measure_faults(setting: Setting) -> dict[str, Any]:
    """The fault suite of the tests, with more kills; it fails when anything is lost."""
    os.environ["AUTOSCALE_KILLS"] = str(setting.faults)
    command = [
        sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
        "tests/integration/test_fault_suite.py",
    ]  # fmt: skip
    start = time.perf_counter()
    (said,) = run_together([command], setting.folder / "faults.log")
    found = _SURVIVED.search(said)
    assert found is not None, said
    return {
        "kills": int(found[1]),
        "seed": int(found[2]),
        "details": found[3],
        "seconds": time.perf_counter() - start,
    }


def fault_lines(data: dict[str, Any]) -> Iterator[str]:
    yield (
        f"`AUTOSCALE_KILLS={data['kills']} pytest tests/integration/test_fault_suite.py`, seed "
        f"{data['seed']}, {data['seconds']:.0f} s: {data['kills']} kills with -9 at random moments "
        f"({data['details']}). Nothing was lost: every run's losses, tokens and checksum are those "
        "of a campaign that nobody touched, and no finished run was run again."
    )


def _steps(path: Path) -> list[int]:
    """Steps in a run's log; the last line may be half written."""
    steps = []
    with suppress(json.JSONDecodeError, FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            steps.append(int(json.loads(line)["step"]))
    return steps


def _wait_for_step(bench: Bench, job: subprocess.Popen[bytes], log: Path) -> Path:
    """Until the target run has a checkpoint and goes on beyond it; its log."""
    end = time.monotonic() + LIMIT
    while True:
        for path in (bench.output / "runs").glob("train-*/metrics.jsonl"):
            saved = [int(each.stem[5:]) for each in path.parent.glob("checkpoints/step-*.json")]
            if saved and max(_steps(path), default=0) > max(saved):
                return path
        _require_running(job, log, end)
        time.sleep(0.05)


def _kill_and_wait(
    path: Path, job: subprocess.Popen[bytes], log: Path, *, rank: int
) -> dict[str, float]:
    """Kill a rank; seconds until the restart is announced, and until a step was made after it."""
    old, said = path.stat().st_ino, log.read_text().count("restart ")
    _rank(job.pid, rank).kill()
    start, times = time.monotonic(), {}
    resumed: int | None = None
    while "step" not in times:
        if "restart" not in times and log.read_text().count("restart ") > said:
            times["restart"] = time.monotonic() - start
        if path.stat().st_ino != old:  # the log is written anew when a run resumes
            steps = _steps(path)
            resumed = len(steps) if resumed is None else resumed
            if len(steps) > resumed:
                times["step"] = time.monotonic() - start
        _require_running(job, log, start + LIMIT)
        time.sleep(0.02)
    return times


def _rank(session: int, rank: int) -> psutil.Process:
    """The process of a job rank."""
    for process in living(session):
        with suppress(psutil.Error):
            command = process.cmdline()
            if process.environ().get("RANK") == str(rank) and command[1:3] == ["-u", "-m"]:
                return process
    raise RuntimeError(f"no process of rank {rank}")


def _require_running(job: subprocess.Popen[bytes], log: Path, end: float) -> None:
    if job.poll() is not None or time.monotonic() > end:
        raise RuntimeError(f"the job ended, or did not get there in time; see {log}")
