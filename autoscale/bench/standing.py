"""Where a mixture stands against uniform at one target budget: paired over seeds, with intervals.

Shapes: S seeds. All mixtures are trained under the same seeds, and what a seed does to every run
cancels in the differences.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..comparison import PairedDifference, paired_difference, savings
from .equal_loss import AnnealedCurve

Array = NDArray[np.float64]

CONFIDENCE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A run's objective on the way and at its end.

    Attributes:
        tokens: at every evaluation, rising from above 0.
        objectives: the same number of them.
    """

    tokens: tuple[float, ...]
    objectives: tuple[float, ...]

    @property
    def final(self) -> float:
        return self.objectives[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds with its interval, which one seed does not have."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: ArrayLike) -> "Estimate":
        """Student's interval of the mean, shape (num_seeds,)."""
        values_S = np.asarray(values, dtype=np.float64)
        mean, count = float(values_S.mean()), len(values_S)
        if count < 2:
            return cls(mean=mean, low=None, high=None)
        reach = float(
            stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * values_S.std(ddof=1) / np.sqrt(count)
        )
        return cls(mean=mean, low=mean - reach, high=mean + reach)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One mixture against uniform.

    Attributes:
        final: objective at the end.
        difference: from uniform, less than 0 where better.
        on_curve: tokens saved to reach uniform's final objective on the run's own curve, which
            depends on its decaying schedule; None where a seed never reaches it.
        num_reached: seeds that do.
        annealed: tokens saved against uniform runs that end where they are read.
        speed_up: T_uniform / T, of the same.
        extrapolated: uniform's budgets do not reach as far.
        net: compute saved after paying for the probes, of uniform's compute for the same objective.
    """

    final: Estimate
    difference: PairedDifference
    on_curve: Estimate | None
    num_reached: int
    annealed: Estimate
    speed_up: Estimate
    extrapolated: bool
    net: Estimate

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def stand(
    curves: Sequence[Curve],
    uniform: Sequence[Curve],
    annealed: AnnealedCurve,
    *,
    probe_cost: float,
) -> Standing:
    """Compare a mixture with uniform.

    Args:
        curves: by seed.
        uniform: of the same seeds, of the same length.
        annealed: uniform's objective against its budget.
        probe_cost: of the probe runs that found the mixture, in FLOPs over those of one token of
            the target run.
    """
    target = uniform[0].tokens[-1]
    difference = paired_difference(
        [curve.final for curve in curves],
        [curve.final for curve in uniform],
        confidence=CONFIDENCE,
    )
    reached = [
        savings(
            curve.tokens,
            curve.objectives,
            baseline_tokens=target,
            baseline_final_loss=other.final,
        ).tokens_saved
        for curve, other in zip(curves, uniform, strict=True)
    ]
    saved = [value for value in reached if value is not None]
    level = annealed.at(target)
    # What the seeds do to all runs is left out: uniform's mean, and the difference of each pair.
    found = [
        annealed.tokens_for(level + curve.final - other.final)
        for curve, other in zip(curves, uniform, strict=True)
    ]
    needed_S = np.array([each.tokens for each in found])
    return Standing(
        final=Estimate.of([curve.final for curve in curves]),
        difference=difference,
        on_curve=Estimate.of(saved) if len(saved) == len(curves) else None,
        num_reached=len(saved),
        annealed=Estimate.of(1 - target / needed_S),
        speed_up=Estimate.of(needed_S / target),
        extrapolated=any(each.extrapolated for each in found),
        net=Estimate.of(1 - (target + probe_cost) / needed_S),
    )


def share_of_attainable(standing: Standing, attainable: Standing) -> float | None:
    """Saving over the attainable one; None where nothing is known to be attainable."""
    if attainable.difference.verdict != "better" or attainable.annealed.mean <= 0:
        return None
    return standing.annealed.mean / attainable.annealed.mean
