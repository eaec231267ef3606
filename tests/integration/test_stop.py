"""Jobs that are told to stop: what is in progress saves after its next step, the job ends with
status 75, and a job started again gives what one gives that was never stopped."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from autoscale.claims import Claims
from tests.conftest import ROOT, TinyExperiment, environment
from tests.integration.jobs import DEADLINE, Launched, campaign

pytestmark = pytest.mark.slow

SETTINGS = [*campaign(), "--set", "checkpoint.save_every=1_000"]
STOPPED = 75


def launcher(job: Launched) -> list[psutil.Process]:
    """The launcher of a job, as soon as it was started."""
    children = psutil.Process(job.process.pid).children()
    with suppress(psutil.Error):  # it may end while it is looked at
        return [child for child in children if "--no_local_rank" in child.cmdline()]
    return []


def in_progress(runs: Path, stage: str) -> set[str]:
    """Runs that have begun to train and have no result."""
    return {
        path.parent.name
        for path in runs.glob(f"{stage}-*/metrics.jsonl")
        if path.stat().st_size and not (path.parent / "result.json").exists()
    }


def saved_step(experiment: TinyExperiment, run: str) -> int:
    folder = experiment.output / "runs" / run / "checkpoints"
    return max(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json"))


def check_stopped(experiment: TinyExperiment, stopped: set[str], output: str) -> None:
    """Each was saved where it stood, as the job says, and none counts as failed."""
    runs = experiment.output / "runs"
    assert not list(runs.glob("*/failed.json")), output
    assert output.count("start the same command again to go on") == 1
    for run in stopped:
        step = saved_step(experiment, run)
        label = json.loads((runs / run / "spec.json").read_text())["spec"]["label"]
        assert f"{label} stopped after step {step} of " in output
        logged = (runs / run / "metrics.jsonl").read_text().splitlines()
        assert step >= max(json.loads(line)["step"] for line in logged)
        claim = json.loads(max((runs / run).glob("claim-*.json")).read_text())
        assert claim["released"]


def resumed(experiment: TinyExperiment) -> set[str]:
    logs = (experiment.output / "runs").glob("*/log-rank0.txt")
    return {path.parent.name for path in logs if "resumed from" in path.read_text()}


def test_stopped_in_probes_and_in_training_then_resumed(
    undisturbed: Callable[..., TinyExperiment], tiny: TinyExperiment
) -> None:
    whole = undisturbed(*campaign())
    # Two probe runs side by side; the signal is for the script, as a scheduler's is.
    job = Launched(tiny, *SETTINGS)
    job.until(lambda runs: len(in_progress(runs, "probe")) == 2)
    job.process.send_signal(signal.SIGTERM)
    output, status = job.finish()
    assert status == STOPPED, output
    probes = in_progress(tiny.output / "runs", "probe")
    assert "stopped (SIGUSR1)" in output  # the script hands every signal on as this one
    check_stopped(tiny, probes, output)
    finished = set(tiny.results())

    # The target over both ranks; only the second rank is told.
    job = Launched(tiny, *SETTINGS)
    job.until(lambda runs: len(in_progress(runs, "train")) == 1)
    job.ranks()[1].send_signal(signal.SIGTERM)
    output, status = job.finish()
    assert status == STOPPED, output
    targets = in_progress(tiny.output / "runs", "train")
    assert "stopped (SIGTERM)" in output
    check_stopped(tiny, targets, output)
    assert finished < set(tiny.results())

    output, status = Launched(tiny, *SETTINGS).finish()
    assert status == 0, output
    assert resumed(tiny) == probes | targets
    expected, found = whole.results(), tiny.results()
    assert set(found) == set(expected)
    for run, result in found.items():
        assert result["evaluations"] == expected[run]["evaluations"], run
        assert result["tokens"] == expected[run]["tokens"]


def test_stopped_while_it_starts(tiny: TinyExperiment) -> None:
    job = Launched(tiny, *SETTINGS)
    job.until(lambda _: bool(launcher(job)))
    job.process.send_signal(signal.SIGUSR1)
    output, status = job.finish()
    assert status == STOPPED, output
    assert not (tiny.output / "runs").exists()


@pytest.fixture
def claimed(tiny: TinyExperiment) -> Iterator[TinyExperiment]:
    """An experiment whose probe runs are all held by this process."""
    tiny.autoscale("plan")
    plan = json.loads((tiny.output / "plan.json").read_text())
    runs = [row["run_id"] for row in plan["runs"] if row["stage"] == "probe"]
    held = [Claims().take(tiny.output / "runs" / run) for run in runs]
    assert all(held)
    yield tiny
    for claim in held:
        assert claim is not None
        claim.release()


def test_a_job_that_waits_for_others_stops_at_once(claimed: TinyExperiment) -> None:
    job = subprocess.Popen(
        claimed.command("run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=environment(), cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert job.stdout is not None
    for line in job.stdout:
        if "runs" in line:  # the campaign shows its progress
            break
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=DEADLINE)
    assert job.returncode == STOPPED, output
    assert not list(claimed.output.glob("runs/*/spec.json"))
