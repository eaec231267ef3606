"""Claims, with real processes on a real folder."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autoscale.claims import ClaimRecord, Claims, Owner, read_claim

FOREIGN = Owner(host="elsewhere", machine="another boot", pid=1, started=1)


def leave(folder: Path, record: ClaimRecord) -> None:
    """The file of a claim of a process that this test does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"claim-{record.generation:06d}.json").write_text(json.dumps(asdict(record)))


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s"
        time.sleep(0.01)


def test_a_run_is_held_by_one_claim_until_it_is_released(tmp_path: Path) -> None:
    claims = Claims()
    first = claims.take(tmp_path / "run")
    assert first is not None
    assert claims.take(tmp_path / "run") is None
    held = read_claim(tmp_path / "run")
    assert held is not None and held.owner == Owner.current() and not held.released
    first.release()
    second = claims.take(tmp_path / "run")
    assert second is not None
    second.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["claim-000002.json"]


def test_nobody_holds_a_run_that_was_never_claimed(tmp_path: Path) -> None:
    assert read_claim(tmp_path / "run") is None


def take_all(folders: list[Path], start, results) -> None:
    claims = Claims()
    start.wait()
    taken = [(folder.name, claims.take(folder)) for folder in folders]
    mine = [name for name, claim in taken if claim is not None]
    results.put(mine)
    start.wait()  # nobody leaves, and so frees a run, before all have tried


def test_of_many_processes_one_gets_each_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    folders = [tmp_path / f"run-{number}" for number in range(40)]
    start, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=take_all, args=(folders, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    taken = [name for _ in processes for name in results.get(timeout=60)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(taken) == sorted(folder.name for folder in folders)


def hold_forever(folder: Path, held) -> None:
    claim = Claims().take(folder)
    assert claim is not None
    held.set()
    time.sleep(600)


def test_the_run_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold_forever, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    claims = Claims()
    assert claims.take(tmp_path) is None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: read_claim(tmp_path).owner.is_gone())  # before anybody reaps it, too
    claim = claims.take(tmp_path)
    assert claim is not None
    claim.release()
    process.join()


def test_a_silent_claim_of_another_machine_is_taken_over_after_a_while(tmp_path: Path) -> None:
    now = 1000.0
    claims = Claims(dead_after=60, clock=lambda: now)
    record = ClaimRecord(generation=3, owner=FOREIGN, beats=7)
    leave(tmp_path, record)
    assert claims.take(tmp_path) is None
    now += 59
    assert claims.take(tmp_path) is None
    leave(tmp_path, replace(record, beats=8))  # a sign of life
    now += 2
    assert claims.take(tmp_path) is None
    now += 61
    claim = claims.take(tmp_path)
    assert claim is not None
    claim.release()
    assert read_claim(tmp_path).generation == 4


def test_a_released_claim_of_another_machine_is_free(tmp_path: Path) -> None:
    leave(tmp_path, ClaimRecord(generation=1, owner=FOREIGN, released=True))
    claim = Claims().take(tmp_path)
    assert claim is not None
    claim.release()


def test_a_claim_lives_on_and_notices_that_it_was_overtaken(tmp_path: Path) -> None:
    claim = Claims(heartbeat=0.01).take(tmp_path)
    assert claim is not None
    wait_until(lambda: read_claim(tmp_path).beats >= 3)
    assert not claim.lost
    leave(tmp_path, ClaimRecord(generation=2, owner=FOREIGN))
    wait_until(lambda: claim.lost)
    claim.release()
    assert read_claim(tmp_path) == ClaimRecord(generation=2, owner=FOREIGN)


@pytest.mark.parametrize("field", ["pid", "started"])
def test_a_process_number_used_again_is_another_process(field: str) -> None:
    current = Owner.current()
    assert not current.is_gone()
    assert replace(current, **{field: getattr(current, field) + 2**24}).is_gone()
    assert not FOREIGN.is_gone()


def test_a_process_that_read_long_ago_does_not_get_a_run_that_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ClaimRecord(generation=1, owner=FOREIGN, released=True)
    leave(tmp_path, replace(old, generation=3))
    monkeypatch.setattr("autoscale.claims.read_claim", lambda folder: old)
    assert Claims().take(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["claim-000003.json"]
