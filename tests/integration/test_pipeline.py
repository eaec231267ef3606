"""The main job end to end, at a tiny size, through the launchers and the command line."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoscale.config import load_config
from autoscale.planning import Experiment
from autoscale.stages import target_mixtures
from tests.conftest import ROOT, environment, write_tiny
from tests.integration.children import train

NUM_PROBES = 2 * (2 * 3 + 2)  # two budgets, twice as many mixtures as domains, two references


@pytest.fixture(scope="module")
def finished(tiny_text, tiny_shards, tmp_path_factory):
    """The whole job on two ranks through the deepspeed launcher."""
    experiment = write_tiny(tmp_path_factory.mktemp("finished"), tiny_text, tiny_shards)
    done = subprocess.run(
        ["launch/local.sh", str(experiment.path), "2"],
        capture_output=True, text=True, timeout=400, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return experiment, done.stdout


def test_every_artifact_is_written(finished):
    experiment, output = finished
    names = {path.name for path in experiment.output.iterdir()}
    assert {
        "config.json", "plan.json", "fit.json", "mixture-12K.json", "report.html", "report.json",
        "runs",
    } <= names  # fmt: skip
    assert str(experiment.output / "report.html") in output
    assert "not distinguishable" in output or "better" in output or "worse" in output


def test_every_run_has_a_result_with_exact_tokens(finished):
    experiment, _ = finished
    results = experiment.results()
    probes = [result for run, result in results.items() if run.startswith("probe-")]
    assert len(probes) == NUM_PROBES
    assert len({result["spec"]["label"] for result in results.values()}) == len(results)
    for result in results.values():
        spec = result["spec"]
        quotas = dict(zip(spec["domains"], spec["sequences"], strict=True))
        assert result["tokens"] == {name: count * 32 for name, count in quotas.items()}
        assert result["evaluations"][-1]["tokens"] == sum(result["tokens"].values())
        assert all(math.isfinite(loss) for loss in result["final_losses"].values())
    assert not list(experiment.output.glob("runs/*/checkpoints"))  # with a result, of no use
    assert {result["world_size"] for result in probes} == {1}


def test_training_learned_something(finished):
    experiment, _ = finished
    for run, result in experiment.results().items():
        if run.startswith("train-"):
            assert result["final_mean_loss"] < math.log(320) - 0.5
            assert result["world_size"] == 2


def test_tensorboard_and_metrics_hold_the_curves(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment, _ = finished
    folder = next((experiment.output / "runs").glob("train-12K-uniform-seed0-*"))
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {
        "train_loss", "lr", "tokens_per_second", "mfu", "validation_loss",
        "validation_loss/python_code", "weight/python_code", "epochs/python_code",
    } <= tags  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    final = [line for line in lines if line["kind"] == "evaluation"][-1]
    result = json.loads((folder / "result.json").read_text())
    assert final["validation_loss"] == result["final_mean_loss"]
    assert board.Scalars("validation_loss")[-1].value == pytest.approx(final["validation_loss"])


def test_the_exported_model_has_the_recorded_loss(finished):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autoscale.data import validation_windows
    from autoscale.manifest import Manifest

    experiment, _ = finished
    folder = next((experiment.output / "runs").glob("train-12K-uniform-seed0-*"))
    assert (folder / "model" / "model.safetensors").is_file()
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.eos_token_id == model.config.eos_token_id
    result = json.loads((folder / "result.json").read_text())
    config = json.loads((experiment.output / "config.json").read_text())["config"]
    manifest = Manifest.load(Path(config["prepare"]["output"]) / "manifest.json")
    windows = validation_windows(manifest, result["spec"]["domains"], sequence_length=32, limit=21)
    for name, rows in windows.items():
        batch = torch.from_numpy(rows.tokens)
        with torch.no_grad():
            logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        assert loss.item() == pytest.approx(result["final_losses"][name], abs=1e-5)


def test_a_second_launch_trains_nothing(finished):
    experiment, _ = finished

    def written():
        paths = experiment.output.glob("runs/*/result.json")
        return {path: path.stat().st_mtime_ns for path in paths}

    before = written()
    experiment.autoscale("run", "--set", "train.ranks_per_run=1")
    assert written() == before


def test_the_steps_one_by_one_give_the_same_losses(finished, tiny):
    experiment, _ = finished
    for command in ("prepare", "plan", "probe", "fit", "project", "train", "report", "status"):
        done = tiny.autoscale(command)
    assert "finished" in done.stdout
    together, apart = experiment.results(), tiny.results()
    assert set(apart) == set(together)
    for run, result in apart.items():
        # Probes ran on one rank in both; targets on one here and two there.
        tolerance = 0 if run.startswith("probe-") else 1e-3
        assert result["final_mean_loss"] == pytest.approx(
            together[run]["final_mean_loss"], abs=tolerance
        )
    for name in ("fit.json", "mixture-12K.json"):
        assert (tiny.output / name).read_text() == (experiment.output / name).read_text()


def test_mpirun_starts_the_same_job(finished, tmp_path):
    """Finished runs are found again, so only discovery and the stages between are exercised."""
    experiment, _ = finished
    done = subprocess.run(
        ["launch/mpirun.sh", str(experiment.path), "2", "--set", "train.seeds=[0]"],
        capture_output=True, text=True, timeout=200, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout


def exported(folder):
    """Bytes of the weights that a run left for `from_pretrained`."""
    return (folder / "model" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("stage", [0, 2])
def test_zero_stages_give_the_loss_of_stage_one(finished, stage, worker, tmp_path):
    """Two ranks, data parallel; floating point sums in another order are all that differs."""
    done, _ = finished
    deepspeed = f"trainer.deepspeed={ROOT}/ds_configs/zero{stage}.json"
    overrides = [deepspeed, "train.seeds=[0]", "train.baselines=['uniform']"]
    experiment = Experiment(load_config(done.path, overrides))
    for target in experiment.targets(target_mixtures(experiment)):
        run, folder = target.spec.run_id, tmp_path / target.mixture
        export = str(folder / "model")
        result = train(worker, experiment, target.spec, folder, world_size=2, export=export)
        expected = done.results()[run]["final_losses"]
        assert result.final_losses == pytest.approx(expected, abs=1e-3)
        if target.mixture == "autoscale":
            assert exported(folder) == exported(done.output / "runs" / run)


def test_partitioned_weights_give_the_loss_of_stage_one_under_torchrun(finished, tiny):
    """ZeRO-3, by a launcher of another project."""
    experiment, _ = finished
    shutil.copytree(experiment.output, tiny.output)
    for folder in tiny.output.glob("runs/train-*"):
        shutil.rmtree(folder)
    arguments = [
        "--set", f"trainer.deepspeed={ROOT}/ds_configs/zero3.json",
        "--set", "train.seeds=[0]", "--set", "train.baselines=['uniform']",
    ]  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "autoscale", "train", str(tiny.path), *arguments,
        ],
        capture_output=True, text=True, timeout=300, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = tiny.results()
    trained = [run for run in results if run.startswith("train-")]
    assert len(trained) == 2
    for run in trained:
        expected = experiment.results()[run]["final_losses"]
        assert results[run]["final_losses"] == pytest.approx(expected, abs=1e-3)
        if "autoscale" in run:
            assert exported(tiny.output / "runs" / run) == exported(
                experiment.output / "runs" / run
            )


def test_llama_bf16_and_recomputed_activations(tiny, worker, tmp_path):
    """Other families, precisions and memory settings train the same experiment."""
    settings = [
        [],
        ["trainer.activation_checkpointing=true"],
        ["trainer.precision=bf16", "trainer.schedule=wsd"],
    ]
    losses = []
    for index, changes in enumerate(settings):
        config = load_config(tiny.path, ["model={name='llama-nano'}", *changes])
        experiment = Experiment(config)
        [spec] = [p.spec for p in experiment.probes() if p.spec.label == "probe-8K-reference"]
        losses.append(train(worker, experiment, spec, tmp_path / str(index)).final_mean_loss)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=0.3)
    assert losses[0] < math.log(320)


def test_probes_of_several_ranks(finished, tiny):
    """`ranks_per_run` changes how a probe is trained, not what it is."""
    experiment, _ = finished
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "autoscale", "probe", str(tiny.path), "--only", "probe-8K-reference",
            "--only", "probe-4K-reference", "--set", "probe.ranks_per_run=2",
        ],
        capture_output=True, text=True, timeout=300, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(tiny.results()) == 2
    for run, result in tiny.results().items():
        assert result["world_size"] == 2
        alone = experiment.results()[run]
        assert result["final_losses"] == pytest.approx(alone["final_losses"], abs=1e-3)
