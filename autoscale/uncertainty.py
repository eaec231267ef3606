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

from .laws.fitted_law import FittedLaw
from .objective import Objective

Array = NDArray[np.float64]

CONFIDENCE = 0.9


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
    """

    expected: float
    low: float
    high: float
    probability: float
    optimism: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict_interval(
    law: FittedLaw,
    weights: ArrayLike,
    tokens: ArrayLike | None,
    parameters: ArrayLike | None,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Losses of single runs, each of shape (num_runs, num_sets), in the law's metric."""
    mean_PJ = law.predict(weights, tokens, parameters)
    spread_PJ = law.predict_draws(weights, tokens, parameters).std(axis=0, ddof=1)
    noise_PJ = law.noise * mean_PJ if law.relative else np.broadcast_to(law.noise, mean_PJ.shape)
    half_PJ = float(norm.ppf((1 + confidence) / 2)) * np.hypot(spread_PJ, noise_PJ)
    return Interval(mean_PJ, mean_PJ - half_PJ, mean_PJ + half_PJ)


def predict_objective_interval(
    law: FittedLaw,
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
            objective itself (those of the sets are correlated).
    """
    mean_P = objective.values(law.predict(weights, tokens, parameters), law.sets)
    draws_SP = objective.values(law.predict_draws(weights, tokens, parameters), law.sets)
    half_P = float(norm.ppf((1 + confidence) / 2)) * np.hypot(draws_SP.std(axis=0, ddof=1), noise)
    return Interval(mean_P, mean_P - half_P, mean_P + half_P)


class Decision:
    """The optimum of a law at one budget and size, with the optima of its bootstrap draws.

    Args:
        law: with draws.
        objective: what the mixture was chosen for.
        solve: the optimal weights, shape (num_domains,), of a law's surface.
        tokens: the budget; None where the law knows one only.
        parameters: the model size; None where the law knows one only.
    """

    def __init__(
        self,
        law: FittedLaw,
        objective: Objective,
        solve: Callable[[Any], Array],
        *,
        tokens: float | None,
        parameters: float | None,
    ) -> None:
        assert law.draws is not None
        self.law, self.objective = law, objective
        self.tokens, self.parameters = tokens, parameters
        self.weights_K = solve(law.surface(tokens, parameters))
        self.draw_weights_SK = np.array(
            [solve(law.surface(tokens, parameters, draw)) for draw in range(len(law.draws))]
        )

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

        The optimism of a draw s is the gain that its own optimum has under the draw less the one
        it has under the fit; their mean is subtracted. It is 0 for a mixture given from outside.
        """
        chosen_K = self.weights_K if mixture_K is None else mixture_K
        point = self._values(None, np.stack([baseline_K, chosen_K]))
        draws_S2 = self._values("draws", np.stack([baseline_K, chosen_K]))
        optimism = self._optimism(baseline_K) if mixture_K is None else 0.0
        expected = float(point[0] - point[1]) - optimism
        gain_S = draws_S2[:, 0] - draws_S2[:, 1] - optimism
        # The draws centre on the fit only nearly; their spread is what they are for.
        spread = float(gain_S.std(ddof=1))
        quantile = float(norm.ppf((1 + confidence) / 2))
        probability = float(norm.cdf(expected / spread)) if spread > 0 else float(expected > 0)
        return Gain(
            expected=expected,
            low=expected - quantile * spread,
            high=expected + quantile * spread,
            probability=probability,
            optimism=optimism,
        )

    def _optimism(self, baseline_K: Array) -> float:
        """Mean over draws of (gain under the draw less gain under the fit) of the draw's optimum."""
        num_draws = len(self.draw_weights_SK)
        mixtures = np.vstack([baseline_K[None], self.draw_weights_SK])
        by_fit = self._values(None, mixtures)
        by_draw_SP = self._values("draws", mixtures)
        rows = np.arange(num_draws)
        own_gain_S = by_draw_SP[:, 0] - by_draw_SP[rows, 1 + rows]
        fit_gain_S = by_fit[0] - by_fit[1:]
        # The draws' error at the baseline and the optimum of the fit is no optimism: take out what
        # the fit's own optimum gains between draw and fit.
        chosen = self._values("draws", np.stack([baseline_K, self.weights_K]))
        fit_chosen = self._values(None, np.stack([baseline_K, self.weights_K]))
        drift_S = (chosen[:, 0] - chosen[:, 1]) - float(fit_chosen[0] - fit_chosen[1])
        return max(0.0, float((own_gain_S - fit_gain_S - drift_S).mean()))

    def _values(self, which: str | None, weights_PK: Array) -> Array:
        """The objective by the fit, shape (P,), or by its draws, shape (S, P)."""
        predict = self.law.predict if which is None else self.law.predict_draws
        return self.objective.values(
            predict(weights_PK, self.tokens, self.parameters), self.law.sets
        )
