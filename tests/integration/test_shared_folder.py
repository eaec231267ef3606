"""Several jobs on one folder of runs: they share the work, and take over what a dead one left."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT, TinyExperiment, environment

pytestmark = pytest.mark.slow


def start(tiny: TinyExperiment, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tiny.command("probe", *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(), cwd=ROOT, start_new_session=True,
    )  # fmt: skip


def claims(tiny: TinyExperiment) -> dict[str, dict]:
    """The newest claim of every run folder."""
    folders = sorted((tiny.output / "runs").glob("*"))
    return {
        folder.name: json.loads(max(folder.glob("claim-*.json")).read_text()) for folder in folders
    }


def test_jobs_side_by_side_train_each_run_once(tiny: TinyExperiment) -> None:
    jobs = [start(tiny), start(tiny)]
    outputs = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    tiny.autoscale("probe")  # waits for nobody, finds nothing to do
    held = claims(tiny)
    assert set(held) == set(tiny.results())
    assert {claim["generation"] for claim in held.values()} == {1}
    assert all(claim["released"] for claim in held.values())
    assert {claim["owner"]["pid"] for claim in held.values()} == {job.pid for job in jobs}


def test_a_killed_jobs_run_is_taken_over(tiny: TinyExperiment) -> None:
    killed = start(tiny)
    end = time.monotonic() + 120
    while not list((tiny.output / "runs").glob("*/metrics.jsonl")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    held = {name for name, claim in claims(tiny).items() if not claim["released"]}
    tiny.autoscale("probe")
    after = claims(tiny)
    assert set(after) == set(tiny.results())
    assert {name for name, claim in after.items() if claim["generation"] == 2} == held


def test_what_another_job_trains_is_not_deleted(tiny: TinyExperiment) -> None:
    job = start(tiny)
    end = time.monotonic() + 120
    while not list((tiny.output / "runs").glob("*/claim-*.json")):
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGSTOP)  # it holds its run, and lives
    try:
        refused = tiny.try_autoscale("probe", "--no-resume")
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
    assert refused.returncode == 2
    assert f"process {job.pid} on " in refused.stderr and "is training" in refused.stderr
    assert list((tiny.output / "runs").glob("*/claim-*.json"))
