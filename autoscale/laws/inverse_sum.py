"""Inverse sum: `-log S_j(w)`, `S_j = sum_i C_ji h_i^gamma_ji` (Shukor et al., arXiv 2507.09404).

h_i are the shares of the domains, or (`in_tokens`) their tokens, which then carry the budget.
The additive law `E + 1 / sum_i C_i h_i^gamma_i` of Apple. Not convex once a gamma exceeds 1.
"""

# B fits, P runs, K domains; theta = [log C_K, log gamma_K]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mixture_term import Amounts, Index, Prior, TermDerivatives
from .power_sum import by_domain, log_sum_derivatives, power_sum

Array = NDArray[np.float64]

OWN_LOG_COEFFICIENT = 0.0  # priors
OTHER_LOG_COEFFICIENT = -2.0
LOG_COEFFICIENT_SD = 1.5
LOG_POWER = (float(np.log(0.5)), 0.5)


@dataclass(frozen=True, slots=True)
class InverseSum:
    """See the module."""

    in_tokens: bool

    convex = False
    convex_repeated = False
    has_amplitude = False

    @property
    def name(self) -> str:
        return "inverse_sum_tokens" if self.in_tokens else "inverse_sum"

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            f"{what}/{name}" for what in ("log_coefficient", "log_power") for name in domains
        )

    def prior(self, own_B: Index, num_domains: int) -> Prior:
        mean = np.full((len(own_B), 2 * num_domains), LOG_POWER[0])
        mean[:, :num_domains] = OTHER_LOG_COEFFICIENT
        has_own = np.flatnonzero(own_B >= 0)
        mean[has_own, own_B[has_own]] = OWN_LOG_COEFFICIENT
        sd = np.full_like(mean, LOG_POWER[1])
        sd[:, :num_domains] = LOG_COEFFICIENT_SD
        return Prior(mean, sd)

    def evaluate(self, theta_BQ: Array, amounts: Amounts, own_B: Index) -> tuple[Array, Array]:
        log_coefficient_BK, power_BK = self._split(theta_BQ)
        summand_BPK, sum_BP = power_sum(log_coefficient_BK, power_BK, amounts)
        summand_BPK /= -sum_BP[:, :, None]
        by_power_BPK = summand_BPK * amounts.logs[None] * power_BK[:, None, :]
        return -np.log(sum_BP), np.concatenate([summand_BPK, by_power_BPK], axis=2)

    def derivatives(self, theta_BQ: Array, amounts_K: Array, own_B: Index) -> TermDerivatives:
        log_coefficient_BK, power_BK = self._split(theta_BQ)
        ones_B = np.ones(len(theta_BQ))
        return log_sum_derivatives(ones_B, log_coefficient_BK, power_BK, amounts_K)

    def shifted(self, theta_BQ: Array, by_B: Array) -> Array:
        shifted = theta_BQ.copy()
        shifted[:, : theta_BQ.shape[1] // 2] -= by_B[:, None]
        return shifted

    def token_floor(self, theta_BQ: Array) -> tuple[Array, Array]:
        return np.zeros(len(theta_BQ)), np.zeros_like(theta_BQ)

    def readable(self, theta_Q: Array, domains: Sequence[str]) -> dict[str, object]:
        log_coefficient_BK, power_BK = self._split(theta_Q[None])
        return {
            "coefficient": by_domain(np.exp(log_coefficient_BK[0]), domains),
            "power": by_domain(power_BK[0], domains),
        }

    def _split(self, theta_BQ: Array) -> tuple[Array, Array]:
        log_coefficient_BK, log_power_BK = np.split(theta_BQ, 2, axis=1)
        return log_coefficient_BK, np.exp(np.clip(log_power_BK, -6, 1))
