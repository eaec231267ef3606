import json

import numpy as np
import pytest

from autoscale.mixture import Mixture
from autoscale.planning import Experiment
from autoscale.stages import plan
from tests.unit.fake_experiment import FOUR, FakeExperiment

JOINT = {"fit": {"law": "auto"}}  # the fake experiment's law is the published one


@pytest.fixture
def fake(tmp_path):
    return FakeExperiment(tmp_path)


def test_probes_of_a_budget_share_all_but_their_quotas(fake):
    planned = [p for p in fake.experiment.probes() if p.probe.seed == 0]
    assert len(planned) == 2 * (1 + 2 * len(FOUR))
    for budget in (80_000, 160_000):
        specs = [p.spec for p in planned if p.token_budget == budget]
        shared = {
            json.dumps([s.seed, s.to_dict()["model"], s.to_dict()["optimisation"], s.data])
            for s in specs
        }
        assert len(shared) == 1


def test_one_domain_is_scaled_and_the_others_stay_exactly(fake):
    planned = [p for p in fake.experiment.probes() if p.token_budget == 160_000]
    reference = np.array(planned[0].spec.sequences)
    for probe in planned:
        changed = np.flatnonzero(np.array(probe.spec.sequences) != reference)
        expected = [] if probe.probe.domain is None else [FOUR.index(probe.probe.domain)]
        assert changed.tolist() == expected
        assert sum(probe.spec.sequences) % probe.spec.sequences_per_batch == 0


def test_targets_pair_every_mixture_with_every_seed(fake):
    experiment = fake.experiment
    mixtures = {"autoscale": Mixture.uniform(FOUR), **experiment.baselines({"hold": uniform()})}
    targets = experiment.targets(mixtures)
    assert [(t.mixture, t.seed) for t in targets] == [
        (name, seed) for name in ("autoscale", "uniform", "natural", "hold") for seed in (0, 1, 2)
    ]
    # The same mixture under another name is the same run.
    same = {t.spec.identity for t in targets if t.seed == 0 and t.mixture != "natural"}
    assert len(same) == 1
    natural = experiment.baselines({"hold": uniform()})["natural"].weights
    assert natural == tuple(sorted(natural))


def uniform():
    return Mixture.uniform(FOUR).to_dict()


def test_execution_settings_are_no_part_of_a_run(fake, tmp_path):
    tables = {"output_dir": "elsewhere", "data": {"max_epochs": 100}}
    tables["trainer"] = {"micro_batch_size": 1, "activation_checkpointing": True}
    tables["checkpoint"] = {"save_every": 9, "keep_last": 5}
    other = FakeExperiment(tmp_path / "other", tables=tables)
    assert [p.spec.identity for p in other.experiment.probes()] == [
        p.spec.identity for p in fake.experiment.probes()
    ]


def test_what_changes_the_loss_is(fake, tmp_path):
    known = {p.spec.identity for p in fake.experiment.probes()}
    changes = [
        {"trainer": {"lr": 2e-3}},
        {"trainer": {"weight_decay": 0.2}},
        {"trainer": {"precision": "fp32"}},
        {"model": {"overrides": {"n_layer": 1}}},
        {"seed": 9},
        {"data": {"sequence_length": 64}},
        {"evaluation": {"sequences_per_domain": 8}},
    ]
    for index, tables in enumerate(changes):
        other = FakeExperiment(tmp_path / str(index), tables=tables)
        assert not known & {p.spec.identity for p in other.experiment.probes()}, tables


def test_budgets_own_their_optimiser_settings(tmp_path):
    budgets = ["80K", {"tokens": "160K", "lr": 5e-4, "global_batch_tokens": "2048"}]
    fake = FakeExperiment(tmp_path, tables={"probe": {"budgets": budgets}})
    by_budget = {p.token_budget: p.spec for p in fake.experiment.probes()}
    assert by_budget[80_000].optimisation["lr"] == 1e-3
    assert by_budget[160_000].optimisation["lr"] == 5e-4
    assert by_budget[160_000].sequences_per_batch == 16


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {"domains": ["python_code", "cobol"]}}, "cobol"),
        ({"data": {"domains": ["python_code"]}}, "needs at least two domains"),
        ({"probe": {"reference": {"python_code": 1.0}}}, "lacks domain"),
        ({"data": {"sequence_length": 8192}, "trainer": {"global_batch_tokens": 8192}}, "8192"),
        ({"model": {"overrides": {"vocab_size": 2000}}}, "tokenizer has 2048 tokens"),
        ({"solve": {"max_weight": 0.2}}, "sum to 0.8"),
        ({"solve": {"min_weight": {"python_code": 0.1}}}, "solve.min_weight lacks domain"),
        ({"fit": {"objective_weights": {"python": 1.0}}}, "did you mean 'python_code'"),
        ({"solve": {"prior": {"strength": 1, "mixture": {"cobol": 1.0}}}, **JOINT}, "cobol"),
        ({"solve": {"groups": [{"name": "g", "domains": ["cobol"]}]}, **JOINT}, "group 'g'.*cobol"),
        (
            {
                "solve": {
                    "max_weight": 0.3,
                    "groups": [{"name": "g", "domains": list(FOUR[:2]), "min_weight": 0.7}],
                },
                **JOINT,
            },
            "no mixture has .*minimum 0.7 of group 'g'",
        ),
        ({"train": {"baselines": [{"name": "mine", "weights": {"cobol": 1.0}}]}}, "cobol"),
        ({"model": {"name": "gpt2-nanoo"}}, "did you mean 'gpt2-nano'"),
    ],
)
def test_an_experiment_that_does_not_fit_its_data_is_refused(tmp_path, tables, message):
    fake = FakeExperiment(tmp_path, tables=tables)
    with pytest.raises(ValueError, match=message):
        Experiment(fake.config)


def test_more_tokens_than_a_domain_has_need_repetition(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"data": {"max_epochs": 1}, "train": {"budget": "520K"}})
    expected = r"domain 'python_code', which has .* epochs, but data.max_epochs is 1; allow more"
    with pytest.raises(ValueError, match=expected):
        fake.experiment.targets({"uniform": Mixture.uniform(FOUR)})


def test_manifest_and_shards_must_agree(fake):
    path = fake.folder / "shards" / "python_code" / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train-00000.*"):
        Experiment(fake.config)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00000.*"):
        Experiment(fake.config)


def test_a_deepspeed_file_that_sets_what_the_experiment_owns_is_refused(fake):
    (fake.folder / "zero1.json").write_text('{"train_batch_size": 8}')
    with pytest.raises(ValueError, match="sets 'train_batch_size', which the experiment owns"):
        Experiment(fake.config)


def test_named_baselines_are_checked_as_they_are_and_unknown_mixtures_are_not(tmp_path):
    """The optimum may lie anywhere within the caps; only what is known can be refused early."""
    tables = {"data": {"max_epochs": 1}, "train": {"budget": "500K", "baselines": ["natural"]}}
    plan(FakeExperiment(tmp_path / "feasible", tables=tables).config)
    tables["train"]["baselines"] = ["uniform"]
    fake = FakeExperiment(tmp_path / "infeasible", tables=tables)
    with pytest.raises(ValueError, match=r"uniform-seed0' needs .* data.max_epochs is 1"):
        plan(fake.config)


def test_domains_that_no_run_uses_are_no_part_of_a_run(tmp_path):
    two = {"data": {"domains": ["python_code", "cpp_headers"]}}
    full = FakeExperiment(tmp_path / "four", tables=two)
    known = {p.spec.identity for p in full.experiment.probes()}
    manifest = json.loads((full.folder / "manifest.json").read_text())
    manifest["domains"] = [d for d in manifest["domains"] if d["name"] in two["data"]["domains"]]
    (full.folder / "manifest.json").write_text(json.dumps(manifest))
    assert {p.spec.identity for p in full.experiment.probes()} == known


def test_a_missing_manifest_names_the_command_that_makes_it(fake):
    (fake.folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="does not exist; run `autoscale prepare` first"):
        Experiment(fake.config)


def test_bf16_needs_a_stage_that_keeps_fp32_sums(fake):
    (fake.folder / "zero1.json").write_text('{"zero_optimization": {"stage": 0}}')
    with pytest.raises(ValueError, match=r"'bf16' with ZeRO stage 0 .* use zero1.json or fp32"):
        Experiment(fake.config)


def test_a_target_never_draws_more_than_its_budget_and_so_never_more_than_its_caps(tmp_path):
    tables = {"train": {"budget": "521500", "baselines": []}, "data": {"max_epochs": 1}}
    fake = FakeExperiment(tmp_path, tables=tables)
    experiment = fake.experiment
    _, upper = experiment.bounds(521_500)
    weights = upper / upper.sum()
    mixture = Mixture.from_array(FOUR, np.minimum(weights, upper))
    [target, *_] = experiment.targets({"autoscale": mixture})
    assert 521_500 - 1024 < target.spec.total_tokens <= 521_500


def joint(folder, **probe):
    return FakeExperiment(folder, tables={**JOINT, "probe": probe}).experiment


def test_drawn_probes_share_total_and_seed_and_are_told_from_references(tmp_path):
    planned = joint(tmp_path, runs=[5, 7]).probes()
    for budget, runs in ((80_000, 5), (160_000, 7)):
        probes = [p for p in planned if p.token_budget == budget]
        assert [p.probe.is_reference for p in probes] == [True] * 3 + [False] * runs
        assert len({p.spec.total_tokens for p in probes}) == 1
        assert {p.spec.seed for p in probes[3:]} == {0}
        assert probes[-1].spec.label.endswith(f"K-mix-{runs - 1:03d}")
    assert len({p.spec.identity for p in planned}) == len(planned) == 18
    mixtures = [np.array(p.spec.sequences) / sum(p.spec.sequences) for p in planned]
    assert not np.isclose(mixtures[3], mixtures[11], atol=0.01).all()  # mix-000 at both budgets


def test_more_drawn_probes_keep_the_runs_that_are_done(tmp_path):
    few = {p.spec.identity for p in joint(tmp_path / "few", runs=4).probes()}
    many = {p.spec.identity for p in joint(tmp_path / "many", runs=9, replicates=2).probes()}
    assert few < many
    by_default = joint(tmp_path / "default").probes()
    assert len(by_default) == 2 * (3 + 2 * len(FOUR))


@pytest.mark.parametrize("design", ["dirichlet", "optimal"])
def test_no_drawn_probe_repeats_a_domain_more_than_allowed(tmp_path, design):
    tables = {**JOINT, "data": {"max_epochs": 1}, "train": {"budget": "400K"}}
    tables["probe"] = {"design": design, "budgets": ["350K"], "runs": 12}
    tables["project"] = {"projection": "auto"}
    experiment = FakeExperiment(tmp_path, tables=tables).experiment
    most = [max(p.spec.sequences[i] for p in experiment.probes()) for i in range(4)]
    assert (np.array(most) <= experiment.num_windows).all()
    assert max(most) > 0.9 * min(experiment.num_windows)


def test_probes_may_train_models_of_other_sizes(tmp_path):
    micro = {"tokens": "80K", "model": {"name": "gpt2-micro", "overrides": {"n_layer": 1}}}
    experiment = joint(tmp_path, budgets=["80K", "160K", micro], runs=3)
    planned = experiment.probes()
    own = [p for p in planned if p.spec.model == experiment.model]
    other = [p for p in planned if p.spec.model != experiment.model]
    assert len(own) == 12 and len(other) == 6
    assert {p.spec.model["n_embd"] for p in other} == {96}
    assert len({p.parameters for p in own}) == 1
    assert other[0].parameters != own[0].parameters
    assert other[0].spec.label == "probe-80K-gpt2-micro-n_layer1-reference"
    assert len({p.spec.label for p in planned}) == len(planned)
    assert experiment.targets({"uniform": Mixture.uniform(FOUR)})[0].spec.model == experiment.model


def test_constraints_are_bounds_caps_and_groups(tmp_path):
    group = {"name": "code", "domains": ["python_code", "cpp_headers"], "max_weight": 0.5}
    tables = {**JOINT, "solve": {"groups": [group], "min_weight": 0.1}, "data": {"max_epochs": 1}}
    tables["solve"]["prior"] = {"strength": 0.1, "mixture": "natural"}
    tables["train"] = {"budget": "320K"}
    experiment = FakeExperiment(tmp_path, tables=tables).experiment
    constraints = experiment.constraints(320_000)
    lower, upper = experiment.bounds(320_000)
    assert (constraints.lower == lower).all() and (constraints.upper == upper).all()
    assert lower.tolist() == [0.1] * 4 and (upper < 0.5).all()
    [found] = constraints.groups
    assert (found.domains, found.lower, found.upper) == (("python_code", "cpp_headers"), 0, 0.5)
    assert experiment.prior == Mixture.natural(FOUR, experiment.available_tokens)


def test_bits_per_byte_as_metric_weigh_losses_by_the_bytes_of_a_token(tmp_path):
    tables = {"fit": {"law": "auto", "metric": "bits_per_byte"}}
    experiment = FakeExperiment(tmp_path, tables=tables).experiment
    losses = dict(zip(FOUR, (2.0, 3.0, 4.0, 5.0), strict=True))
    bits = [
        loss / np.log(2) / experiment.manifest.bytes_per_token(name)
        for name, loss in losses.items()
    ]
    assert experiment.objective.value(losses) == pytest.approx(np.mean(bits))


SKEWED = dict(zip(FOUR, (0.1, 0.2, 0.3, 0.4), strict=True))


def test_later_stages_take_their_weights_exactly_and_add_up(tmp_path):
    later = [{"begin": 0.5, "weights": SKEWED}, {"begin": 0.83, "weights": "natural"}]
    fake = FakeExperiment(tmp_path, tables={"train": {"stages": later}})
    experiment = fake.experiment
    plain = FakeExperiment(tmp_path / "plain").experiment
    mixtures = {"uniform": Mixture.uniform(FOUR)}
    [spec, *_] = [target.spec for target in experiment.targets(mixtures)]
    [one_part, *_] = [target.spec for target in plain.targets(mixtures)]
    steps = [sum(quotas) / spec.sequences_per_batch for quotas in spec.stages]
    assert steps == [312, 207, 106]  # of 625: whole batches
    assert sum(spec.sequences) == sum(one_part.sequences)
    weights = [Mixture.uniform(FOUR), Mixture.from_mapping(SKEWED), experiment.later_mixtures[1]]
    for quotas, mixture in zip(spec.stages, weights, strict=True):
        exact = np.array(mixture.as_array()) * sum(quotas)
        assert (np.abs(np.array(quotas) - exact) < 1).all()
    assert np.array_equal(np.sum(spec.stages, axis=0), spec.sequences)
    assert [p.spec.identity for p in experiment.probes()] == [
        p.spec.identity for p in plain.probes()
    ]
    [printed] = [row for row in planned(fake)["train_stages"] if row["step"] == 312]
    assert printed["weights"] == pytest.approx(SKEWED, abs=1e-3)


def planned(fake):
    return json.loads(plan(fake.config).read_text())


def test_a_later_stage_counts_towards_the_epochs_of_a_domain(tmp_path):
    alone = {name: float(name == "python_code") for name in FOUR}
    stages = [{"begin": 0.5, "weights": alone}]
    fake = FakeExperiment(tmp_path, tables={"data": {"max_epochs": 3}, "train": {"stages": stages}})
    with pytest.raises(ValueError, match=r"domain 'python_code', .* 3\.34 epochs, but"):
        fake.experiment.targets({"uniform": Mixture.uniform(FOUR)})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"begin": 0.5, "weights": {"cobol": 1.0}}], "cobol"),
        (
            [{"begin": 0.0001, "weights": "uniform"}],
            "part 1 of a run of 625 steps begins at step 0",
        ),
        (
            [{"begin": 0.9999, "weights": "uniform"}],
            "part 2 of a run of 625 steps begins at step 6",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(tmp_path, stages, message):
    fake = FakeExperiment(tmp_path, tables={"train": {"stages": stages}})
    with pytest.raises(ValueError, match=message):
        fake.experiment.targets({"uniform": Mixture.uniform(FOUR)})


MATCHED = {"probe": {"match_repetition": True}}


def test_matched_probes_repeat_each_domain_as_the_target_would(tmp_path):
    tables = {**MATCHED, "train": {"budget": "1600K"}, "data": {"max_epochs": 12}}
    fake = FakeExperiment(tmp_path, documents=400, tables=tables)
    experiment = fake.experiment
    assert [experiment.share(tokens) for tokens in (80_000, 160_000)] == [0.05, 0.1]
    for probe in experiment.probes():
        assert probe.spec.share == experiment.share(probe.token_budget)
        weights = np.array(probe.spec.sequences) / sum(probe.spec.sequences)
        size = sum(probe.spec.sequences) / (probe.token_budget / 128)  # it may be scaled
        epochs = probe.spec.sequences / experiment.supply_of(probe.spec).windows
        of_target = size * weights * 1_600_000 / np.array(experiment.available_tokens)
        assert epochs == pytest.approx(of_target, rel=0.1)  # whole documents and windows
    [target, *_] = experiment.targets({"uniform": Mixture.uniform(FOUR)})
    assert target.spec.share == 1
    for tokens in (80_000, 160_000):  # the cap on epochs is the target's, too
        assert experiment.bounds(tokens)[1] == pytest.approx(experiment.bounds(1_600_000)[1], 0.1)


def test_the_plan_shows_what_matched_probes_draw_from(tmp_path):
    fake = FakeExperiment(tmp_path, documents=400, tables=MATCHED)
    rows = planned(fake)["matched_probes"]
    assert [(row["token_budget"], row["share"]) for row in rows] == [
        (80_000, 0.125),
        (160_000, 0.25),
    ]
    for row in rows:
        for name, tokens in row["tokens"].items():
            available = dict(zip(FOUR, fake.experiment.available_tokens, strict=True))[name]
            assert tokens == pytest.approx(row["share"] * available, rel=0.05)
    assert planned(FakeExperiment(tmp_path / "plain"))["matched_probes"] is None


def test_a_probe_larger_than_the_target_draws_from_everything(tmp_path):
    tables = {**MATCHED, "train": {"budget": "100K"}, "project": {"projection": "hold"}}
    experiment = FakeExperiment(tmp_path, documents=400, tables=tables).experiment
    assert [experiment.share(tokens) for tokens in (80_000, 160_000)] == [0.8, 1.0]


@pytest.mark.parametrize("packing", ["whole_documents", "best_fit"])
def test_packed_windows_meet_the_weights_in_tokens(tmp_path, packing):
    fake = FakeExperiment(tmp_path, documents=900, tables={"data": {"packing": packing}})
    experiment = fake.experiment
    supply = experiment.supply(640_000)
    assert experiment.available_tokens == supply.tokens.tolist()
    tokens_per_window = supply.tokens / supply.windows
    assert (tokens_per_window < 128).all()
    mixture = Mixture.from_mapping(SKEWED)
    [target, *_] = experiment.targets({"skewed": mixture})
    tokens = np.array(target.spec.sequences) * tokens_per_window
    assert tokens / tokens.sum() == pytest.approx(list(SKEWED.values()), abs=1e-3)
    found = planned(fake)["packing"]
    assert found["mode"] == packing
    assert list(found["unused"].values()) == pytest.approx((1 - tokens_per_window / 128).tolist())


def test_the_form_of_the_windows_is_part_of_a_runs_identity(tmp_path):
    plain = FakeExperiment(tmp_path / "plain", documents=400).experiment.probes()
    known = {probe.spec.identity for probe in plain}
    for index, tables in enumerate(
        [{"data": {"packing": "best_fit"}}, {"data": {"locality": 4}}, MATCHED]
    ):
        fake = FakeExperiment(tmp_path / str(index), documents=400, tables=tables)
        found = {probe.spec.identity for probe in fake.experiment.probes()}
        assert not known & found
        known |= found
