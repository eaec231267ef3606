"""Jobs that are killed: nothing finished is lost or repeated, and the losses are those of a job
that was never interrupted."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from tests.conftest import ROOT, environment, write_tiny

pytestmark = pytest.mark.slow

OVERRIDES = [
    "--set", "probe.budgets=['16K', '32K']",
    "--set", "train.budget='96K'",
    "--set", "train.baselines=['uniform']",
    "--set", "train.seeds=[0]",
    "--set", "checkpoint.save_every=53",
]  # fmt: skip
DEADLINE = 300


class Launched:
    """`launch/local.sh` on two ranks, in a session of its own."""

    def __init__(self, experiment):
        self.experiment = experiment
        self.process = subprocess.Popen(
            ["launch/local.sh", str(experiment.path), "2", *OVERRIDES],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip

    def until(self, condition):
        """Wait until the run folders are as wanted; fails when the job ends before."""
        end = time.monotonic() + DEADLINE
        while not condition(self.experiment.output / "runs"):
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end, "the job did not get there in time"
            time.sleep(0.05)

    def descendants(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def ranks(self):
        """The job ranks, by rank."""
        found = {}
        for process in self.descendants():
            with suppress(psutil.Error):  # it may end while it is looked at
                command = process.cmdline()
                rank = process.environ().get("RANK")
                if rank is not None and "autoscale" in command and "run" in command:
                    found[int(rank)] = process
        return found

    def training_child(self, rank):
        """The process that trains for a rank: forked from that rank's server."""
        for server in self.ranks()[rank].children():
            for child in server.children():
                return child
        return None

    def finish(self):
        """Output and exit status; nothing that it started may be left."""
        started = self.descendants()
        output, _ = self.process.communicate(timeout=DEADLINE)
        _, alive = psutil.wait_procs(started, timeout=20)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        return output, self.process.returncode


def snapshot(experiment):
    """Finished runs with the time at which each was written."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in experiment.output.glob("runs/*/result.json")
    }


@pytest.fixture(scope="module")
def uninterrupted(tiny_text, tiny_shards, tmp_path_factory):
    experiment = write_tiny(tmp_path_factory.mktemp("uninterrupted"), tiny_text, tiny_shards)
    output, status = Launched(experiment).finish()
    assert status == 0, output
    return experiment


def count(runs, pattern):
    return len(list(runs.glob(pattern)))


def saved_step(folder):
    return json.loads((folder / "checkpoints" / "latest.json").read_text())["step"]


def test_killed_in_probes_and_in_training_then_resumed(uninterrupted, tiny):
    job = Launched(tiny)
    job.until(lambda runs: count(runs, "probe-*/result.json") >= 3)
    os.kill(job.ranks()[1].pid, signal.SIGKILL)
    output, status = job.finish()
    assert status != 0, output
    finished = snapshot(tiny)
    assert 3 <= len(finished) < 16

    job = Launched(tiny)
    job.until(lambda runs: count(runs, "train-*/checkpoints/latest.json") >= 1)
    assert finished.items() <= snapshot(tiny).items()
    finished = snapshot(tiny)
    os.kill(job.training_child(1).pid, signal.SIGKILL)
    output, status = job.finish()
    assert status != 0, output
    assert count(tiny.output / "runs", "train-*/failed.json") == 1

    # The other target run was not taken along; this one goes on from its checkpoint.
    crashed = next(tiny.output.glob("runs/train-*/failed.json")).parent
    before = saved_step(crashed)
    job = Launched(tiny)
    job.until(lambda runs: saved_step(crashed) > before)
    os.kill(job.ranks()[0].pid, signal.SIGKILL)
    output, status = job.finish()
    assert status != 0, output

    done = tiny.try_autoscale("train", *OVERRIDES)
    assert done.returncode == 2
    assert "was written by 2 ranks but this run has 1; resume with as many" in done.stderr

    output, status = Launched(tiny).finish()
    assert status == 0, output
    assert finished.items() <= snapshot(tiny).items()
    resumed = [
        path.parent.name
        for path in tiny.output.glob("runs/train-*/log-rank0.txt")
        if "resumed from" in path.read_text()
    ]
    assert resumed
    expected, found = uninterrupted.results(), tiny.results()
    assert set(found) == set(expected)
    for run, result in found.items():
        assert result["evaluations"] == expected[run]["evaluations"], run
        assert result["tokens"] == expected[run]["tokens"]
    assert not list(tiny.output.glob("runs/*/failed.json"))
    weights = (tiny.output / "mixture-96K.json").read_text()
    assert weights == (uninterrupted.output / "mixture-96K.json").read_text()


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
    assert done.stderr.count(message) == 2
    assert "rank 1: error:" in done.stderr
    assert "Traceback" not in done.stderr
