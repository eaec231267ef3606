"""Laws with known parameters, runs that obey them, and finite differences: to test laws with."""

import numpy as np
import pytest

from autoscale.laws.fitted_law import FittedLaw
from autoscale.laws.fitter import Units, make_inputs, own_domains
from autoscale.laws.frame import Form, Frame
from autoscale.laws.mixture_term import Prior
from autoscale.laws.repetition import Repetition
from autoscale.laws.terms import TERMS
from autoscale.run_table import RunTable

DOMAINS = ("web", "code", "books", "wiki", "math")
NUM_DOMAINS = len(DOMAINS)
SETS = ("web", "code", "books", "mail")  # the last has no domain of its own
UNITS = Units(tokens=2e7, parameters=1e6)
BUDGETS = (1e7, 2e7, 4e7)
SIZES = (5e5, 1e6, 2e6)
LEAST_LOSS = 2.0
SCARCE = Repetition(rate=3.0, unique_tokens=np.array([0.2, 1, 5, 20, 100]) * 1e6)
REPETITIONS = {"fresh": None, "repeated": SCARCE}
LARGE_FORM = Form(tokens="both", size="both")
ACROSS = np.eye(NUM_DOMAINS) - 1 / NUM_DOMAINS  # changes of weights that leave their sum alone

every_law = pytest.mark.parametrize("law", TERMS)
with_and_without_repetition = pytest.mark.parametrize("repetition", REPETITIONS)


def sets_of(law):
    """BiMix describes sets with a domain of their own only."""
    return DOMAINS[:4] if law == "bimix" else SETS


def true_law(name, *, form=None, repetition=None, seed=0, sets=None, spread=0.5):
    """A law with parameters drawn from its priors, narrowed by `spread` so that none is absurd.

    Losses are about `LEAST_LOSS` at uniform weights, as far as the law has a level to choose.
    """
    if name == "log_linear":  # its priors span losses of many orders
        spread /= 4
    form, sets = form or Form(), tuple(sets or sets_of(name))
    frame, own = Frame(TERMS[name], form), own_domains(DOMAINS, sets)
    prior = frame.prior(np.full(len(sets), LEAST_LOSS), own, len(DOMAINS))
    rng = np.random.default_rng(seed)
    drawn = prior.mean + spread * prior.sd * rng.normal(size=prior.mean.shape)
    uniform = np.full((1, len(DOMAINS)), 1 / len(DOMAINS))
    inputs = make_inputs(frame, UNITS, None, uniform, None, None)
    start = frame.start(Prior(drawn, prior.sd), inputs, own, np.full(len(sets), LEAST_LOSS))
    return FittedLaw(
        law=name,
        form=form,
        domains=DOMAINS,
        sets=sets,
        metric="nats",
        units=UNITS,
        repetition=repetition,
        theta=start,
        draws=None,
        noise=np.full(len(sets), 0.01),
        relative=False,
        effective_parameters=np.zeros(len(sets)),
        converged=(True,) * len(sets),
    )


def mixtures(num_runs, *, seed=0, concentration=1.0, num_domains=NUM_DOMAINS):
    """Shape (num_runs, num_domains)."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(num_domains, concentration), num_runs)


def runs_of(law, num_runs, *, noise=0.0, seed=0, budgets=None, sizes=None, concentration=1.0):
    """A table of runs of random mixtures, with budgets and sizes in turn and noise in nats."""
    rng = np.random.default_rng(seed + 1)
    weights = mixtures(num_runs, seed=seed, concentration=concentration)
    tokens = np.resize(budgets, num_runs) if budgets else None
    parameters = np.resize(np.repeat(sizes, 2), num_runs) if sizes else None
    losses = law.predict(weights, tokens, parameters)
    return RunTable(
        runs=tuple(f"run-{number}" for number in range(num_runs)),
        domains=law.domains,
        sets=law.sets,
        weights=weights,
        tokens=tokens,
        parameters=parameters,
        losses=losses + noise * rng.normal(size=losses.shape),
    )


def simplex_grid():
    """Spread mixtures in the interior of the simplex, to compare laws on."""
    return mixtures(200, seed=99, concentration=2.0)


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
