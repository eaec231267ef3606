"""`fit` and `project` with a joint law: budgets, projections, sizes, repetition, refusals."""

import json
import math

import numpy as np
import pytest

from autoscale import stages
from autoscale.laws import trees
from autoscale.objective import Objective
from autoscale.records import read_json
from autoscale.table_commands import TableQuestion, predict_table, solve_table
from tests.unit.fake_experiment import FOUR, FakeExperiment
from tests.unit.table_files import read_mixture, read_predictions

ONE = {"budgets": ["160K"], "reference_seeds": 2, "runs": 10}
TWO = {"budgets": ["80K", "160K"], "reference_seeds": 2, "runs": 8}
MICRO = {"name": "gpt2-nano", "overrides": {"n_layer": 1}}


class Probed(FakeExperiment):
    """An experiment with a joint law whose probes are done; few draws and one law, to be fast."""

    def __init__(
        self, folder, *, probe=None, fit=None, noise=0.002, available=700_000, documents=1, **tables
    ):
        tables = {
            "probe": probe or ONE,
            "fit": {"law": "etk", "draws": 4, **(fit or {})},
            "project": {"projection": "auto"},
            "train": {"budget": "640K", "baselines": ["uniform"], "seeds": [0]},
            **tables,
        }
        super().__init__(
            folder, noise=noise, available=available, documents=documents, tables=tables
        )
        self.probe()

    def spoil(self, token_budget):
        """Make the losses of a budget noise."""
        experiment, rng = self.experiment, np.random.default_rng(0)
        for planned in experiment.probes():
            path = experiment.store.folder(planned.spec) / "result.json"
            if planned.token_budget == token_budget:
                record = json.loads(path.read_text())
                losses = record["evaluations"][-1]["losses"]
                losses |= {name: loss + 0.5 * rng.normal() for name, loss in losses.items()}
                path.write_text(json.dumps(record))

    def fitted(self):
        return read_json(stages.fit(self.config), "fit")

    def projected(self, budget=None):
        return read_json(stages.project(self.config, budget), "mixture")


def law_records(fitted):
    """The single laws of a fit, of which it may be the mean."""
    law = fitted["estimate"]["law"]
    law = law.get("base", law)
    return law.get("members", [law])


def close(one, other, tolerance=1e-6):
    return one == pytest.approx(other, abs=tolerance)


def test_one_budget_is_held(tmp_path):
    fake = Probed(tmp_path, fit={"law": "auto"})
    fitted = fake.fitted()
    assert fitted["law"] == "auto" and fitted["domains"] == list(FOUR)
    assert (fitted["uses_smaller_budgets"], fitted["projection"]) == (False, "hold")
    assert "The probes have one budget, 160K: its optimum is held" in fitted["projection_reason"]
    estimate = fitted["estimate"]
    assert len(estimate["scores"]) == 5 and estimate["reason"].startswith("Law ")
    assert estimate["facts"]["num_runs"] == 11 and estimate["facts"]["num_mixtures"] == 11
    [budget] = fitted["budgets"]
    assert (budget["token_budget"], budget["num_runs"]) == (160_000, 12)
    assert len(budget["points"]) == 12 and budget["num_references"] == 2
    mixture = fake.projected()
    assert mixture["projection"] == "hold" and mixture["reason"] == fitted["projection_reason"]
    assert close(mixture["weights"], budget["solution"]["weights"])
    assert set(mixture["alternatives"]) == {"hold"}
    advice = mixture["advice"]
    assert advice["weights"] == mixture["weights"]
    assert set(advice["gains"]) == {"uniform", "natural", "reference"}
    assert "gain over uniform" in advice["sentence"]


def test_the_noise_of_a_budget_is_that_of_its_reference_runs(tmp_path):
    fake = Probed(tmp_path, probe={**ONE, "reference_seeds": 3}, noise=0.02)
    [budget] = fake.fitted()["budgets"]
    values = [p["objective"] for p in budget["points"] if p["is_reference"]]
    assert len(values) == budget["num_references"] == 3
    assert budget["seed_noise"] == pytest.approx(np.std(values, ddof=1))
    once = Probed(tmp_path / "once", probe={**ONE, "reference_seeds": 1})
    assert once.fitted()["budgets"][0]["seed_noise"] is None


def test_two_budgets_are_joined_if_the_smaller_helps(tmp_path):
    fake = Probed(tmp_path, probe=TWO)
    fitted = fake.fitted()
    kept = fitted["uses_smaller_budgets"]
    assert fitted["projection"] == ("joint" if kept else "hold")
    words = "lower the held-out error" if kept else "do not lower the held-out error"
    assert words in fitted["projection_reason"] and "160K" in fitted["projection_reason"]
    assert [budget["token_budget"] for budget in fitted["budgets"]] == [80_000, 160_000]
    mixture = fake.projected()
    expected = {"hold", "full", "damped"} | ({"joint"} if kept else set())
    assert set(mixture["alternatives"]) == expected
    assert mixture["weights"] == mixture["alternatives"][mixture["projection"]]


def test_small_budgets_that_contradict_the_largest_are_left_out(tmp_path):
    fake = Probed(tmp_path, probe=TWO)
    fake.spoil(80_000)
    fitted = fake.fitted()
    assert (fitted["uses_smaller_budgets"], fitted["projection"]) == (False, "hold")
    assert "do not lower the held-out error on the mixtures of 160K" in fitted["projection_reason"]
    assert fitted["estimate"]["facts"]["num_runs"] == 9


@pytest.mark.parametrize("projection", ["joint", "hold", "full", "damped"])
def test_a_projection_that_is_asked_for_is_taken(tmp_path, projection):
    fake = Probed(tmp_path, probe=TWO, project={"projection": projection})
    fitted = fake.fitted()
    if projection == "joint":
        assert fitted["uses_smaller_budgets"]
        assert fitted["projection_reason"].startswith("The law of all probe budgets was asked for")
    mixture = fake.projected()
    assert mixture["projection"] == projection and f"{projection!r} was asked" in mixture["reason"]
    assert mixture["weights"] == mixture["alternatives"][projection]
    assert (mixture["advice"] is None) == (projection in ("full", "damped"))
    if mixture["advice"]:
        assert mixture["advice"]["weights"] == mixture["weights"]


@pytest.mark.parametrize("projection", ["full", "damped"])
def test_a_path_does_not_reach_below_its_budgets(tmp_path, projection):
    fake = Probed(tmp_path, probe=TWO, project={"projection": projection})
    fake.fitted()
    with pytest.raises(ValueError, match="40K lies below the probe budgets 80K and 160K"):
        fake.projected(40_000)


def test_a_baseline_that_the_fit_does_not_give_is_named(tmp_path):
    train = {"budget": "640K", "baselines": ["joint"], "seeds": [0]}
    fake = Probed(tmp_path, probe=TWO, train=train)
    fake.fit_and_project()
    path = stages.artifact(fake.config, "mixture")
    record = json.loads(path.read_text())
    record["alternatives"].pop("joint", None)
    path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"names 'joint', and this fit gives no such mixture, only"
    ):
        stages.target_mixtures(fake.experiment)


def test_a_path_through_budgets_that_were_not_fitted_is_refused(tmp_path):
    fake = Probed(tmp_path, probe=TWO, project={"projection": "full"})
    path = stages.fit(fake.config)
    record = json.loads(path.read_text())
    record["budgets"] = record["budgets"][1:]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="no optimum at 80K and 160K; run `autoscale fit` again"):
        fake.projected()


def test_a_smaller_budget_with_too_few_runs_borrows_the_law_of_the_largest(tmp_path):
    fake = Probed(tmp_path, probe={**TWO, "runs": [1, 10]})
    fake.spoil(80_000)
    small, large = fake.fitted()["budgets"]
    assert small["num_runs"] == 3
    assert "too few for a law of their own" in small["solution"]["warnings"][-1]
    assert close(small["solution"]["weights"], large["solution"]["weights"], 1e-3)


def test_budgets_near_each_other_are_two(tmp_path):
    fake = Probed(tmp_path, probe={**TWO, "budgets": ["130K", "160K"]})
    fitted = fake.fitted()
    assert [budget["num_runs"] for budget in fitted["budgets"]] == [10, 10]
    assert fitted["estimate"]["facts"]["num_runs"] == (18 if fitted["uses_smaller_budgets"] else 9)


def test_one_at_a_time_all_runs_of_a_budget_enter_its_law(tmp_path):
    """Their totals differ, but they are one budget."""
    probe = {"budgets": ["80K", "160K"], "design": "one_at_a_time", "reference_seeds": 2}
    fake = Probed(tmp_path, probe={**probe, "budgets": ["160K"]})
    fitted = fake.fitted()
    assert fitted["estimate"]["facts"]["num_runs"] == 2 * len(FOUR) + 1
    assert not fitted["uses_smaller_budgets"] and "one budget, 160K" in fitted["projection_reason"]
    two = Probed(tmp_path / "two", probe=probe).fitted()
    runs = 2 * len(FOUR) + 1
    assert two["estimate"]["facts"]["num_runs"] == (2 if two["uses_smaller_budgets"] else 1) * runs


def test_probes_of_two_sizes_enter_one_fit_for_the_target(tmp_path):
    probe = {
        "budgets": [{"tokens": "160K", "model": MICRO}, "160K"],
        "reference_seeds": 2,
        "runs": 8,
    }
    fake = Probed(tmp_path, probe=probe, noise=0.02)
    fitted = fake.fitted()
    low, high = fitted["estimate"]["facts"]["parameters"]
    assert low < high and fitted["estimate"]["facts"]["num_runs"] == 18
    [budget] = fitted["budgets"]
    assert budget["num_runs"] == 20 and {p["parameters"] for p in budget["points"]} == {low, high}
    by_size = [
        [p["objective"] for p in budget["points"] if p["is_reference"] and p["parameters"] == size]
        for size in (low, high)
    ]
    pooled = math.sqrt(np.mean([np.var(values, ddof=1) for values in by_size]))
    assert budget["seed_noise"] == pytest.approx(pooled)
    mixture = fake.projected()
    assert mixture["projection"] == "hold"
    assert not any("parameters lies outside" in said for said in mixture["advice"]["warnings"])


def test_sizes_and_budgets_together_are_solved_at_the_target(tmp_path):
    probe = {
        "budgets": ["80K", {"tokens": "160K", "model": MICRO}],
        "reference_seeds": 1,
        "runs": 8,
    }
    fake = Probed(tmp_path, probe=probe)
    fitted = fake.fitted()
    assert (fitted["uses_smaller_budgets"], fitted["projection"]) == (True, "joint")
    assert "of several model sizes enter one fit" in fitted["projection_reason"]
    assert fake.projected()["projection"] == "joint"


def test_a_proxy_alone_is_told_to_be_another_size(tmp_path):
    fake = Probed(tmp_path, probe={**ONE, "budgets": [{"tokens": "160K", "model": MICRO}]})
    fake.fitted()
    said = " ".join(fake.projected()["advice"]["warnings"])
    assert "parameters lies outside the size probed" in said


def test_trajectories_inform_but_one_budget_stays_held(tmp_path):
    fake = Probed(tmp_path, fit={"trajectories": 0.5})
    fitted = fake.fitted()
    assert fitted["estimate"]["facts"]["num_runs"] > 50
    assert (fitted["uses_smaller_budgets"], fitted["projection"]) == (False, "hold")
    mixture = fake.projected()
    assert close(mixture["weights"], fitted["budgets"][0]["solution"]["weights"], 1e-3)
    two = Probed(tmp_path / "two", probe=TWO, fit={"trajectories": 1.0}).fitted()
    assert two["projection"] == "joint" and "with their trajectories" in two["projection_reason"]


@pytest.mark.parametrize(
    ("asked", "available", "rate"),
    [
        ("auto", 700_000, None),
        ("auto", 150_000, 15.387756),
        ("none", 150_000, None),
        (4, 700_000, 4.0),
    ],
)
def test_repetition_is_modelled_when_asked_for_or_possible(tmp_path, asked, available, rate):
    fake = Probed(tmp_path, fit={"repetition": asked}, available=available)
    for law in law_records(fake.fitted()):
        found = law["repetition"]
        assert found is None if rate is None else found["rate"] == pytest.approx(rate)
        if rate is not None:
            assert found["unique_tokens"] == list(map(float, fake.experiment.available_tokens))


def test_held_laws_count_repetition_as_at_the_target(tmp_path):
    """The scarcest domain gets no more where a longer run repeats it more often."""
    fake = Probed(tmp_path, fit={"repetition": 1}, available=60_000, solve={"min_weight": 0.01})
    fake.fitted()
    weights = [fake.projected(budget)["weights"] for budget in (160_000, 640_000)]
    scarcest = FOUR[0]
    assert weights[1][scarcest] <= weights[0][scarcest] + 1e-6
    assert not close(weights[0], weights[1], 1e-3)


def test_trees_have_no_repetition_and_no_intervals(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "NUM_TREES", 20)
    monkeypatch.setitem(trees.SETTINGS, "learning_rate", 0.1)
    fake = Probed(tmp_path, probe=TWO, fit={"law": "trees"}, available=150_000)
    fitted = fake.fitted()
    assert (fitted["estimate"]["law"]["law"], fitted["projection"]) == ("trees", "hold")
    advice = fake.projected()["advice"]
    assert advice["low"] is None and advice["duality_gap"] is None


def test_bits_per_byte_are_the_unit_of_law_and_decision(tmp_path):
    fake = Probed(tmp_path, fit={"metric": "bits_per_byte"})
    fitted = fake.fitted()
    assert fitted["metric"] == "bits_per_byte"
    assert fitted["objective"]["kind"] == "mean_bits_per_byte"
    assert fitted["estimate"]["objective"]["kind"] == "mean_loss"
    objective = Objective(**fitted["objective"])
    [budget] = fitted["budgets"]
    for point in budget["points"]:
        assert point["objective"] == pytest.approx(objective.value(point["losses"]))
    values = [point["objective"] for point in budget["points"]]
    assert min(values) - 0.2 < budget["solution"]["objective"] < max(values)
    assert "bits per byte" in budget["solution"]["sentence"]


def test_what_the_experiment_demands_of_a_mixture_holds_in_all_of_them(tmp_path):
    group = {"name": "text", "domains": ["english_docs", "licences"], "min_weight": 0.6}
    prior = {"kind": "l2", "strength": 50.0, "mixture": dict.fromkeys(FOUR, 0.25)}
    fake = Probed(tmp_path, solve={"groups": [group], "no_harm": 0.5, "max_weight": 0.4})
    fake.fitted()
    weights = fake.projected()["weights"]
    assert weights["english_docs"] + weights["licences"] >= 0.6 - 1e-9
    assert max(weights.values()) <= 0.4 + 1e-9
    pulled = Probed(tmp_path / "pulled", solve={"prior": prior})
    pulled.fitted()
    assert close(pulled.projected()["weights"], dict.fromkeys(FOUR, 0.25), 0.02)


def test_the_worst_loss_may_be_the_objective(tmp_path):
    fake = Probed(tmp_path, fit={"objective": "worst_loss"})
    [budget] = fake.fitted()["budgets"]
    for point in budget["points"]:
        assert point["objective"] == max(point["losses"].values())
    gain = budget["solution"]["gains"]["uniform"]
    assert gain["expected"] + gain["optimism"] + gain["bias"] > 0


def test_the_fit_of_an_experiment_serves_the_table_commands(tmp_path):
    fake = Probed(tmp_path)
    path = stages.fit(fake.config)
    solution = read_json(path, "fit")["budgets"][0]["solution"]
    least = TableQuestion(tokens=160_000, min_weight=0.2 / len(FOUR))
    record, _ = read_mixture(solve_table(path, tmp_path / "m.json", least))
    assert close(record["weights"], solution["weights"], 1e-4)
    assert set(record["gains"]) == {"uniform", "natural"}
    capped = TableQuestion(tokens=9_000_000, max_epochs=0.3 * 9_000_000 / 700_000)
    record, weights_K = read_mixture(solve_table(path, tmp_path / "m.json", capped))
    assert weights_K[0] <= 0.3 + 1e-9
    table = tmp_path / "new.csv"
    header = ",".join(f"weight/{name}" for name in reversed(FOUR))
    table.write_text(f"run,{header},tokens\nr,0.25,0.25,0.25,0.25,160K\n")
    names, _, numbers = read_predictions(predict_table(path, table, tmp_path / "p.csv"))
    reference = next(
        point
        for point in read_json(path, "fit")["budgets"][0]["points"]
        if point["is_reference"] and point["seed"] == 0
    )
    assert names == ["r"]
    np.testing.assert_allclose(numbers[0, ::3], list(reference["losses"].values()), atol=0.05)


def test_runs_that_cannot_carry_a_law_are_refused(tmp_path):
    fake = Probed(tmp_path, probe={**ONE, "runs": 2})
    with pytest.raises(ValueError, match="3 runs of 3 different mixtures cannot carry a law of 4"):
        fake.fitted()


def test_matched_probes_hold_the_price_of_repetition_in_their_losses(tmp_path):
    """The same data that repetition is modelled for otherwise: `auto` with 150_000 tokens."""
    matched = {**ONE, "match_repetition": True}
    fake = Probed(tmp_path, available=150_000, documents=300, probe=matched)
    assert all(law["repetition"] is None for law in law_records(fake.fitted()))
