"""The exponential mixture law of Data Mixing Laws and Olmix, fitted as they fit it.

    L_j(w) = exp(c_j) + exp(t_j . w)

(the factor k_j of Ye et al., arXiv 2403.16952, is part of t_j, as weights sum to 1). Parameters
minimise the Huber loss of the residuals without any prior, as in github.com/yegcjs/mixinglaws and
github.com/allenai/olmix. Both start the search at 300 random points; here the least loss exp(c_j)
is laid on a grid, where all else is a linear regression, and the best points are polished. The
package's own fit of this law, with priors, is `laws.log_linear`.
"""

# P runs, K domains, J validation sets

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ..run_table import RunTable

Array = NDArray[np.float64]

SHARES = (0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.995)
"""Starting values of exp(c), in shares of the lowest loss seen."""
NUM_POLISHED = 4
LEAST_SHARE = 1e-4  # of the lowest loss: exp(c) is between this and the loss itself
LARGEST_EXPONENT = 50.0
TOLERANCE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExponentialLaw:
    """A fitted law, as the solver takes it (`mixture_objective.LossSurface`).

    Attributes:
        domains: K names.
        sets: J names.
        constant: exp(c), nats, shape (num_sets,).
        rates: t, shape (num_sets, num_domains).
    """

    domains: tuple[str, ...]
    sets: tuple[str, ...]
    constant: Array
    rates: Array

    convex = True
    differentiable = True

    def losses(self, weights: Array) -> Array:
        """Nats, shape (..., num_sets) for weights (..., num_domains)."""
        return np.asarray(self.constant + _exp(weights @ self.rates.T))

    def gradients(self, weights_K: Array) -> Array:
        """d loss / d weight, shape (num_sets, num_domains)."""
        return np.asarray(_exp(self.rates @ weights_K)[:, None] * self.rates)

    def hessian(self, weights_K: Array, multipliers_J: Array) -> Array:
        """`sum_j multiplier_j Hess L_j`, shape (num_domains, num_domains)."""
        scale_J = multipliers_J * _exp(self.rates @ weights_K)
        return np.asarray((self.rates * scale_J[:, None]).T @ self.rates)


def fit_exponential(table: RunTable, *, delta: float) -> ExponentialLaw:
    """Fit the law to every validation set.

    Args:
        table: runs of one budget and size.
        delta: residuals, in the table's unit, beyond which the Huber loss is linear.
    """
    fits = [_fit(table.weights, losses_P, delta) for losses_P in table.losses.T]
    return ExponentialLaw(
        domains=table.domains,
        sets=table.sets,
        constant=np.array([constant for constant, _ in fits]),
        rates=np.stack([rates_K for _, rates_K in fits]),
    )


def _fit(weights_PK: Array, losses_P: Array, delta: float) -> tuple[float, Array]:
    lowest = float(losses_P.min())
    starts = [_start(weights_PK, losses_P, share * lowest) for share in SHARES]
    starts.sort(key=lambda theta: _huber(_residuals(theta, weights_PK, losses_P), delta))
    bounds = np.full((2, 1 + weights_PK.shape[1]), [[-np.inf], [np.inf]])
    bounds[:, 0] = np.log(lowest) + np.array([np.log(LEAST_SHARE), 0.0])
    found = [
        least_squares(
            _residuals,
            np.clip(start, *bounds),
            jac=_jacobian,
            bounds=bounds,
            args=(weights_PK, losses_P),
            loss="huber",
            f_scale=delta,
            x_scale="jac",
            ftol=TOLERANCE,
            xtol=TOLERANCE,
            gtol=TOLERANCE,
        )
        for start in starts[:NUM_POLISHED]
    ]
    theta = min(found, key=lambda fit: float(fit.cost)).x
    return float(np.exp(theta[0])), np.asarray(theta[1:])


def _start(weights_PK: Array, losses_P: Array, constant: float) -> Array:
    """Parameters at one exp(c): log(L - exp(c)) is linear, its error as the loss over the rest."""
    rest_P = losses_P - constant
    rates_K, *_ = np.linalg.lstsq(rest_P[:, None] * weights_PK, rest_P * np.log(rest_P), rcond=None)
    return np.concatenate([[np.log(constant)], rates_K])


def _residuals(theta: Array, weights_PK: Array, losses_P: Array) -> Array:
    return np.asarray(np.exp(theta[0]) + _exp(weights_PK @ theta[1:]) - losses_P)


def _jacobian(theta: Array, weights_PK: Array, losses_P: Array) -> Array:
    reducible_P = _exp(weights_PK @ theta[1:])
    constant_P = np.full(len(losses_P), np.exp(theta[0]))
    return np.column_stack([constant_P, reducible_P[:, None] * weights_PK])


def _huber(residuals_P: Array, delta: float) -> float:
    size_P = np.abs(residuals_P)
    return float(np.where(size_P <= delta, size_P**2 / 2, delta * (size_P - delta / 2)).sum())


def _exp(values: Array) -> Array:
    return np.asarray(np.exp(np.minimum(values, LARGEST_EXPONENT)))
