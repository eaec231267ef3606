"""Jobs that are killed: nothing finished is lost or repeated, and the losses are those of a job
that was never interrupted."""

import os
import signal
import subprocess
import time

import pytest

from autoscale.checkpoint_files import newest_step
from tests.conftest import ROOT, environment
from tests.integration.jobs import DEADLINE, Launched, campaign, finished_at

pytestmark = pytest.mark.slow

OVERRIDES = [*campaign(), "--set", "checkpoint.save_every=53"]


def count(runs, pattern):
    return len(list(runs.glob(pattern)))


def saved_step(folder):
    return newest_step(folder / "checkpoints") or 0


def test_killed_in_probes_and_in_training_then_resumed(undisturbed, tiny):
    whole = undisturbed(*campaign())
    job = Launched(tiny, *OVERRIDES)
    job.until(lambda runs: count(runs, "probe-*/result.json") >= 3)
    os.kill(job.ranks()[1].pid, signal.SIGKILL)
    output, status = job.finish()
    assert status != 0, output
    finished = finished_at(tiny)
    assert 3 <= len(finished) < 12

    job = Launched(tiny, *OVERRIDES)
    job.until(lambda runs: count(runs, "train-*/checkpoints/step-*.json") >= 1)
    assert finished.items() <= finished_at(tiny).items()
    finished = finished_at(tiny)
    os.kill(job.training_child(1).pid, signal.SIGKILL)
    output, status = job.finish()
    assert status != 0, output
    assert count(tiny.output / "runs", "train-*/failed.json") == 1

    # The other target run was not taken along; this one goes on from its checkpoint.
    crashed = next(tiny.output.glob("runs/train-*/failed.json")).parent
    before = saved_step(crashed)
    job = Launched(tiny, *OVERRIDES)
    job.until(lambda runs: saved_step(crashed) > before)
    os.kill(job.ranks()[0].pid, signal.SIGKILL)
    output, status = job.finish()
    assert status != 0, output

    # On one rank in place of two.
    tiny.autoscale("train", *OVERRIDES)
    said = (crashed / "log-rank0.txt").read_text()
    assert "written by 2 ranks under ZeRO 1; now 1 rank under ZeRO 1, through a universal" in said
    output, status = Launched(tiny, *OVERRIDES).finish()
    assert status == 0, output
    assert finished.items() <= finished_at(tiny).items()
    resumed = [
        path.parent.name
        for path in tiny.output.glob("runs/train-*/log-rank0.txt")
        if "resumed from" in path.read_text()
    ]
    assert resumed
    expected, found = whole.results(), tiny.results()
    assert set(found) == set(expected)
    for run, result in found.items():
        if run in finished:
            assert result["evaluations"] == expected[run]["evaluations"], run
        pairs = zip(result["evaluations"], expected[run]["evaluations"], strict=True)
        for evaluation, other in pairs:
            assert evaluation["losses"] == pytest.approx(other["losses"], abs=1e-5), run
        assert result["tokens"] == expected[run]["tokens"]
    assert not list(tiny.output.glob("runs/*/failed.json"))
    weights = (tiny.output / "mixture-96K.json").read_text()
    assert weights == (whole.output / "mixture-96K.json").read_text()


def test_a_run_that_diverges_is_recorded_and_stops_the_fit_by_name(tiny):
    tiny.autoscale("probe", "--only", "probe-4K-reference")
    overrides = ["--set", "trainer.lr=1e30", "--set", "trainer.grad_clip=1e30"]
    done = tiny.autoscale("probe", *overrides, "--set", "trainer.warmup_fraction=0")
    assert "failed" in done.stdout
    done = tiny.try_autoscale("fit", *overrides, "--set", "trainer.warmup_fraction=0")
    assert done.returncode == 2
    assert "probe runs at 4K failed" in done.stderr
    assert "lower trainer.lr" in done.stderr
    # What had been finished before is still there.
    assert any(run.startswith("probe-4K-reference-") for run in tiny.results())


def test_an_error_on_rank_0_between_stages_stops_every_rank_with_its_message(tiny):
    tiny.autoscale("probe")
    path = next(tiny.output.glob("runs/probe-8K-reference-*/result.json"))
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    started = time.monotonic()
    done = subprocess.run(
        ["launch/local.sh", str(tiny.path), "2"],
        capture_output=True, text=True, timeout=DEADLINE, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert time.monotonic() - started < DEADLINE
    assert done.returncode != 0
    message = "has schema version 7; this version of autoscale reads 1"
    assert f"error: {path}" in done.stderr
    assert done.stderr.count(message) == 1  # one rank speaks for all
    assert "Traceback" not in done.stderr
