"""`autoscale prepare` on the command line: its three modes, and an experiment on adopted data."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoscale.cli import app
from autoscale.manifest import Manifest
from autoscale.report import report
from autoscale.stages import plan
from tests.unit.fake_experiment import JOINT, FakeExperiment

NUMBERS = ("--vocab-size", "2048", "--end-of-text-id", "0")


@pytest.fixture
def fake(tmp_path: Path) -> FakeExperiment:
    return FakeExperiment(tmp_path)


def autoscale(*arguments: object) -> str:
    """Output of a command that succeeds."""
    done = CliRunner().invoke(app, ["prepare", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refuse(message: str, *arguments: object) -> None:
    """The command raises the one line that `main` prints."""
    with pytest.raises(ValueError, match=message) as caught:
        autoscale(*arguments)
    assert "\n" not in str(caught.value)


def test_shards_are_adopted_and_shown(fake: FakeExperiment) -> None:
    shards = fake.folder / "shards"
    output = autoscale("--from", shards, *NUMBERS)
    lines = [line.split() for line in output.splitlines()]
    assert " ".join(lines[0]) == "domain shards documents train tokens validation tokens"
    known = Manifest.load(fake.folder / "manifest.json").domain("python_code")
    documents = sum(shard.documents or 0 for shard in (*known.train, *known.validation))
    row = next(line for line in lines if line[0] == "python_code")
    assert row == ["python_code", "1", "+", "1", f"{documents:,}", "120K", "4K"]
    assert output.splitlines()[-1] == f"wrote {shards / 'manifest.json'}"


def test_options_reach_the_manifest(fake: FakeExperiment) -> None:
    shards, output = fake.folder / "shards", fake.folder / "own.json"
    autoscale(
        *("--from", shards, "-o", output, *NUMBERS),
        *("--domain", "code=python_code/*", "--domain", "code=cpp_headers/*"),
        *("--validation", "python_code/train*"),
    )
    (code,) = Manifest.load(output).domains
    assert [shard.path for shard in code.validation] == ["python_code/train-00000"]
    assert len(code.train) == 3
    autoscale("--verify", output)


def test_an_experiment_runs_on_adopted_shards(fake: FakeExperiment) -> None:
    """Plan to report, without tokenizer files and without the bytes of texts."""
    prepared = Manifest.load(fake.folder / "manifest.json")
    autoscale("--from", fake.folder / "shards", "-o", fake.folder / "manifest.json", *NUMBERS)
    adopted = Manifest.load(fake.folder / "manifest.json")
    assert adopted.tokenizer.path is None
    assert adopted.domains[0].train[0].sha256 in {
        shard.sha256 for domain in prepared.domains for shard in domain.train
    }
    plan(fake.config)
    fake.run()
    page = report(fake.config).read_text()
    assert "unknown" in page
    bits = fake.changed({**JOINT, "fit": {"law": "auto", "metric": "bits_per_byte"}})
    with pytest.raises(ValueError, match="the bytes of its validation texts are not known"):
        plan(bits)


def test_modes_are_not_mixed(fake: FakeExperiment) -> None:
    manifest = fake.folder / "manifest.json"
    refuse("give one of an experiment file, --from FOLDER, or --verify FILE")
    refuse("give one of an experiment file", "x.toml", "--verify", manifest)
    refuse("give one of an experiment file", "--from", fake.folder, "--verify", manifest)
    refuse("--dtype is for --from; leave it out", "--verify", manifest, "--dtype", "uint16")
    refuse("--domain is for --from; leave it out", "x.toml", "--domain", "a=b")
    refuse("--set overrides an experiment file", "--from", fake.folder, "--set", "a.b=1")
    refuse("experiment file .*x.toml does not exist", "--verify", fake.folder / "x.toml")
    refuse("none.json does not exist; expected the manifest", "--verify", "none.json")


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "autoscale", "prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_mistakes_and_damage_end_with_status_2_and_a_line_each(fake: FakeExperiment) -> None:
    manifest = fake.folder / "manifest.json"
    mistake = run("--from", fake.folder / "nowhere", *NUMBERS)
    assert mistake.returncode == 2
    (line,) = mistake.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nowhere is no folder" in line
    (fake.folder / "shards/cpp_headers/train-00000.idx").unlink()
    (fake.folder / "shards/licences/train-00000.bin").write_bytes(b"")
    damage = run("--verify", manifest)
    assert damage.returncode == 2
    problems = [line for line in damage.stderr.splitlines() if line.startswith("error: ")]
    assert len(problems) == 3
    assert "cannot be loaded" in problems[0]
    assert "domain 'cpp_headers', train shard shards/cpp_headers/train-00000" in problems[1]
    assert "domain 'licences', train shard shards/licences/train-00000" in problems[2]
