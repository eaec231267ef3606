"""BiMix: `m_j(w) = -g log(w_own + n)`, a set depends on its own domain's share alone.

Ge et al., arXiv 2405.14908; n, a floor that the published law lacks, keeps it finite at weight 0.
Convex. A validation set without a domain of its own has no such law.
"""

# B fits, P runs, K domains; theta = [log g, log n]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mixture_term import Amounts, Index, Prior, TermDerivatives

Array = NDArray[np.float64]

LOG_EXPONENT = (float(np.log(0.3)), 0.7)  # priors: mean and standard deviation
LOG_FLOOR = (float(np.log(0.01)), 0.7)


@dataclass(frozen=True, slots=True)
class BiMix:
    """See the module."""

    name = "bimix"
    convex = True
    convex_repeated = True
    in_tokens = False
    has_amplitude = True

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        return ("log_exponent", "log_floor")

    def prior(self, own_B: Index, num_domains: int) -> Prior:
        if (own_B < 0).any():
            raise ValueError(
                "law 'bimix' describes a validation set by the weight of the domain of the same "
                "name, and a set here has none; choose another law or leave that set out"
            )
        mean, sd = zip(LOG_EXPONENT, LOG_FLOOR, strict=True)
        return Prior(np.tile(mean, (len(own_B), 1)), np.tile(sd, (len(own_B), 1)))

    def evaluate(self, theta_BQ: Array, amounts: Amounts, own_B: Index) -> tuple[Array, Array]:
        exponent_B, floor_B = self._split(theta_BQ)
        base_BP = amounts.amounts[:, own_B].T + floor_B[:, None]
        term_BP = -exponent_B[:, None] * np.log(base_BP)
        by_floor_BP = -(exponent_B * floor_B)[:, None] / base_BP
        return term_BP, np.stack([term_BP, by_floor_BP], axis=2)

    def derivatives(self, theta_BQ: Array, amounts_K: Array, own_B: Index) -> TermDerivatives:
        exponent_B, floor_B = self._split(theta_BQ)
        base_B = amounts_K[own_B] + floor_B
        own_BK = np.zeros((len(theta_BQ), len(amounts_K)))
        own_BK[np.arange(len(theta_BQ)), own_B] = 1
        return TermDerivatives(
            value=-exponent_B * np.log(base_B),
            gradient=-(exponent_B / base_B)[:, None] * own_BK,
            diagonal=(exponent_B / base_B**2)[:, None] * own_BK,
            coefficient=np.zeros(len(theta_BQ)),
            vector=own_BK,
        )

    def shifted(self, theta_BQ: Array, by_B: Array) -> Array:
        return theta_BQ  # the frame's amplitude takes the level

    def token_floor(self, theta_BQ: Array) -> tuple[Array, Array]:
        exponent_B, _ = self._split(theta_BQ)
        return exponent_B, np.stack([exponent_B, np.zeros_like(exponent_B)], axis=1)

    def readable(self, theta_Q: Array, domains: Sequence[str]) -> dict[str, object]:
        exponent_B, floor_B = self._split(theta_Q[None])
        return {"exponent": float(exponent_B[0]), "floor": float(floor_B[0])}

    def _split(self, theta_BQ: Array) -> tuple[Array, Array]:
        return np.exp(np.clip(theta_BQ[:, 0], -6, 3)), np.exp(np.clip(theta_BQ[:, 1], -12, 3))
