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
        rate: R*; all repetition together is worth at most R* fresh epochs.
        unique_tokens: U of each domain, shape (num_domains,).

    Raises:
        ValueError: the rate or a number of tokens is not positive and finite.
    """

    rate: float
    unique_tokens: Array

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate) and self.rate > 0):
            raise ValueError(
                f"the repetition rate R* is {self.rate:g}; expected a positive number of epochs, "
                f"such as the published {PUBLISHED_RATE:.3g}"
            )
        unique_K = np.asarray(self.unique_tokens)
        if not (np.isfinite(unique_K) & (unique_K > 0)).all():
            raise ValueError(
                f"unique tokens by domain are {unique_K.tolist()}; expected positive numbers, as "
                "repetition is counted in epochs of them"
            )

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
