"""Intervals that cover; gains with the right sign and honest probabilities; weights in bounds."""

import numpy as np
import pytest
from scipy.optimize import minimize

from autoscale.estimate import Options, estimate
from autoscale.laws.fit import bootstrap, fit_law
from autoscale.laws.frame import Form
from autoscale.objective import Objective
from autoscale.uncertainty import Decision, predict_interval, predict_objective_interval
from tests.unit.synthetic_runs import (
    BUDGETS,
    DOMAINS,
    SETS,
    mixtures,
    runs_of,
    simplex_grid,
    true_law,
)

K = len(DOMAINS)
UNIFORM = np.full(K, 1 / K)
MEAN_LOSS = Objective.create("mean_loss", SETS)


def solver(lower=1e-6, upper=1.0):
    """The optimum of the mean loss by a general method, fast enough for hundreds of draws."""
    total = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}

    def solve(surface):
        found = minimize(
            lambda w: surface.losses(w).mean(),
            UNIFORM,
            jac=lambda w: surface.gradients(w).mean(axis=0),
            bounds=[(lower, upper)] * K,
            constraints=[total],
            method="SLSQP",
            options={"ftol": 1e-9},
        )
        return found.x / found.x.sum()

    return solve


def decided(truth, num_runs, *, noise, seed=0, solve=None, num_draws=20):
    """The decision that a fit to runs of a law comes to."""
    table = runs_of(truth, num_runs, noise=noise, seed=seed, concentration=2.0)
    law = fit_law(table, truth.law, forms=[truth.form])
    return Decision(
        bootstrap(law, table, num_draws=num_draws, seed=seed),
        MEAN_LOSS,
        solve or solver(),
        tokens=None,
        parameters=None,
        num_mixtures=num_runs,
    )


def objective(law, weights):
    return float(MEAN_LOSS.values(law.predict(weights[None], None, None), SETS)[0])


# Losses


@pytest.mark.parametrize("law", ["eti", "separable"])
@pytest.mark.parametrize("num_runs", [24, 80])
def test_intervals_of_losses_cover(law, num_runs):
    """300 fresh runs of 5 laws each, of 4 sets; nominal 90%."""
    single, mean = [], []
    for seed in range(5):
        truth = true_law(law, seed=seed)
        table = runs_of(truth, num_runs, noise=0.01, seed=seed)
        known = estimate(table, MEAN_LOSS, Options(law=law, seed=seed))
        test = runs_of(truth, 300, noise=0.01, seed=100 + seed)
        found = predict_interval(known, test.weights, None, None)
        single.append((test.losses > found.low) & (test.losses < found.high))
        observed = MEAN_LOSS.values(test.losses, SETS)
        found = predict_objective_interval(known, test.weights, None, None)
        mean.append((observed > found.low) & (observed < found.high))
    assert 0.8 < np.mean(single) < 0.97
    assert 0.8 < np.mean(mean) < 0.97


def test_intervals_widen_beyond_the_budgets_and_the_mixtures_of_the_runs():
    truth = true_law("eti", form=Form(tokens="both"))
    table = runs_of(truth, 36, noise=0.01, budgets=BUDGETS, concentration=8.0)
    known = estimate(table, MEAN_LOSS, Options(law="eti"))

    def width(weights, tokens):
        found = predict_interval(known, weights, tokens, None)
        np.testing.assert_allclose(found.high - found.mean, found.mean - found.low)
        return (found.high / found.mean - 1).mean()

    inside = width(table.weights, 2e7)
    assert width(table.weights, 4e8) > 1.2 * inside
    assert width(np.eye(K) * 0.95 + 0.01, 2e7) > 1.2 * inside


def test_trees_have_intervals_of_their_held_out_errors(monkeypatch):
    monkeypatch.setattr("autoscale.laws.trees.NUM_TREES", 30)
    known = estimate(runs_of(true_law("eti"), 40, noise=0.01), MEAN_LOSS, Options(law="trees"))
    found = predict_interval(known, simplex_grid(), None, None)
    widths = [known.half_widths[name] for name in SETS]
    np.testing.assert_allclose(found.high - found.mean, np.tile(widths, (200, 1)))
    found = predict_objective_interval(known, simplex_grid(), None, None)
    np.testing.assert_allclose(found.high - found.mean, known.objective_half_width)


# Gains


def test_gains_have_the_right_sign_and_size():
    truth = true_law("eti", seed=1)
    decision = decided(truth, 60, noise=0.003)
    best = decision.weights_K
    bad = np.array([0.0, 0.0, 0.0, 0.1, 0.9])
    gain = decision.gain(bad)
    true_gain = objective(truth, bad) - objective(truth, best)
    assert gain.low < gain.expected < gain.high
    assert gain.expected == pytest.approx(true_gain, rel=0.1)
    assert gain.probability > 0.999
    loss = decision.gain(best, bad)
    assert loss.expected == pytest.approx(-true_gain, rel=0.1)
    assert loss.probability < 0.001 and loss.optimism == 0
    assert gain.to_dict()["expected"] == gain.expected


def test_a_mixture_gains_nothing_over_itself():
    decision = decided(true_law("eti", seed=1), 40, noise=0.01)
    for gain in (decision.gain(decision.weights_K), decision.gain(UNIFORM, UNIFORM)):
        assert gain.expected == pytest.approx(0, abs=1e-12)
        assert gain.high - gain.low == pytest.approx(0, abs=1e-12)
        assert gain.probability == pytest.approx(0.5, abs=0.01)


def test_probabilities_are_near_one_half_close_to_the_optimum():
    decision = decided(true_law("eti", seed=1), 40, noise=0.01)
    for step in (1e-6, 1e-4):
        near = decision.weights_K + step * (UNIFORM - decision.weights_K)
        assert 0.2 < decision.gain(near).probability < 0.8


def test_optimism_is_what_choosing_on_the_same_runs_costs():
    """Noisier runs, more optimism; on average what is left is no more than the true gain."""
    truth = true_law("eti", seed=1)
    decisions = {
        noise: [decided(truth, 24, noise=noise, seed=seed) for seed in range(5)]
        for noise in (0.002, 0.02)
    }
    mean = {noise: np.mean([d.optimism for d in found]) for noise, found in decisions.items()}
    assert 0 <= mean[0.002] < mean[0.02] / 3
    true_optimum = solver()(truth.surface(None, None))
    for found in decisions[0.02]:
        assert found.gain(UNIFORM).optimism == found.optimism
        gain = found.gain(true_optimum)
        assert 0 <= gain.optimism <= found.optimism


@pytest.mark.parametrize("law", ["eti", "separable", "log_linear"])
def test_intervals_of_gains_cover(law):
    """Over uniform, a random and the true best mixture, in 16 fits each; nominal 90%."""
    covered = []
    for seed in range(16):
        truth = true_law(law, seed=seed)
        decision = decided(truth, 20, noise=0.01, seed=seed)
        others = [UNIFORM, mixtures(1, seed=seed, concentration=3.0)[0]]
        others.append(solver()(truth.surface(None, None)))
        reached = objective(truth, decision.weights_K)
        for other in others:
            gain = decision.gain(other)
            true_gain = objective(truth, other) - reached
            covered.append(gain.low - 1e-9 <= true_gain <= gain.high + 1e-9)
    assert 0.8 < np.mean(covered) <= 1


def test_few_mixtures_widen_gains():
    decision = decided(true_law("eti", seed=1), 60, noise=0.01)
    used = decision.law.effective_parameters.mean()
    narrow = decision.gain(UNIFORM)
    few = Decision(
        decision.law, MEAN_LOSS, solver(), tokens=None, parameters=None, num_mixtures=12
    ).gain(UNIFORM)
    expected = (12 / (12 - used)) / (60 / (60 - used))
    ratio = (few.high - few.expected) / (narrow.high - narrow.expected)
    assert ratio == pytest.approx(expected)
    assert few.expected == narrow.expected and few.probability < 1


# Weights


def test_intervals_of_weights_cover():
    covered = []
    for seed in range(12):
        truth = true_law("separable", seed=seed)
        decision = decided(truth, 30, noise=0.01, seed=seed)
        interval = decision.weight_interval()
        best = solver()(truth.surface(None, None))
        covered.append((best >= interval.low - 1e-3) & (best <= interval.high + 1e-3))
    assert 0.75 < np.mean(covered) <= 1


def test_intervals_of_weights_hold_the_optimum_and_keep_to_the_bounds():
    decision = decided(true_law("eti", seed=1), 20, noise=0.02, solve=solver(0.1, 0.4))
    wide = decision.weight_interval()
    assert (wide.low >= 0).all() and (wide.high <= 1).all()
    bounded = decision.weight_interval(np.full(K, 0.1), np.full(K, 0.4))
    assert (bounded.low >= 0.1 - 1e-9).all() and (bounded.high <= 0.4 + 1e-9).all()
    for interval in (wide, bounded):
        np.testing.assert_array_equal(interval.mean, decision.weights_K)
        assert (interval.low <= interval.mean).all() and (interval.mean <= interval.high).all()


def test_draws_are_solved_at_the_budget_asked_for():
    truth = true_law("separable", seed=1)
    table = runs_of(truth, 30, noise=0.01, budgets=[2e7])
    law = bootstrap(fit_law(table, "separable", forms=[Form()]), table, num_draws=3, seed=0)
    seen = []

    def solve(surface):
        seen.append(surface.tokens)
        return UNIFORM

    Decision(law, MEAN_LOSS, solve, tokens=8e7, parameters=None, num_mixtures=30)
    assert seen == [8e7] * 4
