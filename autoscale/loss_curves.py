"""Curves from the losses of one model to those of another, one a validation set.

    y = K (x - E_x)^kappa + E_y          form "shifted_power"
    y = K x + E_y                        form "line", kappa = 1
    y = K x                              form "factor"

x and y are losses of runs alike but for the model. K and E_y are a regression at fixed
(E_x, kappa), which lie on a grid and then on a finer one around its best point: no start, no local
optimum, and all draws at once.
"""

# N pairs, J validation sets, S fits, G points of a grid

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FormName = Literal["factor", "line", "shifted_power"]

NUM_PARAMETERS: dict[FormName, int] = {"factor": 1, "line": 2, "shifted_power": 4}
EXPONENTS = np.geomspace(0.25, 4, 257)
DISTANCES = np.geomspace(1, 0.02, 16)
"""How far E_x lies below the least x, in shares of that x."""
_STEPS = np.linspace(-1, 1, 9)
EXPONENT_ZOOM = (EXPONENTS[1] / EXPONENTS[0]) ** _STEPS
DISTANCE_ZOOM = (DISTANCES[1] / DISTANCES[0]) ** _STEPS
LEAST_VARIANCE = 1e-12  # of a regressor, relative to its mean square


class Curves(NamedTuple):
    """Parameters of curves; arrays of one shape, such as (J,) or (S, J).

    Attributes:
        gain: K.
        small_floor: E_x.
        exponent: kappa.
        large_floor: E_y.
    """

    gain: Array
    small_floor: Array
    exponent: Array
    large_floor: Array

    def at(self, small_losses: Array) -> Array:
        """Losses of the large model; shapes broadcast."""
        reducible = np.maximum(small_losses - self.small_floor, 0)
        return np.asarray(self.gain * reducible**self.exponent + self.large_floor)

    def rows(self, index: ArrayLike | None) -> "Curves":
        """The fits at these positions of the first axis, or with an axis for runs after it."""
        chosen = np.s_[:, None] if index is None else np.asarray(index)
        return Curves(*(values[chosen] for values in self))


def fit_curves(form: FormName, small_NJ: Array, large_NJ: Array, weights_SN: Array) -> Curves:
    """Curves of every validation set under every row of weights of the pairs, shape (S, J)."""
    columns = zip(small_NJ.T, large_NJ.T, strict=True)
    found = [_fit_set(form, small_N, large_N, weights_SN) for small_N, large_N in columns]
    return Curves(*(np.stack(values, axis=1) for values in zip(*found, strict=True)))


def _fit_set(form: FormName, small_N: Array, large_N: Array, weights_SN: Array) -> Curves:
    """Weighted least squares of one set: the best point of the grid, then of a finer one there."""
    share_NS = (weights_SN / weights_SN.sum(axis=1, keepdims=True)).T
    if form != "shifted_power":
        return _regress(form, small_N, large_N, share_NS, np.ones(1), np.ones(1))
    coarse = _regress(form, small_N, large_N, share_NS, *_crossed(DISTANCES, EXPONENTS))
    distance_S = 1 - coarse.small_floor / small_N.min()
    fine = [
        _regress(
            form,
            small_N,
            large_N,
            share_NS[:, [s]],
            *_crossed(
                np.clip(distance * DISTANCE_ZOOM, DISTANCES[-1], 1),
                np.clip(exponent * EXPONENT_ZOOM, EXPONENTS[0], EXPONENTS[-1]),
            ),
        )
        for s, (distance, exponent) in enumerate(zip(distance_S, coarse.exponent, strict=True))
    ]
    return Curves(*(np.concatenate(values) for values in zip(*fine, strict=True)))


def _regress(
    form: FormName,
    small_N: Array,
    large_N: Array,
    share_NS: Array,
    distance_G: Array,
    exponent_G: Array,
) -> Curves:
    """K and E_y by regression at every point of a grid; the best point, shape (S,).

    Args:
        form: bounds E_y.
        small_N: x.
        large_N: y.
        share_NS: weights of the pairs, summing to 1 over the pairs.
        distance_G: 1 - E_x / the least x.
        exponent_G: kappa.
    """
    floor_G = (1 - distance_G) * small_N.min()
    reach_G = small_N.mean() - floor_G  # makes regressors of all exponents about 1
    z_GN = ((small_N - floor_G[:, None]) / reach_G[:, None]) ** exponent_G[:, None]
    z, zz, zy = z_GN @ share_NS, z_GN**2 @ share_NS, (z_GN * large_N) @ share_NS
    y_S, yy_S = large_N @ share_NS, large_N**2 @ share_NS
    variance = np.maximum(zz - z**2, LEAST_VARIANCE * zz)
    lowest, highest = {
        "factor": (0.0, 0.0),
        "line": (-np.inf, np.inf),
        "shifted_power": (0.0, float(large_N.min())),
    }[form]
    offset = np.clip(y_S - np.maximum((zy - z * y_S) / variance, 0) * z, lowest, highest)
    slope = np.maximum((zy - offset * z) / zz, 0)
    squares = yy_S - 2 * slope * zy - 2 * offset * y_S
    squares += slope**2 * zz + 2 * slope * offset * z + offset**2
    best_S = squares.argmin(axis=0)
    at = (best_S, np.arange(len(best_S)))
    return Curves(
        gain=slope[at] / reach_G[best_S] ** exponent_G[best_S],
        small_floor=floor_G[best_S],
        exponent=exponent_G[best_S],
        large_floor=offset[at],
    )


def _crossed(distance: Array, exponent: Array) -> tuple[Array, Array]:
    """All pairs of the two, each of shape (G,)."""
    one, other = np.meshgrid(distance, exponent, indexing="ij")
    return one.ravel(), other.ravel()
