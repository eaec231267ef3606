"""DoReMi's proxy against plain torch, and runs whose weights follow their losses; both resumed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from autoscale.audit import audit_run
from autoscale.data import RunStream, validation_windows
from autoscale.methods.ado import ADO
from autoscale.methods.doremi import DoReMi
from autoscale.model import build_model, parameter_groups
from autoscale.schedule import learning_rate
from tests.conftest import ROOT, write_tiny
from tests.integration.children import ended, planned, start, train, train_a_part

BUDGET = ["train.budget='24K'"]


@pytest.fixture(scope="module", autouse=True)
def on_cpu_throughout():
    """As `on_cpu`, for the runs that the tests of this module share, too."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("DS_ACCELERATOR", "cpu")
        variables.setenv("OMP_NUM_THREADS", "1")
        yield


# DoReMi


@pytest.fixture(scope="module")
def proxy(tiny_text, tiny_shards, tmp_path_factory, worker):
    """An experiment with a trained reference, its proxy run, and what two ranks gave.

    Each rank has four micro-batches a step.
    """
    folder = tmp_path_factory.mktemp("proxy")
    experiment, base = planned(write_tiny(folder / "file", tiny_text, tiny_shards), *BUDGET)
    reference = replace(base, label="reference", seed=base.seed + 1)
    exported = experiment.store.folder(reference)
    train(worker, experiment, reference, exported, export=str(exported / "model"))
    spec = replace(base, label="proxy", **DoReMi().proxy_changes(reference.identity))
    run = folder / "two"
    result = train(worker, experiment, spec, run, world_size=2, micro_batch_size=1)
    return experiment, spec, run, result


def test_a_proxy_trains_like_plain_torch(proxy):
    experiment, spec, run, result = proxy
    trail, model = plain_proxy(experiment, spec)
    logged = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = [
        [each[f"doremi/{name}"] for name in spec.domains]
        for each in logged
        if each["kind"] == "training"
    ]
    assert np.array(found) == pytest.approx(trail, abs=2e-4)
    assert list(result.online) == ["weights"]
    weights = trail.mean(axis=0)
    assert list(result.online["weights"].values()) == pytest.approx(weights, abs=1e-4)
    assert weights.max() - weights.min() > 0.02  # the test would see weights that stay uniform
    losses = evaluate(model, experiment.manifest, spec)
    assert list(result.final_losses.values()) == pytest.approx(losses, abs=1e-3)


def plain_proxy(experiment, spec):
    """Algorithm 1 of the paper: weights of all steps, shape (steps, K), and the trained proxy."""
    folder = str(experiment.store.exported_model(spec.online["reference"]))
    reference = build_model(spec.model, seed=0, activation_checkpointing=False, start_from=folder)
    model = build_model(spec.model, seed=spec.seed, activation_checkpointing=False)
    optimisation, num_domains = spec.optimisation, len(spec.domains)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimisation["weight_decay"]),
        betas=tuple(optimisation["betas"]),
        eps=optimisation["eps"],
    )
    keys = ("lr", "min_lr_ratio", "schedule", "warmup_fraction", "decay_fraction")
    schedule = {key: optimisation[key] for key in keys}
    alpha, trail = np.full(num_domains, 1 / num_domains), []
    for batch in RunStream(spec, experiment.manifest):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(batch.step, spec.num_steps, **schedule)
        tokens = torch.from_numpy(batch.tokens.astype("int64"))
        own = label_losses(model, tokens)
        with torch.no_grad():
            excess = torch.relu(own - label_losses(reference, tokens))
        of_domain = [torch.from_numpy(batch.located.domain == k) for k in range(num_domains)]
        moved = alpha * np.exp([float(excess[rows].mean()) for rows in of_domain])
        alpha = (1 - 1e-3) * moved / moved.sum() + 1e-3 / num_domains
        trail.append(alpha)
        loss = sum(a * own[rows].mean() for a, rows in zip(alpha, of_domain, strict=True))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimisation["grad_clip"])
        optimizer.step()
    return np.array(trail), model


def label_losses(model, tokens):
    logits = model(input_ids=tokens[:, :-1]).logits.flatten(0, 1)
    return cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


@torch.no_grad()
def evaluate(model, manifest, spec):
    windows = validation_windows(
        manifest,
        spec.evaluation["domains"],
        sequence_length=spec.sequence_length,
        limit=spec.evaluation["sequences_per_domain"],
    )
    rows = [torch.from_numpy(each.tokens) for each in windows.values()]
    return [label_losses(model.eval(), each).mean().item() for each in rows]


@pytest.mark.parametrize("deepspeed", ["zero1", "zero3"])
def test_one_pass_over_a_whole_batch_gives_the_same(deepspeed, proxy, tiny, tmp_path, worker):
    """One rank, one micro-batch; the one forward pass is that of the gradient."""
    experiment, spec, _, result = proxy
    settings = planned(tiny, f"trainer.deepspeed={ROOT}/ds_configs/{deepspeed}.json")[0].deepspeed
    alone = train(
        worker, experiment, spec, tmp_path / "one", micro_batch_size=8, deepspeed=settings
    )
    assert alone.checksum == result.checksum
    assert alone.online["weights"] == pytest.approx(result.online["weights"], abs=1e-4)
    assert alone.final_losses == pytest.approx(result.final_losses, abs=1e-3)
    # A forward pass is a third of the work: the reference's, and under accumulation another.
    assert result.flops / alone.flops == pytest.approx((5 / 3) / (4 / 3))


def test_a_stopped_proxy_goes_on_exactly(proxy, tmp_path, worker):
    experiment, spec, _, result = proxy
    settings = {"world_size": 2, "micro_batch_size": 1}
    train_a_part(worker, experiment, spec, tmp_path / "run", **settings)
    resumed = train(worker, experiment, spec, tmp_path / "run", **settings)
    assert resumed.online == result.online
    assert (resumed.evaluations, resumed.checksum) == (result.evaluations, result.checksum)


def test_a_proxy_without_its_reference_is_refused(tiny, tmp_path, worker):
    experiment, base = planned(tiny, *BUDGET)
    spec = replace(base, **DoReMi().proxy_changes("0" * 12))
    [error] = ended(start(worker, experiment, spec, tmp_path / "run"))
    assert error.user_mistake
    assert "the reference run 000000000000 has no exported model; train it before" in error.message


# ADO


@pytest.fixture(scope="module")
def live(tiny_text, tiny_shards, tmp_path_factory, worker):
    """A run of two ranks whose weights change fast, under a cap just above its plan."""
    folder = tmp_path_factory.mktemp("live")
    experiment, base = planned(write_tiny(folder / "file", tiny_text, tiny_shards), *BUDGET)
    windows = np.array(RunStream(base, experiment.manifest).order.num_windows)
    changes = ADO(policy_rate=1.0).changes(base.num_steps, max_epochs=1.0)
    most = 1.1 * (base.sequences / windows).max()
    spec = replace(base, label="live", online=changes["online"] | {"max_epochs": most})
    run = folder / spec.run_id
    return experiment, spec, run, train(worker, experiment, spec, run, world_size=2)


def test_a_live_run_draws_what_it_decided(live):
    experiment, spec, run, result = live
    rounds = np.array(result.online["stages"])
    steps = rounds.sum(axis=1) / spec.sequences_per_batch
    settings = spec.online
    assert steps[0] == settings["warm_up_steps"] and steps.sum() == spec.num_steps
    assert set(steps[1:-1]) == {settings["round_steps"]}
    assert rounds.sum(axis=0).tolist() == list(result.windows.values())
    total = sum(result.tokens.values())
    expected = {name: tokens / total for name, tokens in result.tokens.items()}
    assert result.online["weights"] == pytest.approx(expected)
    audit = audit_run(run, manifest_path=experiment.config.manifest_path, read_tokens=True)
    assert audit.problems == () and audit.checksum == result.checksum
    for domain in audit.domains:  # no window twice before all have come
        assert domain.most_draws - domain.fewest_draws <= 1


def test_a_live_run_leaves_its_plan_and_keeps_to_the_epochs(live):
    experiment, spec, _, result = live
    num_windows = np.array(RunStream(spec, experiment.manifest).order.num_windows)
    most = np.floor(spec.online["max_epochs"] * num_windows)
    drawn = np.array(list(result.windows.values()))
    assert (drawn <= most).all() and (drawn == most).any()
    assert np.abs(drawn - spec.sequences).max() > 0.05 * max(spec.sequences)


@pytest.mark.parametrize("world_size", [2, 1])
def test_a_stopped_live_run_goes_on(world_size, live, tmp_path, worker):
    """Exactly with as many ranks; with another number the rounds so far stay as they are."""
    experiment, spec, _, result = live
    step = train_a_part(worker, experiment, spec, tmp_path / "run", world_size=2)
    resumed = train(worker, experiment, spec, tmp_path / "run", world_size=world_size)
    ends = np.cumsum(np.sum(result.online["stages"], axis=1)) // spec.sequences_per_batch
    kept = int(np.searchsorted(ends, step, side="right")) + 1  # the round of that step, too
    assert resumed.online["stages"][:kept] == result.online["stages"][:kept]
    assert sum(resumed.windows.values()) == sum(spec.sequences)
    if world_size == 2:
        assert resumed.online == result.online
        assert (resumed.evaluations, resumed.checksum) == (result.evaluations, result.checksum)


def test_a_live_run_beyond_what_there_is_is_refused(live, tmp_path, worker):
    experiment, spec, _, _ = live
    small = replace(spec, online={**spec.online, "max_epochs": 0.01})
    [error] = ended(start(worker, experiment, small, tmp_path / "run"))
    assert error.user_mistake and "its domains give" in error.message
    assert "within 0.01 epochs; allow more repetition" in error.message
