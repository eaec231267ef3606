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

from .constraints import InfeasibleError, check_bounds
from .feasible_set import least_linear
from .mixture import Mixture
from .scaling_law import PowerLaw

Array = NDArray[np.float64]

NUM_BISECTIONS = 200  # more than float64 can tell apart


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

    Made of the gradient alone, it certifies the optimum however that was found.
    """
    best_K = least_linear(gradient_K, lower_K, upper_K)
    moved = weights_K != best_K  # a gradient may be infinite where nothing can move
    return max(float(gradient_K[moved] @ (weights_K - best_K)[moved]), 0.0)
