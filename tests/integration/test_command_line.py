"""User mistakes end with status 2, one message and no traceback, before anything is trained."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from autoscale.cli import app
from tests.conftest import ROOT

MISTAKES = [
    ("plan", ["data.sequence_lenght=8"], "did you mean 'sequence_length'?"),
    ("plan", ["data.domains=['python_code', 'cobol']"], "cobol"),
    ("plan", ["train.baselines=[{name='mine', weights={python_code=0.5}}]"], "sum to 0.5"),
    ("plan", ["probe.budgets=['100', '8K']"], "smaller than one batch of 256"),
    ("plan", ["data.sequence_length=65536", "trainer.global_batch_tokens=65536",
              "probe.budgets=['80K', '160K']", "train.budget=320K"], "65536"),
    ("plan", ["data.max_epochs=1", "train.budget=3M"], "max_epochs is 1; raise max_epochs"),
    ("plan", ["model.overrides={n_layer=1, n_embd=32, vocab_size=100}"], "320 tokens"),
    ("plan", ["train.baselines=['better']"], "is none of uniform, natural"),
    ("fit", [], "probe runs have no result yet"),
    ("project", [], "expected the fit written by an earlier step"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "overrides", "message"), MISTAKES)
def test_mistakes_are_errors_that_the_command_line_explains(tiny, command, overrides, message):
    """Each leaves the command as a ValueError, which `main` prints."""
    arguments = [argument for override in overrides for argument in ("--set", override)]
    with pytest.raises(ValueError, match=re.escape(message)):
        CliRunner().invoke(app, [command, str(tiny.path), *arguments], catch_exceptions=False)
    assert not tiny.results()


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        MISTAKES[0],
        ("train", [], "expected the mixture written by an earlier step"),
        ("probe", ["probe.ranks_per_run=2"], "ranks_per_run is 2 but the job has 1 ranks"),
    ],
)
def test_mistakes_exit_with_status_2_and_one_message(tiny, command, overrides, message):
    arguments = [argument for override in overrides for argument in ("--set", override)]
    done = tiny.try_autoscale(command, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not tiny.results()


def test_a_mixture_that_does_not_sum_to_one_is_found_before_training(tiny):
    tiny.output.mkdir()
    weights = {"python_code": 0.5, "english_docs": 0.3, "cpp_headers": 0.1}
    content = {"kind": "mixture", "schema_version": 1, "weights": weights, "alternatives": {}}
    (tiny.output / "mixture-12K.json").write_text(json.dumps(content))
    done = tiny.try_autoscale("train")
    assert done.returncode == 2
    assert "sum to 0.9; expected 1" in done.stderr


def test_shards_that_disagree_with_the_manifest_are_found_before_training(tiny, tiny_shards):
    shards = tiny.path.parent / "damaged"
    shutil.copytree(tiny_shards, shards)
    victim = next(shards.glob("shards/python_code/*/train-00000.bin"))
    victim.write_bytes(victim.read_bytes()[:-64])
    done = tiny.try_autoscale("probe", "--set", f"data.manifest={shards / 'manifest.json'}")
    assert done.returncode == 2
    assert "train-00000" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_deepspeed_file_is_a_users_mistake(tiny):
    done = tiny.try_autoscale(
        "probe", "--only", "probe-4K-reference", "--set", "trainer.deepspeed=none.json"
    )
    assert done.returncode == 2
    assert "none.json does not exist; see ds_configs/" in done.stderr


def test_plan_needs_no_training_and_writes_its_artifact(tiny):
    done = tiny.autoscale("plan")
    assert "probe-4K-reference" in done.stdout
    assert (tiny.output / "plan.json").is_file()
    assert not (tiny.output / "runs").exists()


def test_only_names_runs_of_the_plan(tiny):
    done = tiny.try_autoscale("probe", "--only", "nonsense")
    assert done.returncode == 2
    assert "--only nonsense: no run of this experiment" in done.stderr
    tiny.autoscale("probe", "--only", "probe-4K-reference", "--only", "probe-4K-mix-003")
    labels = {result["spec"]["label"] for result in tiny.results().values()}
    assert labels == {"probe-4K-reference", "probe-4K-mix-003"}


def test_version():
    done = subprocess.run(
        [sys.executable, "-m", "autoscale", "--version"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("autoscale 0.1")
