import json
import math

import pytest

from autoscale import stages
from autoscale.decision import SURE
from autoscale.joint_summary import decision_section, joint_fit_section
from autoscale.laws.average import AveragedLaw
from autoscale.laws.fitted_law import FittedLaw
from autoscale.laws.trees import TreeLaw
from autoscale.records import read_json
from autoscale.stages import artifact
from autoscale.summary import summarise
from tests.unit.fake_experiment import FOUR, JOINT, FakeExperiment, complete_experiment

QUICK = {**JOINT, "fit": {"law": "etk", "draws": 4}}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return complete_experiment(tmp_path_factory, "auto")


@pytest.fixture(scope="module")
def summary(complete):
    return summarise(complete.config)


@pytest.fixture(scope="module")
def fitted(complete):
    return read_json(artifact(complete.config, "fit"), "fit")


@pytest.fixture(scope="module")
def one_law(tmp_path_factory):
    """A fit of one law, whatever the choice between laws would be."""
    fake = FakeExperiment(tmp_path_factory.mktemp("etk"), noise=0.003, tables=QUICK)
    fake.probe()
    return fake.experiment, read_json(stages.fit(fake.config), "fit")


def points_of(section) -> list[dict]:
    return [point for budget in section["budgets"] for point in budget["points"]]


def test_all_candidates_are_listed_and_one_is_chosen(summary, fitted):
    candidates = summary["fit"]["candidates"]
    assert len(candidates) == len(fitted["estimate"]["scores"]) >= 5
    assert [c["chosen"] for c in candidates] == [True] + [False] * (len(candidates) - 1)
    assert summary["fit"]["reason"] == fitted["estimate"]["reason"]
    for candidate, score in zip(candidates, fitted["estimate"]["scores"], strict=True):
        assert candidate["name"].startswith(score["law"])
        errors = score["set_errors"].values()
        assert candidate["mean_set_error"] == pytest.approx(sum(errors) / len(errors))


def test_the_draws_stay_in_the_fit(summary, fitted):
    assert '"draws"' not in json.dumps(summary["fit"])
    assert '"draws"' in json.dumps(fitted)


def test_the_law_is_set_beside_the_runs_it_was_fitted_to(summary):
    noise = summary["fit"]["objective_noise"]
    for point in points_of(summary["fit"]):
        assert abs(point["predicted"]["objective"] - point["objective"]) < 6 * noise
        assert point["predicted"]["losses"].keys() == point["losses"].keys()


def test_runs_of_budgets_that_the_law_does_not_know_stand_alone(complete, fitted):
    smaller = {**fitted["budgets"][0], "token_budget": 80_000}
    for knows in (False, True):
        content = {
            **fitted,
            "uses_smaller_budgets": knows,
            "budgets": [smaller, *fitted["budgets"]],
        }
        first, last = joint_fit_section(content, complete.experiment)["budgets"]
        assert all((point["predicted"] is not None) is knows for point in first["points"])
        assert all(point["predicted"] is not None for point in last["points"])


def test_worth_is_counted_in_tokens_of_the_sets_own_domain(one_law):
    experiment, fitted = one_law
    worth = joint_fit_section(fitted, experiment)["worth"]
    assert list(worth) == list(FOUR)
    for name, row in worth.items():
        assert row[name] == pytest.approx(1)
        assert all(value > 0 for value in row.values())


def test_a_mean_of_forms_is_described_form_by_form(one_law):
    experiment, fitted = one_law
    law = FittedLaw.from_dict(fitted["estimate"]["law"])
    mean = AveragedLaw(members=(law, law), shares=(0.5, 0.5), noise=law.noise).to_dict()
    changed = {**fitted, "estimate": {**fitted["estimate"], "law": mean}}
    once, twice = (joint_fit_section(content, experiment) for content in (fitted, changed))
    assert (len(once["parameters"]), len(twice["parameters"])) == (1, 2)
    for name, row in twice["worth"].items():
        assert row == pytest.approx(once["worth"][name])
    for ours, theirs in zip(points_of(twice), points_of(once), strict=True):
        assert ours["predicted"]["objective"] == pytest.approx(theirs["predicted"]["objective"])


def test_trees_have_no_worth_no_intervals_and_no_figure(complete, fitted):
    trees = TreeLaw(
        domains=FOUR, sets=FOUR, metric="nats", models=("",) * 4,
        uses_tokens=False, uses_parameters=False,
    ).to_dict()  # fmt: skip
    without = {"low": None, "high": None, "gains": {}, "duality_gap": None}
    budgets = [{**b, "solution": {**b["solution"], **without}} for b in fitted["budgets"]]
    estimate = {**fitted["estimate"], "law": trees}
    content = {**fitted, "estimate": estimate, "budgets": budgets}
    section = joint_fit_section(content, complete.experiment)
    assert section["worth"] is None and section["parameters"] == []
    assert all(point["predicted"] is None for point in points_of(section))
    decision = decision_section(None, section, complete.experiment)
    assert decision["gains"] == [] and decision["sure"] is None
    assert decision["certificate"] is None and decision["low"] is None


def test_the_decision_has_weights_with_intervals_and_a_certificate(summary):
    decision = summary["decision"]
    assert decision["weights"] == summary["projection"]["weights"]
    for name, weight in decision["weights"].items():
        assert decision["low"][name] <= weight <= decision["high"][name]
    assert decision["certificate"].startswith("By this law no mixture allowed is better by more")
    assert decision["sure"] is (decision["gains"][0]["probability"] >= SURE)
    assert decision["note"] == "The gain is that at 160K tokens, from which the weights are held."


def test_baselines_that_are_one_mixture_share_a_row(summary):
    names = [row["names"] for row in summary["decision"]["gains"]]
    assert names == [["uniform", "reference"], ["natural"]]


def test_expected_gains_stand_beside_those_measured(summary):
    comparisons = {c["baseline"]: c for c in summary["targets"]["comparisons"]}
    for row in summary["decision"]["gains"]:
        assert row["measured"] == comparisons[row["names"][0]]["gain"]
        measured = row["measured"]
        apart = row["low"] > measured["high"] or measured["low"] > row["high"]
        assert row["agrees"] is not apart


def test_what_was_not_trained_was_not_measured(tmp_path):
    tables = {**QUICK, "train": {**JOINT["train"], "baselines": ["uniform"], "seeds": [0]}}
    fake = FakeExperiment(tmp_path, noise=0.003, tables=tables)
    fake.run()
    summary = summarise(fake.config)
    first, second = summary["decision"]["gains"]
    assert first["measured"]["mean"] == pytest.approx(
        -summary["targets"]["comparisons"][0]["difference"]
    )
    assert second["measured"] is None and second["agrees"] is None
    assert [(b["name"], b["trained"]) for b in summary["baselines"]] == [
        ("uniform", True),
        ("natural", False),
    ]


def test_before_projection_the_decision_is_that_of_the_largest_budget(tmp_path):
    fake = FakeExperiment(tmp_path, noise=0.003, tables=QUICK)
    assert summarise(fake.config)["decision"] is None
    fake.probe()
    stages.fit(fake.config)
    summary = summarise(fake.config)
    decision = summary["decision"]
    assert decision["token_budget"] == 160_000
    assert decision["weights"] == summary["fit"]["budgets"][-1]["solution"]["weights"]
    assert decision["note"] == "The mixture is that of 160K, the largest probe budget."


def test_a_published_path_has_neither_gain_nor_intervals(tmp_path):
    tables = {
        **QUICK,
        "probe": {**JOINT["probe"], "budgets": ["80K", "160K"]},
        "project": {"projection": "full"},
    }
    fake = FakeExperiment(tmp_path, noise=0.003, tables=tables)
    fake.probe()
    fake.fit_and_project()
    decision = summarise(fake.config)["decision"]
    assert "the law states neither gain nor intervals" in decision["sentence"]
    assert decision["low"] is None and decision["gains"] == []


def test_bits_per_byte_are_the_unit_of_runs_and_law_alike(tmp_path):
    tables = {**QUICK, "fit": {**QUICK["fit"], "metric": "bits_per_byte"}}
    fake = FakeExperiment(tmp_path, noise=0.003, tables=tables)
    fake.run()
    summary = summarise(fake.config)
    assert summary["experiment"]["unit"] == "bits per byte"
    row = next(row for row in summary["runs"] if row["label"] == "probe-160K-reference")
    point = next(p for p in points_of(summary["fit"]) if p["run_id"] == row["run_id"])
    for name, loss in point["losses"].items():
        unit = math.log(2) * summary["data"]["bytes_per_token"][name]
        assert loss == pytest.approx(row["final_losses"][name] / unit)
        assert point["predicted"]["losses"][name] == pytest.approx(loss, rel=0.02)
    measured = summary["decision"]["gains"][0]["measured"]["mean"]
    ours, uniform = (
        next(m["objective"] for m in summary["mixtures"] if m["name"] == name)
        for name in ("autoscale", "uniform")
    )
    assert measured == pytest.approx(uniform - ours)
