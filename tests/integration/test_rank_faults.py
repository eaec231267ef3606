"""One rank of a run hangs, is stopped, or computes nonsense: the run ends and names that rank."""

import json
import multiprocessing
import os
import signal
import socket
from multiprocessing import forkserver
from pathlib import Path

import pytest

from autoscale.checkpoint_files import newest_step
from autoscale.runs import RunResult
from autoscale.worker import Worker
from tests.conftest import ROOT
from tests.integration.children import ended, planned, run_log, start

pytestmark = pytest.mark.slow
STEP, TIMEOUT = 20, 12.0
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def fault_file(tmp_path_factory):
    """Read by the children of this module when they train."""
    return tmp_path_factory.mktemp("faults") / "fault.json"


@pytest.fixture(scope="module")
def worker(fault_file):
    """Children forked from a server that has a fault put under it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("FAULT_FILE", str(fault_file))
        patch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'fixtures' / 'faults'}{os.pathsep}{ROOT}")
        forkserver._forkserver._stop()  # one of another module's tests has no fault in it
        yield Worker(fork=True)
        forkserver._forkserver._stop()


def two_ranks(worker, experiment, spec, folder):
    return start(worker, experiment, spec, folder, world_size=2, save_every=8, step_timeout=TIMEOUT)


def rank_of(child):
    """Which log a child writes to."""
    return Path(f"/proc/{child.pid}/fd/2").resolve().stem.removeprefix("log-rank")


def goes_wrong(what, fault_file, worker, tiny, folder):
    """Errors of a run of two ranks of which rank 1 goes wrong at `STEP`."""
    fault_file.write_text(json.dumps({"what": what, "rank": 1, "step": STEP}))
    try:
        return ended(two_ranks(worker, *planned(tiny), folder))
    finally:
        fault_file.unlink()


def test_a_hanging_rank_is_found_and_its_stacks_are_kept(fault_file, worker, tiny, tmp_path):
    waiting, hanging = goes_wrong("hang", fault_file, worker, tiny, tmp_path / "run")
    said = f"rank 1 on {HOST} made no step for {TIMEOUT:g} s after step "
    assert hanging.message.startswith(said)
    assert hanging.message.endswith(f"stacks in {tmp_path}/run/log-rank1.txt")
    stacks = run_log(tmp_path / "run", 1)
    assert "sitecustomize.py" in stacks and "training_step.py" in stacks
    # The rank that waited for it says so, and lets the other one speak.
    assert waiting.follows and not hanging.follows


def test_a_stopped_child_is_found_and_ended(worker, tiny, tmp_path):
    experiment, spec = planned(tiny)
    children = two_ranks(worker, experiment, spec, tmp_path / "run")
    # Until both have told of a step, a run may take its time to start.
    while children[0].progress is None or children[0].progress.tokens <= spec.tokens_per_batch:
        assert not children[0].poll(0.01), children[0].error
    child = next(each for each in multiprocessing.active_children() if rank_of(each) == "1")
    os.kill(child.pid, signal.SIGSTOP)
    try:
        waiting, stopped = ended(children)
    finally:
        child.kill()
    assert stopped.message.endswith("; its process is stopped") and not stopped.follows
    assert waiting.follows
    assert child.exitcode == -signal.SIGKILL


def test_a_rank_with_nonsense_is_named_and_the_run_goes_on_later(
    fault_file, worker, tiny, tmp_path
):
    folder = tmp_path / "run"
    for error in goes_wrong("nan", fault_file, worker, tiny, folder):
        assert f"no finite number at step {STEP} on rank 1 on {HOST} first, of 2 r" in error.message
        assert not error.user_mistake
    assert not (folder / "failed.json").exists()  # as a run that diverged would have it
    assert newest_step(folder / "checkpoints") == 16
    experiment, spec = planned(tiny)
    assert ended(two_ranks(worker, experiment, spec, folder)) == [None, None]
    assert RunResult.load(folder).total_tokens == spec.total_tokens
    assert "resumed from" in run_log(folder)
