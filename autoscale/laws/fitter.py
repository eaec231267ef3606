"""Fits one law to a table of runs: all validation sets, folds and bootstrap draws in one batch.

The fit is maximum a posteriori: Huber loss of the residuals over their noise, normal priors on the
logarithms of the parameters (the laws' modules have them, `frame` those of tokens and size), and on
that of the noise, which is iterated with the fit. Without its prior it would be

    noise_j^2 = sum_p weight_p r_jp^2 / (sum_p weight_p - p_eff),   p_eff = Q - tr(H^-1 precision)

with the precision of the priors; with a few runs more than parameters that is far too low.
"""

# F fits per set (folds, draws), J validation sets, P runs, K domains, Q parameters

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..run_table import RunTable
from .frame import Form, Frame, Inputs
from .levenberg_marquardt import SLIGHT, Index, Minimum, Problem, minimise
from .mixture_term import Amounts, MixtureTerm, Prior
from .repetition import Repetition

Array = NDArray[np.float64]

FIRST_NOISE = (0.03, 0.003)  # of the losses' level, before any residual is known
LEAST_NOISE = 2e-4  # of the losses' level: exact data must not divide by 0
LEAST_FREE = 0.1  # degrees of freedom as a share of the runs
NOISE_SHARE = 0.2  # prior: noise as a share of the losses' spread, median
LOG_NOISE_SD = 0.5  # and standard deviation of its logarithm
NEWTON_STEPS = 30
TINY = 1e-150
NOISE_ITERATIONS = 6
SETTLED = 0.05  # relative change of the noise
ROUGH = 1e-2  # tolerance while the noise is not known


class Units(NamedTuple):
    """Token and parameter counts that count as 1 inside the law."""

    tokens: float
    parameters: float


class Fits(NamedTuple):
    """Parameters and what the fits say about themselves; leading axes (F, J)."""

    theta: Array  # (F, J, Q)
    noise: Array  # (F, J)
    effective_parameters: Array  # (F, J)
    converged: NDArray[np.bool_]  # (F, J)


class Fitter:
    """A law in one form with the runs it is fitted to.

    Args:
        table: the runs, with losses.
        term: the law's mixture term.
        form: where tokens and size enter.
        repetition: worth of repeated tokens; None counts every token in full.
    """

    def __init__(
        self, table: RunTable, term: MixtureTerm, form: Form, repetition: Repetition | None
    ) -> None:
        self.table, self.frame, self.repetition = table, Frame(term, form), repetition
        self.units = Units(_middle(table.tokens), _middle(table.parameters))
        # With several budgets or sizes the losses spread and their errors grow with them.
        self.relative = table.has_budgets or table.has_sizes
        self.inputs = make_inputs(
            self.frame, self.units, repetition, table.weights, table.tokens, table.parameters
        )
        self.own_J = own_domains(table.domains, table.sets)

    def fit(
        self,
        run_weights_FP: Array,
        *,
        noise_FJ: Array | None = None,
        start_FJQ: Array | None = None,
        tolerance: float = SLIGHT,
    ) -> Fits:
        """Fit every set under every weighting of the runs.

        Args:
            run_weights_FP: 0 leaves a run out.
            noise_FJ: known noise on the scale of the residuals; iterated when None.
            start_FJQ: parameters to begin from, broadcast over the first axis.
            tolerance: see `minimise`.
        """
        batch = self._batch(run_weights_FP)
        if start_FJQ is not None:
            batch = batch._replace(start=_tiled(start_FJQ, len(run_weights_FP)))
        if noise_FJ is None:
            theta_BQ, noise_B = self._with_noise(batch)
        else:
            theta_BQ, noise_B = batch.start, np.ravel(noise_FJ)
        found = self._solve(batch, noise_B, theta_BQ, tolerance)
        shape = (len(run_weights_FP), self.table.num_sets)
        return Fits(
            theta=found.theta.reshape(*shape, -1),
            noise=noise_B.reshape(shape),
            effective_parameters=_effective_parameters(found, batch.prior).reshape(shape),
            converged=found.converged.reshape(shape),
        )

    def _with_noise(self, batch: "_Batch") -> tuple[Array, Array]:
        """Rough parameters (B, Q) and the noise (B,), iterated from two starts.

        From a high noise the priors may hold a fit where the noise stays high, from a low one few
        runs may be followed too closely. Of the two ends each fit takes the one with the better
        Laplace evidence.
        """
        ends = []
        for first in FIRST_NOISE:
            noise_B, theta_BQ = first * batch.level, batch.start
            for _ in range(NOISE_ITERATIONS):
                found = self._solve(batch, noise_B, theta_BQ, ROUGH)
                before_B, noise_B = noise_B, self._noise(batch, found)
                theta_BQ = found.theta
                if np.abs(np.log(noise_B / before_B)).max() < SETTLED:
                    break
            ends.append((theta_BQ, noise_B, _evidence(batch, found, before_B)))
        worse_B = ends[1][2] <= ends[0][2]
        return (
            np.where(worse_B[:, None], ends[0][0], ends[1][0]),
            np.where(worse_B, ends[0][1], ends[1][1]),
        )

    def _batch(self, run_weights_FP: Array) -> "_Batch":
        """All fits of a call in a row: weighting by weighting, set by set."""
        num_fits, num_sets = len(run_weights_FP), self.table.num_sets
        observed_BP = np.tile(self.table.losses.T, (num_fits, 1))
        weights_BP = np.repeat(run_weights_FP, num_sets, axis=0)
        used_BP = np.where(weights_BP > 0, observed_BP, np.nan)
        own_B = np.tile(self.own_J, num_fits)
        prior = self.frame.prior(np.nanmin(used_BP, axis=1), own_B, self.table.num_domains)
        typical_B = np.nanmedian(used_BP, axis=1)
        spread_B = np.nanstd(np.log(used_BP) if self.relative else used_BP, axis=1)
        return _Batch(
            observed=observed_BP,
            run_weights=weights_BP,
            own=own_B,
            prior=prior,
            start=self.frame.start(prior, self.inputs, own_B, typical_B),
            level=np.ones_like(typical_B) if self.relative else typical_B,
            log_noise_mean=np.log(NOISE_SHARE * np.maximum(spread_B, TINY)),
        )

    def _solve(self, batch: "_Batch", noise_B: Array, theta_BQ: Array, tolerance: float) -> Minimum:
        problem = Problem(
            evaluate=lambda theta, fits: self.frame.evaluate(theta, self.inputs, batch.own[fits]),
            observed=batch.observed,
            run_weights=batch.run_weights,
            noise=noise_B,
            prior_mean=batch.prior.mean,
            prior_sd=batch.prior.sd,
            relative=self.relative,
        )
        return minimise(problem, theta_BQ, tolerance=tolerance)

    def values(self, theta_FJQ: Array, inputs: Inputs | None = None) -> Array:
        """Losses of the table's runs, or of others, shape (F, J, P)."""
        num_fits, num_sets, num_parameters = theta_FJQ.shape
        own_B = np.tile(self.own_J, num_fits)
        theta_BQ = theta_FJQ.reshape(-1, num_parameters)
        value_BP = self.frame.value(theta_BQ, inputs or self.inputs, own_B)
        return value_BP.reshape(num_fits, num_sets, -1)

    def _noise(self, batch: "_Batch", found: Minimum) -> Array:
        """Most probable residual standard deviation of each fit, shape (B,).

        The x = log noise where `free - squares e^(-2x) + (x - mean) / sd^2` is 0, by Newton steps.
        """
        value_BP = self.frame.value(found.theta, self.inputs, batch.own)
        residual_BP = value_BP - batch.observed
        if self.relative:
            residual_BP = np.log(value_BP / batch.observed)
        squares_B = (batch.run_weights * residual_BP**2).sum(axis=1)
        total_B = batch.run_weights.sum(axis=1)
        free_B = total_B - _effective_parameters(found, batch.prior)
        free_B = np.maximum(free_B, LEAST_FREE * total_B)
        least_B = np.log(LEAST_NOISE * batch.level)
        log_noise_B = np.maximum(np.log(squares_B / free_B + TINY) / 2, least_B)
        precision = LOG_NOISE_SD**-2
        for _ in range(NEWTON_STEPS):
            share_B = squares_B * np.exp(-2 * log_noise_B)
            slope_B = free_B - share_B + (log_noise_B - batch.log_noise_mean) * precision
            log_noise_B = log_noise_B - np.clip(slope_B / (2 * share_B + precision), -1, 1)
        return np.asarray(np.exp(np.maximum(log_noise_B, least_B)))


class _Batch(NamedTuple):
    """The fits of one call, B of them."""

    observed: Array  # (B, P)
    run_weights: Array  # (B, P)
    own: Index  # (B,)
    prior: Prior
    start: Array  # (B, Q)
    level: Array  # (B,), what noise is relative to
    log_noise_mean: Array  # (B,), of its prior


def _tiled(start_FJQ: Array, num_fits: int) -> Array:
    shape = (num_fits, *start_FJQ.shape[-2:])
    return np.broadcast_to(start_FJQ, shape).reshape(-1, shape[-1]).copy()


def make_inputs(
    frame: Frame,
    units: Units,
    repetition: Repetition | None,
    weights_PK: Array,
    tokens_P: Array | None,
    parameters_P: Array | None,
) -> Inputs:
    """The inputs of a frame: shares and tokens, effective ones where repetition counts."""
    num_runs = len(weights_PK)
    total_P = np.full(num_runs, units.tokens) if tokens_P is None else np.asarray(tokens_P)
    size_P = np.full(num_runs, units.parameters) if parameters_P is None else parameters_P
    drawn_PK = weights_PK * total_P[:, None]
    effective_PK = drawn_PK if repetition is None else repetition.effective(drawn_PK)
    effective_P = effective_PK.sum(axis=1)
    unit_P1 = np.full((num_runs, 1), units.tokens) if frame.term.in_tokens else effective_P[:, None]
    return Inputs(
        amounts=Amounts.of(effective_PK / unit_P1),
        log_tokens=np.log(effective_P / units.tokens),
        log_parameters=np.log(np.asarray(size_P) / units.parameters),
    )


def own_domains(domains: tuple[str, ...], sets: tuple[str, ...]) -> Index:
    """Column of the domain named like each validation set, -1 without one, shape (num_sets,)."""
    return np.array([domains.index(name) if name in domains else -1 for name in sets], np.int64)


def _middle(counts_P: Array | None) -> float:
    """Geometric middle of the counts, 1 where they are not known."""
    return 1.0 if counts_P is None else float(np.exp(np.log(counts_P).mean()))


def _effective_parameters(found: Minimum, prior: Prior) -> Array:
    """Parameters that the data determine rather than the priors: Q - tr(H^-1 precision)."""
    variance_BQ = np.diagonal(np.linalg.inv(found.information), axis1=1, axis2=2)
    return np.asarray((1 - variance_BQ * prior.sd**-2.0).sum(axis=1))


def _evidence(batch: _Batch, found: Minimum, noise_B: Array) -> Array:
    """Logarithm of the runs' probability under the law and its priors (Laplace), shape (B,)."""
    total_B = batch.run_weights.sum(axis=1)
    volume_B = np.linalg.slogdet(found.information)[1] / 2 + np.log(batch.prior.sd).sum(axis=1)
    surprise_B = ((np.log(noise_B) - batch.log_noise_mean) / LOG_NOISE_SD) ** 2 / 2
    return np.asarray(-(found.cost + total_B * np.log(noise_B) + volume_B + surprise_B))
