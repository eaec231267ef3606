"""Messages between the ranks of a job: every rank gets the value, or the same error."""

import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment

SCRIPT = """
from autoscale.distributed import start_job, stop_job
from autoscale.shared_errors import RemoteError

def fail(error):
    raise error

job = start_job()
assert job.from_root(lambda: {"rank": job.rank}) == {"rank": 0}
assert job.on_all(lambda: job.rank) == [0, 1]
assert job.on_each(lambda: job) is job
job.require_agreement({"seed": "7"})
cases = {
    "mistake": lambda: job.from_root(lambda: fail(ValueError("no such domain"))),
    "crash": lambda: job.from_root(lambda: 1 / 0),
    "one rank": lambda: job.on_all(lambda: job.rank if job.rank == 0 else fail(OSError("disk"))),
    "missing": lambda: job.on_each(lambda: None if job.is_root else fail(ValueError("no file"))),
    "mistake of all": lambda: job.on_each(lambda: fail(ValueError("no such domain"))),
    "disagreement": lambda: job.require_agreement(
        {"seed": "7", "data fingerprint": "abc"[job.rank]}
    ),
}
for name, call in cases.items():
    try:
        call()
    except (ValueError, RemoteError) as error:
        print(f"{name} | {type(error).__name__} | {error}", flush=True)
stop_job(job)
"""

HOST = socket.gethostname()
EXPECTED = [
    "mistake | SharedMistake | no such domain",
    f"crash | RemoteError | rank 0 on {HOST} failed: ZeroDivisionError: division by zero",
    f"one rank | RemoteError | rank 1 on {HOST} failed: OSError: disk",
    f"missing | SharedMistake | rank 1 on {HOST}: no file",
    "mistake of all | SharedMistake | no such domain",
    f"disagreement | SharedMistake | rank 1 on {HOST} has data fingerprint b but rank 0 on {HOST} "
    "has a; all ranks must see the same files and code",
]

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus=2", "--no_local_rank",
                  "--hostfile=/dev/null", "--master_port={port}"],
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_rank_gets_the_value_or_the_same_error(tmp_path, launcher):
    from autoscale.distributed import free_port

    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    arguments = [part.format(port=free_port()) for part in LAUNCHERS[launcher]]
    done = subprocess.run(
        [sys.executable, *arguments, str(script)],
        capture_output=True, text=True, timeout=200, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for line in EXPECTED:
        assert done.stdout.count(line) == 2, done.stdout + done.stderr


def test_incomplete_launcher_variables_are_named():
    code = "from autoscale.distributed import start_job; start_job()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=100, env=environment() | {"RANK": "0"}, cwd=ROOT,
    )  # fmt: skip
    assert "RANK is set but WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not" in done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1",
          "MASTER_ADDR": "h"}, "1 1 2 h"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, "0 0 1 127.0.0.1"),
        ({}, "0 0 1 127.0.0.1"),
        ({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "3 0 4 h"),
    ],
)  # fmt: skip
def test_ranks_come_from_whichever_launcher_there_is(variables, expected):
    code = (
        "import os, autoscale.distributed as d; d._read_launcher(); e = os.environ; "
        "print(e['RANK'], e['LOCAL_RANK'], e['WORLD_SIZE'], e['MASTER_ADDR'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=100, env=environment() | variables, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == expected, done.stderr


def test_srun_without_a_master_address_is_a_users_mistake():
    code = "import autoscale.distributed as d; d._read_launcher()"
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=100, env=environment() | variables, cwd=ROOT,
    )  # fmt: skip
    assert "MASTER_ADDR is not set under srun; export it as launch/slurm.sbatch does" in done.stderr
