import pytest

from autoscale.findings import verdict_sentence, warnings
from autoscale.summary import summarise
from tests.unit.fake_experiment import FakeExperiment, complete_experiment


def comparison(**changes) -> dict:
    return {
        "baseline": "uniform", "same_runs": False, "seeds": [0, 1, 2], "difference": -0.0312,
        "low": -0.042, "high": -0.0204, "confidence": 0.9, "verdict": "better", "noise": 0.011,
        "noise_source": "target runs", "tokens_saved": 0.183, "speed_up": 1.22,
    } | changes  # fmt: skip


def test_better_says_by_how_much_and_what_it_saves():
    assert verdict_sentence(comparison()) == (
        "The AutoScale mixture is better than uniform: its mean validation loss ends 0.0312 nats "
        "below (90% interval \N{MINUS SIGN}0.0420 to \N{MINUS SIGN}0.0204, 3 seeds, noise between "
        "seeds 0.0110). It reaches the final loss of uniform with 18.3% fewer tokens."
    )


def test_better_without_reaching_under_every_seed_claims_no_saving():
    sentence = verdict_sentence(comparison(tokens_saved=None, speed_up=None))
    assert "fewer tokens" not in sentence


def test_worse_is_said_as_plainly():
    sentence = verdict_sentence(
        comparison(difference=0.03, low=0.01, high=0.05, verdict="worse", tokens_saved=None)
    )
    assert sentence.startswith("The AutoScale mixture is worse than uniform: ")
    assert "0.0300 nats above" in sentence


def test_not_distinguishable_is_said_with_its_interval():
    sentence = verdict_sentence(comparison(high=0.01, verdict="not distinguishable"))
    assert sentence.startswith("The AutoScale mixture and uniform are not distinguishable: ")
    assert "+0.0100" in sentence and "fewer tokens" not in sentence


def test_one_seed_names_where_its_noise_comes_from():
    sentence = verdict_sentence(comparison(seeds=[0], noise_source="reference probe runs at 160K"))
    assert "1 seed, noise 0.0110 taken from the reference probe runs at 160K" in sentence


def test_one_seed_without_noise_decides_nothing():
    sentence = verdict_sentence(
        comparison(seeds=[0], low=None, high=None, noise=None, verdict="not distinguishable")
    )
    assert "not distinguishable from chance" in sentence


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summarise(complete_experiment(tmp_path_factory).config)


def texts(summary, about) -> str:
    return "\n".join(w["text"] for w in warnings(summary) if w["about"] == about)


def changed(summary, section, **changes) -> dict:
    return {**summary, section: {**summary[section], **changes}}


def test_a_fit_without_freedom_says_so(summary):
    expected = "Three points, three parameters: no degree of freedom is left in 8 of 8 laws."
    assert expected in texts(summary, "fit")


def test_another_factor_leaves_freedom(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"probe": {"factors": [2, 4], "reference_seeds": 1}})
    fake.run()
    found = texts(summarise(fake.config), "fit")
    assert "degree of freedom" not in found
    assert "The reference run at 80K has one seed" in found


def test_a_bound_that_was_hit_is_named(summary):
    budget = dict(summary["fit"]["budgets"][0])
    law = {**budget["laws"][0], "status": "at_bound", "at_bounds": ["exponent"], "message": "flat"}
    budget["laws"] = [law, *budget["laws"][1:]]
    budget["solution"] = {**budget["solution"], "at_lower": ["licences", "cpp_headers"]}
    found = texts(changed(summary, "fit", budgets=[budget]), "fit")
    assert "At 80K: flat." in found
    assert "weight of licences and cpp_headers rests on its lower bound" in found


def test_a_far_projection_is_named_with_its_factor(summary):
    assert "is 4 times the largest probe budget" in texts(summary, "projection")
    assert "extrapolated" not in texts(changed(summary, "projection", reach=1.5), "projection")


def test_bounds_that_move_a_projection_are_named(summary):
    found = texts(
        changed(summary, "projection", change_l1=0.12, bounded=["licences"]), "projection"
    )
    assert "Bounds moved the projected weights by 0.120 in all and hold licences." in found


def test_a_mixture_that_does_not_follow_from_the_fit_is_noticed(summary):
    weights = dict(summary["projection"]["weights"])
    first, second = list(weights)[:2]
    weights[first], weights[second] = weights[second], weights[first]
    found = texts(changed(summary, "projection", weights=weights), "projection")
    assert "Run `autoscale project` again" in found


def test_repetition_beyond_the_probe_runs_is_named(summary):
    assert "licences 1.4 times (probe runs at most 0.8)" in texts(summary, "repetition")


def test_mixed_versions_and_changed_code_are_named(summary):
    found = texts(changed(summary, "provenance", commits=["a+changes", "b"]), "runs")
    assert "The runs were made with 2 different commits." in found
    assert "uncommitted changes" in found


def test_an_objective_other_than_the_plain_mean_loss_is_named(summary):
    objective = {**summary["experiment"]["objective"], "kind": "mean_perplexity"}
    found = texts(changed(summary, "experiment", objective=objective), "comparison")
    assert "The mixture was chosen for mean perplexity" in found


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return summarise(complete_experiment(tmp_path_factory, "auto").config)


def test_a_joint_law_says_its_own_doubts_and_none_of_the_published_ones(joint):
    advice = {**joint["projection"]["advice"], "warnings": ["Far away."]}
    doubted = changed(changed(joint, "fit", warnings=["Misfit."]), "projection", advice=advice)
    assert texts(doubted, "fit") == "Misfit."
    assert texts(doubted, "projection") == "Far away."


def test_before_projection_doubts_about_the_optimum_are_those_of_the_largest_budget(joint):
    budget = dict(joint["fit"]["budgets"][-1])
    budget["solution"] = {**budget["solution"], "warnings": ["On a bound."]}
    projected = changed(joint, "fit", budgets=[budget], warnings=[])
    fitted = {**projected, "projection": None, "mixtures": []}
    assert texts(fitted, "fit") == "At 160K: On a bound."
    assert "On a bound." not in texts(projected, "fit")


def test_a_reference_run_with_one_seed_is_named(joint):
    budget = {**joint["fit"]["budgets"][-1], "seed_noise": None}
    found = texts(changed(joint, "fit", budgets=[budget]), "fit")
    assert "The reference run at 160K has one seed: nothing says how much" in found


def test_noise_from_two_runs_is_uncertain_itself(joint):
    budget = {**joint["fit"]["budgets"][-1], "num_references": 2}
    found = texts(changed(joint, "fit", budgets=[budget]), "fit")
    assert "The noise between seeds at 160K rests on two runs" in found


@pytest.mark.parametrize("key", ["law", "metric", "objective"])
def test_a_fit_made_with_other_settings_is_noticed(joint, key):
    found = texts(changed(joint, "fit", **{key: "other"}), "fit")
    assert f"fit.{key} has changed since the fit was made; run `autoscale fit` again." in found


def test_another_projection_than_the_fit_decided_on_is_noticed(joint):
    found = texts(changed(joint, "fit", projection="joint"), "projection")
    assert "projected with 'hold', the fit now says 'joint'" in found
    found = texts(changed(joint, "experiment", projection="full"), "projection")
    assert "projected with 'hold', the experiment now says 'full'" in found


def test_a_law_that_models_repetition_says_so(joint):
    fewer = {name: tokens // 4 for name, tokens in joint["data"]["available_tokens"].items()}
    repeated = changed(joint, "data", available_tokens=fewer)
    modelled = changed(repeated, "fit", repetition_rate=15.387756)
    said = "counts repeated tokens less, by R* = 15.4 epochs"
    assert f"{said}, a number that these runs did not measure" in texts(modelled, "repetition")
    fitted = changed(modelled, "experiment", repetition="fit")
    assert f"{said}, as fitted to the probe runs" in texts(fitted, "repetition")
    plain = texts(changed(repeated, "fit", repetition_rate=None), "repetition")
    assert "does not model repetition" in plain


def test_a_gain_that_did_not_come_true_is_named(joint):
    [first, second] = joint["decision"]["gains"]
    missed = {**first, "agrees": False, "low": 0.02, "high": 0.03}
    found = texts(changed(joint, "decision", gains=[missed, second]), "comparison")
    assert "expected a gain over uniform = reference of +0.0200 to +0.0300 nats" in found
    assert "they do not agree" in found


def test_the_worst_loss_as_objective_is_named(joint):
    objective = {**joint["experiment"]["objective"], "kind": "worst_loss"}
    found = texts(changed(joint, "experiment", objective=objective), "comparison")
    assert "The mixture was chosen for the worst loss" in found
