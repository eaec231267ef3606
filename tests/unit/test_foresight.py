"""What a design will tell, by simulation: better with more runs, worse with more noise."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from autoscale import foresight, stages
from autoscale.constraints import Constraints
from autoscale.designs import dirichlet_mixtures
from autoscale.foresight import Simulation, foresee, num_affordable_truths, prior_truths
from autoscale.mixture import Mixture
from autoscale.objective import Objective
from autoscale.plan_tables import plan_lines
from autoscale.records import read_json
from tests.unit.fake_experiment import FakeExperiment

NAMES = ("a", "b", "c", "d")
UNIFORM = Mixture.uniform(NAMES)
JOINT = {"fit": {"law": "etk"}, "project": {"projection": "auto"}}
PROBE = {"budgets": ["80K", "160K"], "reference_seeds": 2, "runs": 8}


def simulation(noise=0.005, *, objective="mean_loss", seed=0, lower=0.05):
    constraints = Constraints(domains=NAMES, lower=np.full(4, lower), upper=np.ones(4))
    return Simulation(
        objective=Objective.create(objective, NAMES),
        constraints=constraints,
        baseline=UNIFORM,
        noise=noise,
        seed=seed,
    )


def truths(num=10, seed=0):
    return prior_truths(UNIFORM, [3.0, 3.5, 4.0, 4.5], num=num, seed=seed)


def design(num, seed=0):
    drawn = dirichlet_mixtures(UNIFORM, num, stream=(seed,))
    return np.vstack([UNIFORM.as_array(), drawn])


def test_truths_have_the_given_losses_and_a_longer_list_begins_with_the_shorter():
    drawn = truths(5)
    for truth in drawn:
        assert truth.losses(UNIFORM.as_array()) == pytest.approx([3.0, 3.5, 4.0, 4.5])
        assert truth.convex and truth.domains == truth.sets == NAMES
    corner_K = np.array([0.7, 0.1, 0.1, 0.1])
    losses = np.array([truth.losses(corner_K) for truth in drawn])
    assert len(np.unique(losses[:, 0])) == 5
    assert losses[:, 0].mean() < 3.0  # most of a domain's worth is to its own validation set
    again = np.array([truth.losses(corner_K) for truth in truths(2)])
    assert (again == losses[:2]).all()
    assert (truths(1, seed=1)[0].losses(corner_K) != losses[0]).any()


def test_truths_may_have_sets_without_a_domain():
    sets = (*NAMES, "elsewhere")
    drawn = prior_truths(UNIFORM, [3.0, 3.5, 4.0, 4.5, 5.0], num=6, seed=0, sets=sets)
    assert all(truth.sets == sets and truth.domains == NAMES for truth in drawn)
    assert drawn[0].losses(UNIFORM.as_array()) == pytest.approx([3.0, 3.5, 4.0, 4.5, 5.0])
    objective = Objective.create("mean_loss", sets, dict.fromkeys(NAMES, 0.0) | {"elsewhere": 1})
    outlook = foresee(drawn, [design(24)], replace(simulation(0.001), objective=objective))[0]
    assert 0 < outlook.regret < outlook.gain  # no domain is its own: another mixture is best


def test_more_runs_tell_more_and_a_longer_design_changes_nothing_for_the_shorter():
    few, more, most = foresee(truths(), [design(6), design(12), design(48)], simulation())
    assert few.half_width > more.half_width > most.half_width > 0
    assert few.regret > more.regret > most.regret >= 0
    assert few.probability < most.probability <= 1
    assert few.gain < most.gain
    assert foresee(truths(), [design(6)], simulation()) == (few,)


def test_the_same_seed_gives_the_same_and_another_does_not():
    first, second, other = (
        foresee(truths(4), [design(8)], simulation(seed=seed)) for seed in (3, 3, 4)
    )
    assert first == second != other


def test_noise_widens_the_interval_in_proportion_and_none_leaves_no_regret():
    quiet, loud, none = (
        foresee(truths(), [design(40)], simulation(noise))[0] for noise in (0.01, 0.03, 0.0)
    )
    assert 2 < loud.half_width / quiet.half_width < 4
    assert none.half_width < quiet.half_width and none.regret < quiet.regret < loud.regret
    assert none.regret < 2e-4 and none.probability > 0.95


def test_bounds_that_leave_one_mixture_leave_nothing_to_tell():
    outlook = foresee(truths(4), [design(8)], simulation(lower=0.25))[0]
    assert outlook.gain == outlook.regret == outlook.probability == 0


@pytest.mark.parametrize("objective", ["mean_perplexity", "worst_loss"])
def test_other_objectives_are_simulated_in_their_unit(objective):
    outlook = foresee(truths(6), [design(24)], simulation(0.001, objective=objective))[0]
    factor = 50 if objective == "mean_perplexity" else 1
    assert 0 < outlook.half_width < 0.01 * factor and 0 <= outlook.regret < 0.01 * factor


def test_large_problems_get_fewer_truths_and_then_none():
    numbers = [num_affordable_truths([2 * k + 1], k, k) for k in (4, 20, 30, 200)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == num_affordable_truths([15, 29], 7, 7) == foresight.MOST_TRUTHS
    assert numbers[-1] == 0


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(foresight, "MOST_TRUTHS", 6)


def fake_experiment(folder, **tables):
    return FakeExperiment(folder, tables={**JOINT, "probe": PROBE, **tables})


def shown(found):
    stream = io.StringIO()
    Console(file=stream, width=100).print(*plan_lines(found), sep="\n")
    assert max(map(len, stream.getvalue().splitlines())) <= 100
    return stream.getvalue()


def foreseen(fake):
    return read_json(stages.plan(fake.config), "plan")["foresight"]


def test_plan_says_what_the_runs_at_the_largest_budget_are_worth(tmp_path, fast):
    fake = fake_experiment(tmp_path)
    found = foreseen(fake)
    assert [row["mixtures"] for row in found["rows"]] == [4, 8, 16, 32]
    assert [row["runs"] for row in found["rows"]] == [6, 10, 18, 34]
    planned = [p for p in fake.experiment.probes() if p.token_budget == 160_000]
    assert found["rows"][1]["tokens"] == sum(p.spec.total_tokens for p in planned)
    assert found["rows"][3]["tokens"] == 34 * planned[0].spec.total_tokens
    assert (found["planned"], found["unit"], found["baseline"]) == (8, "nats", "uniform")
    row = found["rows"][1]
    assert found["sentence"] == (
        "With 8 mixtures at 160K and a noise of 0.0050 nats a run (assumed), the gain of the "
        "mixture found over uniform is expected to be known to "
        f"±{row['half_width']:.4f} nats (90%), and the mixture to lose {row['regret']:.4f} nats "
        "against the best."
    )
    assert (
        found["basis"] == "laws drawn from the priors at a loss of 3.81 nats, half that of guessing"
    )
    assert foreseen(fake) == found
    text = shown(found)
    assert "What probes at 160K are expected to tell, in nats" in text
    assert found["basis"] in text.replace("\n", " ")
    for row in found["rows"]:
        told = f"±{row['half_width']:.4f} {row['regret']:.4f} {row['probability']:.0%}"
        assert told in " ".join(text.split())


def test_finished_reference_runs_give_noise_and_level_and_a_fit_gives_the_truths(tmp_path, fast):
    fake = fake_experiment(tmp_path)
    fake.probe()
    references = [
        fake.experiment.store.result(p.spec).final_losses
        for p in fake.experiment.probes()
        if p.token_budget == 160_000 and p.probe.is_reference
    ]
    before = foreseen(fake)
    assert before["noise_basis"] == "between 2 seeds of the reference run"
    measured = np.std([np.mean(list(losses.values())) for losses in references], ddof=1)
    assert before["noise"] == pytest.approx(measured)
    assert before["basis"] == "laws drawn from the priors at the losses of the reference run"
    stages.fit(fake.config)
    after = foreseen(fake)
    assert after["basis"] == "bootstrap draws of the law etk in fit.json"
    assert after["noise_basis"] == "residuals of that fit"
    assert 0 < after["noise"] < 0.05
    assert after["rows"][0]["half_width"] > after["rows"][-1]["half_width"]
    fit = fake.config.fit.model_copy(update={"metric": "bits_per_byte"})
    fake.config = fake.config.model_copy(update={"fit": fit})
    other_metric = foreseen(fake)  # which that fit does not know
    assert other_metric["basis"] == before["basis"]
    assert (other_metric["unit"], other_metric["noise_unit"]) == ("bits per byte", "nats")


def test_too_few_mixtures_are_said_to_be_too_few(tmp_path, fast):
    fake = fake_experiment(tmp_path, probe={**PROBE, "runs": 2})
    found = foreseen(fake)
    assert [row["mixtures"] for row in found["rows"]] == [4, 8]
    assert found["sentence"] == (
        "2 mixtures at 160K beside the reference are too few for a law of 4 domains, which needs "
        "3, better 8; raise probe.runs."
    )


@pytest.mark.parametrize("patience, mixtures", [(0.5, [8]), (0.01, [])])
def test_what_would_take_long_is_not_simulated(tmp_path, monkeypatch, patience, mixtures):
    monkeypatch.setattr(foresight, "SECONDS", 0.01)
    monkeypatch.setattr(foresight, "SECONDS_A_SOLUTION", 0.05)
    monkeypatch.setattr(foresight, "PATIENCE", patience)
    found = foreseen(fake_experiment(tmp_path))
    assert [row["mixtures"] for row in found["rows"]] == mixtures
    if not mixtures:
        assert "expected to tell" not in shown(found) and found["basis"] in shown(found)
        assert found["sentence"] == (
            "What 8 mixtures at 160K of 4 domains will tell was not simulated, as that would take "
            "too long."
        )


def test_replicates_cost_runs_and_lower_the_noise(tmp_path, fast):
    rows = []
    for replicates in (1, 2):
        folder = tmp_path / str(replicates)
        folder.mkdir()
        probe = {**PROBE, "runs": 4, "replicates": replicates}
        rows.append(foreseen(fake_experiment(folder, probe=probe))["rows"][1])
    assert [row["runs"] for row in rows] == [2 + 8, 2 + 16]
    assert rows[1]["half_width"] < rows[0]["half_width"]


@pytest.mark.parametrize("kind", ["optimal", "one_at_a_time"])
def test_other_designs_are_simulated_too(tmp_path, fast, kind):
    probe = {"budgets": ["160K"], "design": kind}
    found = foreseen(fake_experiment(tmp_path, probe=probe))
    assert [row["mixtures"] for row in found["rows"]] == [4, 8, 16, 32]
    assert found["rows"][0]["half_width"] > found["rows"][-1]["half_width"]


@pytest.mark.parametrize("law", ["autoscale", "trees"])
def test_laws_without_intervals_foresee_nothing(tmp_path, law):
    tables = {"fit": {"law": law}, "project": {"projection": "hold"}}
    found = foreseen(FakeExperiment(tmp_path, tables=tables))
    assert found is None and plan_lines(found) == []


def test_a_simulation_can_be_asked_about_another_baseline():
    skewed = Mixture.from_mapping({"a": 0.7, "b": 0.1, "c": 0.1, "d": 0.1})
    over_uniform, over_skewed = (
        foresee(truths(6), [design(24)], replace(simulation(), baseline=baseline))[0]
        for baseline in (UNIFORM, skewed)
    )
    assert over_skewed.gain > over_uniform.gain
    assert over_skewed.regret == over_uniform.regret
