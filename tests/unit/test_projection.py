"""The projection: official numbers, exact budgets, its two ends, bounds, kinds and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.projection import full_projection, path_tokens, project

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures/autoscale_official.json").read_text())
DOMAINS = OFFICIAL["domains"]
SMALL = np.array(OFFICIAL["listed"]["0.3B"]) * 0.3 / 7
LARGE = np.array(OFFICIAL["listed"]["1.2B"]) * 1.2 / 7
FREE = {"lower": np.zeros(7), "upper": np.ones(7)}


@pytest.mark.parametrize("step", OFFICIAL["projections"], ids=lambda step: f"t={step['t']}")
def test_official_recursion(step) -> None:
    tokens = path_tokens(SMALL, LARGE, step["t"])
    np.testing.assert_allclose(tokens, step["tokens"], rtol=1e-12)
    assert tokens.sum() == pytest.approx(step["total"], rel=1e-12)
    found, t = full_projection(SMALL, LARGE, token_budget=step["total"], domains=DOMAINS)
    assert t == pytest.approx(step["t"], rel=1e-12)
    np.testing.assert_allclose(found, step["tokens"], rtol=1e-10)


def test_official_totals_in_billions() -> None:
    totals = [path_tokens(SMALL, LARGE, t).sum() for t in (2, 3, 4, 5)]
    assert [round(total, 2) for total in totals] == [5.00, 21.39, 93.23, 412.44]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1, 1e4), num_domains=st.integers(1, 30))
def test_meets_any_budget_on_the_path(seed: int, factor: float, num_domains: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(num_domains)]
    small = 3e8 * rng.dirichlet(np.ones(num_domains)) + 1
    large = rng.uniform(1.5, 9) * small.sum() * rng.dirichlet(np.ones(num_domains)) + 1
    budget = float(small.sum()) * factor
    tokens, t = full_projection(small, large, token_budget=budget, domains=names)
    assert t >= 0 and tokens.sum() == pytest.approx(budget, rel=1e-14)
    np.testing.assert_allclose(tokens, path_tokens(small, large, t), rtol=1e-9)
    assert (t < 1) == (budget < large.sum()) or t == pytest.approx(1)


def test_probe_budgets_return_their_inputs() -> None:
    for expected, end in ((SMALL, 0.0), (LARGE, 1.0)):
        tokens, t = full_projection(
            SMALL, LARGE, token_budget=float(expected.sum()), domains=DOMAINS
        )
        assert t == end
        np.testing.assert_allclose(tokens, expected, rtol=1e-15)


def test_exact_budget_in_tokens() -> None:
    tokens, t = full_projection(
        SMALL * 1e9, LARGE * 1e9, token_budget=5_000_000_000, domains=DOMAINS
    )
    assert tokens.sum() == pytest.approx(5e9, abs=1e-5)
    assert 1.99 < t < 2


def test_kinds() -> None:
    arguments = {
        "domains": DOMAINS,
        "small_tokens": SMALL,
        "large_tokens": LARGE,
        "token_budget": 5,
        **FREE,
    }
    full, hold, damped = (project(kind, **arguments) for kind in ("full", "hold", "damped"))
    np.testing.assert_allclose(hold.weights.as_array(), LARGE / LARGE.sum())
    assert hold.t is None and full.t == damped.t
    middle = np.sqrt(full.weights.as_array() * hold.weights.as_array())
    np.testing.assert_allclose(damped.weights.as_array(), middle / middle.sum())
    for projection in (full, hold, damped):
        assert projection.change_l1 < 1e-15 and projection.bounded == ()
        assert projection.weights.domains == tuple(DOMAINS)


def test_bounds_are_imposed_again_and_reported() -> None:
    upper = np.ones(7)
    upper[DOMAINS.index("c4")] = 0.25
    result = project(
        "full",
        domains=DOMAINS,
        small_tokens=SMALL,
        large_tokens=LARGE,
        token_budget=21,
        lower=np.full(7, 0.02),
        upper=upper,
    )
    before, after = result.unbounded_weights.to_dict(), result.weights.to_dict()
    assert result.bounded == ("c4", "arxiv")
    assert after["c4"] == pytest.approx(0.25) and after["arxiv"] == pytest.approx(0.02)
    assert sum(after.values()) == pytest.approx(1, abs=1e-15)
    assert after["books"] / after["wiki"] == pytest.approx(before["books"] / before["wiki"])
    changed = sum(abs(after[name] - before[name]) for name in DOMAINS)
    assert result.change_l1 == pytest.approx(changed) and changed > 0.1


def test_domain_without_tokens_stays_without() -> None:
    tokens, _ = full_projection([1, 0, 1], [3, 0, 5], token_budget=40, domains=["a", "b", "c"])
    assert tokens[1] == 0 and tokens.sum() == pytest.approx(40)


def test_errors() -> None:
    names = ["a", "b"]
    with pytest.raises(
        ValueError,
        match=r"domain 'b' has optimal weight 0 at the small budget and 0.5 at the large one.*"
        r"give it a positive minimum weight, fit again, or use projection = 'hold'",
    ):
        full_projection([3e8, 0], [6e8, 6e8], token_budget=1e10, domains=names)
    with pytest.raises(ValueError, match=r"200M lies below the probe budgets 300M and 1.2B"):
        full_projection([1e8, 2e8], [6e8, 6e8], token_budget=2e8, domains=names)
    with pytest.raises(ValueError, match=r"probe budgets are 1.2B and 300M tokens; expected a"):
        full_projection([6e8, 6e8], [1e8, 2e8], token_budget=2e9, domains=names)
    with pytest.raises(ValueError, match="projection is 'half'; expected 'full', 'hold' or"):
        project(
            "half",  # type: ignore[arg-type]
            domains=names,
            small_tokens=[1, 1],
            large_tokens=[2, 2],
            token_budget=8,
            lower=[0, 0],
            upper=[1, 1],
        )


def test_on_the_official_numbers_the_forward_projection_loses_to_holding():
    """L1 distances to the listed optimum at 1.2B; why `hold` is the default (README, limits)."""
    listed = {name: np.array(values) / 7 for name, values in OFFICIAL["listed"].items()}
    small, large = listed["0.3B"] * 0.3, listed["0.6B"] * 0.6
    forward = path_tokens(small, large, 2)
    distances = {
        "full": forward / forward.sum(),
        "hold": listed["0.6B"],
        "uniform": np.full(7, 1 / 7),
    }
    found = {name: np.abs(w - listed["1.2B"]).sum() for name, w in distances.items()}
    assert found == pytest.approx({"full": 0.1045, "hold": 0.0898, "uniform": 0.566}, abs=5e-4)
