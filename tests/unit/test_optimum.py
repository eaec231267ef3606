"""The best mixture: against another solver, certificates, constraints and refusals."""

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from autoscale.constraints import Constraints, Group, InfeasibleError
from autoscale.laws.fitted_law import FittedLaw
from autoscale.laws.fitter import Units, own_domains
from autoscale.laws.frame import Form, Frame
from autoscale.laws.terms import TERMS
from autoscale.mixture import Mixture
from autoscale.mixture_objective import Pull, WeightedSum, Worst
from autoscale.optimum import optimise
from autoscale.random_search import Search
from tests.unit.synthetic_runs import true_law


def law_of(num_domains, *, name="eti", num_sets=None, seed=0):
    """A law with parameters drawn from its priors, nearly."""
    domains = tuple(f"d{i}" for i in range(num_domains))
    sets = tuple(f"d{i}" for i in range(num_sets or num_domains))
    frame, own = Frame(TERMS[name], Form()), own_domains(domains, sets)
    prior = frame.prior(np.full(len(sets), 2.0), own, num_domains)
    rng = np.random.default_rng(seed)
    spread = np.where(prior.sd > 2, 0.1, 0.6) * prior.sd
    return FittedLaw(
        law=name,
        form=Form(),
        domains=domains,
        sets=sets,
        metric="nats",
        units=Units(1.0, 1.0),
        repetition=None,
        theta=prior.mean + spread * rng.normal(size=prior.mean.shape),
        draws=None,
        noise=np.full(len(sets), 0.01),
        relative=False,
        effective_parameters=np.zeros(len(sets)),
        converged=(True,) * len(sets),
    )


def bounds(domains, lower=0.0, upper=1.0, groups=()):
    num = len(domains)
    return Constraints(
        domains=tuple(domains),
        lower=np.broadcast_to(lower, num).astype(float),
        upper=np.broadcast_to(upper, num).astype(float),
        groups=tuple(groups),
    )


def mean(surface):
    return WeightedSum(weights=np.full(len(surface.sets), 1 / len(surface.sets)))


def slsqp(surface, constraints, *, extra=(), value=None):
    """The optimum by scipy's sequential quadratic programming, from inside."""
    num = len(surface.domains)
    value = value or (lambda w: surface.losses(w).mean())
    found = minimize(
        value,
        np.full(num, 1 / num),
        method="SLSQP",
        bounds=list(zip(np.maximum(constraints.lower, 1e-7), constraints.upper, strict=True)),
        constraints=[LinearConstraint(np.ones((1, num)), 1, 1), *extra],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return found.fun


def is_feasible(optimum, constraints):
    weights = optimum.mixture.as_array()
    inside = (weights >= constraints.lower - 1e-12) & (weights <= constraints.upper + 1e-12)
    return inside.all() and abs(weights.sum() - 1) < 1e-12


@pytest.mark.parametrize("num_domains", [3, 7, 20])
@pytest.mark.parametrize("name", ["eti", "etk", "separable", "log_linear"])
def test_convex_optima_are_those_of_another_solver_and_certified(name, num_domains):
    for seed in range(3):
        surface = law_of(num_domains, name=name, seed=seed).surface(None, None)
        constraints = bounds(surface.domains, 0.1 / num_domains, 0.6)
        found = optimise(surface, mean(surface), constraints)
        assert is_feasible(found, constraints)
        assert found.objective <= slsqp(surface, constraints) + 1e-7
        assert 0 <= found.duality_gap < 1e-8
        assert found.objective == pytest.approx(surface.losses(found.mixture.as_array()).mean())


def test_no_random_mixture_is_better_by_more_than_the_gap():
    surface = law_of(6).surface(None, None)
    found = optimise(surface, mean(surface), bounds(surface.domains))
    others = np.random.default_rng(0).dirichlet(np.ones(6), 5000)
    assert (surface.losses(others).mean(axis=1) >= found.objective - found.duality_gap).all()


def test_bounds_that_decide_are_met_exactly_and_named():
    surface = law_of(5, seed=3).surface(None, None)
    free = optimise(surface, mean(surface), bounds(surface.domains)).mixture.as_array()
    lower, upper = np.zeros(5), np.ones(5)
    lower[free.argmin()] = free.min() + 0.1
    upper[free.argmax()] = free.max() - 0.1
    found = optimise(surface, mean(surface), bounds(surface.domains, lower, upper))
    weights = found.mixture.as_array()
    assert weights[free.argmin()] == pytest.approx(lower[free.argmin()], abs=1e-12)
    assert found.at_lower == (surface.domains[free.argmin()],)
    assert found.at_upper == (surface.domains[free.argmax()],)


def test_fixed_weights_leave_the_rest_to_the_solver():
    surface = law_of(4).surface(None, None)
    lower, upper = np.array([0.3, 0, 0, 0.2]), np.array([0.3, 1, 1, 0.2])
    found = optimise(surface, mean(surface), bounds(surface.domains, lower, upper))
    assert found.mixture.weights[0] == pytest.approx(0.3, abs=1e-15)
    assert found.mixture.weights[3] == pytest.approx(0.2, abs=1e-15)
    everything = optimise(surface, mean(surface), bounds(surface.domains, 0.25, 0.25))
    assert everything.mixture.weights == pytest.approx((0.25,) * 4)


def test_groups_bound_the_sum_of_their_domains():
    surface = law_of(6, seed=1).surface(None, None)
    group = Group(name="web", domains=("d0", "d1", "d2"), lower=0.1, upper=0.25)
    constraints = bounds(surface.domains, 0.01, 1.0, [group])
    found = optimise(surface, mean(surface), constraints)
    total = found.mixture.as_array()[:3].sum()
    assert 0.1 - 1e-9 <= total <= 0.25 + 1e-9
    rows = LinearConstraint(np.array([[1, 1, 1, 0, 0, 0]]), 0.1, 0.25)
    assert found.objective <= slsqp(surface, constraints, extra=[rows]) + 1e-7
    assert found.duality_gap < 1e-8


def test_the_worst_loss_is_minimised():
    surface = law_of(5, seed=2).surface(None, None)
    found = optimise(surface, Worst(offsets=np.zeros(5)), bounds(surface.domains, 0.01))
    others = np.random.default_rng(1).dirichlet(np.ones(5), 20_000)
    others = 0.05 + 0.75 * others  # within the bounds
    assert found.objective == pytest.approx(found.losses.max(), abs=1e-9)
    assert (surface.losses(others).max(axis=1) >= found.objective - 1e-8).all()
    assert found.duality_gap < 1e-7


def test_no_set_is_harmed_beyond_its_limit():
    surface = law_of(5, seed=4).surface(None, None)
    one = WeightedSum(weights=np.eye(5)[0])
    reference = surface.losses(np.full(5, 0.2))
    free = optimise(surface, one, bounds(surface.domains, 0.01))
    assert (free.losses > reference + 0.02).any()  # the limit has something to do
    limited = optimise(surface, one, bounds(surface.domains, 0.01), limits=reference + 0.02)
    assert (limited.losses <= reference + 0.02 + 1e-8).all()
    assert free.objective <= limited.objective <= reference[0]


def test_limits_that_no_mixture_meets_are_named():
    surface = law_of(4).surface(None, None)
    limits = np.full(4, np.inf)
    limits[1] = 0.5 * surface.losses(np.eye(4)[1] * 0.97 + 0.01)[1]
    with pytest.raises(InfeasibleError, match="d1"):
        optimise(surface, mean(surface), bounds(surface.domains, 0.01), limits=limits)


@pytest.mark.parametrize("kind", ["kl", "l2"])
def test_a_pull_draws_the_optimum_to_its_mixture(kind):
    surface = law_of(5, seed=5).surface(None, None)
    prior = Mixture(domains=surface.domains, weights=(0.1, 0.1, 0.2, 0.3, 0.3))
    distances = []
    for strength in (1e-9, 0.1, 1e4):
        pull = Pull(kind=kind, strength=strength, mixture=prior)
        found = optimise(surface, mean(surface), bounds(surface.domains), pull=pull)
        distances.append(np.abs(found.mixture.as_array() - prior.as_array()).sum())
        assert found.duality_gap < 1e-6 * max(1, strength)
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-3


def test_perplexities_are_convex_too():
    surface = law_of(5, seed=6).surface(None, None)
    objective = WeightedSum(weights=np.full(5, 0.2), of="perplexity")
    constraints = bounds(surface.domains, 0.01)
    found = optimise(surface, objective, constraints)
    other = slsqp(surface, constraints, value=lambda w: np.exp(surface.losses(w)).mean())
    assert found.objective <= other + 1e-6
    assert found.duality_gap < 1e-7


def test_laws_that_are_not_convex_have_no_certificate():
    surface = true_law("inverse_sum", seed=1).surface(None, None)
    found = optimise(surface, mean(surface), bounds(surface.domains, 0.01))
    assert found.duality_gap is None
    others = np.random.default_rng(0).dirichlet(np.ones(len(surface.domains)), 5000) * 0.95 + 0.01
    assert found.objective <= surface.losses(others).mean(axis=1).min() + 1e-9


class Steps:
    """A surface without gradients: the nearest of a few mixtures is best."""

    domains, sets, convex, differentiable = ("a", "b", "c"), ("s",), False, False

    def losses(self, weights):
        distance = np.abs(np.asarray(weights) - np.array([0.5, 0.3, 0.2])).sum(axis=-1)
        return np.floor(20 * distance)[..., None] / 20 + 1


def test_surfaces_without_gradients_are_sampled():
    found = optimise(Steps(), mean(Steps()), bounds(Steps.domains), search=Search(num_samples=4000))
    assert found.duality_gap is None
    assert np.abs(found.mixture.as_array() - np.array([0.5, 0.3, 0.2])).sum() < 0.1


def test_a_thousand_domains_take_few_steps():
    surface = law_of(1000, num_sets=10).surface(None, None)
    found = optimise(surface, mean(surface), bounds(surface.domains))
    assert found.num_iterations < 60
    assert found.duality_gap < 1e-8


def test_constraints_of_other_domains_are_refused():
    surface = law_of(3).surface(None, None)
    with pytest.raises(ValueError, match="constraints are on domains a, b, c; expected those"):
        optimise(surface, mean(surface), bounds(("a", "b", "c")))


def test_groups_in_conflict_are_named_with_their_numbers():
    groups = [
        Group(name="web", domains=("d0", "d1"), lower=0.7, upper=1.0),
        Group(name="code", domains=("d2",), lower=0.5, upper=1.0),
    ]
    with pytest.raises(InfeasibleError, match=r"(?s)web.*0\.7|0\.7.*web") as caught:
        bounds(("d0", "d1", "d2", "d3"), 0.0, 1.0, groups).check()
    assert "code" in str(caught.value)


def test_a_group_against_the_bounds_of_its_domains_is_named():
    group = Group(name="web", domains=("d0", "d1"), lower=0.5, upper=1.0)
    with pytest.raises(InfeasibleError, match="web"):
        bounds(("d0", "d1", "d2"), 0.0, [0.1, 0.2, 1.0], [group]).check()
