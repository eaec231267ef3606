"""A real campaign that is watched while it runs, stopped by its limit, and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from autoscale.config import load_config
from autoscale.status import status
from tests.conftest import ROOT, TinyExperiment, environment

pytestmark = pytest.mark.slow

DEADLINE = 600
LONG = "probe-384K-reference"
SETTINGS = ["--set", "probe.budgets=['4K', '384K']", "--set", "data.max_epochs=50"]
SPENT_SOON = ["--set", "limits.max_gpu_hours=0.0005"]  # 1.8 device seconds
ENOUGH = ["--set", "limits.max_gpu_hours=5", "--set", "checkpoint.keep_probe_checkpoints=true"]


def two_ranks(tiny: TinyExperiment, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "autoscale", "probe", str(tiny.path), *SETTINGS, *arguments,
    ]  # fmt: skip


def look(tiny: TinyExperiment, *arguments: str) -> dict:
    """The document that `status --json` prints."""
    done = tiny.autoscale("status", "--json", *SETTINGS, *arguments, timeout=DEADLINE)
    return json.loads(done.stdout)


def states(found: dict) -> dict[str, str]:
    return {row["label"]: row["state"] for row in found["runs"]}


def looks_while_it_runs(
    tiny: TinyExperiment, command: list[str], *arguments: str
) -> tuple[list[dict], str, int]:
    """Look all the time that a job runs; the looks, its output and its exit status."""
    config = load_config(tiny.path, [*SETTINGS[1::2], *arguments[1::2]])
    output, looks = tiny.path.with_name("output.txt"), []
    with output.open("w") as file:
        job = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT,
            env=environment(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    try:
        while job.poll() is None:
            looks.append(status(config))
            time.sleep(0.05)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    return looks, output.read_text(), job.returncode


def check_looks(looks: list[dict]) -> None:
    """What was seen during one job only ever grows, and is what a job can do."""
    for before, after in pairwise(looks):
        for key in ("tokens", "device_hours"):
            assert after["campaign"][key] >= before["campaign"][key]
        assert after["stages"][0]["finished"] >= before["stages"][0]["finished"]
    busy = [found for found in looks if found["campaign"]["running"]]
    assert busy, "no look saw a run in progress"
    assert busy[-1]["disk"]["bytes"] > 0
    for found in busy:
        assert found["campaign"]["running"] <= 2
        for row in found["runs"]:
            if row["state"] == "running":
                assert row["owner"]["is_here"] and row["owner"]["pid"] > 1
                assert 0 <= row["step"] <= row["num_steps"]
                assert row["tokens"] <= row["total_tokens"]
    known = [found for found in busy if found["campaign"]["seconds_left"] is not None]
    assert known, "no look could tell the end"
    assert all(found["campaign"]["tokens_per_second"] > 0 for found in known)


def test_a_limit_that_is_spent_stops_a_campaign_and_a_higher_one_continues_it(
    tiny: TinyExperiment,
) -> None:
    """One rank trains a long run; the other trains short ones, and finds the hours spent."""
    planned = list(states(look(tiny)))
    short = [label for label in planned if label.startswith("probe-4K-")]
    only = [part for label in (LONG, *short) for part in ("--only", label)]

    looks, output, code = looks_while_it_runs(tiny, two_ranks(tiny, *SPENT_SOON, *only))
    assert code != 0, output  # the launcher's own; that of its ranks is below
    assert "limits.max_gpu_hours is 0.0005 and the runs have spent" in output
    check_looks(looks)
    stopped = look(tiny)
    found = states(stopped)
    assert found[LONG] == "interrupted"
    assert "running" not in found.values() and "failed" not in found.values()
    row = next(row for row in stopped["runs"] if row["label"] == LONG)
    assert 0 < row["saved_step"] < row["num_steps"]
    assert stopped["campaign"]["device_hours"] >= 0.0005
    finished = tiny.results()
    assert len(finished) < len(short)
    assert not list(tiny.output.glob("runs/probe-4K-*/checkpoints"))

    refused = tiny.try_autoscale("probe", *SETTINGS, *SPENT_SOON, *only, timeout=DEADLINE)
    assert refused.returncode == 2
    assert "raise limits.max_gpu_hours and start again to go on" in refused.stderr
    assert tiny.results() == finished

    looks, output, code = looks_while_it_runs(tiny, two_ranks(tiny, *ENOUGH, *only), *ENOUGH)
    assert code == 0, output
    assert "finished" in output  # the table at the end
    assert finished.items() <= tiny.results().items()
    done = states(look(tiny))
    assert [label for label, state in done.items() if state == "finished"] == [*short, LONG]
    folder = next((tiny.output / "runs").glob(f"{LONG}-*"))
    assert (
        f"checkpoints/step-{row['saved_step']}, written" in (folder / "log-rank0.txt").read_text()
    )
    assert list(folder.glob("checkpoints/step-*.json"))  # kept, as asked
    assert (
        json.loads((folder / "result.json").read_text())["evaluations"][-1]["tokens"]
        == (row["total_tokens"])
    )

    shown = tiny.autoscale("status", *SETTINGS, *ENOUGH, timeout=DEADLINE)
    assert "of 5 device hours" in " ".join(shown.stdout.split())
