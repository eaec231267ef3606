"""Fits of the laws: recovery, what must not matter, folds, draws, means of forms."""

import json
from dataclasses import replace

import numpy as np
import pytest

from autoscale.constraints import Constraints
from autoscale.laws.fit import bootstrap, fit_law, mixture_folds, predict_held_out
from autoscale.laws.frame import Form
from autoscale.laws.records import law_from_dict
from autoscale.laws.repetition import Repetition
from autoscale.laws.terms import TERMS
from autoscale.mixture_objective import WeightedSum
from autoscale.optimum import optimise
from autoscale.run_table import RunTable
from tests.unit.synthetic_runs import (
    ACROSS,
    BUDGETS,
    DOMAINS,
    REPETITIONS,
    SETS,
    SIZES,
    assert_close,
    by_difference,
    every_law,
    mixtures,
    runs_of,
    simplex_grid,
    true_law,
    with_and_without_repetition,
)

K = len(DOMAINS)


# Recovery


RECOVERED = {
    "one budget": ({}, Form()),
    "budgets": ({"budgets": BUDGETS}, Form(tokens="product")),
    "budgets and sizes": (
        {"budgets": BUDGETS, "sizes": SIZES},
        Form(tokens="product", size="product"),
    ),
}


def optimum(surface):
    weights = np.ones(len(surface.sets))
    free = Constraints(domains=surface.domains, lower=np.zeros(K), upper=np.ones(K))
    return optimise(surface, WeightedSum(weights=weights), free).mixture.as_array()


@every_law
@pytest.mark.parametrize("case", RECOVERED)
def test_noise_free_runs_give_the_law_back(law, case):
    columns, form = RECOVERED[case]
    truth = true_law(law, form=form, seed=11)
    table = runs_of(truth, 240, **columns)
    found = fit_law(table, law, forms=[form])
    at = {
        "tokens": 2e7 if "budgets" in columns else None,
        "parameters": 1e6 if "sizes" in columns else None,
    }
    difference = found.predict(simplex_grid(), **at) - truth.predict(simplex_grid(), **at)
    assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("law", [name for name, term in TERMS.items() if term.convex])
@pytest.mark.parametrize("case", RECOVERED)
def test_noise_free_runs_give_the_optimum_back(law, case):
    columns, form = RECOVERED[case]
    truth = true_law(law, form=form, seed=11)
    found = fit_law(runs_of(truth, 240, **columns), law, forms=[form])
    at = (2e7 if "budgets" in columns else None, 1e6 if "sizes" in columns else None)
    np.testing.assert_allclose(optimum(found.surface(*at)), optimum(truth.surface(*at)), atol=0.01)


@every_law
def test_fits_converge_and_find_the_noise(law):
    truth = true_law(law, form=Form(tokens="product"), seed=5)
    table = runs_of(truth, 120, noise=0.01, budgets=BUDGETS)
    found = fit_law(table, law, forms=[Form(tokens="product")])
    assert all(found.converged) and found.relative
    expected = 0.01 / table.losses.mean(axis=0)
    np.testing.assert_allclose(found.noise, expected, rtol=0.25)
    assert (found.effective_parameters > 1).all()
    assert (found.effective_parameters < found.theta.shape[1]).all()


# What must not matter


def reordered(table, *, rows, domains, sets):
    return RunTable(
        runs=tuple(table.runs[i] for i in rows),
        domains=tuple(table.domains[i] for i in domains),
        sets=tuple(table.sets[i] for i in sets),
        weights=table.weights[np.ix_(rows, domains)],
        tokens=None if table.tokens is None else table.tokens[rows],
        losses=table.losses[np.ix_(rows, sets)],
    )


@every_law
def test_the_order_of_runs_domains_and_sets_does_not_matter(law):
    table = runs_of(true_law(law, seed=3), 40, noise=0.01, seed=3)
    rng = np.random.default_rng(0)
    rows, domains, sets = (rng.permutation(n) for n in (40, K, table.num_sets))
    other = fit_law(reordered(table, rows=rows, domains=domains, sets=sets), law, forms=[Form()])
    found = fit_law(table, law, forms=[Form()])
    np.testing.assert_allclose(
        other.predict(simplex_grid()[:, domains], None, None),
        found.predict(simplex_grid(), None, None)[:, sets],
        atol=1e-5,
    )


@every_law
@with_and_without_repetition
def test_the_units_of_tokens_and_parameters_do_not_matter(law, repetition):
    form = Form(tokens="both", size="product")
    scarce = REPETITIONS[repetition]
    truth = true_law(law, form=form, repetition=scarce, seed=4)
    table = runs_of(truth, 60, noise=0.01, budgets=BUDGETS, sizes=SIZES)
    scaled = replace(table, tokens=table.tokens / 1e6, parameters=table.parameters / 1e3)
    rescarce = scarce and Repetition(rate=3.0, unique_tokens=scarce.unique_tokens / 1e6)
    found = fit_law(table, law, forms=[form], repetition=scarce)
    other = fit_law(scaled, law, forms=[form], repetition=rescarce)
    np.testing.assert_allclose(
        other.predict(simplex_grid(), 80.0, 1e3),
        found.predict(simplex_grid(), 8e7, 1e6),
        atol=1e-5,
    )


@every_law
def test_bits_scale_like_nats(law):
    """Another unit of the losses gives the same predictions, up to priors on levels."""
    table = runs_of(true_law(law, seed=6), 80, noise=0.005)
    other = fit_law(replace(table, losses=table.losses / np.log(2)), law, forms=[Form()])
    found = fit_law(table, law, forms=[Form()])
    np.testing.assert_allclose(
        other.predict(simplex_grid(), None, None) * np.log(2),
        found.predict(simplex_grid(), None, None),
        rtol=0.01,
    )


def test_weight_0_leaves_a_run_out():
    table = runs_of(true_law("eti"), 30, noise=0.01)
    weights = np.ones(30)
    weights[::3] = 0
    part = fit_law(table.select(weights > 0), "eti", forms=[Form()])
    found = fit_law(table, "eti", forms=[Form()], run_weights=weights)
    np.testing.assert_allclose(found.theta, part.theta, atol=2e-3)


# K-fold and bootstrap


def replicated(law="eti", noise=0.01):
    """12 mixtures, each at three budgets."""
    truth = true_law(law, form=Form(tokens="product"), seed=8)
    weights = np.repeat(mixtures(12), 3, axis=0)
    tokens = np.tile(BUDGETS, 12)
    losses = truth.predict(weights, tokens, None)
    return RunTable(
        runs=tuple(map(str, range(36))),
        domains=DOMAINS,
        sets=truth.sets,
        weights=weights,
        tokens=tokens,
        losses=losses + noise * np.random.default_rng(1).normal(size=losses.shape),
    )


def test_runs_of_a_mixture_share_a_fold_and_folds_are_even():
    folds = mixture_folds(replicated(), 5, seed=0)
    assert (folds.reshape(12, 3) == folds[::3, None]).all()
    assert sorted(np.bincount(folds) // 3) == [2, 2, 2, 3, 3]
    assert (folds == mixture_folds(replicated(), 5, seed=0)).all()
    assert (folds != mixture_folds(replicated(), 5, seed=1)).any()
    assert len(set(mixture_folds(replicated(), 50, seed=0))) == 12


@every_law
def test_k_fold_never_uses_a_runs_own_mixture(law):
    table = replicated("bimix" if law == "bimix" else "eti")
    folds = mixture_folds(table, 12, seed=0)
    fitted = fit_law(table, law, forms=[Form(tokens="product")])
    predicted = predict_held_out(fitted, table, folds)
    losses = table.losses.copy()
    losses[:3] *= [[1.2], [0.9], [1.4]]
    changed = predict_held_out(fitted, replace(table, losses=losses), folds)
    np.testing.assert_allclose(changed[:3], predicted[:3], rtol=1e-9)
    assert np.abs(changed[3:] - predicted[3:]).max() > 1e-3


def test_k_fold_predicts_what_separate_fits_predict():
    table = replicated()
    folds = mixture_folds(table, 4, seed=0)
    form = Form(tokens="product")
    predicted = predict_held_out(fit_law(table, "eti", forms=[form]), table, folds)
    for fold in range(4):
        alone = fit_law(table.select(folds != fold), "eti", forms=[form])
        held = table.select(folds == fold)
        found = alone.predict(held.weights, held.tokens, None)
        np.testing.assert_allclose(predicted[folds == fold], found, rtol=3e-3)


def test_runs_outside_the_folds_are_in_every_fit_and_not_predicted():
    table = replicated()
    folds = np.where(table.tokens < 2e7, -1, mixture_folds(table, 4, seed=0))
    predicted = predict_held_out(
        fit_law(table, "eti", forms=[Form(tokens="product")]), table, folds
    )
    assert (np.isnan(predicted).all(axis=1) == (folds < 0)).all()


def drawn(table, seed, num_draws=8):
    fitted = fit_law(table, "eti", forms=[Form(tokens="product")])
    return bootstrap(fitted, table, num_draws=num_draws, seed=seed)


def test_the_bootstrap_is_decided_by_its_seed():
    table = replicated()
    np.testing.assert_array_equal(drawn(table, 7).draws, drawn(table, 7).draws)
    assert (drawn(table, 7).draws != drawn(table, 8).draws).any()


def test_draws_spread_around_the_fit_as_the_data_allow():
    grid = simplex_grid()
    spreads = []
    for noise in (0.003, 0.03):
        law = drawn(replicated(noise=noise), 0, num_draws=30)
        draws = law.predict_draws(grid, 2e7, None)
        assert draws.shape == (30, len(grid), len(SETS))
        np.testing.assert_allclose(law.at_draw(4).predict(grid, 2e7, None), draws[4])
        surface = law.surface(2e7, None, draw=4)
        np.testing.assert_allclose(surface.losses(grid), draws[4])
        spreads.append(draws.std(axis=0).mean())
        centre = law.predict(grid, 2e7, None)
        assert np.abs(draws.mean(axis=0) - centre).mean() < 2 * spreads[-1]
    assert 3 < spreads[1] / spreads[0] < 30


# Means of forms


TWO_FORMS = [Form(tokens="both", size="sum"), Form(tokens="sum", size="product")]


def averaged():
    truth = true_law("eti", form=TWO_FORMS[0], seed=9)
    table = runs_of(truth, 40, noise=0.01, budgets=BUDGETS, sizes=SIZES)
    law = fit_law(table, "eti", forms=TWO_FORMS)
    return table, bootstrap(law, table, num_draws=5, seed=0)


def test_a_mean_of_forms_is_the_mean_of_its_members():
    table, law = averaged()
    assert [member.form for member in law.members] == TWO_FORMS
    point, size = (simplex_grid(), 8e7), 4e6
    found = [member.predict(*point, size) for member in law.members]
    np.testing.assert_allclose(law.predict(*point, size), np.mean(found, axis=0))
    draws = law.predict_draws(*point, size)
    for number in range(5):
        surface = law.surface(8e7, size, number)
        np.testing.assert_allclose(surface.losses(simplex_grid()), draws[number])
    folds = mixture_folds(table, 5, seed=0)
    held_out = [predict_held_out(member, table, folds) for member in law.members]
    np.testing.assert_allclose(predict_held_out(law, table, folds), np.mean(held_out, axis=0))


def test_surface_derivatives_of_a_mean_match_finite_differences():
    _, law = averaged()
    surface = law.surface(4e7, 2e6)
    multipliers = np.arange(1.0, 1 + len(SETS))
    for weights in mixtures(3, concentration=3.0):
        gradients = by_difference(surface.losses, weights)
        assert_close(surface.gradients(weights) @ ACROSS, gradients @ ACROSS)

        def slope(shift, weights=weights):
            return multipliers @ surface.gradients(weights + ACROSS @ shift) @ ACROSS

        hessian = surface.hessian(weights, multipliers)
        assert_close(ACROSS @ hessian @ ACROSS, by_difference(slope, np.zeros(K)))
    assert surface.convex


def test_a_mean_of_forms_round_trips():
    _, law = averaged()
    again = law_from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
    grid = simplex_grid()
    np.testing.assert_array_equal(again.predict(grid, 3e7, 1e6), law.predict(grid, 3e7, 1e6))
    assert again.to_dict() == law.to_dict()
