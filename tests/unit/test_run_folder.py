import json
from pathlib import Path

import pytest

from autoscale.run_folder import RunFolders, disk_bytes, last_training_record, view_run
from tests.unit.fake_experiment import FakeExperiment
from tests.unit.runs_in_progress import claim, claim_from_elsewhere, log_steps, save_at


@pytest.fixture
def fake(tmp_path: Path) -> FakeExperiment:
    return FakeExperiment(tmp_path)


def test_a_run_goes_through_its_states(fake):
    experiment = fake.experiment
    spec = experiment.probes()[0].spec
    folder = experiment.store.folder(spec)
    assert view_run(folder).state == "waiting"
    held = claim(folder)  # the first thing that a job does
    assert view_run(folder).state == "running"
    log_steps(experiment, spec, 40)
    running = view_run(folder)
    assert (running.state, running.step, running.tokens) == ("running", 40, 40 * 1024)
    assert running.loss == pytest.approx(4.6)
    assert running.device_seconds == pytest.approx(2 * 40 * 1024 / 10_000)
    held.release()
    assert view_run(folder).state == "interrupted"
    fake.fail(spec)
    failed = view_run(folder)
    assert (failed.state, failed.diverged) == ("failed", True)
    assert failed.failure == "diverged: loss is nan at step 12"
    result = fake.finish(experiment, spec)
    finished = view_run(folder)
    assert (finished.state, finished.step) == ("finished", spec.num_steps)
    assert finished.tokens == spec.total_tokens
    assert finished.loss == result.final_mean_loss
    assert finished.device_seconds == result.seconds


def test_a_claim_of_another_machine_holds_until_somebody_takes_it_over(tmp_path: Path):
    claim_from_elsewhere(tmp_path / "run-1")
    view = view_run(tmp_path / "run-1")
    assert view.state == "running" and not view.claim.owner.is_here


def test_the_newest_whole_checkpoint_is_what_is_saved(tmp_path: Path):
    assert view_run(tmp_path).saved_step is None
    save_at(tmp_path, 9)
    save_at(tmp_path, 10)
    assert view_run(tmp_path).saved_step == 10
    (tmp_path / "checkpoints" / "step-10" / "weights.pt").write_bytes(b"")
    assert view_run(tmp_path).saved_step == 9


@pytest.mark.parametrize("domains", [1, 2000])
def test_the_last_training_record_is_read_from_the_end(tmp_path: Path, domains: int):
    """Also when half a line, other records, or records longer than a block follow it."""
    path = tmp_path / "metrics.jsonl"
    weights = {f"weight/domain-{index}": 1 / domains for index in range(domains)}
    lines = [
        json.dumps({"kind": "training", "step": step, "tokens": 10 * step, **weights}) + "\n"
        for step in range(1, 31)
    ]
    evaluation = json.dumps({"kind": "evaluation", "step": 30, **weights}) + "\n"
    whole = "".join(lines) + evaluation
    path.write_text(whole)
    assert last_training_record(path)["step"] == 30
    path.write_text("".join(lines[:-1]) + lines[-1][:-2])  # it is being written
    assert last_training_record(path)["step"] == 29
    path.write_text(lines[0][:-5])
    assert last_training_record(path) is None
    path.write_text("")
    assert last_training_record(path) is None
    path.unlink()
    assert last_training_record(path) is None


def test_every_beginning_of_the_file_of_metrics_can_be_read(fake):
    """Whatever part of it a writer has brought to the disk."""
    experiment = fake.experiment
    folder = log_steps(experiment, experiment.probes()[0].spec, 40)
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    steps = []
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        steps.append(view_run(folder).step)
    assert steps == sorted(steps)
    assert set(steps) == {0, 10, 20, 30, 40}


def test_disk_use_counts_every_file_and_checkpoints_apart(tmp_path: Path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").write_bytes(bytes(300))
    (tmp_path / "metrics.jsonl").write_bytes(bytes(70))
    save_at(tmp_path, 5)
    record = (tmp_path / "checkpoints" / "step-5.json").stat().st_size
    assert disk_bytes(tmp_path) == (1370 + record, 1000 + record)
    assert disk_bytes(tmp_path / "gone") == (0, 0)


def test_what_all_runs_have_spent_is_the_same_from_few_files_as_from_all(fake):
    experiment = fake.experiment
    specs = [planned.spec for planned in experiment.probes()]
    fake.probe(only=2)
    log_steps(experiment, specs[2], 30)
    experiment.store.start(specs[3])
    folders = RunFolders(experiment.store.root)
    expected = sum(view.device_seconds for view in folders.look().values())
    assert RunFolders(experiment.store.root).device_seconds() == pytest.approx(expected)
    log_steps(experiment, specs[3], 50)
    grown = expected + 2 * 50 * 1024 / 10_000
    assert folders.device_seconds() == pytest.approx(grown)


def test_of_two_folders_of_one_run_both_count(fake):
    """Two jobs may have started it under two labels at the same moment."""
    experiment = fake.experiment
    spec = experiment.probes()[0].spec
    fake.probe(only=1)
    (experiment.store.root / f"a-{spec.identity}").mkdir()
    views = RunFolders(experiment.store.root).look()
    assert set(views) == {spec.identity, spec.run_id}
    assert views[spec.identity].folder == experiment.store.folder(spec).with_name(
        f"a-{spec.identity}"
    )


def test_no_folder_of_runs_is_no_run(tmp_path: Path):
    assert RunFolders(tmp_path / "runs").look() == {}
    assert RunFolders(tmp_path / "runs").device_seconds() == 0
