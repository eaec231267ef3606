"""A host that drops off the network in the middle of a run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from autoscale.job_watch import CUT_OFF_AFTER
from tests.cluster.conftest import SHORT
from tests.cluster.hosts import Host, Hosts
from tests.conftest import ROOT, TinyExperiment, environment

pytestmark = pytest.mark.cluster
LIMIT = 400
LONG = ["--set", "train.budget='192K'", "--set", "checkpoint.save_every=20"]


class Ranks:
    """One rank on each host, started as srun would: by no launcher that has its own say."""

    def __init__(self, hosts: Hosts, experiment: TinyExperiment, port: int) -> None:
        variables = {
            **environment(), **hosts.environment(), "WORLD_SIZE": "2", "LOCAL_RANK": "0",
            "MASTER_ADDR": hosts.hosts[0].address, "MASTER_PORT": str(port),
        }  # fmt: skip
        self._processes = [
            subprocess.Popen(
                host.command(*experiment.command("run", *SHORT, *LONG)),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                env={**variables, "RANK": str(rank)}, start_new_session=True,
            )
            for rank, host in enumerate(hosts.hosts[:2])
        ]  # fmt: skip

    def end(self, seconds: float) -> tuple[list[int], list[str]]:
        """Exit statuses and outputs; fails unless all end within so many seconds."""
        end = time.monotonic() + seconds
        try:
            said = [
                process.communicate(timeout=max(0, end - time.monotonic()))[0]
                for process in self._processes
            ]
        finally:
            for process in self._processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return [process.returncode for process in self._processes], said

    @property
    def alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)


def children_on(host: Host) -> list[str]:
    """The processes of a host that run Python."""
    found = subprocess.run(
        ["ip", "netns", "pids", host.name], capture_output=True, text=True, check=True
    ).stdout.split()
    name = os.path.basename(sys.executable)[:6]
    return [pid for pid in found if name in _command(pid)]


def _command(pid: str) -> str:
    try:
        return open(f"/proc/{pid}/comm").read()
    except OSError:
        return ""


def test_both_sides_of_a_lost_link_end_and_go_on_later(
    hosts: Hosts, nearly: TinyExperiment
) -> None:
    here, lost, _ = hosts.hosts
    ranks = Ranks(hosts, nearly, 29500)
    end = time.monotonic() + LIMIT
    while not list(nearly.output.glob("runs/train-*/checkpoints/step-*.json")):
        assert ranks.alive and time.monotonic() < end, ranks.end(10)
        time.sleep(0.1)
    finished = set(nearly.results())
    lost.unplug()
    try:
        statuses, said = ranks.end(CUT_OFF_AFTER + 30)
    finally:
        lost.plug()
    assert statuses == [1, 1], said
    assert "error: rank 1 (process " in said[0]
    assert f" on {lost.name}) cannot be reached any more" in said[0]
    assert "rank 1: error: rank 0 (process " in said[1]
    assert f" on {here.name}) cannot be reached any more" in said[1]
    for output in said:
        assert output.count("error: ") == 1 and "Traceback" not in output, output
    for host in (here, lost):
        assert not children_on(host)

    statuses, said = Ranks(hosts, nearly, 29501).end(LIMIT)
    assert statuses == [0, 0], said
    assert finished < set(nearly.results())
    (log,) = nearly.output.glob("runs/train-*/log-rank0.txt")
    assert "resumed from" in log.read_text()
