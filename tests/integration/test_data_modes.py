"""Packing, matched repetition, locality and weights that change: real runs, checked against each
other, against plain torch, and by the audit."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from autoscale.audit import audit_run
from autoscale.checkpoint_files import newest_step
from autoscale.data import RunStream, validation_windows
from autoscale.model import build_model, parameter_groups
from autoscale.schedule import learning_rate
from tests.conftest import ROOT, environment
from tests.integration.children import DEADLINE, planned, start, train

pytestmark = pytest.mark.usefixtures("on_cpu")

SKEWED = "{ python_code = 0.1, english_docs = 0.6, cpp_headers = 0.3 }"
MODES = {
    "stages": [f"train.stages=[{{ begin = 0.4, weights = {SKEWED} }}, "
               "{ begin = 0.8, weights = 'uniform' }]"],
    "whole_documents": ["data.packing=whole_documents"],
    "best_fit": ["data.packing=best_fit"],
    "locality": ["data.locality=8"],
}  # fmt: skip


def losses(result):
    return [evaluation.losses for evaluation in result.evaluations]


@pytest.mark.parametrize("mode", MODES)
def test_ranks_and_micro_batches_change_nothing(mode, tiny, tmp_path, worker):
    experiment, spec = planned(tiny, *MODES[mode])
    folder = tmp_path / spec.run_id
    alone = train(worker, experiment, spec, tmp_path / "alone", micro_batch_size=8)
    parts = train(worker, experiment, spec, tmp_path / "parts", micro_batch_size=1)
    ranks = train(worker, experiment, spec, folder, world_size=2, micro_batch_size=2)
    for other in (parts, ranks):
        assert (other.windows, other.tokens, other.epochs, other.checksum) == (
            alone.windows, alone.tokens, alone.epochs, alone.checksum,
        )  # fmt: skip
        for first, second in zip(losses(alone), losses(other), strict=True):
            assert second == pytest.approx(first, abs=2e-4)
    assert tuple(alone.windows.values()) == spec.sequences
    packed = spec.packing != "contiguous"
    assert (alone.total_tokens < spec.total_tokens) == packed
    audit = audit_run(folder, manifest_path=experiment.config.manifest_path, read_tokens=True)
    assert audit.problems == ()
    assert audit.checksum == alone.checksum


def test_packed_rows_train_like_plain_torch_on_all_labels_of_a_batch(tiny, tmp_path, worker):
    """With a large eps AdamW heeds the scale of the gradient, so a wrong count would show."""
    overrides = ["data.packing=whole_documents", "trainer.eps=1e-2", "trainer.grad_clip=1e3"]
    experiment, spec = planned(tiny, *overrides, "data.sequence_length=64")
    result = train(worker, experiment, spec, tmp_path / "run", world_size=2, micro_batch_size=1)

    optimisation = spec.optimisation
    model = build_model(spec.model, seed=spec.seed, activation_checkpointing=False)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimisation["weight_decay"]),
        betas=optimisation["betas"],
        eps=optimisation["eps"],
    )

    def mean_loss(tokens, positions):
        """Each document on its own, without a mask."""
        total, count = torch.zeros(()), 0
        for row, places in zip(tokens, positions.tolist(), strict=True):
            begins = [i for i, place in enumerate(places) if place == 0]
            end = sum(place >= 0 for place in places)
            for begin, stop in zip(begins, [*begins[1:], end], strict=True):
                document = row[begin:stop][None]
                if stop - begin > 1:
                    logits = model(document[:, :-1]).logits[0]
                    total = total + cross_entropy(logits, document[0, 1:], reduction="sum")
                    count += stop - begin - 1
        return total / count

    keys = ("lr", "min_lr_ratio", "schedule", "warmup_fraction", "decay_fraction")
    for batch in RunStream(spec, experiment.manifest):
        rate = learning_rate(batch.step, spec.num_steps, **{key: optimisation[key] for key in keys})
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        mean_loss(torch.from_numpy(batch.tokens.astype(int)), batch.positions).backward()
        optimizer.step()
    held_out = validation_windows(
        experiment.manifest, spec.domains, sequence_length=spec.sequence_length, limit=21,
        packing=spec.packing,
    )  # fmt: skip
    model.eval()
    with torch.no_grad():
        expected = {
            name: float(mean_loss(torch.from_numpy(rows.tokens), rows.positions))
            for name, rows in held_out.items()
        }
    assert result.final_losses == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("mode", "last_change"), [("stages", 0.8), ("best_fit", None)])
def test_a_resume_across_a_change_of_weights_is_exact(mode, last_change, tiny, tmp_path, worker):
    experiment, spec = planned(
        tiny, *MODES[mode], "train.budget='96K'", "data.max_epochs=20", "checkpoint.save_every=6"
    )
    whole = train(worker, experiment, spec, tmp_path / "whole")
    folder = tmp_path / "killed"
    [child] = start(worker, experiment, spec, folder)
    while newest_step(folder / "checkpoints") is None:
        assert not child.poll(0.01), child.error
    child.stop()
    saved = newest_step(folder / "checkpoints")
    assert 0 < saved < (last_change or 1) * spec.num_steps
    resumed = train(worker, experiment, spec, folder)
    assert "resumed from" in (folder / "log-rank0.txt").read_text()
    assert resumed.evaluations == whole.evaluations
    assert (resumed.windows, resumed.tokens, resumed.checksum) == (
        whole.windows, whole.tokens, whole.checksum,
    )  # fmt: skip


def test_a_shard_cut_while_a_run_reads_it_ends_the_run_by_name(tiny, tiny_shards, tmp_path, worker):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    experiment, spec = planned(
        tiny, f"data.manifest={shards}/manifest.json", "train.budget='320K'",
        "data.max_epochs=20", "checkpoint.save_every=3",
    )  # fmt: skip
    folder = tmp_path / "run"
    [child] = start(worker, experiment, spec, folder)
    while newest_step(folder / "checkpoints") is None:
        assert not child.poll(0.01), child.error
    cut = next(shards.rglob("python_code/*/train-*.bin"))
    size = cut.stat().st_size
    os.truncate(cut, 4096)
    while not child.poll(0.2):
        pass
    assert child.error is not None and child.error.user_mistake, child.error
    assert str(cut) in child.error.message and "\n" not in child.error.message
    assert f"expected a file of {size} bytes, found 4096" in child.error.message


def test_matched_probes_train_on_their_share_and_the_command_audits_them(tiny):
    overrides = ["--set", "probe.match_repetition=true"]
    printed = tiny.autoscale("plan", *overrides).stdout
    assert "Tokens that probe runs draw from" in printed
    assert "33.33% of all" in printed
    tiny.autoscale("probe", *overrides, "--only", "probe-4K-reference")
    folder = next((tiny.output / "runs").glob("probe-*"))
    done = audit_command(folder, "--tokens")
    assert done.returncode == 0, done.stderr
    assert "The record agrees. Checksum of all rows, read again:" in done.stdout

    result = json.loads((folder / "result.json").read_text())
    name = next(iter(result["tokens"]))
    result["tokens"][name] += 32
    (folder / "result.json").write_text(json.dumps(result))
    done = audit_command(folder)
    assert done.returncode == 2
    assert f"domain '{name}': " in done.stderr and "the record says" in done.stderr


def audit_command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "autoscale", "audit", str(folder), *arguments],
        capture_output=True, text=True, timeout=DEADLINE, env=environment(), cwd=ROOT,
    )  # fmt: skip
