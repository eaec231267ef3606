"""A law corrected by a handful of runs at the target's model size.

Slopes of the mixture change with model size more than the law's terms of size say. Where a few runs
were made at the largest size, their losses are regressed on the law's predictions,

    L_j = predicted_j + shift_j + slope_j (predicted_j - centre_j)

with a prior that both are small, and predictions at that size are corrected. 1 + slope stays
positive, so that a convex law stays convex.
"""

# S draws, J validation sets, P runs

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..run_table import RunTable
from .average import AveragedLaw, AveragedSurface
from .fitted_law import FittedLaw
from .repetition import Repetition
from .surface import LawSurface

Array = NDArray[np.float64]

SAME_SIZE = 0.02  # relative difference of sizes that count as one
SAME_BUDGET = 0.01
FEWEST = 2  # runs at a size that say something about its slopes
SLOPE_SD = 0.3  # priors
SHIFT_SD = 3.0  # in multiples of the noise
LEAST_SLOPE = -0.9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Correction:
    """Shifts, slopes and centres of the validation sets; leading axis S for draws.

    Attributes:
        shift: in the law's metric, shape (num_sets,) or (num_draws, num_sets).
        slope: of the same shape.
        centre: of the same shape.
    """

    shift: Array
    slope: Array
    centre: Array

    @classmethod
    def fit(cls, predicted: Array, observed_PJ: Array, noise_J: Array) -> Self:
        """Ridge regression over the runs, the next to last axis of `predicted`."""
        num_runs = len(observed_PJ)
        centre = predicted.mean(axis=-2)
        spread = predicted - centre[..., None, :]
        error = observed_PJ - predicted
        slope = (spread * error).sum(axis=-2)
        slope = slope / ((spread**2).sum(axis=-2) + (noise_J / SLOPE_SD) ** 2)
        shift = error.mean(axis=-2) * num_runs / (num_runs + SHIFT_SD**-2)
        return cls(shift=shift, slope=np.maximum(slope, LEAST_SLOPE), centre=centre)

    def apply(self, predicted: Array) -> Array:
        """Corrected losses; `predicted` has shape (..., P, J)."""
        parts = (part[..., None, :] for part in (self.shift, self.slope, self.centre))
        shift, slope, centre = parts
        return np.asarray(predicted + shift + slope * (predicted - centre))

    def draw(self, number: int) -> Self:
        return replace(
            self,
            shift=self.shift[number],
            slope=self.slope[number],
            centre=self.centre[number],
        )

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("shift", "slope", "centre")}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{name: np.array(values, np.float64) for name, values in record.items()})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RescaledLaw:
    """A joint law with a correction at one model size; the interface of `FittedLaw`.

    Attributes:
        base: the law.
        size: parameters of the models that the correction is for.
        correction: of the fit.
        draw_corrections: of its bootstrap draws.
    """

    base: FittedLaw | AveragedLaw
    size: float
    correction: Correction
    draw_corrections: Correction

    @property
    def law(self) -> str:
        return self.base.law

    @property
    def domains(self) -> tuple[str, ...]:
        return self.base.domains

    @property
    def sets(self) -> tuple[str, ...]:
        return self.base.sets

    @property
    def metric(self) -> str:
        return self.base.metric

    @property
    def repetition(self) -> Repetition | None:
        return self.base.repetition

    @property
    def relative(self) -> bool:
        return self.base.relative

    @property
    def uses_tokens(self) -> bool:
        """Whether its losses depend on the token budget."""
        return self.base.uses_tokens

    @property
    def num_draws(self) -> int:
        return self.base.num_draws

    @property
    def noise(self) -> Array:
        return self.base.noise

    @property
    def effective_parameters(self) -> Array:
        return self.base.effective_parameters

    @property
    def converged(self) -> tuple[bool, ...]:
        return self.base.converged

    def predict(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses of runs, shape (num_runs, num_sets); see `FittedLaw.predict`."""
        predicted_PJ = self.base.predict(weights, tokens, parameters)
        here_P1 = self._is_here(parameters, len(predicted_PJ))[:, None]
        return np.where(here_P1, self.correction.apply(predicted_PJ), predicted_PJ)

    def predict_draws(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses under every bootstrap draw, shape (num_draws, num_runs, num_sets)."""
        predicted_SPJ = self.base.predict_draws(weights, tokens, parameters)
        here_P1 = self._is_here(parameters, predicted_SPJ.shape[1])[:, None]
        return np.where(here_P1, self.draw_corrections.apply(predicted_SPJ), predicted_SPJ)

    def surface(
        self, tokens: float | None, parameters: float | None, draw: int | None = None
    ) -> "LawSurface | AveragedSurface | RescaledSurface":
        """Losses as functions of the weights at one budget and size, for the solver."""
        surface = self.base.surface(tokens, parameters, draw)
        if not self._is_here(parameters, 1)[0]:
            return surface
        correction = self.correction if draw is None else self.draw_corrections.draw(draw)
        return RescaledSurface(surface, correction)

    def with_repetition(self, repetition: Repetition | None) -> Self:
        return replace(self, base=self.base.with_repetition(repetition))

    def readable(self) -> Any:
        """Parameters of the law before the correction."""
        return self.base.readable()

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law,
            "base": self.base.to_dict(),
            "size": self.size,
            "correction": self.correction.to_dict(),
            "draw_corrections": self.draw_corrections.to_dict(),
        }

    def _is_here(self, parameters: ArrayLike | None, num_runs: int) -> NDArray[np.bool_]:
        """Which runs are of the size corrected, shape (num_runs,)."""
        if parameters is None:
            return np.zeros(num_runs, dtype=bool)
        size_P = np.broadcast_to(np.asarray(parameters, dtype=np.float64), num_runs)
        return np.asarray(np.abs(size_P / self.size - 1) < SAME_SIZE)


class RescaledSurface:
    """See `LawSurface`."""

    differentiable = True

    def __init__(self, surface: LawSurface | AveragedSurface, correction: Correction) -> None:
        self.surface, self.correction = surface, correction
        self.domains, self.sets = surface.domains, surface.sets
        self.convex = surface.convex

    def losses(self, weights: ArrayLike) -> Array:
        """Losses in the law's metric, shape (..., num_sets) for weights (..., num_domains)."""
        found = self.surface.losses(weights)
        return self.correction.apply(found[..., None, :])[..., 0, :]

    def gradients(self, weights_K: ArrayLike) -> Array:
        """d loss / d weight, shape (num_sets, num_domains)."""
        return self.surface.gradients(weights_K) * (1 + self.correction.slope)[:, None]

    def hessian(self, weights_K: ArrayLike, multipliers_J: ArrayLike) -> Array:
        """sum_j multiplier_j d2 loss_j / d weight2, shape (num_domains, num_domains)."""
        scaled_J = np.asarray(multipliers_J, np.float64) * (1 + self.correction.slope)
        return self.surface.hessian(weights_K, scaled_J)


def rescaled(
    law: FittedLaw | AveragedLaw, table: RunTable
) -> FittedLaw | AveragedLaw | RescaledLaw:
    """The law corrected by the runs at the largest size, or as it is where they cannot tell.

    They must be two or more of several sizes, of one token budget: with several, what tokens do
    and what the mixture does would be taken for each other.

    Args:
        law: with draws, fitted to `table`.
    """
    if table.parameters is None or not table.has_sizes:
        return law
    size = float(table.parameters.max())
    here = table.select(np.abs(table.parameters / size - 1) < SAME_SIZE)
    one_budget = here.tokens is None or np.ptp(here.tokens) <= SAME_BUDGET * here.tokens.max()
    if here.num_runs < FEWEST or not one_budget:
        return law
    noise_J = law.noise * here.losses.mean(axis=0) if law.relative else law.noise
    counts = (here.weights, here.tokens, here.parameters)
    return RescaledLaw(
        base=law,
        size=size,
        correction=Correction.fit(law.predict(*counts), here.losses, noise_J),
        draw_corrections=Correction.fit(law.predict_draws(*counts), here.losses, noise_J),
    )
