"""The laws: derivatives, convexity, token floor, recovery, invariances, JSON, messages, docs."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from autoscale.constraints import Constraints
from autoscale.laws.effective_tokens import EffectiveTokens
from autoscale.laws.fit import bootstrap, fit_law, mixture_folds, predict_held_out
from autoscale.laws.fitted_law import FittedLaw
from autoscale.laws.fitter import make_inputs, own_domains
from autoscale.laws.frame import LOG_TERM_RANGE, Form, Frame
from autoscale.laws.records import law_from_dict
from autoscale.laws.repetition import Repetition
from autoscale.laws.terms import TERMS
from autoscale.mixture_objective import WeightedSum
from autoscale.optimum import optimise
from autoscale.run_table import RunTable
from tests.unit.synthetic_runs import (
    BUDGETS,
    DOMAINS,
    SETS,
    SIZES,
    UNITS,
    mixtures,
    runs_of,
    simplex_grid,
    true_law,
)

K = len(DOMAINS)
FORMS = [
    Form(tokens=tokens, size=size)
    for tokens in ("none", "product", "sum", "both")
    for size in ("none", "product", "sum", "both")
]
SCARCE = Repetition(rate=3.0, unique_tokens=np.array([0.2, 1, 5, 20, 100]) * 1e6)
REPETITIONS = {"fresh": None, "repeated": SCARCE}
LARGE_FORM = Form(tokens="both", size="both")
ACROSS = np.eye(K) - 1 / K  # changes of the weights that leave their sum alone


def form_name(form):
    return f"{form.tokens}-{form.size}"


every_form = pytest.mark.parametrize("form", FORMS, ids=form_name)
every_law = pytest.mark.parametrize("law", TERMS)
with_and_without_repetition = pytest.mark.parametrize("repetition", REPETITIONS)


def by_difference(function, point, step=1e-6):
    """Central differences of a function of a vector, the vector's axis last."""
    axes = np.eye(len(point))
    return np.stack(
        [(function(point + step * e) - function(point - step * e)) / (2 * step) for e in axes],
        axis=-1,
    )


def assert_close(found, expected, relative=2e-6):
    """Equal up to a share of the largest number: differences are that exact and no better."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


# Derivatives


@every_law
@every_form
@with_and_without_repetition
def test_jacobians_match_finite_differences(law, form, repetition):
    fitted = true_law(law, form=form, repetition=REPETITIONS[repetition], spread=1.0)
    frame, own = Frame(fitted.term, form), own_domains(fitted.domains, fitted.sets)
    rng = np.random.default_rng(1)
    inputs = make_inputs(
        frame,
        UNITS,
        fitted.repetition,
        mixtures(8),
        rng.uniform(1e7, 8e7, 8),
        rng.uniform(5e5, 1e7, 8),
    )
    value, jacobian = frame.evaluate(fitted.theta, inputs, own)
    np.testing.assert_array_equal(value, frame.value(fitted.theta, inputs, own))
    for j in range(len(fitted.sets)):

        def loss(theta, j=j):
            return frame.value(theta[None], inputs, own[j : j + 1])[0]

        assert_close(jacobian[j], by_difference(loss, fitted.theta[j]))


@every_law
@every_form
@with_and_without_repetition
def test_surface_derivatives_match_finite_differences(law, form, repetition):
    fitted = true_law(law, form=form, repetition=REPETITIONS[repetition], spread=1.0)
    surface = fitted.surface(4e7, 2e6)
    rng = np.random.default_rng(2)
    multipliers = rng.normal(size=len(fitted.sets))
    # Without repetition the law is defined on the simplex only.
    along = ACROSS if repetition == "fresh" else np.eye(K)
    for weights in mixtures(3, concentration=3.0):
        gradients = by_difference(surface.losses, weights)
        assert_close(surface.gradients(weights) @ along, gradients @ along)

        def slope(shift, weights=weights):
            return multipliers @ surface.gradients(weights + along @ shift) @ along

        hessian = surface.hessian(weights, multipliers)
        assert_close(along @ hessian @ along, by_difference(slope, np.zeros(K)))


@every_law
def test_predictions_and_surface_agree(law):
    fitted = true_law(law, form=LARGE_FORM, repetition=SCARCE)
    weights = mixtures(6).reshape(2, 3, K)
    losses = fitted.surface(4e7, 2e6).losses(weights)
    assert losses.shape == (2, 3, len(fitted.sets))
    flat = fitted.predict(weights.reshape(6, K), np.full(6, 4e7), np.full(6, 2e6))
    np.testing.assert_allclose(losses.reshape(6, -1), flat, rtol=1e-13)


# Convexity


def chords(surface, count=400):
    """By how much the losses half way between two mixtures lie above the mean of both."""
    first, second = mixtures(count, seed=3, concentration=0.7), mixtures(count, seed=4)
    assert surface.losses(np.vstack([first, second])).max() < np.exp(LOG_TERM_RANGE[1])
    middle = surface.losses((first + second) / 2)
    return middle - (surface.losses(first) + surface.losses(second)) / 2


def many_sets(law):
    """Names of many validation sets, so that many draws of the parameters fit into one law."""
    return DOMAINS if law == "bimix" else (*DOMAINS, *(f"set-{n}" for n in range(25)))


def random_surface(law, *, form, repetition, seed):
    fitted = true_law(
        law, form=form, repetition=repetition, seed=seed, sets=many_sets(law), spread=0.7
    )
    return fitted.surface(4e7, 2e6)


CONVEX = [
    (law, form, repetition)
    for law in TERMS
    for form in (Form(), Form(tokens="product"), LARGE_FORM)
    for repetition in REPETITIONS
    if random_surface(law, form=form, repetition=REPETITIONS[repetition], seed=0).convex
]


def test_which_surfaces_claim_to_be_convex():
    fresh = {law for law, _, repetition in CONVEX if repetition == "fresh"}
    assert fresh == {"eti", "etk", "separable", "separable_unit", "log_linear", "bimix"}
    repeated = {law for law, form, repetition in CONVEX if repetition == "repeated" and form.tokens}
    assert repeated == {"eti", "etk", "separable", "separable_unit", "bimix"}
    shares = {law for law, form, repetition in CONVEX if repetition != "fresh" and form == Form()}
    assert shares == {"separable", "separable_unit"}  # the laws in tokens need no factor D^-b


@pytest.mark.parametrize(("law", "form", "repetition"), CONVEX)
def test_convex_laws_are_convex(law, form, repetition):
    """Thousands of chords, and Hessians of random non-negative weightings of the sets."""
    for seed in range(4):
        surface = random_surface(law, form=form, repetition=REPETITIONS[repetition], seed=seed)
        assert chords(surface).max() <= 1e-12
        rng = np.random.default_rng(seed)
        for weights in mixtures(10, seed=seed, concentration=0.7):
            multipliers = rng.exponential(size=len(surface.sets)) ** 3
            hessian = ACROSS @ surface.hessian(weights, multipliers) @ ACROSS
            values = np.linalg.eigvalsh(hessian)
            assert values[0] >= -1e-9 * values[-1]


@dataclass(frozen=True, slots=True)
class WithoutFloor(EffectiveTokens):
    """Effective tokens without the condition `b >= g max k`."""

    def token_floor(self, theta_BQ):
        return np.zeros(len(theta_BQ)), np.zeros_like(theta_BQ)


def test_a_token_exponent_below_the_floor_would_break_convexity_and_reward_waste(monkeypatch):
    monkeypatch.setitem(TERMS, "eti", WithoutFloor(individual=True))
    surface = random_surface("eti", form=Form(tokens="product"), repetition=SCARCE, seed=0)
    names = list(Frame(surface.law.term, surface.law.form).names)
    theta = surface.law.theta.copy()
    theta[:, names.index("log_token_exponent")] = np.log(0.02)
    below = replace(surface.law, theta=theta)
    assert chords(below.surface(4e7, 2e6)).max() > 1e-4
    assert rise_by_waste(below).max() > 1e-4


def test_inverse_sum_is_not_convex_once_an_exponent_exceeds_one():
    surface = random_surface("inverse_sum", form=Form(), repetition=None, seed=0)
    steep = replace(surface.law, theta=surface.law.theta + np.repeat([0, 1], [1 + K, K]))
    assert chords(steep.surface(None, None)).max() > 1e-3
    assert not surface.convex


def test_log_linear_with_repetition_is_not_convex():
    rates = np.array([[0.5, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0]])
    names = Frame(TERMS["log_linear"], Form(tokens="product")).names
    assert names == ("log_irreducible", "log_amplitude", "log_token_exponent")
    rates[0, names.index("log_token_exponent")] = np.log(0.3)
    law = true_law("log_linear", form=Form(tokens="product"), repetition=SCARCE, sets=("web",))
    theta = np.hstack([rates[:, :3], [[6.0, 0.0, 0.0, 0.0, 0.0]]])
    surface = replace(law, theta=theta).surface(4e7, None)
    assert chords(surface).max() > 1e-3
    assert not surface.convex


def rise_by_waste(law, domain=0, budget=2e7):
    """How much losses rise when tokens of a domain that teaches nothing are added to runs."""
    names = list(Frame(law.term, law.form).parameter_names(law.domains))
    theta = law.theta.copy()
    worthless = f"log_transfer/{law.domains[domain]}"
    if worthless in names:
        theta[:, names.index(worthless)] = -50
    law = replace(law, theta=theta)
    tokens = budget * mixtures(50, concentration=0.7)
    more = tokens.copy()
    more[:, domain] *= np.random.default_rng(5).uniform(1, 20, 50)
    totals = [t.sum(axis=1) for t in (tokens, more)]
    sizes = np.full(50, UNITS.parameters)
    before, after = (
        law.predict(t / total[:, None], total, sizes)
        for t, total in zip((tokens, more), totals, strict=True)
    )
    own = [name == law.domains[domain] for name in law.sets]
    return (after - before)[:, ~np.array(own)] if law.law == "bimix" else after - before


@pytest.mark.parametrize("law", ["eti", "etk", "separable", "separable_unit", "bimix"])
@pytest.mark.parametrize("form", [Form(tokens="product"), LARGE_FORM], ids=form_name)
@with_and_without_repetition
def test_tokens_of_a_useless_domain_never_raise_the_loss(law, form, repetition):
    fitted = true_law(
        law, form=form, repetition=REPETITIONS[repetition], sets=many_sets(law), spread=1.0
    )
    assert rise_by_waste(fitted).max() <= 1e-12


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


# Records


@every_law
@with_and_without_repetition
def test_json_round_trips_are_exact(law, repetition):
    fitted = true_law(law, form=LARGE_FORM, repetition=REPETITIONS[repetition])
    fitted = replace(fitted, draws=np.stack([fitted.theta, fitted.theta + 1 / 3]))
    record = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    again = law_from_dict(record)
    for predict in ("predict", "predict_draws"):
        found, expected = (
            getattr(one, predict)(simplex_grid(), 3e7, 1e6) for one in (again, fitted)
        )
        np.testing.assert_array_equal(found, expected)
    assert again.to_dict() == fitted.to_dict()


def test_a_mean_of_forms_round_trips():
    _, law = averaged()
    again = law_from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
    grid = simplex_grid()
    np.testing.assert_array_equal(again.predict(grid, 3e7, 1e6), law.predict(grid, 3e7, 1e6))
    assert again.to_dict() == law.to_dict()


@every_law
def test_parameters_have_names_and_units(law):
    fitted = true_law(law, form=LARGE_FORM)
    record = fitted.to_dict()
    assert len(record["parameter_names"]) == fitted.theta.shape[1]
    for values in record["parameters"].values():
        assert {"irreducible", "token_exponent", "size_exponent"} <= set(values)
        for name, value in values.items():
            if isinstance(value, dict):
                assert list(value) == list(DOMAINS), name


def test_readable_parameters_are_those_of_the_equation():
    """The loss of ETI, written out from `readable`."""
    fitted = true_law("eti", form=LARGE_FORM)
    weights, (tokens, parameters) = simplex_grid()[0], (5e7, 3e6)
    d, p = tokens / UNITS.tokens, parameters / UNITS.parameters
    expected = []
    for values in fitted.readable().values():
        transfer, power = (np.array(list(values[k].values())) for k in ("transfer", "power"))
        total = np.sum(transfer * weights**power)
        expected.append(
            values["irreducible"]
            + values["amplitude"]
            * d ** -values["token_exponent"]
            * p ** -values["size_exponent"]
            * total ** -values["exponent"]
            + values["added_token_amplitude"]
            * d ** -values["added_token_exponent"]
            * p ** values["added_token_size_exponent"]
            + values["added_size_amplitude"] * p ** -values["added_size_exponent"]
        )
    found = fitted.predict(weights[None], tokens, parameters)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Messages


def test_unknown_laws():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match="law 'olmix' is unknown; known are eti, etk, separable"):
        fit_law(table, "olmix", forms=[Form()])
    record = true_law("eti").to_dict() | {"law": "olmix"}
    with pytest.raises(ValueError, match="record holds law 'olmix'; known are eti, etk"):
        FittedLaw.from_dict(record)


def test_tables_that_carry_no_law_are_refused():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match="a fit needs at least 3 runs"):
        fit_law(table.select([0, 1]), "eti", forms=[Form()])


@pytest.mark.parametrize(
    ("form", "what"), [(Form(tokens="sum"), "tokens"), (Form(size="both"), "parameters")]
)
def test_terms_need_their_counts(form, what):
    table = runs_of(true_law("eti"), 10)
    match = f"a term of {what} cannot be fitted to runs whose {what} are not known; add a column"
    with pytest.raises(ValueError, match=match):
        fit_law(table, "eti", forms=[form])
    law = true_law("eti", form=form)
    match = f"fitted with a term of {what}; give the {what} to predict for"
    with pytest.raises(ValueError, match=match):
        law.predict(simplex_grid(), None, None)
    with pytest.raises(ValueError, match=match):
        law.surface(None, None)


def test_repetition_needs_tokens_and_a_number_for_every_domain():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match="worth of repeated tokens needs the tokens of the runs"):
        fit_law(table, "eti", forms=[Form()], repetition=SCARCE)
    table = runs_of(true_law("eti", form=Form(tokens="product")), 10, budgets=BUDGETS)
    scarce = Repetition(rate=3.0, unique_tokens=np.array([1e6, 1e6]))
    with pytest.raises(
        ValueError, match="given for 2 domains; expected one number for each of web"
    ):
        fit_law(table, "eti", forms=[Form(tokens="product")], repetition=scarce)


def test_mixtures_of_other_domains_are_refused():
    with pytest.raises(ValueError, match="have 3 weights; expected one for each of the 5 domains"):
        true_law("eti").predict(mixtures(4, num_domains=3), None, None)


def test_bimix_needs_a_domain_of_each_set():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match=r"law 'bimix' describes .* same name, and a set here has"):
        fit_law(table, "bimix", forms=[Form()])


def test_draws_are_asked_for_only_where_there_are_some():
    with pytest.raises(ValueError, match="law 'eti' was fitted without bootstrap draws"):
        true_law("eti").predict_draws(simplex_grid(), None, None)
    with pytest.raises(ValueError, match="law 'eti' was fitted without bootstrap draws"):
        true_law("eti").surface(None, None, draw=0)


# Docs


def as_written(prior, *, of=""):
    """A prior as the docs have it: `log .3 ± .7`, or `log(.5 min L) ± 1` of a share of the loss."""
    (mean, sd), logarithm = prior, of != "itself"
    number = f"{np.exp(mean) if logarithm else mean:.2g}"
    number, width = (re.sub(r"^0(?=\.)", "", text) for text in (number, f"{sd:.2g}"))
    if of == "min L":
        return f"log({number} min L) ± {width}"
    return f"{'log ' * logarithm}{number} ± {width}"


def priors(law):
    """Means and standard deviations by name, of a set whose own domain is the first."""
    frame = Frame(TERMS[law], LARGE_FORM)
    mean, sd = frame.prior(np.ones(1), np.zeros(1, np.int64), K)
    return dict(zip(frame.parameter_names(DOMAINS), zip(mean[0], sd[0], strict=True), strict=True))


def test_the_docs_have_the_priors_of_the_code():
    path = Path(__file__).parents[2] / "autoscale/laws/README.md"
    text = path.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    rows = dict(re.findall(r"^\| (\w)[^|]*? \| ([^|]+?) \|$", text, flags=re.MULTILINE))
    eti, etk, log_linear = map(priors, ("eti", "etk", "log_linear"))
    for row, written in (
        ("E", as_written(eti["log_irreducible"], of="min L")),
        ("A", as_written(eti["log_amplitude"], of="itself")),
        ("g", as_written(eti["log_exponent"])),
        ("k", as_written(eti["power_logit"], of="itself")),
        ("k", f"offsets ± {as_written(eti['power_logit_offset/web'], of='itself')[4:]} a domain"),
        ("k", as_written(etk["power_logit"], of="itself")),
        ("t", f"own domain {as_written(eti['log_transfer/web'], of='itself')}"),
        ("t", f"others {as_written(eti['log_transfer/code'], of='itself')}"),
        ("b", as_written(eti["log_token_exponent"])),
        ("b", as_written(log_linear["log_token_exponent"])),
        ("B", as_written(eti["log_added_token_amplitude"], of="min L")),
        ("B", as_written(eti["log_added_token_exponent"])),
        ("B", as_written(eti["added_token_size_exponent"], of="itself")),
        ("h", as_written(eti["log_size_exponent"])),
        ("K", as_written(eti["log_added_size_amplitude"], of="min L")),
        ("K", as_written(eti["log_added_size_exponent"])),
    ):
        assert written in rows[row], (row, written)
