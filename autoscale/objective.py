"""What a mixture is chosen for: one number from the validation losses of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from .mixture import require_same_names


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A weighted mean over validation sets.

    Attributes:
        kind: `mean_loss` (nats a token), or `mean_perplexity` as in the official code.
        weights: by validation set, summing to 1.
    """

    kind: Literal["mean_loss", "mean_perplexity"]
    weights: Mapping[str, float]

    @classmethod
    def create(
        cls,
        kind: Literal["mean_loss", "mean_perplexity"],
        sets: Sequence[str],
        weights: Mapping[str, float] | None = None,
    ) -> Self:
        """Equal weights unless given; given ones are normalised.

        Raises:
            ValueError: a set is missing, unknown, or all weights are 0.
        """
        if weights is None:
            weights = dict.fromkeys(sets, 1.0)
        require_same_names(weights, sets, what="fit.objective_weights")
        total = sum(weights.values())
        if total <= 0:
            raise ValueError("fit.objective_weights are all 0; give one set a positive weight")
        return cls(kind=kind, weights={name: weights[name] / total for name in sets})

    def value(self, losses: Mapping[str, float]) -> float:
        """The objective of a run from its validation losses in nats a token."""
        values = {
            name: np.exp(losses[name]) if self.kind == "mean_perplexity" else losses[name]
            for name in self.weights
        }
        return float(sum(weight * values[name] for name, weight in self.weights.items()))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "weights": dict(self.weights)}
