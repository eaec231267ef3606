"""What the README says is true: its file list, its commands, its examples."""

import re
import tomllib
from pathlib import Path

import pytest

from autoscale.cli import app
from autoscale.config import load_config
from autoscale.config_bench import BenchConfig
from autoscale.config_method import KNOWN_BASELINES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_file_list_names_every_module_and_nothing_else():
    table = TEXT.split("\n## Files\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(?:autoscale/)?(?:\w+/)?([a-z_]+\.py)`", table))
    modules = {path.name for path in (ROOT / "autoscale").rglob("*.py")}
    assert modules <= named
    assert named - modules == {"setup.py", "conftest.py", "build.py"}
    for name in re.findall(r"`((?:launch|tests|ds_configs|data_prep|benchmarks)/[\w./]*)`", table):
        assert (ROOT / name).exists(), name


def test_the_experiment_file_is_valid(tmp_path):
    example, bench = blocks("toml")
    path = tmp_path / "mine.toml"
    path.write_text(example)
    config = load_config(path)
    assert [domain.name for domain in config.prepare.domains] == ["web", "code", "books"]
    section = BenchConfig.model_validate(tomllib.loads(bench)["bench"])
    assert section.methods[0] == "natural" and section.objectives[0].name == "out_of_domain"


def test_every_command_exists_and_every_command_is_listed():
    commands = {info.name or info.callback.__name__ for info in app.registered_commands}
    arguments = "X.toml|fit.json|RUN_FOLDER|MODEL_FOLDER|--table"
    listed = re.findall(rf"^\| `autoscale (\w+) (?:{arguments})", TEXT, flags=re.MULTILINE)
    assert set(listed) == commands


def test_every_option_and_launcher_exists():
    for name in set(re.findall(r"launch/\w+\.(?:sh|sbatch)", TEXT)):
        assert (ROOT / name).is_file(), name
    for baseline in KNOWN_BASELINES:
        assert f'"{baseline}"' in TEXT


@pytest.mark.parametrize("code", blocks("python"), ids=range(len(blocks("python"))))
def test_the_python_examples_compile(code):
    compile(code, "README.md", "exec")


def test_the_official_example_prints_what_its_comments_say(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example = next(code for code in blocks("python") if "autoscale_official" in code)
    exec(compile(example, "README.md", "exec"), {})
    printed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    stated = re.findall(r"# ([\d., ]+)", example)
    assert printed == [number.strip() for numbers in stated for number in numbers.split(",")]


def test_no_placeholder_is_left():
    assert "<<" not in TEXT
