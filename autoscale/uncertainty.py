"""How sure a fitted law is: intervals of losses, of the gain of a mixture, and of its weights.

Every bootstrap draw is the law fitted to mixtures drawn again with replacement. The spread of its
predictions is what the law does not know; a single run adds the noise of its residual. For a loss,
both; for the gain of one mixture over another, which is a difference of expected losses, the spread
alone, but less the optimism of a mixture that was chosen on the same runs: by how much the optimum
of a draw looks better to its draw than to the fit it was drawn from.
"""

# S draws, J validation sets, P runs, K domains

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from .laws.records import Law, ParametricLaw
from .laws.trees import TreeLaw
from .objective import Objective

Array = NDArray[np.float64]

CONFIDENCE = 0.9
ROUNDING = 1e-12  # relative, of an objective


class Interval(NamedTuple):
    """Means with the bounds of intervals, arrays of one shape."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """By how much one mixture is expected to end below another.

    Attributes:
        expected: difference of the objective, positive when the mixture is better.
        low: lower bound of the interval.
        high: upper bound.
        probability: that the mixture is better.
        optimism: what was subtracted because the mixture was chosen on the same runs.
        bias: what else was subtracted: by how much draws see more in it than the fit they were
            drawn from, on average; priors make it negative.
    """

    expected: float
    low: float
    high: float
    probability: float
    optimism: float
    bias: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict_interval(
    law: Law,
    weights: ArrayLike,
    tokens: ArrayLike | None,
    parameters: ArrayLike | None,
    *,
    beyond: ArrayLike = 0.0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Losses of single runs, each of shape (num_runs, num_sets), in the law's metric.

    Trees have no draws: the errors on runs that they were not fitted to are their noise.

    Args:
        beyond: standard deviation that extrapolation adds, relative to the loss, shape (num_runs,);
            see `Estimate.extrapolation_error`.
    """
    mean_PJ = law.predict(weights, tokens, parameters)
    spread_PJ = np.zeros_like(mean_PJ)
    if not isinstance(law, TreeLaw):
        spread_PJ = law.predict_draws(weights, tokens, parameters).std(axis=0, ddof=1)
    assert law.noise is not None
    noise_PJ = law.noise * mean_PJ if law.relative else np.broadcast_to(law.noise, mean_PJ.shape)
    beyond_PJ = np.broadcast_to(beyond, len(mean_PJ))[:, None] * mean_PJ
    sd_PJ = np.sqrt(spread_PJ**2 + noise_PJ**2 + beyond_PJ**2)
    half_PJ = float(norm.ppf((1 + confidence) / 2)) * sd_PJ
    return Interval(mean_PJ, mean_PJ - half_PJ, mean_PJ + half_PJ)


def predict_objective_interval(
    law: ParametricLaw,
    objective: Objective,
    noise: float,
    weights: ArrayLike,
    tokens: ArrayLike | None,
    parameters: ArrayLike | None,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The objective of single runs, each of shape (num_runs,).

    Args:
        noise: standard deviation of a run's objective about the law, of the residuals of the
            objective itself (those of the sets are correlated); relative to the objective where
            the law's own noise is relative.
    """
    mean_P = objective.values(law.predict(weights, tokens, parameters), law.sets)
    draws_SP = objective.values(law.predict_draws(weights, tokens, parameters), law.sets)
    noise_P = noise * mean_P if law.relative else np.full_like(mean_P, noise)
    spread_P = draws_SP.std(axis=0, ddof=1)
    half_P = float(norm.ppf((1 + confidence) / 2)) * np.hypot(spread_P, noise_P)
    return Interval(mean_P, mean_P - half_P, mean_P + half_P)


class Decision:
    """The optimum of a law at one budget and size, with the optima of its bootstrap draws.

    `optimism` is by how much the optimum seems better than it is, in the objective's unit.

    Args:
        law: with draws.
        objective: what the mixture was chosen for.
        solve: the optimal weights, shape (num_domains,), of a law's surface.
        tokens: the budget; None where the law knows one only.
        parameters: the model size; None where the law knows one only.
    """

    def __init__(
        self,
        law: ParametricLaw,
        objective: Objective,
        solve: Callable[[Any], Array],
        *,
        tokens: float | None,
        parameters: float | None,
    ) -> None:
        assert law.num_draws
        self.law, self.objective = law, objective
        self.tokens, self.parameters = tokens, parameters
        self.weights_K = solve(law.surface(tokens, parameters))
        self.draw_weights_SK = np.array(
            [solve(law.surface(tokens, parameters, draw)) for draw in range(law.num_draws)]
        )
        self.optimism = self._optimism()

    def weight_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Weights with the quantiles of the draws' optima; right only if the law is."""
        tail = (1 - confidence) / 2
        low_K, high_K = np.quantile(self.draw_weights_SK, [tail, 1 - tail], axis=0)
        return Interval(
            self.weights_K, np.minimum(low_K, self.weights_K), np.maximum(high_K, self.weights_K)
        )

    def gain(
        self, baseline_K: Array, mixture_K: Array | None = None, confidence: float = CONFIDENCE
    ) -> Gain:
        """The gain of a mixture over a baseline; of the optimum by default.

        The optimum loses its optimism, but twice its gain at most: a baseline so near to it that
        the runs cannot tell the two apart may as well be the true optimum, and then lies as far
        below it as it seems to lie above. A mixture given from outside has no optimism. The bias of
        the fit, which priors draw towards small gains, is taken from the draws, as they are to the
        fit what it is to the truth.
        """
        chosen_K = self.weights_K if mixture_K is None else mixture_K
        pair = np.stack([baseline_K, chosen_K])
        point, draws_S2 = self._values(pair), self._draw_values(pair)
        gain = float(point[0] - point[1])
        optimism = min(self.optimism, max(0.0, 2 * gain)) if mixture_K is None else 0.0
        gain_S = draws_S2[:, 0] - draws_S2[:, 1]
        bias, spread = float(gain_S.mean()) - gain, float(gain_S.std(ddof=1))
        expected = gain - optimism - bias
        quantile = float(norm.ppf((1 + confidence) / 2))
        rounding = ROUNDING * abs(float(point[0]))  # all that copies of one mixture differ by
        return Gain(
            expected=expected,
            low=expected - quantile * spread,
            high=expected + quantile * spread,
            probability=float(norm.cdf(expected / max(spread, rounding))),
            optimism=optimism,
            bias=bias,
        )

    def _optimism(self) -> float:
        """By how much an optimum seems better than it is, from draws in the fit's place.

        A draw's optimum gains over that of the fit by the draw, and loses to it by the fit; the
        mean of the sum. Both are at least 0 but for the solver's tolerance.
        """
        mixtures = np.vstack([self.weights_K[None], self.draw_weights_SK])
        by_fit, by_draw_SP = self._values(mixtures), self._draw_values(mixtures)
        rows = np.arange(len(by_draw_SP))
        seeming_S = by_draw_SP[:, 0] - by_draw_SP[rows, 1 + rows]
        loss_S = by_fit[1:] - by_fit[0]
        return max(0.0, float((seeming_S + loss_S).mean()))

    def _values(self, weights_PK: Array) -> Array:
        """The objective by the fit, shape (P,)."""
        losses_PJ = self.law.predict(weights_PK, self.tokens, self.parameters)
        return self.objective.values(losses_PJ, self.law.sets)

    def _draw_values(self, weights_PK: Array) -> Array:
        """The objective by the draws, shape (S, P)."""
        losses_SPJ = self.law.predict_draws(weights_PK, self.tokens, self.parameters)
        return self.objective.values(losses_SPJ, self.law.sets)
