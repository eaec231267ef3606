"""DiLoCo for real: its equations on DeepSpeed engines, whole runs against plain torch, resuming."""

import json
import multiprocessing
import traceback
from dataclasses import replace

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch.nn.functional import cross_entropy

from autoscale.checkpoint_files import newest_step
from autoscale.data import RunStream, validation_windows
from autoscale.diloco import OuterOptimizer, RankGroups, local_parameters
from autoscale.distributed import free_port
from autoscale.engine import build_engine
from autoscale.evaluation import sum_losses
from autoscale.execution import RunHooks
from autoscale.model import build_model, parameter_groups
from autoscale.schedule import evaluation_steps, learning_rate
from autoscale.trainer import StoppedError, train_run
from autoscale.worker import Assignment, _join_process_group
from tests.conftest import ROOT, write_tiny
from tests.integration.test_data_modes import losses, planned, train

pytestmark = pytest.mark.usefixtures("on_cpu")

DILOCO = ["train.diloco.groups=2", "train.diloco.inner_steps=7"]


# The equations, on engines of every ZeRO stage


def _meet_thrice(assignment):
    """Body of a rank that is a group: five steps with meetings after 2, 4 and 5."""
    groups = RankGroups(2)
    assert groups.size == 1
    engine = build_engine(assignment.spec, assignment.execution, micro_batch_size=4, groups=groups)
    settings = {"groups": 2, "inner_steps": 2, "outer_lr": 0.7, "outer_momentum": 0.9}
    outer = OuterOptimizer(engine, groups, settings, num_steps=5)
    theta = flat(local_parameters(engine))
    momentum = torch.zeros_like(theta)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for done in range(1, 6):
        tokens = torch.randint(300, (4, 33), generator=generator)
        engine.backward(sum_losses(engine, tokens).mean() / 32)
        engine.step()
        both = gathered(flat(local_parameters(engine)))
        assert not torch.equal(both[0], both[1])
        outer.after_step(done)
        if done in (2, 4, 5):
            delta = theta - (both[0] + both[1]) / 2
            momentum = 0.9 * momentum + delta
            theta = theta - 0.7 * (delta + 0.9 * momentum)
            expected = theta
        else:
            expected = both[dist.get_rank()]
        assert_stands_at(engine, expected)
        with outer.global_parameters():
            assert_stands_at(engine, theta)
        assert_stands_at(engine, expected)
    assert outer.meetings == 3
    # The inner state is each group's own, and goes on through the meetings.
    inner = engine.basic_optimizer.state.values()
    averages = gathered(flat(state["exp_avg"] for state in inner))
    assert not torch.equal(averages[0], averages[1])
    assert {int(state["step"]) for state in inner} == {5}


def flat(tensors):
    return torch.cat([each.detach().flatten() for each in tensors])


def gathered(tensor):
    both = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(both, tensor)
    return both


def assert_stands_at(engine, expected):
    """The fp32 parameters, and those of the model in its own precision."""
    torch.testing.assert_close(flat(local_parameters(engine)), expected, rtol=1e-6, atol=1e-7)
    parameters = list(engine.module.parameters())
    if engine.zero_optimization_stage() == 0:
        return
    full = [safe_get_full_fp32_param(parameter) for parameter in parameters]
    with deepspeed.zero.GatheredParameters(parameters):
        for parameter, given in zip(parameters, full, strict=True):
            assert torch.equal(parameter, given.view_as(parameter).to(parameter.dtype))


@pytest.mark.parametrize(
    ("file", "precision"),
    [
        ("zero0", "fp32"), ("zero1", "fp32"), ("zero1", "bf16"), ("zero2", "bf16"),
        ("zero3", "fp32"), ("zero3", "bf16"), ("zero3_offload", "bf16"),
    ],
)  # fmt: skip
def test_groups_meet_by_the_papers_equations(file, precision, tiny, tmp_path, worker):
    experiment, spec = planned(
        tiny,
        *DILOCO,
        f"trainer.deepspeed={ROOT}/ds_configs/{file}.json",
        f"trainer.precision={precision}",
    )
    execution = experiment.execution(spec, export=False)
    assert in_two_ranks(_meet_thrice, spec, execution) == [None, None]


def in_two_ranks(body, spec, execution):
    """What each rank sends when it is done; a traceback when it fails."""
    context, master = multiprocessing.get_context("forkserver"), f"127.0.0.1:{free_port()}"
    ranks = []
    for rank in range(2):
        own, given = context.Pipe()
        assignment = Assignment(
            spec=spec, execution=execution, rank=rank, world_size=2, local_rank=rank, master=master
        )
        process = context.Process(target=_rank, args=(body, assignment, given))
        process.start()
        given.close()
        ranks.append((process, own))
    sent = []
    for process, own in ranks:
        assert own.poll(200)
        sent.append(own.recv())
        process.join(20)
        process.kill()
    return sent


def _rank(body, assignment, pipe):
    try:
        _join_process_group(assignment)
        pipe.send(body(assignment))
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


# Whole runs


@pytest.fixture(scope="module")
def whole(tiny_text, tiny_shards, tmp_path_factory, worker):
    """An experiment, its target run, and what two ranks gave in two groups."""
    folder = tmp_path_factory.mktemp("whole")
    experiment, spec = planned(write_tiny(folder / "file", tiny_text, tiny_shards), *DILOCO)
    return experiment, spec, folder, train(worker, experiment, spec, folder, world_size=2)


def training_losses(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {each["step"]: each["train_loss"] for each in records if each["kind"] == "training"}


def test_losses_are_those_of_plain_torch(whole):
    experiment, spec, folder, result = whole
    trained, evaluated = plain_diloco(spec, experiment.manifest)
    assert training_losses(folder) == pytest.approx(trained, abs=1e-5)
    assert [each.tokens for each in result.evaluations] == [
        done * spec.tokens_per_batch for done in evaluated
    ]
    for found, expected in zip(losses(result), evaluated.values(), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def plain_diloco(spec, manifest):
    """Training loss after every step, and validation losses at the evaluation points."""
    optimisation, settings = spec.optimisation, spec.diloco
    streams = [RunStream(spec, manifest, rank=group, world_size=2) for group in range(2)]
    models = [
        build_model(spec.model, seed=spec.seed, activation_checkpointing=False) for _ in streams
    ]
    inner = [
        torch.optim.AdamW(
            parameter_groups(model, optimisation["weight_decay"]),
            betas=tuple(optimisation["betas"]),
            eps=optimisation["eps"],
        )
        for model in models
    ]
    theta = [parameter.detach().clone() for parameter in models[0].parameters()]
    momentum = [torch.zeros_like(each) for each in theta]
    eta, mu = settings["outer_lr"], settings["outer_momentum"]
    keys = ("lr", "min_lr_ratio", "schedule", "warmup_fraction", "decay_fraction")
    schedule = {key: optimisation[key] for key in keys}
    points = evaluation_steps(spec.num_steps, spec.evaluation["points"])
    trained, evaluated = {}, {}
    for step in range(spec.num_steps):
        of_groups = []
        for model, optimizer, stream in zip(models, inner, streams, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, spec.num_steps, **schedule)
            loss = mean_loss(model, torch.from_numpy(stream.batch(step).tokens.astype("int64")))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimisation["grad_clip"])
            optimizer.step()
            of_groups.append(loss.item())
        done = step + 1
        trained[done] = sum(of_groups) / 2
        if done % settings["inner_steps"] == 0 or done == spec.num_steps:
            with torch.no_grad():
                for index, parameters in enumerate(
                    zip(*(model.parameters() for model in models), strict=True)
                ):
                    delta = theta[index] - sum(parameters) / 2
                    momentum[index] = mu * momentum[index] + delta
                    theta[index] = theta[index] - eta * (delta + mu * momentum[index])
                    for parameter in parameters:
                        parameter.copy_(theta[index])
        if done in points:
            evaluated[done] = evaluate(theta, spec, manifest)
    return trained, evaluated


def mean_loss(model, tokens):
    logits = model(input_ids=tokens[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(theta, spec, manifest):
    model = build_model(spec.model, seed=spec.seed, activation_checkpointing=False)
    for parameter, value in zip(model.parameters(), theta, strict=True):
        parameter.copy_(value)
    windows = validation_windows(
        manifest,
        spec.evaluation["domains"],
        sequence_length=spec.sequence_length,
        limit=spec.evaluation["sequences_per_domain"],
    )
    return {
        name: mean_loss(model.eval(), torch.from_numpy(rows.tokens)).item()
        for name, rows in windows.items()
    }


def test_only_the_number_of_groups_matters(whole, tmp_path, worker):
    """Four ranks, under another ZeRO stage, in groups of two."""
    experiment, spec, folder, result = whole
    zero2 = json.loads((ROOT / "ds_configs/zero2.json").read_text())
    other = train(worker, experiment, spec, tmp_path, world_size=4, deepspeed=zero2)
    assert other.checksum == result.checksum
    assert training_losses(tmp_path) == pytest.approx(training_losses(folder), abs=1e-5)
    for found, expected in zip(losses(other), losses(result), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def _stop_after_nine_steps(assignment):
    """Body of a rank that is told to stop between two meetings, and saves."""
    progress = []
    hooks = RunHooks(
        progress=progress.append,
        alive=lambda done: None,
        stop_reason=lambda: "test" if len(progress) >= 9 else None,
    )
    with pytest.raises(StoppedError) as stopped:
        train_run(assignment.spec, assignment.execution, hooks)
    return str(stopped.value)


def test_a_stop_between_two_meetings_changes_nothing(whole, tmp_path, worker):
    experiment, spec, folder, result = whole
    execution = replace(experiment.execution(spec, export=False), folder=str(tmp_path))
    told = in_two_ranks(_stop_after_nine_steps, spec, execution)
    done = newest_step(tmp_path / "checkpoints")
    assert done % 7 and 7 < done < 14, told
    resumed = train(worker, experiment, spec, tmp_path, world_size=2)
    assert resumed.checksum == result.checksum
    assert training_losses(tmp_path) == training_losses(folder)
    assert losses(resumed) == losses(result)
