"""What a solver minimises over mixtures: functions of a law's losses, and a pull to a prior.

Every objective is the largest of some rows `weights . L` or `weights . exp(L)`, less an offset: a
weighted sum has one row, the worst set a row for each set. With non-negative weights all of them
are convex where the losses are.
"""

# K domains, J validation sets, M rows

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from .mixture import Mixture

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Scale = Literal["loss", "perplexity"]


class LossSurface(Protocol):
    """The losses of a law at one token count and model size, as functions of the weights.

    Attributes:
        domains: K names.
        sets: J names.
        convex: whether every loss is convex in the weights.
        differentiable: whether gradients and Hessians exist where all weights are positive.
    """

    @property
    def domains(self) -> tuple[str, ...]: ...
    @property
    def sets(self) -> tuple[str, ...]: ...
    @property
    def convex(self) -> bool: ...
    @property
    def differentiable(self) -> bool: ...

    def losses(self, weights: Array) -> Array:
        """Losses in nats of mixtures of shape (..., K), shape (..., J)."""

    def gradients(self, weights_K: Array) -> Array:
        """d loss / d weight, shape (J, K); any number in columns of weight 0."""

    def hessian(self, weights_K: Array, multipliers_J: Array) -> Array:
        """`sum_j multiplier_j Hess L_j`, a new array of shape (K, K).

        A set of multiplier 0 adds nothing, even where its loss is infinite.
        """


class LossRows(NamedTuple):
    """Functions of the losses, one a row: `weights . L` or `weights . exp(L)`, less an offset."""

    weights: Array  # (M, J), at least 0
    exponential: Mask  # (M,)
    offsets: Array  # (M,)

    @classmethod
    def none(cls, num_sets: int) -> Self:
        return cls(np.zeros((0, num_sets)), np.zeros(0, dtype=bool), np.zeros(0))

    def values(self, losses: Array) -> Array:
        """Rows of losses of shape (..., J), shape (..., M)."""
        return np.asarray(self._sums(losses) - self.offsets)

    def magnitudes(self, losses_J: Array) -> Array:
        """Sizes of the terms of the rows, shape (M,): their rounding is relative to these."""
        return np.asarray(self._sums(np.abs(losses_J)) + np.abs(self.offsets))

    def _sums(self, losses: Array) -> Array:
        used_J = self.used
        losses, weights = losses[..., used_J], self.weights[:, used_J]
        sums = losses @ weights.T
        if self.exponential.any():
            sums = np.where(self.exponential, np.exp(losses) @ weights.T, sums)
        return sums

    def slopes(self, losses_J: Array) -> Array:
        """d row / d loss, shape (M, J)."""
        factor = np.where(self.exponential[:, None], np.exp(losses_J), 1.0)
        return np.asarray(self.weights * np.where(self.used, factor, 0.0))

    def curvatures(self, losses_J: Array, multipliers_M: Array) -> Array:
        """d^2 / d loss^2 of `multipliers . rows`, shape (J,)."""
        return np.asarray((multipliers_M * self.exponential) @ self.slopes(losses_J))

    @property
    def used(self) -> Mask:
        """Sets that a row depends on, shape (J,)."""
        return np.asarray((self.weights > 0).any(axis=0))

    def below(self, level: float) -> Self:
        """The rows less a level: at most 0 where the largest row is at most the level."""
        return self._replace(offsets=self.offsets + level)

    def and_rows(self, other: Self) -> Self:
        return type(self)(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightedSum:
    """`sum_j weights_j L_j`, or `sum_j weights_j exp(L_j)`.

    Attributes:
        weights: of the validation sets, at least 0, not all 0, shape (J,).
        of: losses, or perplexities.
    """

    weights: Sequence[float] | Array
    of: Scale = "loss"

    def rows(self, sets: Sequence[str]) -> LossRows:
        """Its row.

        Raises:
            ValueError: there is not one non-negative weight a set, or all are 0.
        """
        weights_J = _one_each(self.weights, sets, "objective weight")
        for name, weight in zip(sets, weights_J, strict=True):
            if not (np.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"objective weight of validation set {name!r} is {weight:g}; expected a finite "
                    "number of at least 0, 0 to leave the set out"
                )
        if not weights_J.any():
            raise ValueError("all objective weights are 0; give one validation set a positive one")
        return LossRows(weights_J[None], np.array([self.of == "perplexity"]), np.zeros(1))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Worst:
    """`max_j L_j - offsets_j` (minimax).

    Attributes:
        offsets: e.g. the losses of a reference mixture, so that the worst is the set that gains
            least; infinity leaves a set out. Shape (J,), in nats.
    """

    offsets: Sequence[float] | Array

    def rows(self, sets: Sequence[str]) -> LossRows:
        """A row for each set with a finite offset.

        Raises:
            ValueError: there is not one offset a set, one is no number, or all leave their set out.
        """
        rows = single_losses(self.offsets, sets, what="offset of the worst loss")
        if not len(rows.offsets):
            raise ValueError("every offset is infinite; give one validation set a number of nats")
        return rows


MixtureObjective = WeightedSum | Worst


def single_losses(levels: ArrayLike, sets: Sequence[str], *, what: str) -> LossRows:
    """Rows `L_j - level_j` of the sets whose level is not infinite.

    Raises:
        ValueError: there is not one level a set, or one is not a number or minus infinity.
    """
    levels_J = _one_each(levels, sets, what)
    for name, level in zip(sets, levels_J, strict=True):
        if not level > -np.inf:
            raise ValueError(
                f"{what} of validation set {name!r} is {level}; expected a number of nats, or "
                "infinity to leave the set out"
            )
    counted = np.flatnonzero(np.isfinite(levels_J))
    rows = np.eye(len(sets))[counted]
    return LossRows(rows, np.zeros(len(rows), dtype=bool), levels_J[counted])


def _one_each(values: ArrayLike, sets: Sequence[str], what: str) -> Array:
    values_J = np.asarray(values, dtype=np.float64)
    if values_J.shape != (len(sets),):
        raise ValueError(
            f"{what}: shape {values_J.shape}; expected one number for each of the {len(sets)} "
            f"validation sets {', '.join(sets)}"
        )
    return values_J


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """A convex penalty that keeps the optimum near a prior mixture.

    Attributes:
        kind: "kl", `strength * sum_i w_i log(w_i / prior_i)`, or "l2", `strength * |w - prior|^2`.
        strength: nats (of the objective) for one unit of distance, at least 0.
        mixture: the prior.

    Raises:
        ValueError: the strength is not a finite number of at least 0, or the kind is unknown.
    """

    kind: Literal["kl", "l2"]
    strength: float
    mixture: Mixture

    def __post_init__(self) -> None:
        if self.kind not in ("kl", "l2"):
            raise ValueError(f"pull is {self.kind!r}; expected 'kl' or 'l2'")
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(
                f"strength of the pull is {self.strength}; expected a finite number of at least 0"
            )

    def toward(self, domains: Sequence[str], upper_K: Array) -> Self:
        """The same pull in a domain order, for mixtures below `upper`.

        Raises:
            ValueError: the mixture has other domains, or weight 0 under "kl" where weight is free.
        """
        mixture = self.mixture.reordered(domains)
        for name, prior, most in zip(domains, mixture.weights, upper_K, strict=True):
            if self.kind == "kl" and prior == 0 and most > 0:
                raise ValueError(
                    f"domain {name!r} has weight 0 in the mixture that the pull is to, so that any "
                    "weight is infinitely far from it; give it a positive one, maximum weight 0, "
                    "or use the pull 'l2'"
                )
        return replace(self, mixture=mixture)

    def values(self, weights: Array) -> Array:
        """The penalty of mixtures of shape (..., K), shape (...)."""
        prior_K = self.mixture.as_array()
        if self.kind == "kl":
            return np.asarray(self.strength * rel_entr(weights, prior_K).sum(axis=-1))
        return np.asarray(self.strength * ((weights - prior_K) ** 2).sum(axis=-1))

    def gradient(self, weights_K: Array) -> Array:
        """d penalty / d weight, shape (K,)."""
        prior_K = self.mixture.as_array()
        if self.kind == "kl":
            return np.asarray(self.strength * (np.log(weights_K / prior_K) + 1))
        return np.asarray(2 * self.strength * (weights_K - prior_K))

    def curvature(self, weights_K: Array) -> Array:
        """The diagonal of its Hessian, which has nothing else, shape (K,)."""
        if self.kind == "kl":
            return np.asarray(self.strength / weights_K)
        return np.full(len(weights_K), 2 * self.strength)
