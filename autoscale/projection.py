"""Carry the optimal mixtures of two probe budgets to any token budget.

The paper's recursion `N_i(3) = N_i(2)^2 / N_i(1)` (Kang et al., arXiv 2407.20177, section 4) is a
geometric path in every domain's tokens, in closed form

    N_i(t) = N_i(small) * (N_i(large) / N_i(small)) ** t

with t = 0 and t = 1 at the two budgets and integer t at the recursion's steps. The budget
`sum_i N_i(t)` is convex in t and larger at 1 than at 0, so that it passes every budget above the
small one exactly once. On the authors' own numbers the path can lose to leaving the weights alone:
two more careful kinds are offered, hold and damped.
"""

# K domains

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from .constraints import project_onto_bounds
from .mixture import Mixture
from .token_count import round_token_count

Array = NDArray[np.float64]
ProjectionKind = Literal["full", "hold", "damped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """A mixture for a token budget that was never probed.

    Attributes:
        kind: "full" (the paper's path), "hold" (the large budget's weights) or "damped" (half way
            between them in log weights).
        weights: the mixture after the bounds were imposed again.
        unbounded_weights: the mixture before.
        t: position on the path, 0 and 1 at the two budgets; None for hold, which has none.
        change_l1: `sum_i |weights_i - unbounded_weights_i|`, what the bounds changed.
        bounded: domains that a bound moved and holds.
    """

    kind: ProjectionKind
    weights: Mixture
    unbounded_weights: Mixture
    t: float | None
    change_l1: float
    bounded: tuple[str, ...]


def project(
    kind: ProjectionKind,
    *,
    domains: Sequence[str],
    small_tokens: ArrayLike,
    large_tokens: ArrayLike,
    token_budget: int,
    lower: ArrayLike,
    upper: ArrayLike,
) -> Projection:
    """Project two optimal mixtures to a token budget and impose its bounds.

    Args:
        kind: see `Projection`.
        domains: names, in the order of all arrays.
        small_tokens: optimal tokens at the smaller probe budget, shape (num_domains,).
        large_tokens: optimal tokens at the larger probe budget, shape (num_domains,).
        token_budget: the budget wanted.
        lower: minimum weights at that budget, shape (num_domains,).
        upper: maximum weights at that budget, shape (num_domains,).

    Raises:
        InfeasibleError: the bounds contradict each other.
        ValueError: the kind is unknown, or see `full_projection`.
    """
    hold_K = np.asarray(large_tokens, dtype=np.float64)
    hold_K = hold_K / hold_K.sum()
    free_K, t = hold_K, None
    if kind in ("full", "damped"):
        tokens_K, t = full_projection(
            small_tokens, large_tokens, token_budget=token_budget, domains=domains
        )
        free_K = tokens_K / tokens_K.sum()
        if kind == "damped":
            free_K = np.sqrt(free_K * hold_K)
            free_K = free_K / free_K.sum()
    elif kind != "hold":
        raise ValueError(f"projection is {kind!r}; expected 'full', 'hold' or 'damped'")
    weights_K = project_onto_bounds(free_K, domains=domains, lower=lower, upper=upper)
    at_bound = (weights_K == np.asarray(lower)) | (weights_K == np.asarray(upper))
    moved = at_bound & (np.abs(weights_K - free_K) > 1e-12)  # more than rounding
    return Projection(
        kind=kind,
        weights=Mixture.from_array(domains, weights_K),
        unbounded_weights=Mixture.from_array(domains, free_K),
        t=t,
        change_l1=float(np.abs(weights_K - free_K).sum()),
        bounded=tuple(name for name, hit in zip(domains, moved, strict=True) if hit),
    )


def path_tokens(small_tokens: ArrayLike, large_tokens: ArrayLike, t: float) -> Array:
    """Tokens on the geometric path at t, shape (num_domains,); 0 where both budgets have 0."""
    small_K = np.asarray(small_tokens, dtype=np.float64)
    large_K = np.asarray(large_tokens, dtype=np.float64)
    ratio_K = np.divide(large_K, small_K, out=np.ones_like(small_K), where=small_K > 0)
    return np.asarray(small_K * ratio_K**t)


def full_projection(
    small_tokens: ArrayLike,
    large_tokens: ArrayLike,
    *,
    token_budget: float,
    domains: Sequence[str],
) -> tuple[Array, float]:
    """The point of the path whose tokens sum to the budget.

    Args:
        small_tokens: optimal tokens at the smaller probe budget, shape (num_domains,).
        large_tokens: optimal tokens at the larger probe budget, shape (num_domains,).
        token_budget: the sum wanted, at least that of `small_tokens`; any unit, the same for all.
        domains: names, for messages.

    Returns:
        Tokens of shape (num_domains,), which sum to the budget, and t.

    Raises:
        ValueError: the large budget is not larger than the small one, the budget wanted lies below
            both, or a domain has 0 tokens at exactly one of them.
    """
    small_K = np.asarray(small_tokens, dtype=np.float64)
    large_K = np.asarray(large_tokens, dtype=np.float64)
    small, large = float(small_K.sum()), float(large_K.sum())
    for i in np.flatnonzero((small_K > 0) != (large_K > 0)).tolist():
        raise ValueError(
            f"domain {domains[i]!r} has optimal weight {small_K[i] / small:g} at the small budget "
            f"and {large_K[i] / large:g} at the large one, and no geometric path joins 0 to a "
            f"positive number; give it a positive minimum weight, fit again, or use "
            "projection = 'hold'"
        )
    budgets = f"{round_token_count(small)} and {round_token_count(large)}"
    if not small < large:
        raise ValueError(
            f"the probe budgets are {budgets} tokens; expected a small one, then a larger one"
        )
    if token_budget < small:
        raise ValueError(
            f"the token budget {round_token_count(token_budget)} lies below the probe budgets "
            f"{budgets}; a projection starts at the smaller one: raise the budget or probe below it"
        )
    t = _solve_path(small_K, large_K, token_budget)
    tokens_K = path_tokens(small_K, large_K, t)
    return tokens_K * (token_budget / tokens_K.sum()), t


def _solve_path(small_K: Array, large_K: Array, token_budget: float) -> float:
    """The t >= 0 at which the path's tokens sum to the budget; exactly 0 and 1 at the two ends."""
    for end, tokens_K in ((0.0, small_K), (1.0, large_K)):
        if tokens_K.sum() == token_budget:
            return end
    used = small_K > 0
    log_small, log_ratio = np.log(small_K[used]), np.log(large_K[used] / small_K[used])

    def excess(t: float) -> float:
        return float(np.logaddexp.reduce(log_small + t * log_ratio)) - float(np.log(token_budget))

    if excess(0.0) >= 0:  # the budget exceeds the small one by rounding only
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-15, rtol=4 * np.finfo(float).eps))
