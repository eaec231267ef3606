"""Separable: `m_j(w) = log sum_i A_ji (n_ji + x_i)^-gamma_ji`, AutoScale's law for every set.

x_i are the tokens of domain i in the fit's token unit. The published law (Kang et al., arXiv
2407.20177, equation 5) has A = 1 and depends on that unit; with a free A it does not. This is its
joint fit to any runs; `scaling_law` has the published fit, one domain at a time. Convex: a sum of
convex functions of one weight each.
"""

# B fits, P runs, K domains; theta = [log A_K (free only), log n_K, log gamma_K]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mixture_term import Amounts, Index, Prior, TermDerivatives
from .power_sum import by_domain

Array = NDArray[np.float64]

LOG_AMPLITUDE = (-3.0, 1.5)  # priors: mean and standard deviation
LOG_EQUIVALENT = (float(np.log(0.05)), 1.5)
LOG_EXPONENT = (float(np.log(0.3)), 0.7)


@dataclass(frozen=True, slots=True)
class Separable:
    """See the module; `free` fits the amplitudes."""

    free: bool

    convex = True
    convex_repeated = True
    in_tokens = True
    has_amplitude = False

    @property
    def name(self) -> str:
        return "separable" if self.free else "separable_unit"

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        blocks = ["log_amplitude"] * self.free + ["log_equivalent", "log_exponent"]
        return tuple(f"{block}/{name}" for block in blocks for name in domains)

    def prior(self, own_B: Index, num_domains: int) -> Prior:
        blocks = [LOG_AMPLITUDE] * self.free + [LOG_EQUIVALENT, LOG_EXPONENT]
        mean, sd = np.repeat(blocks, num_domains, axis=0).T
        return Prior(np.tile(mean, (len(own_B), 1)), np.tile(sd, (len(own_B), 1)))

    def evaluate(self, theta_BQ: Array, amounts: Amounts, own_B: Index) -> tuple[Array, Array]:
        log_amplitude_BK, equivalent_BK, exponent_BK = self._split(theta_BQ)
        base_BPK = equivalent_BK[:, None, :] + amounts.amounts[None]
        by_exponent_BPK = -exponent_BK[:, None, :] * np.log(base_BPK)
        share_BPK = np.exp(np.clip(log_amplitude_BK[:, None, :] + by_exponent_BPK, -30, 30))
        sum_BP = share_BPK.sum(axis=2)
        share_BPK /= sum_BP[:, :, None]
        by_exponent_BPK *= share_BPK
        by_equivalent_BPK = -share_BPK * (exponent_BK * equivalent_BK)[:, None, :] / base_BPK
        blocks = [share_BPK] * self.free + [by_equivalent_BPK, by_exponent_BPK]
        return np.log(sum_BP), np.concatenate(blocks, axis=2)

    def derivatives(self, theta_BQ: Array, amounts_K: Array, own_B: Index) -> TermDerivatives:
        log_amplitude_BK, equivalent_BK, exponent_BK = self._split(theta_BQ)
        base_BK = equivalent_BK + amounts_K
        summand_BK = np.exp(log_amplitude_BK - exponent_BK * np.log(base_BK))
        slope_BK = -exponent_BK * summand_BK / base_BK
        curve_BK = -(exponent_BK + 1) * slope_BK / base_BK
        sum_B = summand_BK.sum(axis=1)
        return TermDerivatives(
            value=np.log(sum_B),
            gradient=slope_BK / sum_B[:, None],
            diagonal=curve_BK / sum_B[:, None],
            coefficient=-1 / sum_B**2,
            vector=slope_BK,
        )

    def shifted(self, theta_BQ: Array, by_B: Array) -> Array:
        if not self.free:
            return theta_BQ
        shifted = theta_BQ.copy()
        shifted[:, : theta_BQ.shape[1] // 3] += by_B[:, None]
        return shifted

    def token_floor(self, theta_BQ: Array) -> tuple[Array, Array]:
        return np.zeros(len(theta_BQ)), np.zeros_like(theta_BQ)

    def readable(self, theta_Q: Array, domains: Sequence[str]) -> dict[str, object]:
        log_amplitude_BK, equivalent_BK, exponent_BK = self._split(theta_Q[None])
        return {
            "amplitude": by_domain(np.exp(log_amplitude_BK[0]), domains),
            "equivalent": by_domain(equivalent_BK[0], domains),
            "exponent": by_domain(exponent_BK[0], domains),
        }

    def _split(self, theta_BQ: Array) -> tuple[Array, Array, Array]:
        """Log amplitudes, equivalent tokens and exponents, each of shape (B, K)."""
        *amplitude, log_equivalent_BK, log_exponent_BK = np.split(theta_BQ, 2 + self.free, axis=1)
        log_amplitude_BK = amplitude[0] if self.free else np.zeros_like(log_equivalent_BK)
        equivalent_BK = np.exp(np.clip(log_equivalent_BK, -12, 6))
        return log_amplitude_BK, equivalent_BK, np.exp(np.clip(log_exponent_BK, -8, 2))
