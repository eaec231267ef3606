"""Effective tokens: `-g log S_j(w)`, `S_j = sum_i t_ji w_i^k_ji`, `0 < k < 1`. The default law.

A domain's tokens are worth t_ji tokens to validation set j, with returns that diminish in the share
(k below 1). ETI has a power for each pair of domain and set, ETk one for each set.

Convex: w^k is concave for k in (0, 1), so S is concave and positive, and exp(-g log S) = S^-g is a
convex decreasing function of it. Hence every non-negative combination of the losses is convex.
"""

# B fits, P runs, K domains; theta = [log g, x, d_K (ETI only), log t_K], k = logistic(x + d)

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .mixture_term import Amounts, Index, Prior, TermDerivatives
from .power_sum import by_domain, log_sum_derivatives, logistic, power_sum

Array = NDArray[np.float64]

LOG_EXPONENT = (float(np.log(0.3)), 0.7)  # priors: mean and standard deviation
POWER_LOGIT = (0.6, 0.6)
POWER_SPREAD = 0.6
SHARED_POWER_LOGIT = (0.62, 0.43)  # log k ~ N(log .65, .15) in logits
OWN_LOG_TRANSFER = 0.0
OTHER_LOG_TRANSFER = -2.5
LOG_TRANSFER_SD = 1.5
SHARPNESS = 40.0  # of the smooth bound of the largest power


@dataclass(frozen=True, slots=True)
class EffectiveTokens:
    """See the module; `individual` gives every domain its own power."""

    individual: bool

    convex = True
    convex_repeated = True
    in_tokens = False
    has_amplitude = True

    @property
    def name(self) -> str:
        return "eti" if self.individual else "etk"

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        spread = [f"power_logit_offset/{name}" for name in domains] if self.individual else []
        transfer = [f"log_transfer/{name}" for name in domains]
        return ("log_exponent", "power_logit", *spread, *transfer)

    def prior(self, own_B: Index, num_domains: int) -> Prior:
        transfer_BK = np.full((len(own_B), num_domains), OTHER_LOG_TRANSFER)
        has_own = np.flatnonzero(own_B >= 0)
        transfer_BK[has_own, own_B[has_own]] = OWN_LOG_TRANSFER
        power = POWER_LOGIT if self.individual else SHARED_POWER_LOGIT
        spread = num_domains if self.individual else 0
        mean = [LOG_EXPONENT[0], power[0], *[0.0] * spread]
        sd = [LOG_EXPONENT[1], power[1], *[POWER_SPREAD] * spread, *[LOG_TRANSFER_SD] * num_domains]
        mean_B = np.tile(mean, (len(own_B), 1))
        return Prior(np.hstack([mean_B, transfer_BK]), np.tile(sd, (len(own_B), 1)))

    def evaluate(self, theta_BQ: Array, amounts: Amounts, own_B: Index) -> tuple[Array, Array]:
        exponent_B, power_BK, transfer_BK = self._split(theta_BQ)
        summand_BPK, sum_BP = power_sum(transfer_BK, power_BK, amounts)
        log_sum_BP = np.log(sum_BP)
        term_BP = -exponent_B[:, None] * log_sum_BP
        jacobian = np.empty((*term_BP.shape, theta_BQ.shape[1]))
        by_transfer = jacobian[:, :, -transfer_BK.shape[1] :]
        np.multiply(summand_BPK, (-exponent_B[:, None] / sum_BP)[:, :, None], out=by_transfer)
        by_power_BPK = by_transfer * amounts.logs[None]
        by_power_BPK *= (power_BK * (1 - power_BK))[:, None, :]
        jacobian[:, :, 0] = term_BP
        jacobian[:, :, 1] = by_power_BPK.sum(axis=2)
        if self.individual:
            jacobian[:, :, 2 : -transfer_BK.shape[1]] = by_power_BPK
        return term_BP, jacobian

    def derivatives(self, theta_BQ: Array, amounts_K: Array, own_B: Index) -> TermDerivatives:
        exponent_B, power_BK, transfer_BK = self._split(theta_BQ)
        return log_sum_derivatives(exponent_B, transfer_BK, power_BK, amounts_K)

    def shifted(self, theta_BQ: Array, by_B: Array) -> Array:
        return theta_BQ  # the frame's amplitude takes the level

    def token_floor(self, theta_BQ: Array) -> tuple[Array, Array]:
        """g times a smooth bound of the largest power, `log(sum exp(s k)) / s`, at least max k.

        The maximum itself has a kink where powers are equal, and fits stick to it.
        """
        exponent_B, power_BK, _ = self._split(theta_BQ)
        jacobian = np.zeros_like(theta_BQ)
        if not self.individual:
            power_B = power_BK[:, 0]
            jacobian[:, 1] = exponent_B * power_B * (1 - power_B)
        else:
            power_B = np.asarray(logsumexp(SHARPNESS * power_BK, axis=1)) / SHARPNESS
            share_BK = np.exp(SHARPNESS * (power_BK - power_B[:, None]))
            by_offset_BK = exponent_B[:, None] * share_BK * power_BK * (1 - power_BK)
            jacobian[:, 1] = by_offset_BK.sum(axis=1)
            jacobian[:, 2 : 2 + power_BK.shape[1]] = by_offset_BK
        jacobian[:, 0] = exponent_B * power_B
        return exponent_B * power_B, jacobian

    def readable(self, theta_Q: Array, domains: Sequence[str]) -> dict[str, object]:
        exponent_B, power_BK, transfer_BK = self._split(theta_Q[None])
        return {
            "exponent": float(exponent_B[0]),
            "power": by_domain(power_BK[0], domains),
            "transfer": by_domain(np.exp(transfer_BK[0]), domains),
        }

    def _split(self, theta_BQ: Array) -> tuple[Array, Array, Array]:
        """Exponent g (B,), powers k (B, K) and log transfers (B, K)."""
        exponent_B = np.exp(np.clip(theta_BQ[:, 0], -6, 3))
        rest = theta_BQ[:, 2:]
        if self.individual:
            spread_BK, transfer_BK = np.split(rest, 2, axis=1)
            return exponent_B, logistic(theta_BQ[:, 1:2] + spread_BK), transfer_BK
        power_B1 = logistic(theta_BQ[:, 1:2])
        return exponent_B, np.broadcast_to(power_B1, rest.shape), rest
