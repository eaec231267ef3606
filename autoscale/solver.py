"""The mixture that minimises the fitted objective at one token budget, within bounds.

    minimise   sum_i f_i(x_i),   x_i = budget_ratio * w_i / w_i(reference)
    subject to lower_i <= w_i <= upper_i,   sum_i w_i = 1

The objective is separable and strictly convex (Kang et al., arXiv 2407.20177, equation 6, where
the bounds are missing), so that one multiplier solves it: at the optimum every weight between its
bounds has the same marginal gain `-df_i/dw_i = multiplier`, a weight at its lower bound gains less
and one at its upper bound more. The weights fall as the multiplier rises, hence bisection.
"""

# K domains

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .mixture import Mixture
from .scaling_law import PowerLaw
from .token_count import round_token_count

Array = NDArray[np.float64]

SUM_TOLERANCE = 1e-9  # bounds whose sum misses 1 by less are taken to mean 1, e.g. minimum = 1/7
TINY = 1e-300  # weights below are 0: their inverse is not finite
NUM_BISECTIONS = 200  # more than float64 can tell apart


class InfeasibleError(ValueError):
    """No mixture satisfies the bounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """The optimal mixture at one token budget.

    Attributes:
        mixture: the optimum.
        objective: `sum_i f_i` there, in multiples of the reference run's objective.
        duality_gap: no feasible mixture has an objective below `objective - duality_gap`.
        at_lower: domains that rest on their lower bound.
        at_upper: domains that rest on their upper bound.
    """

    mixture: Mixture
    objective: float
    duality_gap: float
    at_lower: tuple[str, ...]
    at_upper: tuple[str, ...]


def solve_mixture(
    laws: Sequence[PowerLaw],
    reference: Mixture,
    *,
    budget_ratio: float = 1.0,
    lower: ArrayLike,
    upper: ArrayLike,
) -> Solution:
    """The exact bounded optimum of the fitted objective.

    Args:
        laws: one a domain, in the order of `reference`.
        reference: the mixture that the laws' token multiples refer to; positive weights.
        budget_ratio: token budget solved for, in multiples of the budget that was probed.
        lower: minimum weights, shape (num_domains,).
        upper: maximum weights, shape (num_domains,).

    Raises:
        InfeasibleError: the bounds contradict each other, or force a domain to 0 tokens whose law
            is infinite there.
        ValueError: the laws are of other domains than the reference, or a reference weight is 0.
    """
    domains = tuple(law.domain for law in laws)
    if domains != reference.domains:
        raise ValueError(
            f"laws are of domains {', '.join(domains)}; expected those of the reference mixture, "
            f"in its order: {', '.join(reference.domains)}"
        )
    reference_K = reference.as_array()
    for name, weight in reference.to_dict().items():
        if weight == 0:
            raise ValueError(
                f"domain {name!r} has weight 0 in the reference mixture, so that its law has no "
                "unit; give it a positive reference weight or leave the domain out"
            )
    lower_K, upper_K = check_bounds(domains, lower, upper)
    for law, most in zip(laws, upper_K, strict=True):
        if most == 0 and law.equivalent == 0:
            raise InfeasibleError(
                f"domain {law.domain!r} has maximum weight 0 but its law is infinite without "
                "tokens of it; allow it a positive weight or leave the domain out"
            )
    terms = _Terms(laws, budget_ratio / reference_K)
    weights_K = terms.optimum(lower_K, upper_K)
    at_lower, at_upper = weights_K <= lower_K, weights_K >= upper_K
    return Solution(
        mixture=Mixture(domains=domains, weights=tuple(weights_K.tolist())),
        objective=terms.objective(weights_K),
        duality_gap=_duality_gap(terms.gradient(weights_K), weights_K, lower_K, upper_K),
        at_lower=tuple(name for name, hit in zip(domains, at_lower, strict=True) if hit),
        at_upper=tuple(name for name, hit in zip(domains, at_upper, strict=True) if hit),
    )


class _Terms:
    """The objective as a function of the weights; `scale_K` turns weights into token multiples."""

    def __init__(self, laws: Sequence[PowerLaw], scale_K: Array) -> None:
        self.laws, self.scale = laws, scale_K
        self.exponent = np.array([law.exponent for law in laws])
        self.equivalent = np.array([law.equivalent for law in laws])
        amplitude = np.array([law.amplitude for law in laws])
        self.log_gain: Array = np.log(amplitude) + np.log(self.exponent) + np.log(scale_K)

    def objective(self, weights_K: Array) -> float:
        multiples = weights_K * self.scale
        return float(sum(law(x) for law, x in zip(self.laws, multiples, strict=True)))

    def gradient(self, weights_K: Array) -> Array:
        """d objective / d weight, shape (num_domains,)."""
        base = weights_K * self.scale + self.equivalent
        return np.asarray(-np.exp(self.log_gain) * base ** -(self.exponent + 1))

    def weights_at(self, log_multiplier: float) -> Array:
        """Weights with marginal gain exp(log_multiplier), bounds aside, shape (num_domains,)."""
        log_base = (self.log_gain - log_multiplier) / (self.exponent + 1)
        return np.asarray((np.exp(np.minimum(log_base, 700.0)) - self.equivalent) / self.scale)

    def optimum(self, lower_K: Array, upper_K: Array) -> Array:
        """The weights of the optimality conditions, to machine precision."""

        def clipped(log_multiplier: float) -> Array:
            return np.clip(self.weights_at(log_multiplier), lower_K, upper_K)

        low, high = float(self.log_gain.min()) - 1, float(self.log_gain.max()) + 1
        step = 1.0
        while clipped(low).sum() < 1 and not (clipped(low) >= upper_K).all():
            low, step = low - step, 2 * step
        step = 1.0
        while clipped(high).sum() > 1 and not (clipped(high) <= lower_K).all() and high < 1e6:
            high, step = high + step, 2 * step
        for _ in range(NUM_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if clipped(middle).sum() > 1 else (low, middle)
        weights_K = clipped(high)
        # The last bits of the sum go where the weights respond to the multiplier: a Newton step.
        free = (weights_K > lower_K) & (weights_K < upper_K)
        response = free * (weights_K + self.equivalent / self.scale) / (self.exponent + 1)
        if free.any():
            weights_K = weights_K + (1 - weights_K.sum()) * response / response.sum()
        return np.asarray(np.clip(weights_K, lower_K, upper_K))


def _duality_gap(gradient_K: Array, weights_K: Array, lower_K: Array, upper_K: Array) -> float:
    """`max over feasible v of gradient . (w - v)`, which bounds the objective's excess (convexity).

    The maximum fills the domains in the order of their marginal gain, each to its upper bound.
    Made of the gradient alone, it certifies the optimum however that was found.
    """
    best_K = lower_K.copy()
    left = 1 - lower_K.sum()
    for i in np.argsort(gradient_K):
        added = min(upper_K[i] - lower_K[i], max(left, 0.0))
        best_K[i] += added
        left -= added
    moved = weights_K != best_K  # a gradient may be infinite where nothing can move
    return max(float(gradient_K[moved] @ (weights_K - best_K)[moved]), 0.0)


def project_onto_bounds(
    weights: ArrayLike, *, domains: Sequence[str], lower: ArrayLike, upper: ArrayLike
) -> Array:
    """The mixture within bounds that is nearest to `weights` in Kullback-Leibler divergence.

    Nearest in `sum_i v_i log(v_i / w_i)` is `v_i = clip(c w_i, lower_i, upper_i)`: domains that no
    bound holds keep their proportions. The one scalar c is solved exactly. Weights of 0 rise only
    to their minimum, or, once all others rest on their maximum, share what is left equally.

    Args:
        weights: non-negative, of any positive sum, shape (num_domains,).
        domains: names, for messages.
        lower: minimum weights, shape (num_domains,).
        upper: maximum weights, shape (num_domains,).

    Returns:
        Weights that sum to 1, shape (num_domains,); those given, normalised, where these satisfy
        the bounds.

    Raises:
        InfeasibleError: the bounds contradict each other.
    """
    lower_K, upper_K = check_bounds(domains, lower, upper)
    given_K = np.asarray(weights, dtype=np.float64)
    given_K = given_K / given_K.sum()
    if ((given_K >= lower_K) & (given_K <= upper_K)).all():
        return np.asarray(given_K)
    positive = given_K > TINY
    if np.where(positive, upper_K, lower_K).sum() < 1:
        lower_K = np.where(positive, upper_K, lower_K)
        given_K = np.where(positive, given_K, 1.0)
        positive = np.ones_like(positive)
    given_K = np.where(positive, given_K, 0.0)
    never = np.full_like(given_K, np.inf)
    starts = np.divide(lower_K, given_K, out=never.copy(), where=positive)  # leaves the minimum
    stops = np.divide(upper_K, given_K, out=never.copy(), where=positive)  # meets the maximum
    scales = np.unique(np.concatenate([[0.0], starts[positive], stops[positive]]))
    low, high = 0, len(scales) - 1
    while high - low > 1:  # the sum rises with the scale: find the piece in which it passes 1
        middle = (low + high) // 2
        passed = np.clip(scales[middle] * given_K, lower_K, upper_K).sum() > 1
        low, high = (low, middle) if passed else (middle, high)
    free = (starts <= scales[low]) & (stops > scales[low])
    fixed_K = np.where(stops <= scales[low], upper_K, lower_K)
    if not free.any():
        return np.asarray(fixed_K)
    scale = (1 - fixed_K[~free].sum()) / given_K[free].sum()
    return np.asarray(np.clip(np.where(free, scale * given_K, fixed_K), lower_K, upper_K))


def weight_bounds(
    domains: Sequence[str],
    *,
    minimum: ArrayLike,
    maximum: ArrayLike,
    available_tokens: ArrayLike,
    token_budget: int,
    max_epochs: float | None,
) -> tuple[Array, Array]:
    """Lower and upper weights at one token budget, the maximum capped by the tokens that exist.

        upper_i = min(maximum_i, max_epochs * available_i / token_budget)

    Args:
        domains: names, for messages.
        minimum: lowest weights, shape (num_domains,) or a scalar for all.
        maximum: highest weights, shape (num_domains,) or a scalar for all.
        available_tokens: training tokens that each domain has, shape (num_domains,).
        token_budget: tokens of the run.
        max_epochs: how often a run may pass over a domain's tokens; None for no limit.

    Returns:
        Lower and upper weights, each of shape (num_domains,).

    Raises:
        InfeasibleError: no mixture satisfies the bounds; the message names the domains, the
            constraint and the smallest remedy.
    """
    shape = (len(domains),)
    lower_K = np.broadcast_to(np.asarray(minimum, dtype=np.float64), shape).copy()
    maximum_K = np.broadcast_to(np.asarray(maximum, dtype=np.float64), shape).copy()
    check_bounds(domains, lower_K, maximum_K)
    if max_epochs is None:
        return lower_K, np.minimum(maximum_K, 1.0)
    available_K = np.broadcast_to(np.asarray(available_tokens, dtype=np.float64), shape)
    per_epoch_K = available_K / token_budget
    upper_K = np.minimum(np.minimum(maximum_K, 1.0), max_epochs * per_epoch_K)
    budget = round_token_count(token_budget)
    for i in np.flatnonzero(lower_K > upper_K).tolist():
        remedy = "lower the minimum or prepare more text"
        if per_epoch_K[i] > 0:
            epochs = _round_up(float(lower_K[i] / per_epoch_K[i]))
            remedy = f"raise max_epochs to {epochs:g} or lower the minimum"
        raise InfeasibleError(
            f"domain {domains[i]!r} has {round_token_count(available_K[i])} tokens but its minimum "
            f"weight {lower_K[i]:g} at {budget} needs "
            f"{round_token_count(lower_K[i] * token_budget)}, and max_epochs is {max_epochs:g}; "
            f"{remedy}"
        )
    if upper_K.sum() < 1 - SUM_TOLERANCE:
        supply = ", ".join(
            f"{name} {round_token_count(weight * token_budget)}"
            for name, weight in zip(domains, upper_K, strict=True)
        )
        raise InfeasibleError(
            f"with max_epochs {max_epochs:g} and the maximum weights the domains supply at most "
            f"{round_token_count(upper_K.sum() * token_budget)} of the {budget} tokens ({supply}); "
            f"{_supply_remedy(maximum_K, per_epoch_K)}, lower the token budget or prepare more text"
        )
    return lower_K, upper_K


def _supply_remedy(maximum_K: Array, per_epoch_K: Array) -> str:
    """The smallest max_epochs at which the capped maximum weights sum to 1, as an instruction."""

    def enough(epochs: float) -> bool:
        return bool(np.minimum(maximum_K, epochs * per_epoch_K).sum() >= 1 - SUM_TOLERANCE)

    has_tokens = per_epoch_K > 0
    high = float((maximum_K[has_tokens] / per_epoch_K[has_tokens]).max(initial=0.0))
    if not enough(high):
        return "raise the maximum weights of the domains that have tokens"
    low = 0.0
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return f"raise max_epochs to {_round_up(high):g}"


def _round_up(value: float) -> float:
    """To three significant digits, never down, so that a remedy taken literally works."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.ceil(value / unit * (1 - 1e-9)) * unit)


def check_bounds(domains: Sequence[str], lower: ArrayLike, upper: ArrayLike) -> tuple[Array, Array]:
    """The bounds as arrays of shape (num_domains,), or InfeasibleError saying what contradicts."""
    lower_K, upper_K = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    for kind, bound_K in (("minimum", lower_K), ("maximum", upper_K)):
        if bound_K.shape != (len(domains),):
            raise InfeasibleError(
                f"{kind} weights have shape {bound_K.shape}; expected one for each of the "
                f"{len(domains)} domains"
            )
        for i in np.flatnonzero(~(np.isfinite(bound_K) & (bound_K >= 0))).tolist():
            raise InfeasibleError(
                f"{kind} weight of domain {domains[i]!r} is {bound_K[i]:g}; expected a finite "
                "number of at least 0"
            )
    for i in np.flatnonzero(lower_K > upper_K).tolist():
        raise InfeasibleError(
            f"domain {domains[i]!r} has minimum weight {lower_K[i]:g} above its maximum weight "
            f"{upper_K[i]:g}; lower the minimum or raise the maximum"
        )
    for total, kind, how, bound_K in (
        (lower_K.sum() - 1, "minimum", "lower some of them: ", lower_K),
        (1 - upper_K.sum(), "maximum", "raise some of them: ", upper_K),
    ):
        if total > SUM_TOLERANCE:
            relation = "above" if kind == "minimum" else "below"
            raise InfeasibleError(
                f"the {kind} weights sum to {bound_K.sum():.6g}, {relation} 1; {how}"
                + ", ".join(f"{n} {w:g}" for n, w in zip(domains, bound_K, strict=True) if w > 0)
            )
    return lower_K, upper_K
