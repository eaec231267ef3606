"""The mean of one law in several forms, which extrapolates better than any of them.

Whether more tokens act on the part of the loss that the mixture changes (data), or more parameters
(capacity), can hardly be told inside the runs, and picking one by held-out error misleads beyond
them. Members count by the inverse square of their held-out error: alike where the runs do not tell
them apart, not at all where they do. The mean is convex where its members are.
"""

# S draws, J validation sets, P runs, K domains

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .fitted_law import FittedLaw
from .repetition import Repetition
from .surface import LawSurface

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AveragedLaw:
    """One law fitted in several forms, with the interface of `FittedLaw`.

    Attributes:
        members: the fits, of the same law, domains, sets and metric.
        shares: of the members in the mean, summing to 1.
        noise: standard deviation of the residuals of the mean, shape (num_sets,).
    """

    members: tuple[FittedLaw, ...]
    shares: tuple[float, ...]
    noise: Array

    @property
    def law(self) -> str:
        return self.members[0].law

    @property
    def domains(self) -> tuple[str, ...]:
        return self.members[0].domains

    @property
    def sets(self) -> tuple[str, ...]:
        return self.members[0].sets

    @property
    def metric(self) -> str:
        return self.members[0].metric

    @property
    def repetition(self) -> Repetition | None:
        return self.members[0].repetition

    @property
    def relative(self) -> bool:
        return self.members[0].relative

    @property
    def uses_tokens(self) -> bool:
        """Whether its losses depend on the token budget."""
        return any(law.uses_tokens for law in self.members)

    @property
    def num_draws(self) -> int:
        return self.members[0].num_draws

    @property
    def effective_parameters(self) -> Array:
        return self._mean([law.effective_parameters for law in self.members])

    @property
    def converged(self) -> tuple[bool, ...]:
        return tuple(all(flags) for flags in zip(*(m.converged for m in self.members), strict=True))

    def predict(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses of runs, shape (num_runs, num_sets); see `FittedLaw.predict`."""
        return self._mean([law.predict(weights, tokens, parameters) for law in self.members])

    def predict_draws(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses under every bootstrap draw, shape (num_draws, num_runs, num_sets)."""
        return self._mean([law.predict_draws(weights, tokens, parameters) for law in self.members])

    def surface(
        self, tokens: float | None, parameters: float | None, draw: int | None = None
    ) -> "AveragedSurface":
        """Losses as functions of the weights at one budget and size, for the solver."""
        surfaces = [law.surface(tokens, parameters, draw) for law in self.members]
        return AveragedSurface(surfaces, self.shares)

    def with_repetition(self, repetition: Repetition | None) -> Self:
        members = tuple(law.with_repetition(repetition) for law in self.members)
        return replace(self, members=members)

    def readable(self) -> list[dict[str, dict[str, Any]]]:
        """Parameters of every member, see `FittedLaw.readable`."""
        return [law.readable() for law in self.members]

    def to_dict(self) -> dict[str, Any]:
        members = [law.to_dict() for law in self.members]
        return {
            "law": self.law,
            "members": members,
            "shares": list(self.shares),
            "noise": self.noise.tolist(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            members=tuple(FittedLaw.from_dict(member) for member in record["members"]),
            shares=tuple(record["shares"]),
            noise=np.array(record["noise"], dtype=np.float64),
        )

    def _mean(self, arrays: list[Array]) -> Array:
        return np.asarray(np.tensordot(self.shares, np.stack(arrays), axes=1))


class AveragedSurface:
    """See `LawSurface`."""

    differentiable = True

    def __init__(self, surfaces: list[LawSurface], shares: tuple[float, ...]) -> None:
        self.surfaces, self.shares = surfaces, shares
        self.domains, self.sets = surfaces[0].domains, surfaces[0].sets
        self.convex = all(surface.convex for surface in surfaces)

    def losses(self, weights: ArrayLike) -> Array:
        """Losses in the law's metric, shape (..., num_sets) for weights (..., num_domains)."""
        return self._mean([surface.losses(weights) for surface in self.surfaces])

    def gradients(self, weights_K: ArrayLike) -> Array:
        """d loss / d weight, shape (num_sets, num_domains)."""
        return self._mean([surface.gradients(weights_K) for surface in self.surfaces])

    def hessian(self, weights_K: ArrayLike, multipliers_J: ArrayLike) -> Array:
        """sum_j multiplier_j d2 loss_j / d weight2, shape (num_domains, num_domains)."""
        return self._mean([surface.hessian(weights_K, multipliers_J) for surface in self.surfaces])

    def _mean(self, arrays: list[Array]) -> Array:
        return np.asarray(np.tensordot(self.shares, np.stack(arrays), axes=1))
