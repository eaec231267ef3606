"""`launch/supervise.sh`, with commands whose end is known."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT


def supervised(restarts: int, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["launch/supervise.sh", str(restarts), "bash", "-c", script],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip


def count(tmp_path: Path) -> str:
    """A command that writes one more line into a file."""
    return f"echo started >> {tmp_path}/starts; "


def starts(tmp_path: Path) -> int:
    path = tmp_path / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_job_is_started_again_until_it_succeeds(tmp_path: Path) -> None:
    script = count(tmp_path) + f"[[ $(wc -l < {tmp_path}/starts) == 3 ]]"
    job = supervised(5, script)
    _, said = job.communicate(timeout=60)
    assert (job.returncode, starts(tmp_path)) == (0, 3)
    assert "status 1, restart 2 of 5" in said


def test_it_gives_up_with_the_jobs_own_status(tmp_path: Path) -> None:
    job = supervised(2, count(tmp_path) + "exit 7")
    _, said = job.communicate(timeout=60)
    assert (job.returncode, starts(tmp_path)) == (7, 3)
    assert "given up after 2 restarts" in said


@pytest.mark.parametrize("status", [0, 2, 75, 130, 143])
def test_what_would_fail_again_or_was_stopped_is_not_started_again(
    tmp_path: Path, status: int
) -> None:
    job = supervised(3, count(tmp_path) + f"exit {status}")
    job.communicate(timeout=60)
    assert (job.returncode, starts(tmp_path)) == (status, 1)


def test_a_killed_job_is_started_again(tmp_path: Path) -> None:
    job = supervised(1, count(tmp_path) + "kill -KILL $$")
    job.communicate(timeout=60)
    assert (job.returncode, starts(tmp_path)) == (137, 2)


@pytest.mark.parametrize(
    ("name", "status"), [("INT", 130), ("TERM", 75), ("USR1", 75), ("HUP", 75), ("TERM", 1)]
)
def test_a_signal_reaches_the_job_and_ends_both(tmp_path: Path, name: str, status: int) -> None:
    told = f"trap 'echo told > {tmp_path}/told; exit {status}' {name}; "
    job = supervised(3, told + count(tmp_path) + "while :; do sleep 0.1; done")
    end = time.monotonic() + 30
    while not starts(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.02)
    job.send_signal(signal.Signals[f"SIG{name}"])
    job.communicate(timeout=60)
    assert (job.returncode, starts(tmp_path)) == (status, 1)
    assert (tmp_path / "told").exists()


def test_usage(tmp_path: Path) -> None:
    done = subprocess.run(["launch/supervise.sh", "x"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "usage" in done.stderr
