"""Whether the keyed permutations look like numpy's random ones: statistics over many keys."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from autoscale.sampler import MixtureOrder
from autoscale.stage_quotas import Stage

_SIZES: Final = (50, 1000, 4093, 65_536, 1_000_003)
_KEYS: Final = 100
_SEED: Final = 20261121
_LEVEL: Final = 0.01  # over all tests of the table together
STATISTICS: Final = (
    "distinct differences",
    "fixed points",
    "ascents",
    "longest run",
    "lag-1 correlation",
    "correlation with the next epoch",
)


def permutation() -> Iterator[str]:
    tests = len(_SIZES) * len(STATISTICS)
    yield (
        f"Means over {_KEYS} keys (in brackets the standard deviation between keys) of ours and of "
        "numpy's `permutation`. z: difference of the means in its standard errors; p: "
        "Kolmogorov-Smirnov, two samples. Goal: numpy's spread, i.e. no p below "
        f"{_LEVEL / tests:.1g} ({_LEVEL} over {tests} tests). Distinct differences: of successive "
        "windows; runs and ascents: windows that go up."
    )
    yield ""
    yield "| windows | statistic | ours | numpy | z | p |"
    yield "| --- | --- | --- | --- | --- | --- |"
    smallest, largest_z = 1.0, 0.0
    for size in _SIZES:
        ours, numpys = np.empty((2, _KEYS, len(STATISTICS)))
        for key in range(_KEYS):
            ours[key] = statistics(*_our_epochs(size, key))
            generator = np.random.default_rng([_SEED, size, key])
            numpys[key] = statistics(generator.permutation(size), generator.permutation(size))
        for number, name in enumerate(STATISTICS):
            one, other = ours[:, number], numpys[:, number]
            z = (one.mean() - other.mean()) / np.sqrt((one.var() + other.var()) / (_KEYS - 1))
            p = float(ks_2samp(one, other).pvalue)
            smallest, largest_z = min(smallest, p), max(largest_z, abs(z))
            yield f"| {size} | {name} | {_spread(one)} | {_spread(other)} | {z:+.2f} | {p:.3f} |"
    yield ""
    verdict = "met" if smallest > _LEVEL / tests else "missed"
    yield f"Goal {verdict}: smallest p {smallest:.4f}, largest |z| {largest_z:.2f}."


def _our_epochs(size: int, key: int) -> NDArray[np.int64]:
    """The windows of a domain in the order of their draws, for two epochs, shape (2, size)."""
    stage = Stage(quotas=(2 * size,))
    order = MixtureOrder(
        domains=["benchmark"], num_windows=[size], seed=_SEED + key, stages=[stage]
    )
    return order.locate(np.arange(2 * size)).window.reshape(2, size)


def statistics(order: NDArray[np.int64], following: NDArray[np.int64]) -> NDArray[np.float64]:
    """The statistics of one order and, for the last, of the epoch after it."""
    ups = np.diff(order) > 0
    ends = np.flatnonzero(np.concatenate([[True], ~ups, [True]]))
    return np.array(
        [
            np.unique(np.diff(order)).size,
            np.count_nonzero(order == np.arange(order.size)),
            np.count_nonzero(ups),
            np.diff(ends).max(),
            np.corrcoef(order[:-1], order[1:])[0, 1],
            np.corrcoef(order, following)[0, 1],
        ]
    )


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.5g} ({values.std():.2g})"
