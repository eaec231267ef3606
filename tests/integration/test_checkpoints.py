"""Saving while training: kills, broken files, full and read-only disks, and what is kept."""

import json
import os
import random
import subprocess
import time
from itertools import pairwise

import pytest

from autoscale.checkpoint_files import CheckpointRecord, newest_step, problem_of, saved_steps
from autoscale.runs import RunResult
from tests.conftest import write_tiny
from tests.integration.children import ended, planned, run_log, start, train, train_a_part

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_cpu")]

OVERRIDES = ["train.budget='24K'", "data.max_epochs=20"]


@pytest.fixture(scope="module")
def run(tiny_text, tiny_shards, tmp_path_factory):
    """The experiment and the run that all tests train, each in a folder of its own."""
    tiny = write_tiny(tmp_path_factory.mktemp("checkpoints"), tiny_text, tiny_shards)
    return planned(tiny, *OVERRIDES)


@pytest.fixture(scope="module")
def whole(run, worker, tmp_path_factory):
    """The run on two ranks, never interrupted."""
    return train(worker, *run, tmp_path_factory.mktemp("whole"), world_size=2)


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a file system of a few kilobytes; None without the right to."""
    mounted = []

    def mount(path, size):
        path.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a tmpfs of {size} cannot be mounted: {done.stderr.strip()}")
        mounted.append(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def assert_same(found, expected):
    assert found.evaluations == expected.evaluations
    assert (found.windows, found.checksum) == (expected.windows, expected.checksum)


def assert_all_whole(folder):
    """Whatever has a record is whole, and nothing else lies under a name that is published."""
    checkpoints = folder / "checkpoints"
    for step in saved_steps(checkpoints):
        record = CheckpointRecord.load(checkpoints, step)
        assert problem_of(checkpoints, record, record.files) is None


def finished(children, folder):
    assert ended(children) == [None] * len(children)
    return RunResult.load(folder)


def warnings(folder):
    lines = run_log(folder).splitlines()
    return [line for line in lines if " WARNING autoscale.checkpoint" in line]


def test_kills_while_it_saves_lose_nothing_that_was_whole(run, whole, tmp_path, worker):
    """Each time a random rank dies a random moment after a save began."""
    seed = int(os.environ.get("AUTOSCALE_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"AUTOSCALE_TEST_SEED={seed}")
    chance, folder = random.Random(seed), tmp_path / "run"
    checkpoints, steps = folder / "checkpoints", []
    settings = dict(world_size=2, save_every=4, keep_last=2, keep_checkpoints=True)
    for _ in range(5):
        before = set(checkpoints.glob("step-*"))
        children = start(worker, *run, folder, **settings)
        while not set(checkpoints.glob("step-*")) - before:
            for child in children:
                assert not child.poll(0), child.error
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.04))
        children[chance.randrange(2)].stop()
        ended(children)
        if (folder / "result.json").is_file():
            pytest.fail("the run ended before it was killed; give it more steps")
        assert_all_whole(folder)
        steps.append(newest_step(checkpoints))
    resumed = finished(start(worker, *run, folder, **settings), folder)
    assert_same(resumed, whole)
    assert steps[-1] is not None and f"step-{steps[-1]}, written by 2 ranks" in run_log(folder)
    assert_all_whole(folder)
    # Nothing is left of the saves that were cut off.
    kept = {f"step-{step}" for step in saved_steps(checkpoints)}
    assert len(kept) == 2
    assert {path.name for path in checkpoints.iterdir()} == kept | {f"{name}.json" for name in kept}


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def test_broken_ones_are_skipped_by_name_and_the_one_before_is_used(run, whole, tmp_path, worker):
    folder = tmp_path / "run"
    settings = dict(world_size=2, save_every=5, keep_last=4, keep_checkpoints=True)
    train_a_part(worker, *run, folder, **settings)
    checkpoints = folder / "checkpoints"
    newest, second, third, fourth = saved_steps(checkpoints)
    flip_a_byte(checkpoints / f"step-{newest}" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    (checkpoints / f"step-{second}" / "mp_rank_00_model_states.pt").unlink()
    (checkpoints / f"step-{third}.json").write_text("{")
    resumed = finished(start(worker, *run, folder, **settings), folder)
    assert_same(resumed, whole)
    said = warnings(folder)
    assert len(said) == 3, said
    for line, step, reason in zip(
        said, (newest, second, third),
        ("its SHA-256 differs", "No such file or directory", "is not readable JSON"), strict=True,
    ):  # fmt: skip
        assert f"step-{step} is broken and skipped: " in line and reason in line
    assert f"resumed from {checkpoints}/step-{fourth}, written" in run_log(folder)
    # They were written anew, and the record of a broken one never counted again.
    assert_all_whole(folder)
    assert saved_steps(checkpoints)[0] > newest


def test_when_none_is_whole_it_starts_again_and_says_so(run, whole, tmp_path, worker):
    folder = tmp_path / "run"
    train_a_part(worker, *run, folder, world_size=2, save_every=1000)
    (record,) = (folder / "checkpoints").glob("step-*.json")
    record.write_text(record.read_text().replace('"world_size": 2', '"world_size": 1'))
    resumed = train(worker, *run, folder, world_size=2)
    assert_same(resumed, whole)
    assert "own digest differs" in warnings(folder)[0]
    assert "no checkpoint in" in warnings(folder)[1]
    assert "starts from its first step" in warnings(folder)[1]


def test_a_full_disk_costs_the_new_checkpoint_only(run, whole, tmp_path, worker, tmpfs):
    """The third does not fit beside the two that are kept."""
    folder = tmp_path / "run"
    tmpfs(folder / "checkpoints", "1500k")
    resumed = train(
        worker, *run, folder, world_size=2, save_every=20, keep_last=2, keep_checkpoints=True
    )
    assert_same(resumed, whole)
    assert saved_steps(folder / "checkpoints") == [40, 20]
    assert_all_whole(folder)
    assert not (folder / "checkpoints" / "step-60").exists()
    said = warnings(folder)
    assert len(said) == 2, said
    assert f"no checkpoint {folder}/checkpoints/step-60: " in said[0]
    assert "bytes are needed" in said[0] and "No space" not in said[0]
    assert "step-40 is still whole and training goes on" in said[0]


def test_a_disk_that_fills_while_it_writes_leaves_nothing_half(run, whole, tmp_path, worker, tmpfs):
    """Files go to a staging disk that is too small; the run ends as if it had not been saved."""
    folder, staging = tmp_path / "run", tmp_path / "staging"
    tmpfs(staging, "64k")
    settings = dict(world_size=2, save_every=20, staging=str(staging), keep_checkpoints=True)
    children = start(worker, *run, folder, **settings)
    while children[0].progress is None:
        assert not children[0].poll(0.01), children[0].error
    children[0].ask_to_stop("time is up")
    assert ended(children) == [None, None]
    assert "not saved (rank 0: [Errno 28] No space left on device" in children[0].stopped
    resumed = train(worker, *run, folder, **settings)
    assert_same(resumed, whole)
    assert list((folder / "checkpoints").iterdir()) == []
    assert list(staging.iterdir()) == []
    assert "there is none yet and training goes on" in warnings(folder)[0]


def test_a_disk_that_turns_read_only_leaves_the_last_one(run, whole, tmp_path, worker, tmpfs):
    folder = tmp_path / "run"
    tmpfs(folder / "checkpoints", "8m")
    children = start(
        worker, *run, folder, world_size=2, save_every=20, keep_checkpoints=True, keep_last=9
    )
    while newest_step(folder / "checkpoints") is None:
        assert not children[0].poll(0.005), children[0].error
    mount = ["mount", "-o", "remount,ro", str(folder / "checkpoints")]
    while subprocess.run(mount, capture_output=True).returncode != 0:  # a file is being written
        assert not children[0].poll(0), children[0].error
    kept = saved_steps(folder / "checkpoints")
    assert_same(finished(children, folder), whole)
    assert saved_steps(folder / "checkpoints") == kept
    assert_all_whole(folder)
    assert "Read-only file system" in warnings(folder)[0]
    assert f"step-{kept[0]} is still whole and training goes on" in warnings(folder)[0]


def test_time_decides_where_steps_do_not_and_a_few_are_kept(run, whole, tmp_path, worker):
    folder, staging = tmp_path / "run", tmp_path / "staging"
    left = tmp_path / "staging" / "of another run"
    left.mkdir(parents=True)
    resumed = train(
        worker, *run, folder, world_size=2, save_every=None, save_seconds=0.02, keep_last=3,
        staging=str(staging), keep_checkpoints=True,
    )  # fmt: skip
    assert_same(resumed, whole)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    saved = [record for record in records if record["kind"] == "checkpoint"]
    steps = [record["step"] for record in saved]
    assert len(steps) > 3
    # Both ranks ask before they hear of each other; one save answers both.
    assert all(later - step >= 2 for step, later in pairwise(steps)), steps
    assert saved_steps(folder / "checkpoints") == steps[:-4:-1]
    assert_all_whole(folder)
    assert list(staging.iterdir()) == [left]
    newest = folder / "checkpoints" / f"step-{steps[-1]}"
    files = sum(path.stat().st_size for path in newest.iterdir())
    assert 0.8 * files < saved[-1]["bytes"] < files  # the tensors, without what describes them
    assert saved[-1]["blocked_seconds"] > 0 and saved[-1]["write_seconds"] > 0
