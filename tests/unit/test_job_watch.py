"""The watch of a job, over real processes: whichever is lost, all end, and one says why."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.conftest import ROOT

PROGRAM = """
import json, sys, time
from dataclasses import asdict
from autoscale.job_watch import JobWatch, Meeting, Welcome, join

rank, world_size, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if rank == 0:
    welcome = Welcome("127.0.0.1")
    print(json.dumps(asdict(welcome.meeting)), flush=True)
    peers = welcome.receive(world_size)
else:
    peers = join(Meeting(**json.loads(sys.argv[4])), rank)
watch = JobWatch(rank, peers, hung_after=4, grace=0.5)
print("watching", flush=True)
if what == "fail":
    watch.fail("OSError: disk full")
    sys.exit(3)
if what == "leave":
    watch.leave()
    sys.exit(0)
if what == "heed":
    print(watch.cause(60), watch.root_is_lost, flush=True)
    time.sleep(1)  # longer than its grace: it ends in good order
    watch.leave()
    sys.exit(5)
time.sleep(600)
"""


class Ranks:
    """Processes that watch one another; each does what its word says: fail, leave, heed, wait."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.meeting = ""

    def start(self, *what: str) -> None:
        for rank in range(len(what)):
            self.add(rank, len(what), what[rank])
            if rank == 0:
                self.meeting = self.line(0)
        for rank in range(len(what)):
            assert self.line(rank) == "watching\n"

    def add(self, rank: int, world_size: int, what: str) -> None:
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(rank), str(world_size), what, self.meeting],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            )
        )  # fmt: skip

    def line(self, rank: int) -> str:
        stream = self.processes[rank].stdout
        assert stream is not None
        return stream.readline()

    def send(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def end(self) -> tuple[list[int], list[str]]:
        """Exit statuses and what was said on stderr, by rank."""
        said = [process.communicate(timeout=60)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said

    def name(self, rank: int) -> str:
        return f"rank {rank} (process {self.processes[rank].pid} on {socket.gethostname()})"


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_a_killed_rank_ends_all_and_rank_0_says_it(ranks: Ranks) -> None:
    ranks.start("wait", "wait", "wait")
    ranks.send(2, signal.SIGKILL)
    statuses, said = ranks.end()
    assert statuses == [1, 1, -signal.SIGKILL]
    assert f"error: {ranks.name(2)} is gone: it was killed, or crashed; the job ends" in said[0]
    assert said[1:] == ["", ""]


def test_without_rank_0_every_rank_says_it(ranks: Ranks) -> None:
    ranks.start("wait", "wait", "wait")
    ranks.send(0, signal.SIGKILL)
    statuses, said = ranks.end()
    assert statuses == [-signal.SIGKILL, 1, 1]
    for rank in (1, 2):
        assert f"rank {rank}: error: {ranks.name(0)} is gone" in said[rank]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_ended_for_good(ranks: Ranks, stopped: int) -> None:
    ranks.start("wait", "wait")
    ranks.send(stopped, signal.SIGSTOP)
    statuses, said = ranks.end()  # nobody continues it
    assert statuses[stopped] == -signal.SIGKILL
    assert statuses[1 - stopped] == 1
    found = f"{ranks.name(stopped)} gave no sign of life for 4 s: it hangs"
    assert found in said[1 - stopped]


def test_a_rank_that_fails_says_why_to_all(ranks: Ranks) -> None:
    ranks.start("heed", "fail", "heed")
    cause = f"{ranks.name(1)} failed: OSError: disk full"
    assert ranks.line(0) == f"{cause} False\n"
    assert ranks.line(2) == f"{cause} False\n"
    statuses, said = ranks.end()
    assert statuses == [5, 3, 5]  # who heeds the cause ends by itself
    assert said == ["", "", ""]


def test_the_loss_of_rank_0_is_known_as_such(ranks: Ranks) -> None:
    ranks.start("wait", "heed")
    ranks.send(0, signal.SIGKILL)
    assert ranks.line(1).endswith("is gone: it was killed, or crashed True\n")


def test_a_farewell_ends_nothing(ranks: Ranks) -> None:
    ranks.start("wait", "leave", "wait")
    assert ranks.processes[1].wait(30) == 0
    with pytest.raises(subprocess.TimeoutExpired):
        ranks.processes[0].wait(6)  # silent for longer than what counts as hung
    assert ranks.processes[2].poll() is None


def test_strangers_are_not_admitted(ranks: Ranks) -> None:
    ranks.add(0, 2, "leave")
    ranks.meeting = ranks.line(0)
    where = json.loads(ranks.meeting)
    for hello in (b"GET / HTTP/1.0\r\n\r\n", b'{"word": "guess", "rank": 1, "owner": {}}\n'):
        with socket.create_connection((where["host"], where["port"]), timeout=30) as stranger:
            stranger.sendall(hello)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    ranks.add(1, 2, "leave")
    assert ranks.end()[0] == [0, 0]
