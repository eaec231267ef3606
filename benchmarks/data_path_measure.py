"""Paired rounds and their statistics: machines that others use give no better figures."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SEED: Final = 20261121
_RESAMPLES: Final = 10_000
_LEVEL: Final = 0.95


def paired_rounds(
    ours: Callable[[], float], others: Callable[[], float], rounds: int
) -> NDArray[np.float64]:
    """Rates of both in turn, which of them first alternates; shape (rounds, 2)."""
    rates = np.empty((rounds, 2))
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            rates[number, which] = (ours, others)[which]()
    return rates


def median_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The median and its 95% bootstrap interval (percentiles)."""
    generator = np.random.default_rng(_SEED)
    drawn = values[generator.integers(0, values.size, (_RESAMPLES, values.size))]
    tails = (1 - _LEVEL) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tails, 1 - tails])
    return float(np.median(values)), float(low), float(high)


def thousands(rate: float) -> str:
    """Samples a second, short."""
    return f"{rate / 1e3:.3g}k"


def verdict(met: bool) -> str:
    return "met" if met else "missed"
