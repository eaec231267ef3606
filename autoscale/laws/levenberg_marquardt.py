"""Batched Levenberg-Marquardt: many independent maximum a posteriori fits of one law at once.

Each fit b minimises, over its parameters theta_b of shape (Q,),

    sum_p weight_bp * huber(r_bp) + 1/2 sum_q ((theta_bq - mean_bq) / prior_sd_bq)^2,
    r_bp = (f_p(theta_b) - y_bp) / noise_b                (or of the logarithms of f and y)

by damped Gauss-Newton steps `(H + lambda diag H) step = -gradient`, where H is the Gauss-Newton
matrix of both sums (Marquardt 1963; the Huber loss enters by its weights). Validation sets, folds
and bootstrap draws are all fits of one batch, so that one set of array operations serves them.
"""

# B fits, P runs, Q parameters

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Evaluate = Callable[[Array, Index], tuple[Array, Array]]
"""(theta of some fits (B, Q), their numbers (B,)) -> values (B, P) and Jacobian (B, P, Q)."""

LONGEST_STEP = 3.0  # in any parameter; all parameters are logarithms or of order 1
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-9, 1e8
CHUNK_ELEMENTS = 300_000  # of a Jacobian at a time: what stays in cache
SLIGHT = 1e-5  # fall of the cost, a negative log posterior density, that matters to nobody


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A batch of fits.

    Attributes:
        evaluate: the law; must not depend on which fits are asked for together.
        observed: values y, shape (num_fits, num_runs).
        run_weights: 0 leaves a run out of a fit, shape (num_fits, num_runs).
        noise: standard deviation of the residuals, shape (num_fits,).
        prior_mean: shape (num_fits, num_parameters).
        prior_sd: shape (num_fits, num_parameters).
        relative: residuals of logarithms, so that `noise` is relative.
        huber: residuals beyond this many standard deviations count linearly.
    """

    evaluate: Evaluate
    observed: Array
    run_weights: Array
    noise: Array
    prior_mean: Array
    prior_sd: Array
    relative: bool
    huber: float = 1.5


class Minimum(NamedTuple):
    """Where the fits ended; `information` is H without damping, the inverse Laplace covariance."""

    theta: Array  # (B, Q)
    cost: Array  # (B,)
    information: Array  # (B, Q, Q)
    converged: NDArray[np.bool_]  # (B,)


def minimise(
    problem: Problem, start_BQ: Array, *, tolerance: float = SLIGHT, max_iterations: int = 400
) -> Minimum:
    """Fit the whole batch.

    Args:
        problem: the fits.
        start_BQ: where they begin, shape (num_fits, num_parameters).
        tolerance: fall of the cost, relative where it exceeds 1, that twice in a row ends a fit.
        max_iterations: a fit that needs more has not converged.
    """
    num_fits, num_parameters = start_BQ.shape
    size = max(1, CHUNK_ELEMENTS // (problem.observed.shape[1] * num_parameters))
    parts = [
        _minimise_chunk(problem, start_BQ, np.arange(first, min(first + size, num_fits)),
                        tolerance, max_iterations)
        for first in range(0, num_fits, size)
    ]  # fmt: skip
    return Minimum(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _minimise_chunk(
    problem: Problem, start_BQ: Array, chunk: Index, tolerance: float, max_iterations: int
) -> Minimum:
    theta = start_BQ[chunk].copy()
    cost, gradient, information = _normal_equations(problem, theta, chunk)
    damping = np.full(len(chunk), FIRST_DAMPING)
    calm = np.zeros(len(chunk), dtype=np.int64)  # small improvements in a row
    active = np.isfinite(cost)
    for _ in range(max_iterations):
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        step = _step(information[rows], gradient[rows], damping[rows])
        trial = theta[rows] + step
        new_cost, new_gradient, new_information = _normal_equations(problem, trial, chunk[rows])
        better = np.isfinite(new_cost) & (new_cost <= cost[rows])
        fall = cost[rows] - new_cost
        taken = rows[better]
        theta[taken], cost[taken] = trial[better], new_cost[better]
        gradient[taken], information[taken] = new_gradient[better], new_information[better]
        damping[taken] = np.maximum(damping[taken] / 4, LEAST_DAMPING)
        damping[rows[~better]] *= 5
        slight = fall[better] < tolerance * np.maximum(1, cost[taken])
        calm[taken] = np.where(slight, calm[taken] + 1, 0)
        active[rows] = (calm[rows] < 2) & (damping[rows] < MOST_DAMPING)
    return Minimum(theta, cost, information, ~active & np.isfinite(cost))


def _normal_equations(problem: Problem, theta: Array, fits: Index) -> tuple[Array, Array, Array]:
    """Cost (B,), its gradient (B, Q) and the Gauss-Newton matrix (B, Q, Q)."""
    with np.errstate(over="ignore", invalid="ignore"):
        value_BP, jacobian_BPQ = problem.evaluate(theta, fits)
        observed_BP, noise_B1 = problem.observed[fits], problem.noise[fits][:, None]
        if problem.relative:
            scale_BP = 1 / (value_BP * noise_B1)
            residual_BP = (np.log(value_BP) - np.log(observed_BP)) / noise_B1
        else:
            scale_BP = np.broadcast_to(1 / noise_B1, value_BP.shape)
            residual_BP = (value_BP - observed_BP) / noise_B1
        size_BP = np.abs(residual_BP)
        inside = size_BP < problem.huber
        huber_BP = np.where(
            inside, 0.5 * residual_BP**2, problem.huber * (size_BP - 0.5 * problem.huber)
        )
        weight_BP = problem.run_weights[fits]
        curve_BP = weight_BP * np.where(inside, 1.0, problem.huber / np.maximum(size_BP, 1e-300))
        precision_BQ = problem.prior_sd[fits] ** -2.0
        distance_BQ = theta - problem.prior_mean[fits]
        cost_B = (weight_BP * huber_BP).sum(axis=1)
        cost_B = cost_B + 0.5 * (precision_BQ * distance_BQ**2).sum(axis=1)
        pull_BP = curve_BP * residual_BP * scale_BP
        gradient_BQ = (
            np.matmul(pull_BP[:, None, :], jacobian_BPQ)[:, 0] + precision_BQ * distance_BQ
        )
        jacobian_BPQ *= (np.sqrt(curve_BP) * scale_BP)[:, :, None]
        information_BQQ = np.matmul(jacobian_BPQ.transpose(0, 2, 1), jacobian_BPQ)
        diagonal = np.arange(theta.shape[1])
        information_BQQ[:, diagonal, diagonal] += precision_BQ
    return cost_B, gradient_BQ, information_BQQ


def _step(information_BQQ: Array, gradient_BQ: Array, damping_B: Array) -> Array:
    damped = information_BQQ.copy()
    diagonal = np.arange(gradient_BQ.shape[1])
    damped[:, diagonal, diagonal] *= 1 + damping_B[:, None]
    step_BQ = -np.linalg.solve(damped, gradient_BQ[:, :, None])[:, :, 0]
    longest_B = np.abs(step_BQ).max(axis=1)
    shrink_B = np.minimum(1, LONGEST_STEP / np.maximum(longest_B, 1e-300))
    return np.asarray(step_BQ * shrink_B[:, None])
