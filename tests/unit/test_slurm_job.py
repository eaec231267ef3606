"""When the Slurm job ends, from what Slurm's commands say."""

import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from autoscale.slurm_job import end_of_job, job_name, parse_end


def test_the_end_is_local_time() -> None:
    moment = datetime(2026, 11, 21, 14, 5, 7)
    assert parse_end("2026-11-21T14:05:07\n") == time.mktime(moment.timetuple())


@pytest.mark.parametrize("text", ["NONE", "N/A", "Unknown", "\n"])
def test_a_job_may_have_no_end(text: str) -> None:
    assert parse_end(text) is None


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="14:05"):
        parse_end("at 14:05")


def test_a_task_of_an_array_goes_by_its_place() -> None:
    # The first task has the number of the array, by which all of them would be named.
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    assert job_name(array) == "7_0"
    assert job_name({"SLURM_JOB_ID": "8"}) == "8"
    assert job_name({}) is None


def squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "squeue"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_slurm_is_asked_for_this_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue(tmp_path, f'echo "$@" > {tmp_path}/asked; echo 2026-11-21T14:05:07', monkeypatch)
    assert end_of_job({"SLURM_JOB_ID": "8"}) == parse_end("2026-11-21T14:05:07")
    assert "--jobs 8 " in (tmp_path / "asked").read_text()


def test_a_slurm_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    squeue(tmp_path, "exit 1", monkeypatch)
    assert end_of_job({"SLURM_JOB_ID": "8"}) is None
    assert "the end of Slurm job 8 is not known" in caplog.text


def test_outside_of_slurm_there_is_no_end() -> None:
    assert end_of_job({}) is None
