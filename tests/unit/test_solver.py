"""The published law's solver: official optimum, optimality conditions, certificates, messages."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.constraints import InfeasibleError, project_onto_bounds
from autoscale.mixture import Mixture
from autoscale.scaling_law import PowerLaw
from autoscale.solver import Solution, solve_mixture
from tests.unit.solver_problems import random_bounds

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures/autoscale_official.json").read_text())


def random_problem(seed: int, num_domains: int) -> tuple[list[PowerLaw], Mixture]:
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(num_domains)]
    laws = [
        PowerLaw(
            domain=name,
            exponent=float(np.exp(rng.uniform(np.log(1e-3), np.log(8)))),
            equivalent=float(rng.choice([0.0, rng.uniform(0, 8)])),
            irreducible=0.5,
            amplitude=float(rng.uniform(0.2, 2)),
        )
        for name in names
    ]
    return laws, Mixture.from_array(names, rng.uniform(0.2, 1, num_domains))


def multiples(weights: np.ndarray, reference: Mixture, ratio: float) -> np.ndarray:
    return np.asarray(weights) * ratio / reference.as_array()


def assert_optimal(
    solution: Solution, laws: list[PowerLaw], reference: Mixture, ratio: float, *, lower, upper
) -> None:
    """Equal marginal gain between the bounds, less gain at the lower, more at the upper."""
    weights = solution.mixture.as_array()
    assert (weights >= lower - 1e-15).all() and (weights <= upper + 1e-15).all()
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    scale = ratio / reference.as_array()
    gains = np.array(
        [-float(law.derivative(w * s)) * s for law, w, s in zip(laws, weights, scale, strict=True)]
    )
    at_lower, at_upper = weights <= lower + 1e-14, weights >= upper - 1e-14  # Mixture normalises
    free = ~(at_lower | at_upper)
    if free.any():
        multiplier = gains[free].mean()
        np.testing.assert_allclose(gains[free], multiplier, rtol=1e-7)
        assert (gains[at_lower & ~at_upper] <= multiplier * (1 + 1e-7)).all()
        assert (gains[at_upper & ~at_lower] >= multiplier * (1 - 1e-7)).all()


def test_official_optimum() -> None:
    columns = [OFFICIAL["laws"][name] for name in ("equivalent", "exponent", "irreducible")]
    laws = [
        PowerLaw(domain=name, equivalent=e, exponent=g, irreducible=c)
        for name, e, g, c in zip(OFFICIAL["domains"], *columns, strict=True)
    ]
    lower = np.full(7, OFFICIAL["lower_bound"] / 7)
    solution = solve_mixture(
        laws, Mixture.uniform(OFFICIAL["domains"]), lower=lower, upper=np.ones(7)
    )
    weights = solution.mixture.as_array()
    np.testing.assert_allclose(weights * 7, OFFICIAL["optimum"], atol=1e-6)
    np.testing.assert_allclose(weights * 7, OFFICIAL["optimum_published"], atol=1e-6)
    assert solution.at_lower == ("github",) and solution.at_upper == ()
    assert solution.duality_gap < 1e-14


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_domains=st.integers(1, 12),
    ratio=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_optimality_conditions_and_random_rivals(seed: int, num_domains: int, ratio: float) -> None:
    laws, reference = random_problem(seed, num_domains)
    lower, upper = random_bounds(seed, num_domains)
    solution = solve_mixture(laws, reference, budget_ratio=ratio, lower=lower, upper=upper)
    assert_optimal(solution, laws, reference, ratio, lower=lower, upper=upper)
    scale = max(abs(solution.objective), 1.0)
    assert solution.duality_gap <= 1e-9 * scale
    rng = np.random.default_rng(seed)
    for _ in range(20):
        rival = project_onto_bounds(
            rng.dirichlet(np.ones(num_domains)),
            domains=reference.domains,
            lower=lower,
            upper=upper,
        )
        x = multiples(rival, reference, ratio)
        value = sum(float(law(m)) for law, m in zip(laws, x, strict=True))
        assert value >= solution.objective - 1e-12 * scale


def test_a_thousand_domains() -> None:
    laws, reference = random_problem(3, 1000)
    lower, upper = np.full(1000, 1e-5), np.full(1000, 5e-3)
    solution = solve_mixture(laws, reference, lower=lower, upper=upper)
    assert_optimal(solution, laws, reference, 1.0, lower=lower, upper=upper)
    assert solution.duality_gap < 1e-10 and solution.at_lower and solution.at_upper


def test_more_budget_spreads_the_weights() -> None:
    """Symmetric laws give the reference back, and bounds that leave one point give that point."""
    laws = [PowerLaw(domain=n, exponent=1.2, equivalent=2, irreducible=0.8) for n in "abc"]
    reference = Mixture.uniform("abc")
    free = solve_mixture(laws, reference, budget_ratio=5, lower=np.zeros(3), upper=np.ones(3))
    np.testing.assert_allclose(free.mixture.as_array(), 1 / 3, atol=1e-15)
    only = np.array([0.5, 0.25, 0.25])
    fixed = solve_mixture(laws, reference, lower=only, upper=only)
    assert fixed.mixture.weights == tuple(only)
    assert fixed.at_lower == fixed.at_upper == ("a", "b", "c") and fixed.duality_gap == 0


def test_flat_laws_fall_to_their_minimum() -> None:
    laws = [
        PowerLaw(domain="useful", exponent=1.2, equivalent=2, irreducible=0.8),
        PowerLaw(domain="flat", exponent=1e-8, equivalent=1, irreducible=0),
    ]
    solution = solve_mixture(
        laws, Mixture.uniform(["useful", "flat"]), lower=np.full(2, 0.1), upper=np.ones(2)
    )
    assert solution.mixture.weights == pytest.approx((0.9, 0.1)) and solution.at_lower == ("flat",)


def test_solver_errors() -> None:
    law = PowerLaw(domain="a", exponent=1, equivalent=0, irreducible=0)
    other = PowerLaw(domain="b", exponent=1, equivalent=0, irreducible=0)
    bounds = {"lower": np.zeros(2), "upper": np.ones(2)}
    with pytest.raises(ValueError, match=r"laws are of domains b, a; expected .* a, b"):
        solve_mixture([other, law], Mixture.uniform("ab"), **bounds)
    with pytest.raises(ValueError, match="domain 'b' has weight 0 in the reference mixture"):
        solve_mixture([law, other], Mixture.from_mapping({"a": 1, "b": 0}), **bounds)
    with pytest.raises(InfeasibleError, match="'b' has maximum weight 0 but its law is infinite"):
        solve_mixture([law, other], Mixture.uniform("ab"), lower=np.zeros(2), upper=[1, 0])
