"""The laws by themselves: derivatives, convexity, tokens that teach nothing."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from autoscale.laws.effective_tokens import EffectiveTokens
from autoscale.laws.fitter import make_inputs, own_domains
from autoscale.laws.frame import LOG_TERM_RANGE, Form, Frame
from autoscale.laws.terms import TERMS
from tests.unit.synthetic_runs import (
    ACROSS,
    DOMAINS,
    LARGE_FORM,
    REPETITIONS,
    SCARCE,
    UNITS,
    assert_close,
    by_difference,
    every_law,
    mixtures,
    true_law,
    with_and_without_repetition,
)

K = len(DOMAINS)
FORMS = [
    Form(tokens=tokens, size=size)
    for tokens in ("none", "product", "sum", "both")
    for size in ("none", "product", "sum", "both")
]


def form_name(form):
    return f"{form.tokens}-{form.size}"


every_form = pytest.mark.parametrize("form", FORMS, ids=form_name)


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
