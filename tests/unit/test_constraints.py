"""Bounds, epoch caps and groups: projection, what is left to solve, conflicts in words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.constraints import (
    Constraints,
    Group,
    InfeasibleError,
    project_onto_bounds,
    weight_bounds,
)
from autoscale.feasible_set import feasible_set, least_linear
from tests.unit.solver_problems import random_bounds, random_problem

DOMAINS = ("a", "b", "c", "d")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), num_domains=st.integers(1, 12))
def test_projection_onto_bounds(seed: int, num_domains: int) -> None:
    """Feasible, proportional where free, idempotent, and nearer than random feasible mixtures."""
    rng = np.random.default_rng(seed)
    lower, upper = random_bounds(seed, num_domains)
    names = [f"d{i}" for i in range(num_domains)]
    given_K = rng.dirichlet(np.full(num_domains, 0.7)) + 1e-9
    bounds = {"domains": names, "lower": lower, "upper": upper}
    found = project_onto_bounds(given_K, **bounds)
    assert found.sum() == pytest.approx(1, abs=1e-14)
    assert (found >= lower).all() and (found <= upper).all()
    free = (found > lower) & (found < upper)
    if free.any():
        scale = (found / given_K)[free]
        np.testing.assert_allclose(scale, scale[0], rtol=1e-10)
        low, high = (found <= lower) & ~free, (found >= upper) & (upper > lower)
        assert (given_K[low] * scale[0] <= lower[low] * (1 + 1e-10)).all()
        assert (given_K[high] * scale[0] >= upper[high] * (1 - 1e-10)).all()
    np.testing.assert_allclose(project_onto_bounds(found, **bounds), found, atol=1e-14)


def test_projection_onto_bounds_of_weights_within_and_of_zeros() -> None:
    names = ["a", "b", "c"]
    inside = np.array([0.5, 0.3, 0.2])
    same = project_onto_bounds(inside, domains=names, lower=np.zeros(3), upper=np.ones(3))
    assert (same == inside).all()
    zero = np.array([1.0, 0, 0])
    capped = project_onto_bounds(zero, domains=names, lower=np.zeros(3), upper=[0.6, 1, 1])
    np.testing.assert_allclose(capped, [0.6, 0.2, 0.2])
    raised = project_onto_bounds(zero, domains=names, lower=[0, 0.1, 0], upper=np.ones(3))
    np.testing.assert_allclose(raised, [0.9, 0.1, 0])


def test_weight_bounds() -> None:
    lower, upper = weight_bounds(
        ["a", "b"],
        minimum=[0.1, 0],
        maximum=1.0,
        available_tokens=[10, 1000],
        token_budget=100,
        max_epochs=4,
    )
    assert lower.tolist() == [0.1, 0] and upper.tolist() == [0.4, 1]
    _, upper = weight_bounds(
        ["a", "b"],
        minimum=0,
        maximum=[0.3, 1],
        available_tokens=[1, 1],
        token_budget=100,
        max_epochs=None,
    )
    assert upper.tolist() == [0.3, 1]


def bounds_for(**changes) -> tuple[np.ndarray, np.ndarray]:
    arguments = {
        "minimum": 0,
        "maximum": 1,
        "available_tokens": [2_100_000_000, 4_000_000_000],
        "token_budget": 10_000_000_000,
        "max_epochs": 1,
    }
    return weight_bounds(["arxiv", "books"], **(arguments | changes))


def test_infeasible_bounds_are_explained() -> None:
    with pytest.raises(
        InfeasibleError,
        match=r"'arxiv' has 2.1B tokens but its minimum weight 0.3 at 10B needs 3B, and "
        r"max_epochs is 1; raise max_epochs to 1.43 or lower the minimum",
    ):
        bounds_for(minimum=[0.3, 0])
    with pytest.raises(InfeasibleError, match=r"'arxiv' has 0 tokens .*; lower the minimum or"):
        bounds_for(minimum=[0.3, 0], available_tokens=[0, 10**11])
    with pytest.raises(
        InfeasibleError,
        match=r"supply at most 6.1B of the 10B tokens \(arxiv 2.1B, books 4B\); raise max_epochs "
        r"to 1.64, lower the token budget or prepare more text",
    ):
        bounds_for()
    assert bounds_for(max_epochs=1.64)[1].sum() >= 1
    with pytest.raises(InfeasibleError, match="raise the maximum weights of the domains that have"):
        bounds_for(maximum=[1, 0.5], available_tokens=[0, 10**11])
    with pytest.raises(InfeasibleError, match=r"'books' has minimum weight 0.5 above its maximum"):
        bounds_for(minimum=[0, 0.5], maximum=[1, 0.2])
    with pytest.raises(InfeasibleError, match=r"minimum weights sum to 1.2, above 1; lower some"):
        bounds_for(minimum=0.6)
    with pytest.raises(
        InfeasibleError, match=r"maximum weights sum to 0.7, below 1; raise some of"
    ):
        bounds_for(maximum=[0.5, 0.2])
    with pytest.raises(
        InfeasibleError, match=r"minimum weight of domain 'arxiv' is -0.1; expected"
    ):
        bounds_for(minimum=[-0.1, 0])
    with pytest.raises(InfeasibleError, match=r"minimum weights have shape \(3,\); expected one"):
        project_onto_bounds([1, 1], domains=["a", "b"], lower=[0, 0, 0], upper=[1, 1])


def group(name: str, domains: str, lower: float = 0.0, upper: float = 1.0) -> Group:
    return Group(name=name, domains=tuple(domains), lower=lower, upper=upper)


def constraints(*groups: Group, lower=0.0, upper=1.0) -> Constraints:
    lower, upper = (np.broadcast_to(np.asarray(b, float), 4).copy() for b in (lower, upper))
    return Constraints(domains=DOMAINS, lower=lower, upper=upper, groups=groups)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            constraints(group("x", "ab", upper=0.4), lower=[0.2, 0.3, 0, 0]),
            r"no mixture has maximum 0.4 of group 'x', minimum 0.3 of domain 'b', minimum 0.2 of "
            r"domain 'a': the others leave group 'x' at least 0.5; raise its maximum to 0.5 or "
            r"give way in one of the others$",
        ),
        (
            constraints(group("x", "ab", upper=0.4), upper=[1, 1, 0.2, 0.1]),
            r"maximum 0.4 of group 'x', maximum 0.1 of domain 'd', maximum 0.2 of domain 'c': the "
            r"others leave group 'x' at least 0.7; raise",
        ),
        (
            constraints(group("x", "ab", 0.6), group("y", "cd", 0.5), group("z", "ad", 0, 0.9)),
            r"no mixture has minimum 0.5 of group 'y', minimum 0.6 of group 'x': the others leave "
            r"group 'y' at most 0.4; lower its minimum to 0.4",
        ),
        (
            constraints(group("x", "ab", 0.6), group("y", "bc", 0.6), group("z", "b", 0, 0.1)),
            r"maximum 0.1 of group 'z', minimum 0.6 of group 'y', minimum 0.6 of group 'x': the "
            r"others leave group 'z' at least 0.2; raise its maximum to 0.2",
        ),
        (
            constraints(group("all", "abcd", upper=0.5)),
            r"no mixture has maximum 0.5 of group 'all': the others leave group 'all' at least 1; "
            r"raise its maximum to 1$",
        ),
        (constraints(lower=0.3), r"minimum weights sum to 1.2, above 1"),
    ],
)
def test_conflicts_are_named(found: Constraints, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        found.check()


def test_the_remedy_for_a_conflict_works() -> None:
    overlapping = [group("x", "ab", 0.6131), group("y", "bc", 0.5273)]
    with pytest.raises(InfeasibleError, match=r"at least 0.1404; raise its maximum to 0.141 or"):
        constraints(*overlapping, group("z", "b", upper=0.1)).check()
    constraints(*overlapping, group("z", "b", upper=0.141)).check()


def test_many_constraints_in_conflict_are_counted() -> None:
    domains = tuple(f"d{i}" for i in range(40))
    small = Group(name="g", domains=domains[:30], upper=0.2)
    found = Constraints(
        domains=domains, lower=np.full(40, 0.01), upper=np.ones(40), groups=(small,)
    )
    with pytest.raises(InfeasibleError, match=r"of group 'g', .* and 19 more: the others leave"):
        found.check()


def test_groups_are_refused_that_say_nothing_clear() -> None:
    with pytest.raises(ValueError, match=r"group 'x' repeats 'a'; list each of its domains once"):
        group("x", "aab")
    with pytest.raises(ValueError, match="group 'x' has no domains"):
        group("x", "")
    with pytest.raises(ValueError, match=r"group 'x' has minimum 0.5 and maximum 0.4; expected 0"):
        group("x", "ab", 0.5, 0.4)
    with pytest.raises(ValueError, match="group 'x' names domain 'e', which the data does not"):
        constraints(group("x", "ae"))
    with pytest.raises(ValueError, match="two groups are called 'x'"):
        constraints(group("x", "a"), group("x", "b"))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_is_left_has_a_point_strictly_inside(seed: int) -> None:
    found = random_problem(seed).constraints
    left = feasible_set(found)
    assert left.inside.sum() == pytest.approx(1, abs=1e-12)
    free = left.free
    assert (left.inside > left.lower)[free].all() and (left.inside < left.upper)[free].all()
    assert (left.inside == left.lower)[~free].all()
    assert (left.rows @ left.inside < left.limits).all()
    assert (left.lower >= found.lower - 1e-9).all() and (left.upper <= found.upper + 1e-9).all()
    if free.any():
        assert np.linalg.matrix_rank(left.equalities[:, free]) == len(left.equalities)


def test_bounds_that_others_press_a_domain_onto_fix_it() -> None:
    fixed = feasible_set(constraints(lower=[0.25, 0.1, 0.25, 0.4]))
    assert not fixed.free.any() and fixed.inside.tolist() == [0.25, 0.1, 0.25, 0.4]
    capped = feasible_set(constraints(upper=[0.25, 0.1, 0.25, 0.4]))
    assert not capped.free.any() and capped.inside.tolist() == [0.25, 0.1, 0.25, 0.4]
    seventh = feasible_set(constraints(lower=[0.142857143, 0.285714286, 0.285714286, 0.285714286]))
    assert not seventh.free.any() and seventh.inside.sum() == pytest.approx(1, abs=1e-15)
    nothing = feasible_set(constraints(group("x", "ab", upper=0)))
    assert nothing.free.tolist() == [False, False, True, True]
    assert nothing.inside[:2].tolist() == [0, 0]
    pressed = feasible_set(constraints(group("x", "ab", 0.5), upper=[0.2, 0.3, 1, 1]))
    assert (
        pressed.inside[:2].tolist() == [0.2, 0.3]
        and pressed.free.tolist() == [False] * 2 + [True] * 2
    )


def test_groups_that_leave_no_room_become_equalities() -> None:
    halves = feasible_set(constraints(group("x", "ab", 0.6), group("y", "cd", 0.4)))
    assert halves.free.all() and len(halves.equalities) == 2 and not len(halves.rows)
    assert halves.inside[:2].sum() == pytest.approx(0.6, abs=1e-15)
    pairs = [group(name, name, 0.5, 0.5) for name in ("ab", "bc", "ac")]
    only = feasible_set(constraints(*pairs))
    assert not only.free.any()
    np.testing.assert_allclose(only.inside, [0.25] * 4, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_domains=st.integers(1, 9))
def test_no_mixture_within_bounds_is_lower_than_the_least_linear(
    seed: int, num_domains: int
) -> None:
    lower, upper = random_bounds(seed, num_domains)
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=num_domains)
    best = least_linear(gradient, lower, upper)
    assert best.sum() == pytest.approx(1) and (best >= lower).all() and (best <= upper).all()
    for _ in range(20):
        other = project_onto_bounds(
            rng.dirichlet(np.full(num_domains, 0.3)) + 1e-9,
            domains=[""] * num_domains,
            lower=lower,
            upper=upper,
        )
        assert gradient @ other >= gradient @ best - 1e-12
