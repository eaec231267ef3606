"""From runs to a law to decide by: choice, records, facts, warnings, smaller budgets, messages."""

import json
from dataclasses import replace

import numpy as np
import pytest

from autoscale.estimate import Estimate, Options, estimate, estimate_at_largest_budget
from autoscale.laws.frame import Form
from autoscale.laws.repetition import Repetition
from autoscale.objective import Objective
from autoscale.run_table import ReplicateNoise, RunTable
from tests.unit.synthetic_runs import (
    BUDGETS,
    DOMAINS,
    SETS,
    SIZES,
    mixtures,
    runs_of,
    simplex_grid,
    true_law,
)

FEW_DRAWS = Options(draws=5)
ONE_LAW = Options(law="etk", draws=5)


def mean_loss(table):
    return Objective.create("mean_loss", table.sets)


def found(table, options=FEW_DRAWS, **arguments):
    return estimate(table, mean_loss(table), options, **arguments)


@pytest.fixture(scope="module")
def plain():
    return found(runs_of(true_law("separable"), 40, noise=0.003))


def test_the_law_is_chosen_and_the_reason_says_why(plain):
    assert plain.law.law == "separable" and plain.law.num_draws == 5
    assert plain.scores[0]["law"] == "separable" and len(plain.scores) == 5
    advantage, error = plain.scores[0]["advantage"], plain.scores[0]["objective_error"]
    start = (
        f"Law separable: its held-out errors lie {advantage:.1f} standard errors below those of "
        f"eti; 5-fold error of the objective {error:.4f} nats, the best of the others, "
    )
    assert plain.reason.startswith(start)
    assert plain.warnings == ()


def test_the_reason_for_the_default():
    kept = found(runs_of(true_law("eti"), 30, noise=0.003))
    start = "Law eti: no other predicts held-out runs better by more than one standard error; "
    assert kept.reason.startswith(start + "5-fold error of the objective 0.00")


def test_a_law_that_was_asked_for_is_taken():
    asked = found(runs_of(true_law("separable"), 40, noise=0.003), ONE_LAW)
    assert asked.law.law == "etk" and len(asked.scores) == 1
    error = asked.scores[0]["objective_error"]
    expected = f"Law etk, as asked for: 5-fold error of the objective {error:.4f} nats."
    assert asked.reason == expected


def test_bits_per_byte_are_named():
    table = replace(runs_of(true_law("etk"), 30, noise=0.003), metric="bits_per_byte")
    assert " bits per byte." in found(table, ONE_LAW).reason


@pytest.mark.parametrize("law", ["auto", "trees"])
@pytest.mark.parametrize("varied", [False, True])
def test_json_round_trips_are_exact(monkeypatch, law, varied):
    monkeypatch.setattr("autoscale.laws.trees.NUM_TREES", 20)
    form = Form(tokens="product", size="product") if varied else Form()
    columns = {"budgets": BUDGETS, "sizes": SIZES} if varied else {}
    table = runs_of(true_law("eti", form=form), 24, noise=0.01, **columns)
    original = found(table, replace(FEW_DRAWS, law=law))
    again = Estimate.from_dict(json.loads(json.dumps(original.to_dict(), allow_nan=False)))
    assert again.to_dict() == original.to_dict()
    assert again.facts == original.facts and again.objective == original.objective
    at = (4e7, 1e6) if varied else (None, None)
    expected = original.law.predict(simplex_grid(), *at)
    np.testing.assert_array_equal(again.law.predict(simplex_grid(), *at), expected)


def test_estimates_repeat_and_depend_on_the_seed():
    table = runs_of(true_law("etk"), 24, noise=0.01)
    first, again = (found(table, ONE_LAW).to_dict() for _ in range(2))
    assert first == again
    other = found(table, replace(ONE_LAW, seed=1)).to_dict()
    assert other["law"]["draws"] != first["law"]["draws"]
    assert other["law"]["theta"] == first["law"]["theta"]


# Facts and half widths


def test_facts_are_what_the_runs_covered():
    law = true_law("etk", form=Form(tokens="product", size="product"))
    table = runs_of(law, 24, noise=0.01, budgets=BUDGETS, sizes=SIZES)
    noise = ReplicateNoise(standard_deviation=np.full(4, 0.02), degrees_of_freedom=3)
    facts = found(table, ONE_LAW, noise=noise).facts
    assert (facts.num_runs, facts.num_mixtures) == (24, 24)
    assert facts.tokens == (min(BUDGETS), max(BUDGETS))
    assert facts.parameters == (min(SIZES), max(SIZES))
    expected = (table.weights[:, 1].min(), table.weights[:, 1].max())
    assert facts.weights["code"] == expected
    assert facts.seed_noise == dict.fromkeys(SETS, 0.02)
    assert facts.seed_degrees_of_freedom == 3


def test_half_widths_are_quantiles_of_the_held_out_errors():
    rough, fine = (
        found(runs_of(true_law("etk"), 60, noise=noise), ONE_LAW) for noise in (0.02, 0.005)
    )
    assert set(rough.half_widths) == set(SETS)
    for name in SETS:
        assert 1.2 * 0.02 < rough.half_widths[name] < 2.5 * 0.02
        assert rough.half_widths[name] == pytest.approx(4 * fine.half_widths[name], rel=0.3)
    assert rough.objective_half_width == pytest.approx(1.65 * 0.02 / 2, rel=0.3)  # of 4 sets
    assert rough.objective_noise == pytest.approx(0.02 / 2, rel=0.3)


def test_extrapolation_is_as_uncertain_as_it_was_inside_the_runs():
    law = true_law("etk", form=Form(tokens="both"))
    known = found(runs_of(law, 36, noise=0.01, budgets=BUDGETS), ONE_LAW)
    [error] = known.edge_errors.values()
    inside, outside = known.extrapolation_error([2e7, 4.1e7, 8e7, 5e6], None, 4).reshape(2, 2)
    assert inside.tolist() == [0, 0]
    assert outside == pytest.approx(error * np.sqrt(np.pi / 2))


def test_budgets_that_varied_must_be_given_and_unknown_ones_are_ignored():
    law = true_law("etk", form=Form(tokens="product"))
    known = found(runs_of(law, 24, noise=0.01, budgets=BUDGETS), ONE_LAW)
    with pytest.raises(ValueError, match="fitted to runs of 10M to 40M tokens; give the tokens"):
        known.counts(None, None)
    assert known.counts(3e7, 1e6) == (3e7, None)
    unknown = found(runs_of(true_law("etk"), 24, noise=0.01), ONE_LAW)
    assert unknown.counts(3e7, 1e6) == (None, None)


# Warnings


def test_few_mixtures_are_warned_about():
    warnings = found(runs_of(true_law("etk"), 9, noise=0.003), ONE_LAW).warnings
    assert warnings[0] == (
        "9 mixtures for 5 domains are few: priors decide much; 10 or more would leave it to the "
        "data."
    )


def with_constant(table, column):
    weights = table.weights.copy()
    weights[:, column] = 0
    weights *= 0.9 / weights.sum(axis=1, keepdims=True)
    weights[:, column] = 0.1
    return replace(table, weights=weights)


def test_a_domain_that_never_varied_is_named():
    table = with_constant(runs_of(true_law("etk"), 24, noise=0.003), 3)
    law = true_law("etk")
    table = replace(table, losses=law.predict(table.weights, None, None))
    assert "The weight of wiki never varied: what its tokens are worth is prior alone." in (
        found(table, ONE_LAW).warnings
    )


def test_fits_that_do_not_converge_are_named(monkeypatch):
    from autoscale.laws import fitter
    from autoscale.laws.levenberg_marquardt import minimise

    def hasty(problem, start, *, tolerance):
        return minimise(problem, start, tolerance=tolerance, max_iterations=1)

    monkeypatch.setattr(fitter, "minimise", hasty)
    warnings = found(runs_of(true_law("etk"), 24, noise=0.003), ONE_LAW).warnings
    expected = f"The fit of {', '.join(SETS)} did not converge; its parameters are not final."
    assert expected in warnings


def test_a_law_that_replicates_reject_is_warned_about():
    table = runs_of(true_law("separable"), 40, noise=0.002)
    noise = ReplicateNoise(standard_deviation=np.full(4, 0.002), degrees_of_freedom=10)
    warnings = found(table, replace(FEW_DRAWS, law="log_linear"), noise=noise).warnings
    assert any(text.startswith("The law is rejected for ") for text in warnings)


def test_replicates_of_the_table_are_found_without_being_asked():
    law = true_law("separable")
    weights = np.repeat(mixtures(24), 2, axis=0)
    losses = law.predict(weights, None, None)
    table = RunTable(
        runs=tuple(map(str, range(48))),
        domains=DOMAINS,
        sets=SETS,
        weights=weights,
        seeds=tuple(np.tile([0, 1], 24)),
        losses=losses + 0.002 * np.random.default_rng(0).normal(size=losses.shape),
    )
    result = found(table, replace(FEW_DRAWS, law="log_linear"))
    assert result.facts.seed_degrees_of_freedom == 24
    assert any(text.startswith("The law is rejected for ") for text in result.warnings)


# Messages


def test_fewer_mixtures_than_domains_are_refused():
    table = runs_of(true_law("etk"), 4, noise=0.003)
    match = (
        "4 runs of 4 different mixtures cannot carry a law of 5 domains; expected at least 5 "
        "mixtures, better 10 or more: train more of them, or join domains"
    )
    with pytest.raises(ValueError, match=match):
        found(table)


def test_unknown_laws_are_refused():
    with pytest.raises(ValueError, match="law 'olmix' is unknown; known are eti"):
        found(runs_of(true_law("etk"), 12), replace(ONE_LAW, law="olmix"))


# Smaller budgets


def two_budgets(*, noise, honest, num_large=14):
    """Runs at 1e7 and 4e7 tokens; a dishonest small budget prefers other domains."""
    law = true_law("etk", form=Form(tokens="product"), seed=2)
    weights = mixtures(num_large + 30, seed=3)
    tokens = np.repeat([4e7, 1e7], [num_large, 30])
    shown = weights.copy()
    if not honest:
        shown[num_large:] = shown[num_large:, ::-1]
    losses = law.predict(shown, tokens, None)
    return RunTable(
        runs=tuple(map(str, range(len(weights)))),
        domains=DOMAINS,
        sets=SETS,
        weights=weights,
        tokens=tokens,
        losses=losses + noise * np.random.default_rng(4).normal(size=losses.shape),
    )


@pytest.mark.parametrize("honest", [True, False])
def test_smaller_budgets_are_kept_where_they_help_and_only_there(honest):
    table = two_budgets(noise=0.005, honest=honest)
    result, kept = estimate_at_largest_budget(table, mean_loss(table), ONE_LAW)
    assert kept == honest
    assert result.facts.num_runs == (44 if kept else 14)
    assert result.facts.tokens == ((1e7, 4e7) if kept else (4e7, 4e7))


@pytest.mark.parametrize("keep", [True, False])
def test_keeping_smaller_budgets_may_be_decided_beforehand(keep):
    table = two_budgets(noise=0.03, honest=not keep)
    _, kept = estimate_at_largest_budget(table, mean_loss(table), ONE_LAW, keep=keep)
    assert kept == keep


def test_a_single_budget_has_no_smaller_ones():
    table = runs_of(true_law("etk"), 24, noise=0.01, budgets=[4e7])
    result, kept = estimate_at_largest_budget(table, mean_loss(table), ONE_LAW)
    assert not kept and result.to_dict() == found(table, ONE_LAW).to_dict()


# Repetition


def test_repetition_enters_the_fit_and_its_record():
    scarce = Repetition(rate=3.0, unique_tokens=np.array([0.2, 1, 5, 20, 100]) * 1e6)
    law = true_law("etk", form=Form(tokens="product"), repetition=scarce)
    table = runs_of(law, 40, noise=0.002, budgets=BUDGETS)
    result = found(table, replace(ONE_LAW, repetition=scarce))
    test = runs_of(law, 40, seed=9, budgets=BUDGETS)
    blind = found(table, ONE_LAW)
    errors = [
        np.abs(one.law.predict(test.weights, test.tokens, None) - test.losses).mean()
        for one in (result, blind)
    ]
    assert errors[0] < 0.004 < errors[1]
    assert Estimate.from_dict(result.to_dict()).law.repetition.rate == 3.0
    assert result.law.surface(4e7, None).convex
