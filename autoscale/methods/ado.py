"""ADO: weights that follow, while the target trains, where its loss falls fastest.

Jiang et al., "Adaptive Data Optimization", arXiv 2410.11820. A law of each domain's own training
loss (`domain_laws`) says how fast it falls with the samples seen, n. At step t, with the prior mu,

    rho[k]  ~ mu[k] h[k]^s (-dL_k/dn)     preference; raised to at least delta where mu is not 0
    pi      = gamma_2 rho + (1 - gamma_2) mean_pi
    mean_pi = t / (t + 1) mean_pi + 1 / (t + 1) rho
    h       = gamma_1 pi + (1 - gamma_1) h     credit for what a domain's data has been given

are the steps' weights pi, all beginning at mu. After a warm-up on the prior the laws are fitted
anew every so many steps. No probe run is needed.

What is done in another way than in github.com/yidingjiang/ado: the credit is h^s as in the paper
(the code has (h (1 - h))^s) and follows the weights, not the counts of a random draw. Weights
change between rounds of whole batches: with the laws of its beginning the equations above are
followed through all steps of a round, and the round draws the mean of their weights, exactly.
The published warm-up of 1000 steps and the 1000 steps between fits are a sixtieth of the published
runs; short runs keep enough steps for a fit (`changes`).
"""

# K domains, T records

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..mixture import largest_remainder
from .domain_laws import FEWEST_RECORDS, fit_domain_law, slopes, smoothed
from .method import About

Array = NDArray[np.float64]

_PUBLISHED_PARTS = 60  # a run of 60_000 steps in rounds of 1000
_LEAST_ROUND = 10
_LEAST_WARM_UP = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ADO:
    """The method with the published settings.

    Attributes:
        credit_rate: gamma_1.
        policy_rate: gamma_2.
        credit_power: s.
        least_weight: delta.
    """

    credit_rate: float = 0.1
    policy_rate: float = 0.1
    credit_power: float = 0.5
    least_weight: float = 0.01

    name = "ado"
    about = About(
        citation="Jiang et al. 2024, arXiv 2410.11820",
        needs="a prior mixture; it changes the weights while the target trains",
    )

    def changes(self, num_steps: int, *, max_epochs: float) -> dict[str, Any]:
        """Fields of a target run's spec that let its weights change; its own are the prior.

        Args:
            num_steps: of the run.
            max_epochs: most passes over a domain.
        """
        round_steps = max(num_steps // _PUBLISHED_PARTS, _LEAST_ROUND)
        warm_up = max(num_steps // _PUBLISHED_PARTS, min(_LEAST_WARM_UP, num_steps // 4), 1)
        return {
            "online": {
                "method": self.name,
                **asdict(self),
                "round_steps": round_steps,
                "warm_up_steps": warm_up,
                "ignored_steps": warm_up // 2,
                "max_epochs": float(max_epochs),
            }
        }


class LivePolicy:
    """The weights of a run, round by round.

    Args:
        settings: what `ADO.changes` put into the spec.
        prior: mu, of any scale, zeros allowed, shape (K,).
        samples_per_step: windows of a global batch.
    """

    def __init__(
        self, settings: Mapping[str, Any], prior: ArrayLike, *, samples_per_step: int
    ) -> None:
        self._settings, self._samples_per_step = settings, samples_per_step
        prior_K = np.asarray(prior, dtype=np.float64)
        self._prior_K: Array = prior_K / prior_K.sum()
        self._mean_K, self._credit_K = self._prior_K.copy(), self._prior_K.copy()
        self._laws: list[Array | None] = [None] * len(prior_K)

    def fit(self, samples: ArrayLike, losses: ArrayLike) -> None:
        """Fit the laws anew; a domain whose losses do not allow it keeps the one that it has.

        Args:
            samples: n at the end of each record, shape (T,).
            losses: mean training losses of the records, nats a token, NaN for domains that a record
                has nothing of, shape (T, K).
        """
        samples_T = np.asarray(samples, dtype=np.float64)
        steps_T = samples_T / self._samples_per_step
        kept_T = steps_T > self._settings["ignored_steps"]
        for k, losses_T in enumerate(np.asarray(losses, dtype=np.float64).T):
            if not np.isfinite(losses_T).any():
                continue
            filled_T = smoothed(_filled(losses_T))
            usable_T = kept_T & (filled_T > 0)
            if usable_T.sum() >= FEWEST_RECORDS:
                law = fit_domain_law(samples_T[usable_T], filled_T[usable_T], self._laws[k])
                if np.isfinite(law).all():
                    self._laws[k] = law

    def advance(self, done: int, num_steps: int) -> Array:
        """Follow the equations through a round; its mean weights, shape (K,).

        Args:
            done: steps before the round.
            num_steps: of the round.
        """
        sum_K = np.zeros_like(self._prior_K)
        for step in range(done, done + num_steps):
            sum_K += self._step(step)
        return np.asarray(sum_K / sum_K.sum())

    def _step(self, step: int) -> Array:
        """pi of one step, counted from 0."""
        settings = self._settings
        preference_K = self._preference(step * self._samples_per_step)
        rate = settings["policy_rate"]
        policy_K: Array = rate * preference_K + (1 - rate) * self._mean_K
        self._mean_K = (step * self._mean_K + preference_K) / (step + 1)
        rate = settings["credit_rate"]
        self._credit_K = rate * policy_K + (1 - rate) * self._credit_K
        return policy_K

    def _preference(self, samples: int) -> Array:
        """rho after so many samples; the prior until every domain that it holds has a law."""
        drawn_K = self._prior_K > 0
        laws = [law for law, drawn in zip(self._laws, drawn_K, strict=True) if drawn]
        laws_3 = [law for law in laws if law is not None]
        if len(laws_3) < len(laws) or samples == 0:
            return self._prior_K
        credit_K = self._credit_K[drawn_K] ** self._settings["credit_power"]
        amounts_K = self._prior_K[drawn_K] * credit_K * slopes(laws_3, samples)
        preference_K: Array = np.zeros_like(self._prior_K)
        preference_K[drawn_K] = at_least(amounts_K, self._settings["least_weight"])
        return preference_K

    def state(self) -> dict[str, Any]:
        """Everything that later rounds depend on beside the losses, as JSON."""
        return {
            "mean": self._mean_K.tolist(),
            "credit": self._credit_K.tolist(),
            "laws": [None if law is None else law.tolist() for law in self._laws],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._mean_K, self._credit_K = np.array(state["mean"]), np.array(state["credit"])
        self._laws = [None if law is None else np.array(law) for law in state["laws"]]


def at_least(amounts: ArrayLike, least: float) -> Array:
    """Weights proportional to `amounts`, raised to `least` and normalised once, as in the code.

    The normalisation leaves them a little below `least` where that was raised to.
    """
    amounts_K = np.asarray(amounts, dtype=np.float64)
    raised_K = np.maximum(amounts_K / amounts_K.sum(), least)
    return np.asarray(raised_K / raised_K.sum())


def capped_quotas(weights: ArrayLike, total: int, most: ArrayLike) -> NDArray[np.int64]:
    """Whole windows of a round by largest remainder, none of them above what is left of a domain.

    What a domain cannot give the others give, in proportion to their weights, and once they are
    used up, those of weight 0 in proportion to what they have.

    Args:
        weights: of any scale, shape (K,).
        total: windows of the round.
        most: windows that each domain may still give, shape (K,), `total` or more together.
    """
    weights_K, most_K = np.asarray(weights, dtype=np.float64), np.asarray(most, dtype=np.int64)
    assert total <= most_K.sum(), (total, most_K)
    full_K = np.zeros(len(most_K), dtype=bool)
    while True:
        shares_K = np.where(full_K, 0, weights_K)
        if not shares_K.sum() > 0:
            shares_K = np.where(full_K, 0, most_K).astype(np.float64)
        quotas_K = np.where(full_K, most_K, 0)
        quotas_K += largest_remainder(shares_K, total - int(quotas_K.sum()))
        over_K = quotas_K > most_K
        if not over_K.any():
            return quotas_K
        full_K |= over_K


def _filled(losses_T: Array) -> Array:
    """Losses with the one before where a record has none; the first known one at the beginning."""
    known_T = np.isfinite(losses_T)
    newest_T = np.maximum.accumulate(np.where(known_T, np.arange(len(losses_T)), -1))
    return np.asarray(losses_T[np.where(newest_T < 0, int(np.argmax(known_T)), newest_T)])
