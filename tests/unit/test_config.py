from pathlib import Path

import pytest

from autoscale.config import load_config

EXAMPLES = sorted((Path(__file__).parents[2] / "launch" / "experiments").glob("*.toml"))

SMALL = """
name = "small"
output_dir = "out"
[data]
manifest = "shards/manifest.json"
sequence_length = 64
[model]
name = "gpt2-nano"
[trainer]
deepspeed = "zero1.json"
global_batch_tokens = "512"
lr = 1e-3
[probe]
budgets = ["100K", { tokens = "200K", lr = 5e-4 }]
[train]
budget = "400K"
"""


def load(tmp_path, text=SMALL, *overrides):
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path):
    assert load_config(path).name == path.stem


def test_paths_in_the_file_are_relative_to_it_and_in_overrides_to_here(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert load(tmp_path).output_dir == str(tmp_path / "out")
    assert load(tmp_path, SMALL, "output_dir=elsewhere").output_dir == "/elsewhere"


def test_a_variable_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDS", "/data/shards")
    config = load(tmp_path, SMALL.replace("shards/manifest", "${SHARDS}/manifest"))
    assert config.manifest_path == Path("/data/shards/manifest.json")


def test_budgets_carry_their_own_optimiser_settings(tmp_path):
    first, second = load(tmp_path).probe.budgets
    assert (first.tokens, first.lr) == (100_000, None)
    assert (second.tokens, second.lr) == (200_000, 5e-4)


def test_overrides_take_toml_values_and_bare_words(tmp_path):
    config = load(
        tmp_path, SMALL, "trainer.lr=2e-3", "fit.objective=mean_perplexity", "train.seeds=[3, 4]"
    )
    assert config.trainer.lr == 2e-3
    assert config.fit.objective == "mean_perplexity"
    assert config.train_seeds == (3, 4)


def test_a_dumped_config_is_the_same_when_read_again(tmp_path):
    config = load(tmp_path)
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sequence_lenght=8", r"unknown key; did you mean 'sequence_length'\?"),
        ("probes.factors=[3]", r"probes: unknown key; did you mean 'probe'\?"),
        ("probe.budgets=['100K', {tokens='200K', lrr=1}]", r"unknown key; did you mean 'lr'\?"),
        ("trainer.lr=fast", r"trainer.lr: .* found 'fast'"),
        ("trainer.lr=0", r"trainer.lr: .*greater than 0"),
        ("train.budget=12X", "token count '12X' cannot be read"),
        ("train.budget=100", "train.budget: token budget 100 is smaller than one batch of 512"),
        ("trainer.global_batch_tokens=500", "500, no multiple of data.sequence_length 64; use 448"),
        ("probe.budgets=['200K', '100K']", "budgets must rise and differ; found 200K, 100K"),
        ("probe.budgets=['200K']", "at least 2 items"),
        ("probe.factors=[1.0]", "greater than 1"),
        ("project.budgets=['100K', '300K']", "names 300K, which is no probe budget"),
        ("train.baselines=['best']", "baseline 'best' has no weights and is none of uniform"),
        ("train.baselines=['uniform', 'uniform']", "'uniform' given more than once"),
        ("model.name", "is not of the form section.key=value"),
        ("name.x=1", "'name' is a value, not a section"),
        ("train.ranks_per_run=0", "greater than or equal to 1"),
        ("trainer.betas=[0.9, 1.5]", "less than 1"),
        ("data.max_epochs=0.5", "greater than or equal to 1"),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, SMALL, override)


def test_a_zero_minimum_has_no_path_to_project_on(tmp_path):
    assert load(tmp_path, SMALL, "solve.min_weight=0").project.projection == "hold"
    with pytest.raises(ValueError, match=r"solve.min_weight 0 with projection 'full'"):
        load(tmp_path, SMALL, "solve.min_weight=0", "project.projection=full")


def test_a_path_starts_at_the_small_budget(tmp_path):
    assert load(tmp_path, SMALL, "train.budget=50K").train.budget.tokens == 50_000
    with pytest.raises(ValueError, match="lies below the smaller probe budget 100K"):
        load(tmp_path, SMALL, "train.budget=50K", "train.baselines=['full']")


def test_a_free_amplitude_needs_a_fourth_point(tmp_path):
    assert load(tmp_path, SMALL, "fit.amplitude=free", "probe.factors=[2, 4]")
    with pytest.raises(ValueError, match=r"add a factor to probe\.factors"):
        load(tmp_path, SMALL, "fit.amplitude=free")


def test_names_and_paths_in_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path, SMALL, "model.name=gpt2").model.name == "gpt2"
    assert load(tmp_path, SMALL, "model.name=./x").model.name == str(tmp_path / "x")


def test_the_file_itself_can_be_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"none.toml does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is not valid TOML"):
        load(tmp_path, "name = ")
    with pytest.raises(ValueError, match="trainer: is missing"):
        load(tmp_path, SMALL.replace("[trainer]", "[data.x]"))
    with pytest.raises(ValueError, match=r"give data.manifest, or a \[prepare\] section"):
        load(tmp_path, SMALL.replace('manifest = "shards/manifest.json"', ""))


def test_remote_code_cannot_be_switched_on(tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code: unknown key"):
        load(tmp_path, SMALL, "model.trust_remote_code=true")
