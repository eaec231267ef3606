"""How sure a fitted law is: intervals of losses, of the gain of a mixture, and of its weights.

Every draw is the law fitted to the mixtures under other random weights; the spread of its
predictions is what the law does not know. The loss of a single run also errs by what held-out
predictions erred by: an interval is the wider of the two. The gain of one mixture over another is a
difference of expected losses, with the spread alone, but less the optimism of a mixture that was
chosen on the same runs: by how much the optimum of a draw looks better to its draw than to the fit.
"""

# S draws, J validation sets, P runs, K domains

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from .estimate import CONFIDENCE, Estimate
from .laws.fitter import LEAST_FREE
from .laws.records import ParametricLaw
from .laws.trees import TreeLaw
from .objective import Objective

Array = NDArray[np.float64]

QUANTILE = float(ndtri((1 + CONFIDENCE) / 2))
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
            drawn from, in the median; priors make it negative.
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
    estimate: Estimate,
    weights: ArrayLike,
    tokens: ArrayLike | None,
    parameters: ArrayLike | None,
) -> Interval:
    """Losses of single runs with 90% intervals, (num_runs, num_sets) each, in the law's metric.

    Trees have no draws: their intervals come from held-out errors alone.
    """
    mean_PJ = estimate.law.predict(weights, tokens, parameters)
    inside_J = np.array([estimate.half_widths[name] for name in estimate.law.sets])
    spread_PJ = np.zeros_like(mean_PJ)
    if not isinstance(estimate.law, TreeLaw):
        draws_SPJ = estimate.law.predict_draws(weights, tokens, parameters)
        spread_PJ = draws_SPJ.std(axis=0, ddof=1)
    beyond_P = estimate.extrapolation_error(tokens, parameters, len(mean_PJ))
    half_PJ = _half_widths(estimate, mean_PJ, inside_J, spread_PJ, beyond_P[:, None])
    return Interval(mean_PJ, mean_PJ - half_PJ, mean_PJ + half_PJ)


def predict_objective_interval(
    estimate: Estimate,
    weights: ArrayLike,
    tokens: ArrayLike | None,
    parameters: ArrayLike | None,
) -> Interval:
    """The objective of single runs with 90% intervals, each of shape (num_runs,)."""
    law, objective = estimate.law, estimate.objective
    mean_P = objective.values(law.predict(weights, tokens, parameters), law.sets)
    spread_P = np.zeros_like(mean_P)
    if not isinstance(law, TreeLaw):
        draws_SP = objective.values(law.predict_draws(weights, tokens, parameters), law.sets)
        spread_P = draws_SP.std(axis=0, ddof=1)
    beyond_P = estimate.extrapolation_error(tokens, parameters, len(mean_P))
    inside = np.array(estimate.objective_half_width)
    half_P = _half_widths(estimate, mean_P, inside, spread_P, beyond_P)
    return Interval(mean_P, mean_P - half_P, mean_P + half_P)


def _half_widths(
    estimate: Estimate, mean: Array, inside: Array, spread: Array, beyond: Array
) -> Array:
    """The larger of held-out error and spread of the draws, with what extrapolation adds."""
    inside = inside * mean if estimate.relative else np.broadcast_to(inside, mean.shape)
    near = np.maximum(inside, QUANTILE * spread)
    return np.asarray(np.hypot(near, QUANTILE * beyond * mean))


class Decision:
    """The optimum of a law at one budget and size, with the optima of its bootstrap draws.

    `optimism` is by how much the optimum seems better than it is, in the objective's unit.

    Args:
        law: with draws.
        objective: what the mixture was chosen for.
        solve: the optimal weights, shape (num_domains,), of a law's surface.
        tokens: the budget; None where the law knows one only.
        parameters: the model size; None where the law knows one only.
        num_mixtures: that the law was fitted to.
    """

    def __init__(
        self,
        law: ParametricLaw,
        objective: Objective,
        solve: Callable[[Any], Array],
        *,
        tokens: float | None,
        parameters: float | None,
        num_mixtures: int,
    ) -> None:
        assert law.num_draws
        self.law, self.objective = law, objective
        self.tokens, self.parameters = tokens, parameters
        self.weights_K = solve(law.surface(tokens, parameters))
        self.draw_weights_SK = np.array(
            [solve(law.surface(tokens, parameters, draw)) for draw in range(law.num_draws)]
        )
        self.optimism = self._optimism()
        # Draws rest on residuals, which are errors times one less the leverage, p / n on average;
        # dividing by it is the correction HC3 of MacKinnon and White (1985).
        free = num_mixtures - float(law.effective_parameters.mean())
        self.widening = num_mixtures / max(free, LEAST_FREE * num_mixtures)

    def weight_interval(self, lower_K: ArrayLike = 0.0, upper_K: ArrayLike = 1.0) -> Interval:
        """Weights of the optimum from the spread of the draws' optima; right only if the law is.

        Args:
            lower_K: least weights allowed, which end the intervals, shape (num_domains,).
            upper_K: greatest.
        """
        spread_K = self.widening * self.draw_weights_SK.std(axis=0, ddof=1)
        half_K = QUANTILE * spread_K
        low_K = np.maximum(self.weights_K - half_K, np.minimum(lower_K, self.weights_K))
        high_K = np.minimum(self.weights_K + half_K, np.maximum(upper_K, self.weights_K))
        return Interval(self.weights_K, low_K, high_K)

    def gain(self, baseline_K: Array, mixture_K: Array | None = None) -> Gain:
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
        bias = float(np.median(gain_S)) - gain
        spread = self.widening * float(gain_S.std(ddof=1))
        expected, half = gain - optimism - bias, QUANTILE * spread
        rounding = ROUNDING * abs(float(point[0]))  # all that copies of one mixture differ by
        return Gain(
            expected=expected,
            low=expected - half,
            high=expected + half,
            probability=float(ndtr(expected / max(spread, rounding))),
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
