"""The mixtures within constraints as a solver needs them: what is left free, and a point inside.

Domains whose bounds meet, or that other constraints press onto a bound, are fixed and leave the
search; groups that leave no room become equalities. What remains has a point strictly inside.
"""

# K domains, N those that are not fixed, E equalities, G inequalities of groups

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr

from .constraints import SUM_TOLERANCE, Constraints
from .polytope import relative_interior

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SAME_BOUND = 1e-12  # bounds that are nearer fix their domain
SPANNED = 1e-9  # what a sum may vary by, relatively, where others determine it


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeasibleSet:
    """The mixtures within constraints.

    Attributes:
        lower: shape (K,).
        upper: shape (K,), equal to `lower` for domains that are fixed.
        inside: a mixture strictly inside all bounds of free domains and all `rows`, shape (K,).
        equalities: sums that are constant, that of all weights among what they span; independent
            over the free domains, shape (E, K).
        rows: `rows w <= limits`, shape (G, K).
        limits: shape (G,).
    """

    lower: Array
    upper: Array
    inside: Array
    equalities: Array
    rows: Array
    limits: Array

    @property
    def free(self) -> Mask:
        """Domains that are not fixed, shape (K,); none when a single mixture is left."""
        return np.asarray(self.upper > self.lower)


def feasible_set(constraints: Constraints) -> FeasibleSet:
    """What the constraints leave.

    Raises:
        InfeasibleError: they leave nothing.
    """
    constraints.check()
    found = _with_groups(constraints) if constraints.groups else _bounds_only(constraints)
    free_K = found.upper > found.lower
    if free_K.sum() > len(found.equalities):
        return found
    only_K = found.inside / found.inside.sum()
    empty = np.zeros((0, len(only_K)))
    return FeasibleSet(
        lower=only_K,
        upper=only_K,
        inside=only_K,
        equalities=empty,
        rows=empty,
        limits=np.zeros(0),
    )


def _bounds_only(constraints: Constraints) -> FeasibleSet:
    lower_K, upper_K = constraints.lower, np.minimum(constraints.upper, 1.0)
    upper_K = np.where(upper_K - lower_K <= SAME_BOUND, lower_K, upper_K)
    if lower_K.sum() >= 1 - SUM_TOLERANCE:
        upper_K = lower_K
    elif upper_K.sum() <= 1 + SUM_TOLERANCE:
        lower_K = upper_K
    width_K = upper_K - lower_K
    share = (1 - lower_K.sum()) / width_K.sum() if width_K.any() else 0.0
    num_domains = len(lower_K)
    return FeasibleSet(
        lower=lower_K,
        upper=upper_K,
        inside=lower_K + share * width_K,
        equalities=np.ones((1, num_domains)),
        rows=np.zeros((0, num_domains)),
        limits=np.zeros(0),
    )


def _with_groups(constraints: Constraints) -> FeasibleSet:
    rows = constraints.rows()
    inside_K, tight_R = relative_interior(rows.A, rows.b, rows.widths)
    lower_K, upper_K = constraints.lower.copy(), np.minimum(constraints.upper, 1.0)
    single_R = np.diff(rows.A.indptr) == 1
    for i in np.flatnonzero(single_R).tolist():
        column, sign = rows.A.indices[rows.A.indptr[i]], rows.A.data[rows.A.indptr[i]]
        bound = float(sign * rows.b[i])
        if tight_R[i]:
            lower_K[column] = upper_K[column] = inside_K[column] = bound
        elif sign < 0:
            lower_K[column] = max(lower_K[column], bound)
        else:
            upper_K[column] = min(upper_K[column], bound)
    groups, limits = rows.A[~single_R].toarray(), rows.b[~single_R]
    tight = tight_R[~single_R]
    equalities = np.vstack([np.ones(len(lower_K)), groups[tight]])
    constant = np.append(1.0, limits[tight])
    inside_K = _corrected(inside_K, equalities, constant, lower_K, upper_K)
    basis_KE = _orthonormal(equalities * (upper_K > lower_K))
    determined_K = 1 - (basis_KE**2).sum(axis=1) < SPANNED
    lower_K, upper_K = (np.where(determined_K, inside_K, bound) for bound in (lower_K, upper_K))
    varying = groups[~tight] * (upper_K > lower_K)
    varies = ((varying - varying @ basis_KE @ basis_KE.T) ** 2).sum(axis=1) > SPANNED
    return FeasibleSet(
        lower=lower_K,
        upper=upper_K,
        inside=inside_K,
        equalities=_orthonormal(equalities * (upper_K > lower_K)).T,
        rows=groups[~tight][varies],
        limits=limits[~tight][varies],
    )


def _corrected(
    inside_K: Array, equalities: Array, constant: Array, lower_K: Array, upper_K: Array
) -> Array:
    """With the equalities exact, which linear programs meet to 1e-10 only.

    Domains that this would take to a bound are fixed there, in `lower_K` and `upper_K`.
    """
    while True:
        shares = (upper_K - lower_K) * equalities
        missing = constant - equalities @ inside_K
        corrected_K = inside_K + np.linalg.pinv(shares @ equalities.T) @ missing @ shares
        low_K, high_K = corrected_K <= lower_K, corrected_K >= upper_K
        outside_K = (low_K | high_K) & (upper_K > lower_K)
        if not outside_K.any():
            return np.asarray(corrected_K)
        inside_K = np.where(outside_K, np.where(low_K, lower_K, upper_K), inside_K)
        lower_K[outside_K] = upper_K[outside_K] = inside_K[outside_K]


def _orthonormal(rows_EK: Array) -> Array:
    """A basis of what the rows span, as columns."""
    basis_KE, triangle, _ = qr(rows_EK.T, mode="economic", pivoting=True)
    rank = int((np.abs(np.diag(triangle)) > SPANNED).sum())
    return np.asarray(basis_KE[:, :rank])


def least_linear(gradient_K: Array, lower_K: Array, upper_K: Array) -> Array:
    """The mixture within bounds that minimises `gradient . w`, shape (K,).

    It fills the domains in the order of their gradient, each to its upper bound.
    """
    best_K = lower_K.copy()
    left = 1 - lower_K.sum()
    for i in np.argsort(gradient_K).tolist():
        room = upper_K[i] - lower_K[i]
        best_K[i] = upper_K[i] if room <= left else lower_K[i] + max(left, 0.0)
        left -= room
    return best_K
