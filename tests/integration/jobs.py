"""Jobs of `launch/local.sh`, seen from outside: what they started, and what they left."""

import os
import subprocess
import time
from contextlib import suppress

import psutil

from tests.conftest import ROOT, environment

DEADLINE = 300


def campaign(*, reference_seeds=2):
    """Settings of a campaign of few runs, each long enough to be stopped or killed in.

    Twelve probe runs and two target runs, with more seeds of the reference run some more.
    """
    return [
        "--set", "data.domains=['python_code', 'english_docs']",
        "--set", "probe.budgets=['16K', '32K']",
        "--set", f"probe.reference_seeds={reference_seeds}",
        "--set", "train.budget='96K'",
        "--set", "train.baselines=['uniform']",
        "--set", "train.seeds=[0]",
    ]  # fmt: skip


class Launched:
    """`launch/local.sh` on two ranks, in a session of its own."""

    def __init__(self, experiment, *overrides, **variables):
        self.experiment = experiment
        self.process = subprocess.Popen(
            ["launch/local.sh", str(experiment.path), "2", *overrides],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment() | variables, cwd=ROOT, start_new_session=True,
        )  # fmt: skip

    @property
    def has_ended(self):
        return self.process.poll() is not None

    def until(self, condition):
        """Wait until the run folders are as wanted; fails when the job ends before."""
        end = time.monotonic() + DEADLINE
        while not condition(self.experiment.output / "runs"):
            assert not self.has_ended, self.process.stdout.read()
            assert time.monotonic() < end, "the job did not get there in time"
            time.sleep(0.05)

    def ranks(self):
        """The job ranks, by rank."""
        found = {}
        for process in living(self.process.pid):
            with suppress(psutil.Error):  # it may end while it is looked at
                command = process.cmdline()
                rank = process.environ().get("RANK")
                if rank is not None and "autoscale" in command and "run" in command:
                    found[int(rank)] = process
        return found

    def training_child(self, rank):
        """The process that trains for a rank: forked from that rank's server."""
        with suppress(psutil.Error, KeyError):
            for server in self.ranks()[rank].children():
                for child in server.children():
                    return child
        return None

    def finish(self):
        """Output and exit status; nothing that it started may be left."""
        output, _ = self.process.communicate(timeout=DEADLINE)
        end = time.monotonic() + 30
        while left := living(self.process.pid):
            assert time.monotonic() < end, [process.cmdline() for process in left]
            time.sleep(0.1)
        return output, self.process.returncode


def living(leader):
    """The living processes of a session, also those whose parents have ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def finished_at(experiment):
    """Finished runs with the time at which each was written."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in experiment.output.glob("runs/*/result.json")
    }
