"""Tokens that annealed uniform runs need for a loss: what a better mixture is worth.

A loss read on the way of a run is higher than that of a run which ends there, since its learning
rate has not decayed. The runs here all end where they are read, at several budgets, and between two
budgets the objective is taken linear in the logarithm of the tokens:

    tokens saved = 1 - T / T_uniform      speed-up = T_uniform / T

where T_uniform is what uniform needs for the objective that the other mixture has at T.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..token_count import round_token_count

Array = NDArray[np.float64]

FEWEST_BUDGETS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualTokens:
    """What uniform needs for an objective.

    Attributes:
        tokens: T_uniform.
        extrapolated: it lies outside the budgets trained, on the line through the nearest two.
    """

    tokens: float
    extrapolated: bool


class AnnealedCurve:
    """Uniform's final objective against its budget, means over seeds.

    Args:
        tokens: budgets, rising, shape (num_budgets,).
        objectives: shape (num_budgets,).

    Raises:
        ValueError: fewer than three budgets, or the objective does not fall with every one.
    """

    def __init__(self, tokens: ArrayLike, objectives: ArrayLike) -> None:
        self._log_tokens = np.log(np.asarray(tokens, dtype=np.float64))
        self._objectives = np.asarray(objectives, dtype=np.float64)
        shown = ", ".join(round_token_count(int(count)) for count in np.atleast_1d(tokens))
        if len(self._objectives) < FEWEST_BUDGETS:
            raise ValueError(
                f"annealed uniform runs at {shown} tokens; expected {FEWEST_BUDGETS} budgets or "
                "more: give more bench.uniform_budgets"
            )
        if not ((np.diff(self._log_tokens) > 0).all() and (np.diff(self._objectives) < 0).all()):
            values = ", ".join(f"{value:.4g}" for value in self._objectives)
            raise ValueError(
                f"the objective of annealed uniform runs at {shown} tokens is {values}; expected "
                "it to fall: the budgets are too near to each other for the noise between seeds, "
                "or the runs repeat their data too often"
            )

    def at(self, tokens: float) -> float:
        """The objective of a uniform run of so many tokens, one of the budgets or between two."""
        return float(np.interp(np.log(tokens), self._log_tokens, self._objectives))

    def tokens_for(self, objective: float) -> EqualTokens:
        """Tokens that uniform needs for an objective."""
        falling = self._objectives[::-1]
        # The segment that holds it; the outermost ones go on beyond their ends.
        upper = int(np.clip(np.searchsorted(falling, objective), 1, len(falling) - 1))
        right = len(falling) - upper  # of the segment, in the order of budgets
        left = right - 1
        high, low = self._objectives[left], self._objectives[right]
        share = (high - objective) / (high - low)
        log_tokens = self._log_tokens[left] + share * (
            self._log_tokens[right] - self._log_tokens[left]
        )
        outside = objective > self._objectives[0] or objective < self._objectives[-1]
        return EqualTokens(tokens=float(np.exp(log_tokens)), extrapolated=bool(outside))
