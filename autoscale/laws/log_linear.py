"""Log-linear: `m_j(w) = sum_i tau_ji w_i`, hence `L_j = E_j + exp(c_j + tau_j . w)`.

The law of Data Mixing Laws (Ye et al., arXiv 2403.16952) and Olmix. Convex: an exponential of a
linear function.
"""

# B fits, P runs, K domains; theta = [tau_K]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mixture_term import Amounts, Index, Prior, TermDerivatives
from .power_sum import by_domain

Array = NDArray[np.float64]

RATE_SD = 10.0  # rates of 20 to 50 occur where a domain is the only source of a set


@dataclass(frozen=True, slots=True)
class LogLinear:
    """See the module."""

    name = "log_linear"
    convex = True
    convex_repeated = False
    in_tokens = False
    has_amplitude = True

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"rate/{name}" for name in domains)

    def prior(self, own_B: Index, num_domains: int) -> Prior:
        shape = (len(own_B), num_domains)
        return Prior(np.zeros(shape), np.full(shape, RATE_SD))

    def evaluate(self, theta_BQ: Array, amounts: Amounts, own_B: Index) -> tuple[Array, Array]:
        term_BP = theta_BQ @ amounts.amounts.T
        return term_BP, np.tile(amounts.amounts, (len(theta_BQ), 1, 1))

    def derivatives(self, theta_BQ: Array, amounts_K: Array, own_B: Index) -> TermDerivatives:
        zeros_BK = np.zeros_like(theta_BQ)
        zeros_B = np.zeros(len(theta_BQ))
        return TermDerivatives(theta_BQ @ amounts_K, theta_BQ, zeros_BK, zeros_B, zeros_BK)

    def shifted(self, theta_BQ: Array, by_B: Array) -> Array:
        return theta_BQ  # the frame's amplitude takes the level

    def token_floor(self, theta_BQ: Array) -> tuple[Array, Array]:
        return np.zeros(len(theta_BQ)), np.zeros_like(theta_BQ)

    def readable(self, theta_Q: Array, domains: Sequence[str]) -> dict[str, object]:
        return {"rate": by_domain(theta_Q, domains)}
