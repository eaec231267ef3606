"""The best mixture of random problems: certified, within all constraints, as good as scipy's."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from autoscale.constraints import Constraints, InfeasibleError
from autoscale.mixture import Mixture
from autoscale.mixture_objective import Pull, WeightedSum, Worst
from autoscale.optimum import Optimum, make_choice, optimise
from autoscale.random_search import Search
from tests.unit.solver_problems import (
    EffectiveTokens,
    InverseSum,
    LogLinear,
    SolverProblem,
    random_problem,
)


def solved(problem: SolverProblem) -> Optimum | None:
    """The optimum, or None where no mixture keeps the limits."""
    try:
        return optimise(
            problem.surface,
            problem.objective,
            problem.constraints,
            limits=problem.limits,
            pull=problem.pull,
        )
    except InfeasibleError:
        assert problem.limits is not None
        return None


def scipy_optimum(problem: SolverProblem, start) -> float:
    """The objective where SLSQP ends, infinite if that is not feasible; no bound is 0."""
    surface, constraints = problem.surface, problem.constraints
    rows = problem.objective.rows(surface.sets)
    num, has_level = len(surface.domains), len(rows.offsets) > 1

    def pull(w):
        return 0.0 if problem.pull is None else float(problem.pull.values(w))

    def value(x):
        return (x[-1] if has_level else rows.values(surface.losses(x))[0]) + pull(x[:num])

    conditions = [{"type": "eq", "fun": lambda x: x[:num].sum() - 1}]
    if has_level:
        conditions.append(
            {"type": "ineq", "fun": lambda x: x[-1] - rows.values(surface.losses(x[:num]))}
        )
    if problem.limits is not None:
        conditions.append(
            {"type": "ineq", "fun": lambda x: problem.limits - surface.losses(x[:num])}
        )
    for group in constraints.groups:
        members = [constraints.domains.index(name) for name in group.domains]
        conditions.append(
            {
                "type": "ineq",
                "fun": lambda x, m=members, g=group: np.array(
                    [x[m].sum() - g.lower, g.upper - x[m].sum()]
                ),
            }
        )
    bounds = list(zip(np.maximum(constraints.lower, 1e-9), constraints.upper, strict=True))
    first = np.append(start, problem.value(start)) if has_level else start
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = minimize(
            value,
            first,
            method="SLSQP",
            bounds=bounds + [(None, None)] * has_level,
            constraints=conditions,
            options={"maxiter": 300, "ftol": 1e-12},
        )
        weights = np.maximum(found.x[:num], 0)
        weights = weights / weights.sum()
        feasible = found.success and problem.is_feasible(weights, tolerance=1e-9)
    return float(problem.value(weights)) if feasible else np.inf


def rivals(problem: SolverProblem, found: Optimum, rng):
    """Feasible mixtures near the optimum and far from it, shape (..., K)."""
    weights = found.mixture.as_array()
    draws = rng.dirichlet(np.full(len(weights), 0.5), 300) + 1e-9
    steps = 10.0 ** rng.uniform(-6, 0, (300, 1))
    near = weights + steps * (draws / draws.sum(axis=1, keepdims=True) - weights)
    return near[problem.is_feasible(near)]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), law=st.sampled_from([EffectiveTokens, LogLinear]))
def test_convex_problems(seed: int, law) -> None:
    problem = random_problem(seed, law)
    found = solved(problem)
    if found is None:
        return
    weights = found.mixture.as_array()
    scale = max(1.0, abs(found.objective))
    assert found.duality_gap is not None and 0 <= found.duality_gap <= 1e-8 * scale
    assert problem.is_feasible(weights, tolerance=2e-12)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert found.objective == pytest.approx(float(problem.value(weights)), rel=1e-12)
    others = problem.value(rivals(problem, found, np.random.default_rng(seed)))
    # Limits are kept to 1e-9 nats, so that an optimum may be better than a mixture within them.
    assert (others >= found.objective - found.duality_gap - 1e-12 * scale).all()


@pytest.mark.parametrize("law", [EffectiveTokens, LogLinear])
def test_no_worse_than_scipy(law) -> None:
    num_compared = 0
    for seed in range(30):
        problem = random_problem(seed, law)
        found = solved(problem)
        if found is None or (problem.constraints.upper < 1e-6).any():
            continue
        choice = make_choice(
            problem.surface, problem.objective, problem.constraints, limits=problem.limits
        )
        other = scipy_optimum(problem, choice.feasible.inside)
        assert found.objective <= other + 1e-7 * max(1, abs(other))
        num_compared += np.isfinite(other)
    assert num_compared > 15


def test_bounds_are_met_exactly_and_named() -> None:
    num_bound = 0
    for seed in range(25):
        problem = random_problem(seed)
        found = solved(problem)
        if found is None:
            continue
        weights, constraints = found.mixture.as_array(), problem.constraints
        for names, bound in (
            (found.at_lower, constraints.lower),
            (found.at_upper, constraints.upper),
        ):
            rests = np.array([name in names for name in constraints.domains])
            np.testing.assert_allclose(weights[rests], bound[rests], atol=1e-9)
            assert (np.abs(weights - bound)[~rests] > 1e-9).all()
            num_bound += rests.sum()
    assert num_bound > 25


@pytest.mark.parametrize("seed", range(6))
def test_laws_that_are_not_convex_give_the_best_of_many(seed: int) -> None:
    rng = np.random.default_rng(seed)
    surface = InverseSum(rng, 6, 3)
    bounds = Constraints(domains=surface.domains, lower=np.full(6, 0.02), upper=np.full(6, 0.6))
    samples = 0.02 + 0.88 * rng.dirichlet(np.full(6, 0.5), 20_000)
    samples = samples[(samples <= 0.6).all(axis=1)]
    for objective in (WeightedSum(weights=np.ones(3)), Worst(offsets=np.zeros(3))):
        found = optimise(surface, objective, bounds)
        values = objective.rows(surface.sets).values(surface.losses(samples)).max(axis=-1)
        assert found.objective <= values.min() + 1e-9
        assert found.duality_gap is None and "local optima from 8 starts" in found.message


class Steps(EffectiveTokens):
    """Losses of the nearest of 20 weights: no gradient says anything, as with trees."""

    convex = differentiable = False

    def losses(self, weights):
        return super().losses((np.floor(20 * np.asarray(weights)) + 0.5) / 20)


def test_laws_without_gradients_are_sampled_within_limits_and_bounds() -> None:
    surface = Steps(np.random.default_rng(0), 5, 3)
    smooth = EffectiveTokens(np.random.default_rng(0), 5, 3)
    bounds = Constraints(domains=surface.domains, lower=np.full(5, 0.02), upper=np.full(5, 0.5))
    objective = WeightedSum(weights=np.ones(3) / 3)
    found = optimise(surface, objective, bounds)
    best = optimise(smooth, objective, bounds)
    reached = smooth.losses(found.mixture.as_array()).mean()
    uniform = smooth.losses(np.full(5, 0.2)).mean()
    assert reached - best.objective < 0.1 * (uniform - best.objective) + 1e-3
    assert found.duality_gap is None and "40000 sampled mixtures" in found.message
    limits = surface.losses(np.full(5, 0.2)) + 0.02
    limited = optimise(surface, WeightedSum(weights=[1, 0, 0]), bounds, limits=limits)
    assert (limited.losses <= limits + 1e-9).all()
    with pytest.raises(InfeasibleError, match=r"none of 20000 mixtures .* misses one by [\d.]+"):
        optimise(surface, objective, bounds, limits=limits - 0.9)
    again = optimise(surface, objective, bounds, search=Search(seed=1))
    assert again.mixture != found.mixture
    assert np.abs(again.mixture.as_array() - found.mixture.as_array()).sum() < 0.15


def test_a_reference_that_nothing_betters_everywhere_is_its_own_optimum() -> None:
    """No harm at an allowance of 0 leaves a feasible set without inside."""
    surface = EffectiveTokens(np.random.default_rng(3), 4, 1)
    bounds = Constraints(domains=surface.domains, lower=np.zeros(4), upper=np.ones(4))
    best = optimise(surface, WeightedSum(weights=[1]), bounds)
    again = optimise(surface, WeightedSum(weights=[1]), bounds, limits=best.losses)
    np.testing.assert_allclose(again.mixture.as_array(), best.mixture.as_array(), atol=1e-3)
    assert again.objective <= best.objective + 1e-9
    with pytest.raises(InfeasibleError, match=r"no mixture within the constraints keeps the los"):
        optimise(surface, WeightedSum(weights=[1]), bounds, limits=best.losses - 1e-6)


def test_limits_in_conflict_are_named_with_what_they_miss() -> None:
    surface = LogLinear(np.random.default_rng(0), 3, 3)
    surface.slopes = np.array([[-1.0, 1, 0], [1, -1, 0], [0, 0, 0]])
    bounds = Constraints(domains=surface.domains, lower=np.zeros(3), upper=np.ones(3))
    limits = surface.losses(np.full(3, 1 / 3)) + np.array([-0.1, -0.1, 5])
    objective = WeightedSum(weights=np.ones(3))
    with pytest.raises(InfeasibleError, match=r"limits of 's0' \([\d.]+\), 's1' \([\d.]+\): the"):
        optimise(surface, objective, bounds, limits=limits)
    with pytest.raises(InfeasibleError) as caught:
        optimise(surface, objective, bounds, limits=limits)
    remedy = float(str(caught.value).split("raise these limits by ")[1].split(",")[0])
    assert 0 < remedy < 0.2
    optimise(surface, objective, bounds, limits=limits + remedy)
    single = Constraints(domains=surface.domains, lower=[0.5, 0.5, 0], upper=np.ones(3))
    with pytest.raises(InfeasibleError, match=r"misses by 0.1 nats; raise these limits by 0.1,"):
        optimise(surface, objective, single, limits=surface.losses(np.array([0.5, 0.5, 0])) - 0.1)


class OnlyOwn(EffectiveTokens):
    """Without tokens of its own domain a set's loss is infinite."""

    def __init__(self, rng, num_domains, num_sets):
        super().__init__(rng, num_domains, num_sets)
        self.transfer = np.eye(num_sets, num_domains)

    def losses(self, weights):
        with np.errstate(divide="ignore"):
            return super().losses(weights)

    def hessian(self, weights, multipliers):
        multipliers = np.where(multipliers > 0, multipliers, np.nan)
        return np.diag(np.nansum(self._curvatures(weights) * multipliers[:, None], axis=0))

    def _curvatures(self, weights):
        g = self.exponent[:, None] * self.power
        return self.amplitude[:, None] * g * (g + 1) * self.transfer * weights ** (-g - 2)


def test_a_loss_that_is_infinite_everywhere_is_refused() -> None:
    surface = OnlyOwn(np.random.default_rng(0), 3, 2)
    bounds = Constraints(domains=surface.domains, lower=np.zeros(3), upper=[1, 0, 1])
    with pytest.raises(
        InfeasibleError, match=r"loss of 's1' is infinite without tokens of 'd1', whose weight the"
    ):
        optimise(surface, WeightedSum(weights=[1, 1]), bounds)
    found = optimise(surface, WeightedSum(weights=[1, 0]), bounds)
    assert found.mixture.weights == pytest.approx((1, 0, 0), abs=1e-9)


def test_a_thousand_domains_with_groups_take_few_steps() -> None:
    rng = np.random.default_rng(0)
    surface = EffectiveTokens(rng, 1000, 10)
    bounds = Constraints(
        domains=surface.domains, lower=np.full(1000, 2e-4), upper=np.full(1000, 0.02)
    )
    found = optimise(surface, Worst(offsets=surface.losses(np.full(1000, 1e-3))), bounds)
    assert found.duality_gap is not None and found.duality_gap < 1e-9
    assert found.num_iterations < 40 and len(found.at_lower) > 300


def test_objectives_and_pulls_that_make_no_sense_are_refused() -> None:
    surface = LogLinear(np.random.default_rng(0), 3, 2)
    bounds = Constraints(domains=surface.domains, lower=np.zeros(3), upper=np.ones(3))
    for objective, message in (
        (WeightedSum(weights=[1, -1]), r"weight of validation set 's1' is -1; expected a finite"),
        (WeightedSum(weights=[0, 0]), r"all objective weights are 0; give one"),
        (WeightedSum(weights=[1]), r"objective weight: shape \(1,\); expected one number for each"),
        (Worst(offsets=[np.inf, np.inf]), r"every offset is infinite; give one validation set"),
        (Worst(offsets=[np.nan, 0]), r"offset of the worst loss of validation set 's0' is nan;"),
    ):
        with pytest.raises(ValueError, match=message):
            optimise(surface, objective, bounds)
    with pytest.raises(ValueError, match=r"limit of validation set 's1' is nan; expected a number"):
        optimise(surface, WeightedSum(weights=[1, 1]), bounds, limits=[1, np.nan])
    with pytest.raises(ValueError, match="pull is 'l1'; expected 'kl' or 'l2'"):
        Pull(kind="l1", strength=1, mixture=Mixture.uniform(surface.domains))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strength of the pull is -1; expected a finite number"):
        Pull(kind="kl", strength=-1, mixture=Mixture.uniform(surface.domains))
    vertex = Mixture(domains=surface.domains, weights=(1.0, 0, 0))
    with pytest.raises(ValueError, match=r"'d1' has weight 0 in the mixture that the pull is to"):
        optimise(
            surface,
            WeightedSum(weights=[1, 1]),
            bounds,
            pull=Pull(kind="kl", strength=1, mixture=vertex),
        )
