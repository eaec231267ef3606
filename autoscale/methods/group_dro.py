"""Group DRO of DoReMi: weights that follow the domains in which a proxy is furthest behind.

Xie et al., arXiv 2305.10429, algorithm 1. Each step t has the excess losses of its batch,

    lambda[k] = 1 / (labels of domain k) sum over them of max(l_proxy - l_reference, 0)

and from them come the weights that the step's gradient is taken with:

    a        = alpha[t-1] exp(eta lambda)                 entrywise
    alpha[t] = (1 - c) a / sum(a) + c / K

beginning with uniform weights. The answer is the mean of alpha over all steps. The paper leaves
open what holds for a domain that a batch has nothing of: as in the authors' code
(github.com/sangmichaelxie/doremi) its last excess loss stays; before it was ever seen, it takes
the mean of the others, which leaves its share about where it is.
"""

# K domains

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class GroupDRO:
    """The weights of a proxy run, step by step.

    Args:
        num_domains: K.
        step_size: eta.
        smoothing: c, from 0 to 1.

    Attributes:
        weights: alpha of the last step, shape (K,).
        steps: taken so far.
    """

    def __init__(self, num_domains: int, *, step_size: float, smoothing: float) -> None:
        self._step_size, self._smoothing = step_size, smoothing
        self.weights = np.full(num_domains, 1 / num_domains)
        self.steps = 0
        self._sum_K = np.zeros(num_domains)
        self._excess_K = np.full(num_domains, np.nan)

    @property
    def average(self) -> Array:
        """Mean weights over the steps, shape (K,); uniform before the first."""
        return self._sum_K / self.steps if self.steps else self.weights.copy()

    def update(self, excess: ArrayLike, labels: ArrayLike) -> Array:
        """Take the step of one batch; the new weights, shape (K,).

        Args:
            excess: sums of the clipped excess losses over the labels of each domain, nats, over all
                ranks, shape (K,).
            labels: how many these are, shape (K,); at least one domain has some.
        """
        labels_K = np.asarray(labels, dtype=np.float64)
        seen_K = labels_K > 0
        assert seen_K.any()
        np.divide(excess, labels_K, out=self._excess_K, where=seen_K)
        known_K = ~np.isnan(self._excess_K)
        excess_K = np.where(known_K, self._excess_K, self._excess_K[known_K].mean())
        # The largest exponent is 0, so that nothing overflows; the sum divides it out again.
        moved_K = self.weights * np.exp(self._step_size * (excess_K - excess_K.max()))
        uniform = 1 / len(moved_K)
        self.weights = (1 - self._smoothing) * moved_K / moved_K.sum() + self._smoothing * uniform
        self._sum_K += self.weights
        self.steps += 1
        return self.weights

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as JSON."""
        return {
            "weights": self.weights.tolist(),
            "sum": self._sum_K.tolist(),
            "steps": self.steps,
            "excess": [None if np.isnan(each) else each for each in self._excess_K.tolist()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.weights, self._sum_K = np.array(state["weights"]), np.array(state["sum"])
        self.steps = state["steps"]
        self._excess_K = np.array(state["excess"], dtype=np.float64)
