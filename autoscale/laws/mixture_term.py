"""The interface of a mixture law: how the reducible loss depends on the mixture.

Every law here has the form `L_j = E_j + exp(m_j(w) + ...)`, where the dots are the terms of tokens
and model size that `frame` adds. A mixture term is the logarithm `m_j` with its derivatives by its
own parameters, for the fit, and by the weights, for the solver. One class a law, one law a file.
"""

# B fits (validation sets, folds, draws), P runs, K domains, Q parameters of the term

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LEAST_AMOUNT = 1e-12  # of a logarithm; an amount of 0 contributes exactly 0 to sums of powers


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """What a mixture term sees of the runs: shares of the tokens, or multiples of a token unit.

    Attributes:
        amounts: shape (num_runs, num_domains), at least 0.
        logs: their logarithms, finite.
    """

    amounts: Array
    logs: Array

    @classmethod
    def of(cls, amounts: ArrayLike) -> Self:
        x_PK = np.atleast_2d(np.asarray(amounts, dtype=np.float64))
        return cls(amounts=x_PK, logs=np.log(np.maximum(x_PK, LEAST_AMOUNT)))


class Prior(NamedTuple):
    """Independent normal priors: means and standard deviations, each of shape (B, Q)."""

    mean: Array
    sd: Array


class TermDerivatives(NamedTuple):
    """The term and its derivatives by the amounts, at one mixture and for each of B fits.

    The matrix of second derivatives is `diag(diagonal_BK) + coefficient_B * vector vector^T`.
    """

    value: Array  # (B,)
    gradient: Array  # (B, K)
    diagonal: Array  # (B, K)
    coefficient: Array  # (B,)
    vector: Array  # (B, K)


class MixtureTerm(Protocol):
    """The logarithm of the reducible loss as a function of the mixture.

    Attributes:
        name: as in `fit.law`.
        convex: whether exp(term) is convex in the shares for all values of the parameters.
        convex_repeated: whether it still is with effective tokens in place of tokens, given a
            factor D^-b with b at least `token_floor` (see `frame`).
        in_tokens: it takes tokens of the domains (in units of the fit's token unit), not shares.
        has_amplitude: the frame adds a free factor; else the term carries its own level.
    """

    @property
    def name(self) -> str: ...
    @property
    def convex(self) -> bool: ...
    @property
    def convex_repeated(self) -> bool: ...
    @property
    def in_tokens(self) -> bool: ...
    @property
    def has_amplitude(self) -> bool: ...

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        """Names of the parameters as fitted, in order."""

    def prior(self, own_B: Index, num_domains: int) -> Prior:
        """Priors; `own_B` is the column of the set's own domain, -1 without one."""

    def evaluate(self, theta_BQ: Array, amounts: Amounts, own_B: Index) -> tuple[Array, Array]:
        """The term, shape (B, P), and its Jacobian, shape (B, P, Q)."""

    def derivatives(self, theta_BQ: Array, amounts_K: Array, own_B: Index) -> TermDerivatives:
        """Derivatives by the amounts at one mixture."""

    def shifted(self, theta_BQ: Array, by_B: Array) -> Array:
        """Parameters whose term is higher by `by_B`, as nearly as they allow."""

    def token_floor(self, theta_BQ: Array) -> tuple[Array, Array]:
        """A token exponent at which useless tokens do not raise the loss, with its Jacobian.

        With a factor D^-b, tokens of a domain that teaches nothing lower the other domains' shares;
        b at least at the floor, shape (B,), makes up for that. 0 where the law takes tokens itself
        or claims nothing of the kind. Jacobian of shape (B, Q).
        """

    def readable(self, theta_Q: Array, domains: Sequence[str]) -> dict[str, object]:
        """Parameters under the names and in the units of the docs."""
