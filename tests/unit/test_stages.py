import json

import numpy as np
import pytest

from autoscale import stages
from autoscale.records import read_json
from tests.unit.fake_experiment import FOUR, JOINT, FakeExperiment, complete_experiment


@pytest.fixture
def fake(tmp_path):
    return FakeExperiment(tmp_path)


def test_plan_counts_runs_tokens_and_what_is_left(fake):
    content = read_json(stages.plan(fake.config), "plan")
    assert content["totals"]["probe"]["runs"] == 2 * (2 * len(FOUR) + 3)
    assert content["totals"]["train"]["runs"] == 4 * 3
    listed = [run["tokens"] for run in content["runs"] if run["stage"] == "probe"]
    assert content["totals"]["probe"]["tokens"] == sum(listed)
    assert content["totals"]["probe"]["device_hours"] is None
    fake.probe(only=4)
    after = read_json(stages.plan(fake.config), "plan")
    assert after["totals"]["probe"]["left_runs"] == content["totals"]["probe"]["runs"] - 4
    assert after["totals"]["probe"]["device_hours"] > 0
    assert after["cost_basis"] == "measured in 4 runs on CPU (1 thread a rank)"


def test_plan_knows_the_target_runs_once_their_mixture_is_written(fake):
    def rows():
        runs = read_json(stages.plan(fake.config), "plan")["runs"]
        return {run["label"]: run for run in runs if run["stage"] == "train"}

    before = rows()
    # The baselines that no fit gives are known at once.
    assert {label for label, row in before.items() if row["run_id"]} == {
        f"train-640K-{name}-seed{seed}" for name in ("uniform", "natural") for seed in range(3)
    }
    fake.probe()
    fake.fit_and_project()
    fake.train(only=2)
    after = rows()
    assert set(after) == set(before)
    assert [row["status"] for row in after.values()].count("finished") == 2
    assert all(row["run_id"] and row["max_epochs"] for row in after.values())
    totals = read_json(stages.artifact(fake.config, "plan"), "plan")["totals"]["train"]
    assert totals["left_runs"] == totals["runs"] - 2


def test_plan_estimates_from_the_peak_rate_when_nothing_was_measured(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"trainer": {"peak_tflops": 1.0}})
    content = read_json(stages.plan(fake.config), "plan")
    hours = content["totals"]["probe"]["flops"] / (0.4e12 * 3600)
    assert content["totals"]["probe"]["device_hours"] == pytest.approx(hours)


def test_fit_records_laws_effects_and_an_optimum_that_beats_the_reference(fake):
    fake.probe()
    content = read_json(stages.fit(fake.config), "fit")
    assert [budget["token_budget"] for budget in content["budgets"]] == [80_000, 160_000]
    for budget in content["budgets"]:
        assert budget["num_runs"] == 2 * len(FOUR) + 3
        assert budget["seed_noise"] > 0
        assert all(change["up"] < 0 < change["down"] for change in budget["effects"].values())
        assert sum(budget["solution"]["weights"].values()) == pytest.approx(1)
        assert budget["solution"]["objective"] < budget["base_objective"]
        assert abs(budget["solution"]["duality_gap"]) < 1e-9
        multiples = [point["factor"] for point in budget["points"]]
        assert min(multiples) == pytest.approx(1 / 3, rel=0.1)
        assert max(multiples) == pytest.approx(3, rel=0.1)


def test_perplexity_as_objective_is_that_of_each_set(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"fit": {"objective": "mean_perplexity"}})
    fake.probe()
    budget = read_json(stages.fit(fake.config), "fit")["budgets"][0]
    base = next(point for point in budget["points"] if point["label"] == "reference")
    expected = np.mean(np.exp(list(base["losses"].values())))
    assert budget["base_objective"] == pytest.approx(expected)


def test_fit_names_missing_and_failed_runs(fake):
    with pytest.raises(ValueError, match=r"22 of 22 probe runs have no result yet .* run"):
        stages.fit(fake.config)
    planned = fake.experiment.probes()
    fake.probe()
    victim = planned[4].spec
    (fake.experiment.store.folder(victim) / "result.json").unlink()
    fake.fail(victim)
    expected = r"1 probe runs at 80K failed, and probe.max_failed is 0: probe-80K-.*loss is nan"
    with pytest.raises(ValueError, match=expected):
        stages.fit(fake.config)


def test_a_failed_run_may_be_missing_when_enough_points_remain(tmp_path):
    probe = {"factors": [2, 4], "max_failed": 1}
    fake = FakeExperiment(tmp_path, tables={"probe": probe})
    fake.probe()
    victim = next(p.spec for p in fake.experiment.probes() if p.probe.label.endswith("up2"))
    (fake.experiment.store.folder(victim) / "result.json").unlink()
    fake.fail(victim)
    budget = read_json(stages.fit(fake.config), "fit")["budgets"][0]
    assert budget["num_runs"] == 2 * 2 * len(FOUR) + 3 - 1


def test_projection_reports_all_kinds_and_respects_bounds(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"solve": {"max_weight": 0.3, "min_weight": 0.15}})
    fake.probe()
    stages.fit(fake.config)
    content = read_json(stages.project(fake.config), "mixture")
    assert content["projection"] == "full"
    assert set(content["alternatives"]) == {"full", "hold", "damped"}
    for weights in content["alternatives"].values():
        assert sum(weights.values()) == pytest.approx(1)
        assert all(0.15 - 1e-12 <= weight <= 0.3 + 1e-12 for weight in weights.values())
    assert content["weights"] == content["alternatives"]["full"]


def test_another_target_budget_gets_its_own_file(fake):
    fake.probe()
    stages.fit(fake.config)
    path = stages.project(fake.config, 1_000_000)
    assert path.name == "mixture-1M.json"
    assert read_json(path, "mixture")["token_budget"] == 1_000_000


def test_a_fit_of_other_domains_is_refused(fake):
    fake.probe()
    path = stages.fit(fake.config)
    content = json.loads(path.read_text())
    content["domains"] = ["x", "y"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was fitted on x, y"):
        stages.project(fake.config)


def test_a_joint_law_leaves_its_choice_and_its_advice_in_the_artifacts(tmp_path_factory):
    fake = complete_experiment(tmp_path_factory, "auto")
    fitted = read_json(stages.artifact(fake.config, "fit"), "fit")
    assert fitted["estimate"]["scores"][0]["law"] == fitted["estimate"]["law"]["law"]
    assert fitted["projection"] == "hold"
    assert "The probes have one budget, 160K" in fitted["projection_reason"]
    mixture = read_json(stages.artifact(fake.config, "mixture"), "mixture")
    assert mixture["weights"] == mixture["advice"]["weights"] == mixture["alternatives"]["hold"]
    assert set(mixture["advice"]["gains"]) == {"uniform", "natural", "reference"}
    assert mixture["reason"] == fitted["projection_reason"]


def test_a_fit_of_another_kind_of_law_is_refused(tmp_path):
    fake = FakeExperiment(tmp_path, tables={**JOINT, "fit": {"law": "etk", "draws": 2}})
    fake.probe()
    stages.fit(fake.config)
    published = {"probe": {"budgets": ["160K"]}, "project": {"projection": "hold"}}
    with pytest.raises(ValueError, match=r"was fitted with law 'etk' but fit.law is now 'autosc"):
        stages.project(fake.changed(published))


def test_below_the_small_budget_only_holding_is_left(tmp_path):
    tables = {"project": {"projection": "hold"}, "train": {"budget": "40K", "baselines": []}}
    fake = FakeExperiment(tmp_path, tables=tables)
    fake.probe()
    stages.fit(fake.config)
    content = read_json(stages.project(fake.config), "mixture")
    assert set(content["alternatives"]) == {"hold"}


def test_matched_probes_say_nothing_of_another_budget(tmp_path):
    tables = {"probe": {"match_repetition": True, "reference_seeds": 2}}
    fake = FakeExperiment(tmp_path, documents=400, tables=tables)
    fake.probe()
    stages.fit(fake.config)
    assert stages.project(fake.config).is_file()
    with pytest.raises(ValueError, match="a run of 320000 repeats it otherwise"):
        stages.project(fake.config, 320_000)
