"""Linear inequalities over mixtures: which contradict each other, and a point inside the others.

    { w : sum_i w_i = 1,  A w <= b }

Linear programs (HiGHS) answer both, at 1e-9 in weight: a system that is infeasible by less counts
as touching, and rows that leave less room than that count as equalities.
"""

# K domains, R rows of A

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TOLERANCE = 1e-9  # in weight
LP_TOLERANCE = 1e-10  # the least that HiGHS takes


class Interior(NamedTuple):
    """A mixture in the relative interior of a system, and the rows that are equalities there."""

    weights: Array  # (K,)
    tight: Mask  # (R,) rows that every solution meets with equality


class _Extreme(NamedTuple):
    value: float
    solution: Array  # (K,), and the variables beyond the weights
    duals: Array  # (R,) at least 0


def minimal_conflict(A_RK: csr_array, b_R: Array) -> tuple[int, ...]:
    """Rows that no mixture satisfies together though each proper subset of them has a solution.

    Those of a Farkas certificate, from which each is left out in turn, for good if the rest still
    conflict (deletion filter, Chinneck and Dravnieks 1991); earlier rows are left out first.

    Returns:
        Their indices; none when the system has a solution.
    """
    found = _least_violation(A_RK, b_R)
    if found.value <= TOLERANCE:
        return ()
    rows = np.flatnonzero(found.duals > TOLERANCE * found.duals.max())
    for row in rows.tolist():
        others = rows[rows != row]
        if len(others) and _least_violation(A_RK[others], b_R[others]).value > TOLERANCE:
            rows = others
    return tuple(rows.tolist())


def least_value(objective_K: Array, A_RK: csr_array, b_R: Array) -> float:
    """The minimum of `objective . w` over a system that has a solution and bounds it below."""
    return _linear_program(objective_K, A_RK, b_R + LP_TOLERANCE, len(objective_K)).value


def relative_interior(A_RK: csr_array, b_R: Array, widths_R: Array) -> Interior:
    """A mixture with room in every row that can have some, the same in all, in the row's unit.

    Solves `max t : A w + widths t <= b`; while no t > 0 is possible, rows with a positive dual are
    equalities (complementary slackness) and leave the search for room.

    Args:
        A_RK: the rows.
        b_R: their limits; the system has a solution.
        widths_R: unit of the room in each row; 0 says that the row is an equality.
    """
    num_domains = A_RK.shape[1]
    met_R = b_R + max(_least_violation(A_RK, b_R).value, 0.0) + LP_TOLERANCE
    tight_R = widths_R <= TOLERANCE
    most_room = np.append(np.zeros(num_domains), -1.0)
    while True:
        room_R = np.where(tight_R, 0.0, widths_R)
        rows = vstack([hstack([A_RK, csr_array(room_R[:, None])]), csr_array(-most_room[None])])
        found = _linear_program(most_room, csr_array(rows), np.append(met_R, 1.0), num_domains)
        weights_K, duals_R = found.solution[:-1], found.duals[:-1]
        newly_R = ~tight_R & (duals_R > TOLERANCE * duals_R.max())
        if (-found.value * widths_R[newly_R]).max(initial=0.0) > TOLERANCE:
            newly_R = ~tight_R & (A_RK @ weights_K >= b_R)  # room that rounding takes
        if not newly_R.any():
            return Interior(weights_K, tight_R)
        tight_R = tight_R | newly_R


def _least_violation(A_RK: csr_array, b_R: Array) -> _Extreme:
    """`min t : A w - t <= b`, positive when the rows conflict; t at least -1."""
    num_rows, num_domains = A_RK.shape
    violation = np.append(np.zeros(num_domains), 1.0)
    rows = vstack([hstack([A_RK, csr_array(-np.ones((num_rows, 1)))]), csr_array(-violation[None])])
    found = _linear_program(violation, csr_array(rows), np.append(b_R, 1.0), num_domains)
    return found._replace(duals=found.duals[:-1])


def _linear_program(objective: Array, A: csr_array, b: Array, num_domains: int) -> _Extreme:
    """`min objective . x : A x <= b`, where the weights, the first of x, sum to 1."""
    in_sum = (np.arange(len(objective)) < num_domains).astype(np.float64)
    found = linprog(
        objective,
        A_ub=A,
        b_ub=b,
        A_eq=csr_array(in_sum[None]),
        b_eq=[1.0],
        bounds=(None, None),
        method="highs",
        options={
            "primal_feasibility_tolerance": LP_TOLERANCE,
            "dual_feasibility_tolerance": LP_TOLERANCE,
        },
    )
    assert found.status == 0, found.message  # the callers' programs are feasible and bounded
    return _Extreme(float(found.fun), np.asarray(found.x), -np.asarray(found.ineqlin.marginals))
