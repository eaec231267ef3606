"""Runs that go on with another number of ranks or another ZeRO stage, against a whole run."""

import json
import shutil

import pytest

from tests.conftest import ROOT, write_tiny
from tests.integration.children import ended, planned, run_log, start, train, train_a_part

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_cpu")]

CHANGES = [
    # ZeRO stage and ranks before, ZeRO stage and ranks after
    ((0, 2), (0, 1)), ((0, 1), (0, 2)),
    ((1, 2), (1, 1)), ((1, 1), (1, 2)), ((1, 3), (1, 2)),
    ((2, 2), (2, 1)), ((2, 1), (2, 2)),
    ((3, 2), (3, 1)), ((3, 1), (3, 2)),
    ((1, 2), (2, 1)), ((2, 1), (3, 2)), ((3, 2), (1, 1)),
]  # fmt: skip


def staged(tiny, stage, *overrides):
    """The run under a ZeRO stage; weights decay so much that a wrong group would show."""
    return planned(
        tiny, f"trainer.deepspeed={ROOT}/ds_configs/zero{stage}.json", "train.budget='24K'",
        "trainer.global_batch_tokens=384", "trainer.weight_decay=2.0", "data.max_epochs=20",
        "checkpoint.save_every=1000", *overrides,
    )  # fmt: skip


class Runs:
    """Runs that several tests start from: whole ones, and ones that were stopped on the way."""

    def __init__(self, tiny, folder, worker):
        self.tiny, self._folder, self._worker = tiny, folder, worker
        self._whole, self._parts = {}, {}

    def whole(self, *overrides):
        """Trained by one rank without a pause."""
        if overrides not in self._whole:
            experiment, spec = staged(self.tiny, 1, *overrides)
            folder = self._folder / f"whole{len(self._whole)}"
            self._whole[overrides] = train(self._worker, experiment, spec, folder)
        return self._whole[overrides]

    def part(self, stage, ranks, folder, *overrides):
        """A copy of a run that was stopped, and the step that it was saved after."""
        key = (stage, ranks, overrides)
        if key not in self._parts:
            experiment, spec = staged(self.tiny, stage, *overrides)
            kept = self._folder / f"part{len(self._parts)}"
            step = train_a_part(self._worker, experiment, spec, kept, world_size=ranks)
            self._parts[key] = kept, step
        kept, step = self._parts[key]
        shutil.copytree(kept, folder)
        return step


@pytest.fixture(scope="module")
def runs(tiny_text, tiny_shards, tmp_path_factory, worker):
    folder = tmp_path_factory.mktemp("elastic")
    return Runs(write_tiny(folder, tiny_text, tiny_shards), folder, worker)


def ranks_said(count):
    return "1 rank" if count == 1 else f"{count} ranks"


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_change_of_ranks_or_stage_keeps_the_losses(before, after, runs, tmp_path, worker):
    folder = tmp_path / "run"
    step = runs.part(*before, folder)
    experiment, spec = staged(runs.tiny, after[0])
    resumed = train(worker, experiment, spec, folder, world_size=after[1])
    said = run_log(folder)
    assert f"step-{step}, written by {ranks_said(before[1])} under ZeRO {before[0]}" in said
    assert ("through a universal checkpoint" in said) == (after[0] > 0)
    assert not list((folder / "checkpoints").glob(".*"))
    whole = runs.whole()
    for found, expected in zip(resumed.evaluations, whole.evaluations, strict=True):
        assert found.tokens == expected.tokens
        assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert (resumed.windows, resumed.checksum) == (whole.windows, whole.checksum)


@pytest.mark.parametrize(("before", "after"), [((1, 2), (1, 1)), ((2, 1), (3, 2))])
def test_bf16_is_carried_within_its_rounding(before, after, runs, tmp_path, worker):
    folder = tmp_path / "run"
    runs.part(*before, folder, "trainer.precision=bf16")
    experiment, spec = staged(runs.tiny, after[0], "trainer.precision=bf16")
    resumed = train(worker, experiment, spec, folder, world_size=after[1])
    whole = runs.whole("trainer.precision=bf16")
    for found, expected in zip(resumed.evaluations, whole.evaluations, strict=True):
        assert found.losses == pytest.approx(expected.losses, abs=2e-3)
    assert resumed.checksum == whole.checksum


def refusal(worker, experiment, spec, folder, **settings):
    """The message that a run ends with on every rank, before it trained."""
    errors = ended(start(worker, experiment, spec, folder, **settings))
    assert all(error.user_mistake for error in errors), errors
    (message,) = {error.message for error in errors}
    return message


def test_what_cannot_be_carried_is_refused_before_anything_is_loaded(runs, tmp_path, worker):
    folder = tmp_path / "run"
    step = runs.part(1, 2, folder)
    experiment, spec = staged(runs.tiny, 0)
    message = refusal(worker, experiment, spec, folder, world_size=2)
    assert f"step-{step} was written under ZeRO stage 1 but trainer.deepspeed now has" in message
    assert "resume with stage 1, or start the run again with --no-resume" in message

    experiment, spec = staged(runs.tiny, 1)
    message = refusal(worker, experiment, spec, folder, world_size=5)
    assert "a batch of 12 sequences cannot be shared by 5 ranks" in message
    # It still goes on as it was written.
    resumed = train(worker, experiment, spec, folder, world_size=2)
    assert "through a universal checkpoint" not in run_log(folder)
    assert resumed.checksum == runs.whole().checksum


def test_a_checkpoint_of_an_older_version_is_refused(runs, tmp_path, worker):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-12").mkdir(parents=True)
    (folder / "checkpoints" / "latest.json").write_text(json.dumps({"tag": "step-12", "step": 12}))
    experiment, spec = staged(runs.tiny, 1)
    message = refusal(worker, experiment, spec, folder)
    assert "a checkpoint of an older version of autoscale, without fingerprints" in message
