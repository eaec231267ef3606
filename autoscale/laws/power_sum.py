"""Sums of powers of the shares, `S_j = sum_i t_ji x_i^k_ji`: shared by two laws."""

# B fits, P runs, K domains

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .mixture_term import Amounts, TermDerivatives

Array = NDArray[np.float64]

LEAST_SUM = 1e-12  # of a mixture that holds none of the domains that count
LOG_RANGE = 60.0  # of transfers, so that steps of a fit cannot overflow


def logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -20, 20))))


def power_sum(log_transfer_BK: Array, power_BK: Array, amounts: Amounts) -> tuple[Array, Array]:
    """Summands `t x^k`, shape (B, P, K), and their sum, shape (B, P)."""
    summand_BPK = power_BK[:, None, :] * amounts.logs[None]
    summand_BPK += np.clip(log_transfer_BK, -LOG_RANGE, LOG_RANGE)[:, None, :]
    np.exp(summand_BPK, out=summand_BPK)
    if not amounts.amounts.all():
        summand_BPK *= (amounts.amounts > 0)[None]
    return summand_BPK, np.maximum(summand_BPK.sum(axis=2), LEAST_SUM)


def log_sum_derivatives(
    exponent_B: Array, log_transfer_BK: Array, power_BK: Array, amounts_K: Array
) -> TermDerivatives:
    """Derivatives of `-g log S` by the amounts; infinite at 0 where a power lies below 1.

    gradient = -g/S t k x^(k-1),   second = g/S^2 s s^T - g/S diag(t k (k-1) x^(k-2))
    """
    transfer_BK = np.exp(np.clip(log_transfer_BK, -LOG_RANGE, LOG_RANGE))
    with np.errstate(divide="ignore", invalid="ignore"):
        summand_BK = transfer_BK * np.where(amounts_K > 0, amounts_K**power_BK, 0.0)
        slope_BK = transfer_BK * power_BK * amounts_K ** (power_BK - 1)
        curve_BK = slope_BK * (power_BK - 1) / amounts_K
    sum_B = np.maximum(summand_BK.sum(axis=1), LEAST_SUM)
    return TermDerivatives(
        value=-exponent_B * np.log(sum_B),
        gradient=-(exponent_B / sum_B)[:, None] * slope_BK,
        diagonal=-(exponent_B / sum_B)[:, None] * curve_BK,
        coefficient=exponent_B / sum_B**2,
        vector=slope_BK,
    )


def by_domain(values_K: Array, domains: Sequence[str]) -> dict[str, float]:
    return dict(zip(domains, values_K.tolist(), strict=True))
