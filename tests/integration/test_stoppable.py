"""`launch/stoppable.sh`, with a launcher of which is known what it does."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Like deepspeed's launcher: it knows nothing of SIGUSR1, and returns the status of its rank.
LAUNCHER = """
import subprocess, sys
print("launched", flush=True)
sys.exit(subprocess.run([sys.executable, "rank.py"]).returncode)
"""
# A rank is deaf at first, while it is imported.
SAVES = """
import signal, sys, time
def save(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    print("saved", flush=True)
    sys.exit(75)
time.sleep({deaf})
signal.signal(signal.SIGUSR1, save)
print("ready", flush=True)
time.sleep(1000)
"""
STAYS = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("told", flush=True))
print("ready", flush=True)
time.sleep(1000)
"""


def launched(tmp_path: Path, rank: str) -> subprocess.Popen[str]:
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(rank)
    script = tmp_path / "script.sh"
    script.write_text(
        f"set -euo pipefail\n. {ROOT}/launch/stoppable.sh\nrun_stoppable python3 launcher.py\n"
    )
    job = subprocess.Popen(
        ["bash", str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        start_new_session=True,
    )  # fmt: skip
    expect(job, "launched")
    return job


def expect(job: subprocess.Popen[str], line: str) -> None:
    assert job.stdout is not None and job.stdout.readline() == line + "\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_the_rank_saves_and_its_status_is_that_of_the_job(tmp_path: Path, name: str) -> None:
    job = launched(tmp_path, SAVES.format(deaf=0))
    expect(job, "ready")
    job.send_signal(signal.Signals[name])
    said, _ = job.communicate(timeout=60)
    assert (said, job.returncode) == ("saved\n", 75)


def test_a_rank_that_starts_is_told_again(tmp_path: Path) -> None:
    job = launched(tmp_path, SAVES.format(deaf=2))
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=60)
    assert (said, job.returncode) == ("ready\nsaved\n", 75)


def test_a_second_interrupt_ends_all_at_once(tmp_path: Path) -> None:
    job = launched(tmp_path, STAYS)
    expect(job, "ready")
    job.send_signal(signal.SIGINT)
    expect(job, "told")
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=60)  # returns when nobody holds the pipe any more
    assert job.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("status", [0, 2, 1])
def test_a_job_that_is_left_alone_keeps_its_status(tmp_path: Path, status: int) -> None:
    job = launched(tmp_path, f"import sys; sys.exit({status})")
    job.communicate(timeout=60)
    assert job.returncode == status
