"""From a law to advice: optimum, gains, sentences, reasons for doubt, and the front of two."""

from dataclasses import replace

import numpy as np
import pytest

from autoscale.constraints import Constraints, InfeasibleError
from autoscale.decision import (
    SURE,
    Question,
    advise,
    gain_sentence,
    mixture_objective,
    trade_off,
    unit_of,
)
from autoscale.estimate import Options, estimate
from autoscale.laws import trees
from autoscale.laws.frame import Form
from autoscale.laws.repetition import Repetition
from autoscale.mixture import Mixture
from autoscale.mixture_objective import Pull, Worst
from autoscale.objective import Objective
from autoscale.optimum import optimise
from autoscale.uncertainty import Gain
from tests.unit.synthetic_runs import BUDGETS, DOMAINS, SETS, runs_of, simplex_grid, true_law

UNIFORM = Mixture.uniform(DOMAINS)
MEAN = Objective.create("mean_loss", SETS)
REPEATING = Form(tokens="product")


def fitted(law="eti", objective=MEAN, *, noise=0.002, form=None, repetition=None, **table):
    """An estimate from runs of a known law, with few draws."""
    runs = runs_of(true_law(law, form=form), 40, noise=noise, **table)
    options = Options(law=law, draws=8, repetition=repetition)
    return estimate(runs, objective, options)


@pytest.fixture(scope="module")
def of_one_budget():
    return fitted(budgets=[1e9], sizes=[1e8])


@pytest.fixture(scope="module")
def of_three_budgets():
    return fitted(form=Form(tokens="both"), budgets=BUDGETS)


def ask(*, lower=0.0, upper=1.0, **changes):
    bounds = {"lower": np.broadcast_to(lower, 5), "upper": np.broadcast_to(upper, 5)}
    fields = {
        "token_budget": None,
        "parameters": None,
        "constraints": Constraints(domains=DOMAINS, **bounds),
        "baselines": {"uniform": UNIFORM},
        "reference": UNIFORM,
    }
    return Question(**{**fields, **changes})


def mixture(*weights):
    return Mixture(domains=DOMAINS, weights=weights)


def test_the_optimum_is_that_of_the_law_with_intervals_around_it(of_one_budget):
    advice = advise(of_one_budget, ask())
    values = MEAN.values(of_one_budget.law.predict(simplex_grid(), None, None), SETS)
    assert advice.optimum.objective < values.min()
    assert 0 <= advice.optimum.duality_gap < 1e-6
    weights = advice.optimum.mixture.to_dict()
    assert list(advice.low) == list(advice.high) == list(weights) == list(DOMAINS)
    for name, weight in weights.items():
        assert 0 <= advice.low[name] <= weight <= advice.high[name] <= 1
    record = advice.to_dict()
    assert record["weights"] == weights and record["objective"] == advice.optimum.objective
    assert set(record["gains"]["uniform"]) >= {"expected", "low", "high", "probability"}


def test_gains_are_over_each_baseline_and_the_sentence_is_about_the_first(of_one_budget):
    best = advise(of_one_budget, ask()).optimum.mixture
    poor = mixture(0.02, 0.02, 0.02, 0.92, 0.02)
    advice = advise(of_one_budget, ask(baselines={"poor": poor, "uniform": UNIFORM, "best": best}))
    gains = advice.gains
    assert list(gains) == ["poor", "uniform", "best"]
    assert gains["poor"].expected > gains["uniform"].expected > gains["best"].expected
    assert gains["poor"].probability > SURE and gains["best"].probability <= 0.6
    assert advice.sentence.startswith("Expected gain over poor")
    advice = advise(of_one_budget, ask(baselines={"best": best, "poor": poor}))
    assert advice.sentence.startswith("No gain over best can be told from chance")


@pytest.mark.parametrize(
    ("probability", "sentence"),
    [
        (
            0.99,
            "Expected gain over natural 0.0210 nats, 90% interval 0.0120 to 0.0300, probability of "
            "being better 0.99.",
        ),
        (
            0.8,
            "No gain over natural can be told from chance: expected 0.0210 nats, 90% interval "
            "0.0120 to 0.0300, probability of being better 0.80. Keeping natural costs nothing "
            "that these runs can see.",
        ),
    ],
)
def test_the_sentence_says_what_a_gain_is_worth(probability, sentence):
    gain = Gain(
        expected=0.021, low=0.012, high=0.03, probability=probability, optimism=0.0, bias=0.0
    )
    assert gain_sentence({"natural": gain, "uniform": gain}, "nats") == sentence


def test_units_follow_metric_and_objective():
    perplexity = Objective.create("mean_perplexity", SETS)
    in_bytes = Objective.create(
        "mean_bits_per_byte", SETS, bytes_per_token=dict.fromkeys(SETS, 4.0)
    )
    assert unit_of("nats", MEAN) == "nats" and unit_of("nats", perplexity) == "perplexity"
    assert unit_of("bits_per_byte", MEAN) == unit_of("nats", in_bytes) == "bits per byte"


@pytest.mark.parametrize(
    "text", ["mean", "web=2,mail=1", "worst", "worst:web,mail", "perplexity", "bits_per_byte"]
)
def test_the_solver_minimises_the_objective_itself(text):
    given = dict.fromkeys(SETS, 3.5) if text == "bits_per_byte" else None
    objective = Objective.parse(text, SETS, bytes_per_token=given)
    losses = np.random.default_rng(0).uniform(1, 4, (20, len(SETS)))
    rows = mixture_objective(objective, SETS).rows(SETS)
    np.testing.assert_allclose(rows.values(losses).max(axis=-1), objective.values(losses, SETS))


def test_no_loss_rises_more_than_allowed(of_one_budget):
    web = of_one_budget.with_objective(Objective.parse("web", SETS))
    law = web.law
    at_reference = law.predict(UNIFORM.as_array(), None, None)[0]

    def rise(advice):
        weights_K = advice.optimum.mixture.as_array()
        return (law.predict(weights_K, None, None)[0] - at_reference).max()

    assert rise(advise(web, ask())) > 0.02
    for allowed in (0.0, 0.01):
        advice = advise(web, ask(no_harm=allowed))
        assert rise(advice) < allowed + 1e-8
        assert advice.gains["uniform"].expected > 0


def test_draws_without_a_mixture_within_the_limits_are_counted(of_one_budget):
    upper = np.array([0.15, 1, 1, 1, 1.0])
    reference = mixture(0.4, 0.15, 0.15, 0.15, 0.15)
    surface = of_one_budget.law.surface(1e9, 1e8)
    offsets = surface.losses(reference.as_array())
    constraints = ask(upper=upper).constraints
    least = optimise(surface, Worst(offsets=offsets), constraints).objective
    assert least > 0
    question = ask(upper=upper, reference=reference, no_harm=least + 1e-4)
    advice = advise(of_one_budget, question)
    [said] = [warning for warning in advice.warnings if "draws of the law" in warning]
    assert "no mixture keeps the losses within their limits" in said
    with pytest.raises(InfeasibleError, match="keeps the losses within the limits"):
        advise(of_one_budget, replace(question, no_harm=least - 1e-3))


def test_a_pull_draws_the_optimum_to_its_mixture(of_one_budget):
    prior = mixture(0.1, 0.1, 0.1, 0.6, 0.1)
    found = [
        advise(of_one_budget, ask(pull=Pull(kind="kl", strength=strength, mixture=prior)))
        for strength in (1e-4, 0.1, 10.0)
    ]
    far = [np.abs(a.optimum.mixture.as_array() - prior.as_array()).sum() for a in found]
    assert far[0] > far[1] > far[2] and far[2] < 0.02


def test_a_law_held_at_its_budget_sees_domains_as_scarce_as_at_the_target():
    """One epoch of a quarter of the text at 1B is one epoch of all of it at 4B."""
    unique_K = np.array([4e9, 4e9, 4e8, 4e9, 4e9])
    repetition = Repetition(rate=3.0, unique_tokens=unique_K)
    found = fitted(form=REPEATING, repetition=repetition, budgets=[8e8, 1e9, 1.2e9])
    scarcer = replace(repetition, unique_tokens=unique_K / 4)
    there = replace(found, law=found.law.with_repetition(scarcer))
    held = advise(found, ask(token_budget=4e9, held_at=1e9)).optimum.mixture.as_array()
    expected = advise(there, ask(token_budget=1e9)).optimum.mixture.as_array()
    np.testing.assert_allclose(held, expected, atol=1e-6)
    ample = advise(found, ask(token_budget=1e9)).optimum.mixture.as_array()
    assert held[2] < ample[2]


def test_holding_solves_where_the_runs_were(of_three_budgets):
    held = advise(of_three_budgets, ask(token_budget=1e9, held_at=4e7))
    there = advise(of_three_budgets, ask(token_budget=4e7))
    assert held.optimum.mixture == there.optimum.mixture
    assert "1B tokens are 25 times the largest budget probed; the weights are held." in (
        held.warnings
    )
    assert not any("budget probed" in warning for warning in there.warnings)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (1e9, "1B tokens are 25 times the largest budget probed; the law is extrapolated."),
        (1e6, "1M tokens are 0.1 times the smallest budget probed; the law is extrapolated."),
        (1.6e8, None),
        (3e6, None),
    ],
)
def test_far_budgets_are_named(of_three_budgets, budget, said):
    found = [
        w for w in advise(of_three_budgets, ask(token_budget=budget)).warnings if "probed" in w
    ]
    assert found == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1e8, None),
        (1.01e8, None),
        (1e9, "The model of 1B parameters lies outside the size probed (100M): intervals from the "
              "bootstrap are too narrow there."),
    ],
)  # fmt: skip
def test_other_sizes_are_named(of_one_budget, size, said):
    found = [w for w in advise(of_one_budget, ask(parameters=size)).warnings if "size" in w]
    assert found == ([] if said is None else [said])


def test_bounds_and_far_weights_are_named(of_one_budget):
    advice = advise(of_one_budget, ask(lower=0.1, upper=0.3))
    for side, names in (("least", advice.optimum.at_lower), ("greatest", advice.optimum.at_upper)):
        assert names
        expected = (
            f"The {side} weight allowed holds {', '.join(names)}: the bound chose it, not the"
        )
        assert any(warning.startswith(expected) for warning in advice.warnings)
    facts = of_one_budget.facts
    narrow = replace(facts, weights=dict.fromkeys(DOMAINS, (0.0, 0.22)))
    advice = advise(replace(of_one_budget, facts=narrow), ask(lower=0.05))
    beyond = [n for n, w in advice.optimum.mixture.to_dict().items() if w > 1.25 * 0.22]
    assert beyond
    said = f"The optimal weight of {', '.join(beyond)} lies far above any that was probed"
    assert any(warning.startswith(said) for warning in advice.warnings)


def test_unknown_counts_are_said_to_change_nothing():
    found = fitted()
    plain = advise(found, ask())
    advice = advise(found, ask(token_budget=1e9, parameters=1e8))
    assert advice.optimum.mixture == plain.optimum.mixture
    said = " ".join(advice.warnings)
    assert "tokens are not known, so that no law says what 1B tokens change" in said
    assert "model sizes are not known, so that 100M parameters change nothing" in said


def test_a_law_of_several_budgets_needs_one(of_three_budgets):
    with pytest.raises(ValueError, match="runs of 10M to 40M tokens; give the tokens to solve"):
        advise(of_three_budgets, ask())


def test_laws_that_are_not_convex_have_no_certificate_but_a_consistent_answer():
    found = fitted("inverse_sum")
    advice = advise(found, ask())
    assert advice.optimum.duality_gap is None
    assert any(
        "The law is not convex: the mixture is the best of sev" in w for w in advice.warnings
    )
    best = advice.optimum.mixture
    itself = advise(found, ask(baselines={"itself": best})).gains["itself"]
    assert itself.expected + itself.bias == pytest.approx(0, abs=1e-5)


def test_trees_advise_without_intervals(monkeypatch):
    monkeypatch.setattr(trees, "NUM_TREES", 20)
    monkeypatch.setitem(trees.SETTINGS, "learning_rate", 0.1)
    table = runs_of(true_law("eti"), 40, noise=0.002)
    found = estimate(table, MEAN, Options(law="trees"))
    advice = advise(found, ask(lower=0.05))
    assert advice.low is None and advice.high is None and advice.gains == {}
    assert advice.sentence.startswith("The trees have no intervals")
    assert (advice.optimum.mixture.as_array() >= 0.05 - 1e-9).all()


def test_the_front_of_two_objectives_keeps_the_limits(of_three_budgets):
    web, mail = (Objective.parse(name, SETS) for name in ("web", "mail"))
    question = ask(token_budget=4e7, no_harm=0.02)
    points = trade_off(of_three_budgets.with_objective(web), question, mail, 5)
    surface = of_three_budgets.law.surface(4e7, None)
    limits = surface.losses(UNIFORM.as_array()) + 0.02
    assert len(points) == 5
    for point in points:
        losses = surface.losses(point.optimum.mixture.as_array())
        assert (losses <= limits + 1e-8).all()
        assert (point.first, point.second) == pytest.approx((losses[0], losses[3]))
    assert (np.diff([point.second for point in points]) < 0).all()
    pull = Pull(kind="kl", strength=1.0, mixture=UNIFORM)
    with pytest.raises(ValueError, match="has no place for a pull"):
        trade_off(of_three_budgets, replace(question, pull=pull), mail, 5)
