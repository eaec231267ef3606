"""What repeated tokens are worth: effective tokens that saturate with the epochs.

Muennighoff et al., arXiv 2305.16264: T tokens drawn from U unique ones count as

    U' + U' R* (1 - exp(-R / R*)),   U' = min(T, U),   R = max(T / U - 1, 0)

so that the first epoch counts in full and later ones less and less. Concave in T.
"""

# P runs, K domains

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

PUBLISHED_RATE = 15.387756
"""R* that Muennighoff et al. fitted (their R_D*)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """How fast repeated tokens lose their worth.

    Attributes:
        rate: R*, epochs after the first that are worth 1 - 1/e of as many fresh ones at most.
        unique_tokens: U of each domain, shape (num_domains,).
    """

    rate: float
    unique_tokens: Array

    def effective(self, tokens: ArrayLike) -> Array:
        """Effective tokens, of the shape (..., num_domains) of the tokens drawn."""
        drawn = np.asarray(tokens, dtype=np.float64)
        again = np.maximum(drawn / self.unique_tokens - 1, 0)
        fresh = np.minimum(drawn, self.unique_tokens)
        return np.asarray(fresh - fresh * self.rate * np.expm1(-again / self.rate))

    def slopes(self, tokens: ArrayLike) -> tuple[Array, Array]:
        """First and second derivatives of the effective tokens by the tokens drawn."""
        drawn = np.asarray(tokens, dtype=np.float64)
        again = np.maximum(drawn / self.unique_tokens - 1, 0)
        first = np.exp(-again / self.rate)
        second = np.where(again > 0, -first / (self.rate * self.unique_tokens), 0.0)
        return np.asarray(first), np.asarray(second)

    def to_dict(self) -> dict[str, Any]:
        return {"rate": self.rate, "unique_tokens": self.unique_tokens.tolist()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            rate=record["rate"], unique_tokens=np.array(record["unique_tokens"], dtype=np.float64)
        )
