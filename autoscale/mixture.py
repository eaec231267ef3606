"""Mixtures: ordered domain names with weights on the simplex, and their exact rounding.

Every step of the method reads or writes a `Mixture`. Weights are fractions of the *tokens* of a
run; a run draws whole sequences, so weights become integer quotas by largest remainder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Domains with their weights.

    Attributes:
        domains: distinct names, in the order used by every array of the run.
        weights: fractions of the tokens, one a domain, at least 0, summing to 1.

    Raises:
        ValueError: names repeat, a weight is negative or not finite, or the sum is off by more
            than 1e-6. A sum within that tolerance is normalised away.
    """

    domains: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("a mixture needs at least one domain; found none")
        if len(self.domains) != len(self.weights):
            raise ValueError(
                f"mixture has {len(self.domains)} domains but {len(self.weights)} weights"
            )
        repeated = sorted({name for name in self.domains if self.domains.count(name) > 1})
        if repeated:
            raise ValueError(f"mixture names {', '.join(map(repr, repeated))} more than once")
        for name, weight in zip(self.domains, self.weights, strict=True):
            if not (np.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"weight of domain {name!r} is {weight}; expected a finite number of at least 0"
                )
        total = float(np.sum(self.weights))
        if abs(total - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"weights of {', '.join(self.domains)} sum to {total:.9g}; expected 1. "
                f"Divide each of them by {total:.9g}"
            )
        if total != 1:
            object.__setattr__(self, "weights", tuple(float(w) / total for w in self.weights))

    @classmethod
    def uniform(cls, domains: Sequence[str]) -> Self:
        return cls(domains=tuple(domains), weights=(1 / len(domains),) * len(domains))

    @classmethod
    def natural(cls, domains: Sequence[str], available_tokens: ArrayLike) -> Self:
        """Weights proportional to the tokens that each domain has."""
        return cls.from_array(domains, np.asarray(available_tokens, dtype=np.float64))

    @classmethod
    def from_array(cls, domains: Sequence[str], amounts: ArrayLike) -> Self:
        """Normalise non-negative amounts, e.g. token counts of shape (num_domains,)."""
        amounts = np.asarray(amounts, dtype=np.float64)
        return cls(domains=tuple(domains), weights=tuple((amounts / amounts.sum()).tolist()))

    @classmethod
    def from_mapping(cls, weights: Mapping[str, float]) -> Self:
        return cls(domains=tuple(weights), weights=tuple(map(float, weights.values())))

    def as_array(self) -> NDArray[np.float64]:
        """The weights, shape (num_domains,)."""
        return np.asarray(self.weights, dtype=np.float64)

    def to_dict(self) -> dict[str, float]:
        return dict(zip(self.domains, self.weights, strict=True))

    def reordered(self, domains: Sequence[str]) -> Self:
        """The same mixture in another domain order; matched by name, never by position."""
        known = self.to_dict()
        require_same_names(known, domains, what="mixture")
        return type(self)(domains=tuple(domains), weights=tuple(known[name] for name in domains))


def require_same_names(found: Mapping[str, object], expected: Sequence[str], *, what: str) -> None:
    """Raise ValueError unless `found` has exactly the names `expected`, in any order."""
    for name in found:
        if name not in expected:
            near = get_close_matches(name, expected, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(expected)}"
            raise ValueError(f"{what} names domain {name!r}, which the data does not have; {hint}")
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{what} lacks domain {', '.join(map(repr, missing))}; give every domain a number, "
            "0 to leave it out"
        )


def largest_remainder(weights: ArrayLike, total: int) -> NDArray[np.int64]:
    """Round `weights * total` to integers that sum to `total` exactly (Hamilton's method).

    Args:
        weights: non-negative shares of any scale, shape (num_domains,).
        total: the sum wanted, at least 0.

    Returns:
        Counts, shape (num_domains,), each within one of its exact share; ties go to the lower
        index.
    """
    shares = np.asarray(weights, dtype=np.float64)
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return np.asarray(counts)
