"""A request to stop: the first one of all ranks counts, whoever made it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from autoscale.stop_request import STOPPED, Stop, StopRequest, StopRequested
from tests.conftest import ROOT


class Board:
    """What the ranks of a job share."""

    def __init__(self) -> None:
        self.text: str | None = None

    def post(self, text: str) -> None:
        self.text = self.text or text

    def read(self) -> str | None:
        return self.text


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_request_reaches_the_other_ranks() -> None:
    board, ranks = Board(), [StopRequest(), StopRequest()]
    for rank in ranks:
        rank.connect(board)
    ranks[1].request(Stop(reason="SIGTERM"))
    until(lambda: ranks[0].stop is not None)
    assert ranks[0].stop == Stop(reason="SIGTERM", status=STOPPED)
    for rank in ranks:
        rank.close()


def test_the_first_request_of_the_job_counts() -> None:
    board, ranks = Board(), [StopRequest(), StopRequest()]
    for rank, reason in zip(ranks, ["SIGTERM", "the budget is spent"], strict=True):
        rank.connect(board)
        rank.request(Stop(reason=reason, status=STOPPED if reason == "SIGTERM" else 2))
    assert [rank.agreed() for rank in ranks] == [Stop(reason="SIGTERM")] * 2
    for rank in ranks:
        rank.close()


def test_waiting_ends_with_a_request() -> None:
    request = StopRequest()
    request.request(Stop(reason="SIGTERM"))
    request.wait(1e6)


def test_a_stage_does_not_start_after_a_request() -> None:
    request = StopRequest()
    request.request(Stop(reason="SIGTERM"))
    with pytest.raises(StopRequested, match="SIGTERM"), request.interrupting():
        raise AssertionError("it began")


def test_the_job_stops_before_its_end_which_may_be_moved() -> None:
    start = time.time()
    answers, asked = [start + 0.5, start + 1.0, start + 1.0], []

    def ask() -> float:
        asked.append(time.time())
        return answers[min(len(asked), len(answers)) - 1]

    request = StopRequest()
    request.connect(Board())
    request.stop_before(ask, 0.3)
    until(lambda: request.stop is not None)
    assert request.stop is not None and "the Slurm job ends at " in request.stop.reason
    assert len(asked) == 3 and asked[-1] >= start + 0.7
    request.close()


def test_a_job_without_an_end_goes_on() -> None:
    request = StopRequest()
    request.stop_before(lambda: None, 180)
    assert request.stop is None


def test_a_job_that_is_shorter_than_the_warning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends in 2\.\d minutes.*limits.stop_before_end_minutes"):
        StopRequest().stop_before(lambda: time.time() + 150, 180)


PROGRAM = """
import sys, time
from autoscale.stop_request import StopRequested, listen

class Board:
    text = None
    def post(self, text): self.text = self.text or text
    def read(self): return self.text

request = listen()
if "connected" in sys.argv:
    request.connect(Board())
print("ready", flush=True)
try:
    with request.interrupting():
        time.sleep(1000)
except StopRequested as error:
    print("interrupted by", error.stop.reason, flush=True)
    if "on" in sys.argv:
        print("ready", flush=True)
        time.sleep(1000)
"""


def program(*arguments: str) -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "RANK": "1"},
    )  # fmt: skip
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_interrupts_a_stage(name: str) -> None:
    started = program("connected")
    started.send_signal(signal.Signals[name])
    said, _ = started.communicate(timeout=60)
    assert (said, started.returncode) == (f"interrupted by {name}\n", 0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_the_job_starts_ends_it_in_good_order(name: str) -> None:
    started = program()
    started.send_signal(signal.Signals[name])
    _, said = started.communicate(timeout=60)
    assert started.returncode == STOPPED
    assert said == (
        f"rank 1: stopped by {name} while the job started; start the same command again\n"
    )


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    started = program("connected", "on")
    started.send_signal(signal.SIGINT)
    assert started.stdout is not None and "interrupted" in started.stdout.readline()
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=60)
    assert started.returncode == 130
