"""ADO's law of one domain's training loss over a run: `L(n) = epsilon + beta n^-alpha`.

Jiang et al., arXiv 2410.11820. n counts the samples of all domains together, as in the authors'
code: what a domain gains from the others' data is left to the credit (`ado`). The fit is that of
Hoffmann et al. (arXiv 2203.15556): the Huber loss of the logarithms, summed over the records,

    sum_t huber(log(exp(a - alpha log n_t) + exp(e)) - log L_t),   a = log beta, e = log epsilon,

from a grid of starts, by L-BFGS. Bounds and grid are those of github.com/yidingjiang/ado, with
these differences: the bounds are bounds, and no penalties; only the most promising starts of the
grid, and the fit before, are descended from; and epsilon may fall below exp(0.5) nats where the
losses come near that, as they do with small vocabularies.
"""

# T records, G starts, K domains; parameters in the order a, e, alpha

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.signal import savgol_filter

Array = NDArray[np.float64]

HUBER = 1e-3
FEWEST_RECORDS = 4
_LEAST_EXPONENT = 0.05  # that a slope is taken with
_LEAST_A, _MOST_A = -10.0, 6.5
_LEAST_E = 0.5
_LEAST_ALPHA, _MOST_ALPHA = 0.001, 0.8
_STARTS = np.stack(
    np.meshgrid(np.arange(-2, 6), np.arange(-2, 2, 0.5), np.arange(0, 0.8, 0.1), indexing="ij"), -1
).reshape(-1, 3)
_DESCENTS = 4  # from the best starts of the grid
_GRID_RECORDS = 64  # that the starts are compared on
_WINDOW = 101  # records of the widest filter, the published one


def smoothed(losses: ArrayLike) -> Array:
    """Losses of successive records after a Savitzky-Golay filter, shape (T,).

    Cubic, over the published 101 records from 1000 records on, over a tenth of them before, and
    none below 50.
    """
    losses_T = np.asarray(losses, dtype=np.float64)
    window = min(_WINDOW, len(losses_T) // 10 | 1)
    if window < 5:
        return losses_T
    return np.asarray(savgol_filter(losses_T, window, 3))


def fit_domain_law(samples: ArrayLike, losses: ArrayLike, before: Array | None = None) -> Array:
    """The law's a, e and alpha, shape (3,).

    Args:
        samples: n of each record, positive, shape (T,), T at least `FEWEST_RECORDS`.
        losses: nats a token, positive, shape (T,).
        before: an earlier fit to start from as well.
    """
    log_n_T = np.log(np.asarray(samples, dtype=np.float64))
    log_loss_T = np.log(np.asarray(losses, dtype=np.float64))
    least_e = min(_LEAST_E, float(log_loss_T.min()) - np.log(2))
    bounds = [(_LEAST_A, _MOST_A), (least_e, None), (_LEAST_ALPHA, _MOST_ALPHA)]
    every = max(1, len(log_n_T) // _GRID_RECORDS)
    values_G = _objective(_STARTS, log_n_T[::every], log_loss_T[::every])
    starts = [_STARTS[index] for index in np.argsort(values_G, kind="stable")[:_DESCENTS]]
    if before is not None:
        starts.append(before)
    low, high = np.array([(low, np.inf if high is None else high) for low, high in bounds]).T
    fits = [
        minimize(
            _value_and_gradient,
            np.clip(start, low, high),
            args=(log_n_T, log_loss_T),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 200},
        )
        for start in starts
    ]
    return np.asarray(min(fits, key=lambda fit: float(fit.fun)).x)


def slopes(laws: ArrayLike, samples: float) -> Array:
    """-dL/dn of each domain, `max(alpha, 0.05) (L(n) - epsilon) / n`, nats a sample, shape (K,).

    Args:
        laws: a, e and alpha of each domain, shape (K, 3).
        samples: n.
    """
    a_K, _, alpha_K = np.asarray(laws, dtype=np.float64).T
    reducible_K = np.exp(a_K - alpha_K * np.log(samples))
    return np.asarray(np.maximum(alpha_K, _LEAST_EXPONENT) * reducible_K / samples)


def _objective(starts_G3: Array, log_n_T: Array, log_loss_T: Array) -> Array:
    a_G, e_G, alpha_G = starts_G3.T[:, :, None]
    difference_GT = np.logaddexp(a_G - alpha_G * log_n_T, e_G) - log_loss_T
    return np.asarray(_huber(difference_GT).sum(axis=1))


def _value_and_gradient(law: Array, log_n_T: Array, log_loss_T: Array) -> tuple[float, Array]:
    a, e, alpha = law
    power_T = a - alpha * log_n_T
    log_law_T = np.logaddexp(power_T, e)
    difference_T = log_law_T - log_loss_T
    slope_T = np.clip(difference_T, -HUBER, HUBER)
    share_T = np.exp(power_T - log_law_T)  # of the power in the law
    gradient = np.array(
        [slope_T @ share_T, slope_T @ (1 - share_T), -slope_T @ (share_T * log_n_T)]
    )
    # In units of HUBER the gradient has the scale that the solver's tolerances are made for.
    return float(_huber(difference_T).sum()) / HUBER, gradient / HUBER


def _huber(difference: Array) -> Array:
    size = np.abs(difference)
    return np.where(size > HUBER, HUBER * (size - HUBER / 2), size**2 / 2)
