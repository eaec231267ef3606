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
    published = ["fit.law=autoscale", "probe.factors=[2, 4]"]
    joint = ["probe.runs=[5, 6]", "solve.groups=[{name='g', domains=['a']}]", "fit.repetition=5"]
    joint += ["solve.prior={strength=0.1, mixture={a=0.5, b=0.5}}"]
    for overrides in ([], published, joint):
        config = load(tmp_path, SMALL, *overrides)
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
        ("probe.budgets=[]", "at least 1 item"),
        ("probe.factors=[1.0]", "greater than 1"),
        ("project.budgets=['100K', '300K']", "names 300K, which is no probe budget"),
        ("train.baselines=['best']", "baseline 'best' has no weights and is none of uniform"),
        ("train.baselines=['uniform', 'uniform']", "'uniform' given more than once"),
        ("model.name", "is not of the form section.key=value"),
        ("name.x=1", "'name' is a value, not a section"),
        ("train.ranks_per_run=0", "greater than or equal to 1"),
        ("trainer.betas=[0.9, 1.5]", "less than 1"),
        ("data.max_epochs=0.5", "greater than or equal to 1"),
        ("train.budget={tokens='1M', model={name='gpt2-mini'}}", "budget.model: unknown key"),
        ("probe.concentration=[6, 1]", r"concentration is \[6, 1\]; expected 0 < low <= high"),
        ("probe.runs=[4]", "runs lists 1 numbers for 2 budgets; give one a budget"),
        ("probe.runs=0", "probe.runs: .*greater than or equal to 1.*; found 0"),
        ("probe.design=sobol", "'one_at_a_time', 'dirichlet' or 'optimal'; found 'sobol'"),
        ("probe.fixed_budget=false", "fixed_budget = false has no place in the design 'dirichlet'"),
        ("probe.factors=[2, 4]", "factors has no place in .* set probe.design = 'one_at_a_time'"),
        ("fit.law=regmix", "'bimix' or 'trees'; found 'regmix'"),
        (
            "fit.amplitude=free",
            "'free' belongs to law 'autoscale', fit.law is 'auto'; use law 'sep",
        ),
        (
            "fit.repetition=-1",
            "fit.repetition: .*'none', 'auto' or 'fit'.*greater than 0; found -1",
        ),
        ("solve.prior={mixture='uniform'}", "solve.prior.strength: is missing"),
        ("solve.prior={strength=0}", "greater than 0"),
        ("solve.no_harm=-0.1", "greater than or equal to 0"),
        ("solve.groups=[{name='g', domains=[]}]", "at least 1 item"),
        ("solve.groups=[{name='g', domains=['a', 'a']}]", "of group 'g': 'a' given more than once"),
        (
            "solve.groups=[{name='g', domains=['a'], min_weight=0.5, max_weight=0.25}]",
            "group 'g' has min_weight 0.5 above max_weight 0.25; lower one or raise the other",
        ),
        (
            "solve.groups=[{name='g', domains=['a']}, {name='g', domains=['b']}]",
            "solve.groups: 'g' given more than once",
        ),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, SMALL, override)


def test_trees_have_no_term_of_repetition(tmp_path):
    with pytest.raises(ValueError, match=r"fit.repetition 4 has no place in law 'trees'"):
        load(tmp_path, SMALL, "fit.law=trees", "fit.repetition=4")


def test_a_zero_minimum_has_no_path_to_project_on(tmp_path):
    assert load(tmp_path, SMALL, "solve.min_weight=0", "project.projection=hold")
    with pytest.raises(ValueError, match=r"solve.min_weight 0 with projection 'full'"):
        load(tmp_path, SMALL, "solve.min_weight=0", "project.projection=full")


def test_a_path_starts_at_the_small_budget(tmp_path):
    assert load(tmp_path, SMALL, "train.budget=50K").train.budget.tokens == 50_000
    with pytest.raises(ValueError, match="lies below the smaller probe budget 100K"):
        load(tmp_path, SMALL, "train.budget=50K", "train.baselines=['full']")


def test_a_path_needs_two_budgets_and_the_rest_one(tmp_path):
    one = SMALL.replace('["100K", { tokens = "200K", lr = 5e-4 }]', '["200K"]')
    for projection in ("auto", "hold"):
        config = load(tmp_path, one, f"project.projection={projection}")
        assert config.projection_budgets is None
    assert load(tmp_path, one, "fit.law=autoscale", "train.baselines=['hold']")
    for override in ("project.projection=damped", "train.baselines=['damped']"):
        with pytest.raises(ValueError, match=r"'damped' follows a path through two token budgets"):
            load(tmp_path, one, override)
    for override in ("project.projection=joint", "train.baselines=['joint']"):
        with pytest.raises(ValueError, match=r"'joint' solves a law of tokens .* has one budget"):
            load(tmp_path, one, override)
    named = "train.baselines=[{name='full', weights={a=0.5, b=0.5}}]"
    assert load(tmp_path, one, named).train.baselines[0].weights


def test_the_path_takes_the_two_largest_budgets(tmp_path):
    three = "probe.budgets=['100K', '200K', '300K']"
    assert load(tmp_path, SMALL, three).projection_budgets == (200_000, 300_000)
    named = "project.budgets=['100K', '300K']"
    assert load(tmp_path, SMALL, three, named).projection_budgets == (100_000, 300_000)
    with pytest.raises(ValueError, match=r"project.budgets must rise"):
        load(tmp_path, SMALL, three, "project.budgets=['300K', '100K']")


def test_a_free_amplitude_needs_a_fourth_point(tmp_path):
    published = ("fit.law=autoscale", "fit.amplitude=free")
    assert load(tmp_path, SMALL, *published, "probe.factors=[2, 4]")
    with pytest.raises(ValueError, match=r"add a factor to probe\.factors"):
        load(tmp_path, SMALL, *published)


def test_defaults_follow_the_law(tmp_path):
    joint, published = load(tmp_path), load(tmp_path, SMALL, "fit.law=autoscale")
    assert joint.fit.law == "auto"
    assert (joint.probe_design, joint.fixed_budget) == ("dirichlet", True)
    assert (published.probe_design, published.fixed_budget) == ("one_at_a_time", False)
    assert (joint.projection, published.projection) == ("auto", "hold")
    scaled = load(tmp_path, SMALL, "probe.design=one_at_a_time", "probe.factors=[2]")
    assert (scaled.probe_design, scaled.fixed_budget) == ("one_at_a_time", False)
    assert load(tmp_path, SMALL, "fit.law=autoscale", "probe.fixed_budget=true").fixed_budget


def test_numbers_of_mixtures(tmp_path):
    assert load(tmp_path).num_mixtures(1, 7) == 14
    assert load(tmp_path, SMALL, "probe.runs=20").num_mixtures(1, 7) == 20
    config = load(tmp_path, SMALL, "probe.runs=[5, 30]")
    assert [config.num_mixtures(index, 7) for index in (0, 1)] == [5, 30]
    for unused in ("probe.runs=5", "probe.concentration=[2, 6]"):
        with pytest.raises(ValueError, match=r"no place in the design 'one_at_a_time'; leave it"):
            load(tmp_path, SMALL, "probe.design=one_at_a_time", unused)


@pytest.mark.parametrize(
    "override",
    [
        "probe.design=dirichlet",
        "probe.replicates=2",
        "probe.budgets=['100K', {tokens='200K', model={name='gpt2-mini'}}]",
        "fit.metric=bits_per_byte",
        "fit.objective=worst_loss",
        "fit.repetition=15",
        "fit.trajectories=0.1",
        "solve.groups=[{name='g', domains=['a']}]",
        "solve.prior={strength=0.1}",
        "solve.no_harm=0.01",
    ],
)
def test_the_published_law_takes_nothing_that_it_would_ignore(tmp_path, override):
    assert load(tmp_path, SMALL, override)
    key = override.partition("=")[0]
    expected = rf"{key}.* has no place in law 'autoscale', which is the published method; leave it"
    with pytest.raises(ValueError, match=expected):
        load(tmp_path, SMALL, "fit.law=autoscale", override)


def test_the_published_law_has_no_joint_projection(tmp_path):
    for override in ("project.projection=joint", "train.baselines=['joint']"):
        with pytest.raises(ValueError, match="'joint' solves a joint law at the target, and"):
            load(tmp_path, SMALL, "fit.law=autoscale", override)


def test_what_has_no_meaning_together_is_refused(tmp_path):
    for objective in ("mean_perplexity", "worst_loss"):
        with pytest.raises(ValueError, match=f"'{objective}' is made of losses in nats a token"):
            load(tmp_path, SMALL, "fit.metric=bits_per_byte", f"fit.objective={objective}")
    with pytest.raises(ValueError, match=r"fit.trajectories uses evaluations before the end"):
        load(tmp_path, SMALL, "fit.trajectories=0.1", "evaluation.probe_points=1")


def test_budgets_rise_for_each_model(tmp_path):
    nano, mini = "{name='gpt2-nano'}", "{name='gpt2-mini'}"
    budgets = f"'100K', {{tokens='50K', model={mini}}}, '200K', {{tokens='100K', model={mini}}}"
    config = load(tmp_path, SMALL, f"probe.budgets=[{budgets}]")
    names = [config.probe_model(budget).name for budget in config.probe.budgets]
    assert names == ["gpt2-nano", "gpt2-mini"] * 2
    assert config.projection_budgets == (100_000, 200_000)
    with pytest.raises(ValueError, match=r"probe.budgets must rise and differ; found 100K, 100K"):
        load(tmp_path, SMALL, f"probe.budgets=['100K', {{tokens='100K', model={nano}}}]")
    with pytest.raises(ValueError, match=r"of model 'gpt2-mini' must rise and differ; found 200K"):
        load(tmp_path, SMALL, f"probe.budgets=[{budgets.replace('50K', '200K')}]")


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


def test_the_data_path_is_plain_by_default(tmp_path):
    config = load(tmp_path)
    assert (config.data.packing, config.data.locality) == ("contiguous", 1)
    assert (config.probe.match_repetition, config.train.stages) == (False, ())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.packing=tight"], "data.packing: .*'best_fit'"),
        (["data.locality=0"], "data.locality: .*greater than or equal to 1"),
        (["train.stages=[{begin = 0, weights = 'uniform'}]"], "begin: .*greater than 0"),
        (["train.stages=[{begin = 1, weights = 'uniform'}]"], "begin: .*less than 1"),
        (
            ["train.stages=[{begin=0.8,weights='uniform'},{begin=0.8,weights='natural'}]"],
            "the begins of train.stages must rise and differ; found 0.8, 0.8",
        ),
        (
            ["probe.match_repetition=true", "fit.repetition=fit"],
            "the probe runs repeat like the target run, .* leave fit.repetition out",
        ),
        (["probe.match_repetition=true", "fit.repetition=4.0"], "leave fit.repetition out"),
        (
            ["probe.match_repetition=true", "fit.trajectories=0.5"],
            "only its end has repeated the data as often .* leave fit.trajectories out",
        ),
    ],
)
def test_settings_of_the_data_path_are_checked(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, SMALL, *overrides)
