"""Mixtures to probe that change all domains at once, around a reference mixture.

Dirichlet designs draw every mixture at a concentration of its own,

    w_p ~ Dirichlet(c_p K w_reference),   log c_p uniform in [log low, log high].

Its mean is the reference whatever c. Around uniform weights c = 1 is the flat distribution over the
simplex; a larger c stays nearer. Designs much wider than [1, 6] gain if the law is right and lose
if it is not.

Optimal designs choose among such draws. With the law linearised at assumed parameters, runs with
Jacobian X give the information `prior precision + X^T X / noise^2` on the parameters, and every
next mixture is the candidate that raises its log determinant most (Bayesian D-optimality, greedy).
The law is the joint one with one exponent a validation set, its parameters on the log scale:

    L_j(w) = E_j + A_j S_j(w)^-g_j,   S_j(w) = sum_i t_ji w_i^k_j

Both kinds are nested: a longer design begins with the shorter one, so trained runs stay of use.
"""

# C candidates, P mixtures, J validation sets, K domains, Q = 4 + K parameters of one set

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .constraints import project_onto_bounds
from .mixture import Mixture

Array = NDArray[np.float64]

CONCENTRATION = (1.0, 6.0)
NOISE = 0.01  # nats between two runs of one mixture, where nothing was measured
DIRICHLET_PURPOSE = 1  # in the seed sequence of a draw
NUM_DRAWS = 50  # of one mixture, before it is moved within the bounds
TINY = 1e-12  # smaller weights count as this in logarithms
PRIOR_SD = (0.5, 3.0, 0.7, 0.15)  # of log E, log A, log g and log k
PRIOR_SD_TRANSFER = 1.5  # of every log t


def dirichlet_mixtures(
    reference: Mixture,
    num: int,
    *,
    stream: Sequence[int],
    concentration: tuple[float, float] = CONCENTRATION,
    upper: ArrayLike | None = None,
) -> Array:
    """Draw mixtures around the reference.

    What lies beyond an upper weight is drawn again. Where that does not end, the bounds being
    tight, the last draw gives way to the nearest mixture within them in Kullback-Leibler
    divergence.

    Args:
        reference: the mean; every weight positive.
        num: how many mixtures.
        stream: whole numbers that name the random stream, e.g. a seed; a mixture depends on them
            and on its place in the design alone.
        concentration: least and greatest c.
        upper: greatest weights, shape (num_domains,); by default 1.

    Returns:
        Weights on the simplex, shape (num, num_domains).

    Raises:
        ValueError: a reference weight is 0, the concentrations are no interval above 0, or no
            mixture satisfies the upper weights.
    """
    low, high = concentration
    if not 0 < low <= high < np.inf:
        raise ValueError(
            f"probe.concentration is [{low:g}, {high:g}]; expected 0 < low <= high, e.g. [1, 6]"
        )
    for name, weight in reference.to_dict().items():
        if weight == 0:
            raise ValueError(
                f"domain {name!r} has weight 0 in the reference mixture, so no mixture drawn "
                "around it would have any; give it a positive reference weight or leave the domain "
                "out"
            )
    zeros_K = np.zeros(len(reference.domains))
    upper_K = zeros_K + (1.0 if upper is None else np.asarray(upper, dtype=np.float64))
    alpha_K = len(reference.domains) * reference.as_array()
    weights_PK = np.empty((num, len(zeros_K)))
    for p in range(num):
        rng = np.random.default_rng(np.random.SeedSequence([*stream, DIRICHLET_PURPOSE, p]))
        for _ in range(NUM_DRAWS):
            c = np.exp(rng.uniform(np.log(low), np.log(high)))
            weights_PK[p] = rng.dirichlet(c * alpha_K)
            if (weights_PK[p] <= upper_K).all():
                break
        else:
            weights_PK[p] = project_onto_bounds(
                weights_PK[p], domains=reference.domains, lower=zeros_K, upper=upper_K
            )
    return weights_PK


@dataclass(frozen=True, kw_only=True, slots=True)
class AssumedLaw:
    """Parameters at which the law is linearised: those of a prior or of an earlier fit.

    Attributes:
        irreducible: E, nats, shape (num_sets,).
        amplitude: A, nats, shape (num_sets,).
        exponent: g, shape (num_sets,).
        share_exponent: k, shape (num_sets,).
        transfer: t, what each domain is worth to each set, shape (num_sets, num_domains).
    """

    irreducible: Array
    amplitude: Array
    exponent: Array
    share_exponent: Array
    transfer: Array

    @classmethod
    def prior(cls, num_domains: int) -> Self:
        """The centres of the priors, with one validation set a domain, at a loss of 3 nats."""
        transfer_JK = np.full((num_domains, num_domains), np.exp(-2.5))
        np.fill_diagonal(transfer_JK, 1.0)
        ones_J = np.ones(num_domains)
        return cls(
            irreducible=1.8 * ones_J,
            amplitude=1.2 * ones_J,
            exponent=0.3 * ones_J,
            share_exponent=0.65 * ones_J,
            transfer=transfer_JK,
        )

    def jacobian(self, weights_CK: Array) -> Array:
        """Derivatives of the losses by log E, log A, log g, log k, log t_1, ..., log t_K.

        Args:
            weights_CK: mixtures, shape (num_mixtures, num_domains).

        Returns:
            Nats, shape (num_sets, num_mixtures, 4 + num_domains).
        """
        g_J1, k_J11 = self.exponent[:, None], self.share_exponent[:, None, None]
        terms_JCK = self._terms(weights_CK)
        sums_JC = terms_JCK.sum(axis=2)
        reducible_JC = self.amplitude[:, None] * sums_JC**-g_J1
        by_transfer_JCK = -(g_J1 * reducible_JC / sums_JC)[:, :, None] * terms_JCK
        by_shape = [
            np.broadcast_to(self.irreducible[:, None], sums_JC.shape),
            reducible_JC,
            -g_J1 * reducible_JC * np.log(sums_JC),
            (k_J11 * np.log(np.maximum(weights_CK, TINY)) * by_transfer_JCK).sum(axis=2),
        ]
        return np.concatenate([np.stack(by_shape, axis=2), by_transfer_JCK], axis=2)

    def _terms(self, weights_CK: Array) -> Array:
        """`t_ji w_i^k_j`, shape (num_sets, num_mixtures, num_domains)."""
        powers_JCK = weights_CK[None] ** self.share_exponent[:, None, None]
        return np.asarray(self.transfer[:, None, :] * powers_JCK)


def optimal_mixtures(
    candidates: ArrayLike,
    num: int,
    *,
    known: ArrayLike,
    law: AssumedLaw | None = None,
    noise: float = NOISE,
) -> Array:
    """Choose the mixtures that tell most about the law, one after the other.

    Args:
        candidates: mixtures to choose from, shape (num_candidates, num_domains).
        num: how many to choose; none is chosen twice.
        known: mixtures that are run in any case, shape (num_known, num_domains).
        law: where the law is linearised; by default the centres of the priors.
        noise: standard deviation of a loss, nats.

    Returns:
        Weights in the order of choice, shape (num, num_domains).

    Raises:
        ValueError: there are fewer candidates than mixtures to choose.
    """
    candidates_CK = np.asarray(candidates, dtype=np.float64)
    num_candidates, num_domains = candidates_CK.shape
    if num > num_candidates:
        raise ValueError(
            f"an optimal design of {num} mixtures has only {num_candidates} candidates; lower "
            "probe.runs or set probe.design = 'dirichlet'"
        )
    law = AssumedLaw.prior(num_domains) if law is None else law
    # Candidates first. Parameters in units of their priors, losses in units of the noise.
    weights_CK = np.concatenate([candidates_CK, np.asarray(known, dtype=np.float64)])
    scale_Q = np.array([*PRIOR_SD, *[PRIOR_SD_TRANSFER] * num_domains]) / noise
    posterior = _Posterior(law.jacobian(weights_CK) * scale_Q)
    for row in range(num_candidates, len(weights_CK)):
        posterior.add(row)
    chosen: list[int] = []
    for _ in range(num):
        gain_C = posterior.gain()[:num_candidates]
        gain_C[chosen] = -np.inf
        chosen.append(int(gain_C.argmax()))
        posterior.add(chosen[-1])
    return np.asarray(candidates_CK[chosen])


class _Posterior:
    """Covariance of the parameters of every set given the runs so far, in units of the prior."""

    def __init__(self, rows_JCQ: Array) -> None:
        num_sets, _, num_parameters = rows_JCQ.shape
        self.rows = rows_JCQ
        self.covariance_JQQ = np.tile(np.eye(num_parameters), (num_sets, 1, 1))
        self.variance_JC: Array = (rows_JCQ**2).sum(axis=2)  # of each mixture's losses

    def gain(self) -> Array:
        """Gain in log determinant of each mixture, `sum_j log(1 + x_j^T V_j x_j)`, shape (C,)."""
        return np.asarray(np.log1p(self.variance_JC).sum(axis=0))

    def add(self, row: int) -> None:
        """Condition on a run of one mixture (Sherman and Morrison's formula)."""
        moved_JQ = (self.covariance_JQQ @ self.rows[:, row, :, None])[:, :, 0]
        moved_JQ /= np.sqrt(1 + self.variance_JC[:, row, None])
        self.covariance_JQQ -= moved_JQ[:, :, None] * moved_JQ[:, None, :]
        explained_JC = (self.rows @ moved_JQ[:, :, None])[:, :, 0] ** 2
        self.variance_JC = np.maximum(self.variance_JC - explained_JC, 0.0)
