"""Compare runs: tokens saved against a baseline, and whether a difference exceeds the seed noise.

Losses are validation losses in nats. A run's loss depends on its learning-rate schedule, which ends
at the run's own budget: a loss read in the middle of a run is higher than that of a run which ends
there. Tokens saved are therefore a careful (low) estimate, comparable between runs of one schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """What a run saves against a baseline.

    Attributes:
        tokens: T, tokens at which the run first has the baseline's final loss; None if never.
        tokens_saved: 1 - T / T_baseline; negative where the run needs more than the baseline.
        speed_up: T_baseline / T.
        reached: whether the run ever has that loss.
    """

    tokens: float | None
    tokens_saved: float | None
    speed_up: float | None
    reached: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Mean difference of losses between a run and a baseline, over pairs of one seed each.

    Attributes:
        mean: loss less baseline loss, nats; negative is better.
        standard_error: of the mean; None with one pair and no known noise.
        low: lower end of the confidence interval, or None likewise.
        high: upper end.
        confidence: probability with which such intervals hold the true difference.
        num_pairs: seeds.
        verdict: "better" or "worse" only where the interval excludes 0.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    confidence: float
    num_pairs: int
    verdict: Verdict


def tokens_to_reach(tokens: ArrayLike, losses: ArrayLike, target_loss: float) -> float | None:
    """Tokens at which a loss curve first reaches a target, or None where it never does.

    Between two evaluations the loss is taken linear in the logarithm of the tokens. Nothing is
    extrapolated: a curve that starts at or below the target reached it at its first evaluation, and
    next to an evaluation at 0 tokens, which has no logarithm, the later one counts.

    Args:
        tokens: tokens seen at each evaluation, increasing, shape (num_evaluations,).
        losses: validation loss in nats, same shape.
        target_loss: nats.

    Raises:
        ValueError: no evaluation, tokens that do not increase, or a loss that is not finite.
    """
    seen, loss = np.asarray(tokens, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if seen.ndim != 1 or seen.size == 0 or seen.shape != loss.shape:
        raise ValueError(
            f"a loss curve has token counts of shape {seen.shape} and losses of shape "
            f"{loss.shape}; expected at least one evaluation and a loss for each"
        )
    if seen[0] < 0 or not (np.diff(seen) > 0).all():
        raise ValueError("the token counts of a loss curve must increase from at least 0")
    if not (np.isfinite(loss).all() and np.isfinite(target_loss)):
        raise ValueError("a loss curve or its target holds a loss that is not finite: it diverged")
    below = np.flatnonzero(loss <= target_loss)
    if below.size == 0:
        return None
    i = int(below[0])
    if i == 0 or seen[i - 1] == 0 or loss[i] == target_loss:
        return float(seen[i])
    fraction = (loss[i - 1] - target_loss) / (loss[i - 1] - loss[i])
    return float(seen[i - 1] * (seen[i] / seen[i - 1]) ** fraction)


def savings(
    tokens: ArrayLike, losses: ArrayLike, *, baseline_tokens: float, baseline_final_loss: float
) -> Savings:
    """Tokens saved and speed-up of a run against a baseline's final loss.

    Args:
        tokens: tokens seen at each evaluation of the run, shape (num_evaluations,).
        losses: mean validation loss in nats, same shape.
        baseline_tokens: tokens at which the baseline has its final loss.
        baseline_final_loss: nats.
    """
    if not baseline_tokens > 0:
        raise ValueError(f"the baseline was trained on {baseline_tokens} tokens; expected more")
    reached_at = tokens_to_reach(tokens, losses, baseline_final_loss)
    if reached_at is None:
        return Savings(tokens=None, tokens_saved=None, speed_up=None, reached=False)
    return Savings(
        tokens=reached_at,
        tokens_saved=1 - reached_at / baseline_tokens,
        # a model that needs no training has no finite speed-up
        speed_up=baseline_tokens / reached_at if reached_at > 0 else None,
        reached=True,
    )


def paired_difference(
    values: ArrayLike,
    baseline_values: ArrayLike,
    *,
    confidence: float = 0.9,
    noise: float | None = None,
    noise_degrees: int | None = None,
) -> PairedDifference:
    """Compare final losses seed by seed.

    From two pairs on the interval is Student's for the mean of the differences, and what the seeds
    have in common cancels. One pair shows no spread: its interval rests on `noise`, taken as that
    of two independent runs (standard deviation `noise * sqrt(2)`), and without it nothing is said.

    Args:
        values: final loss by seed, nats, shape (num_pairs,).
        baseline_values: the baseline's, for the same seeds in the same order.
        confidence: of the two-sided interval.
        noise: standard deviation of one run's loss between seeds, nats; used with one pair only.
        noise_degrees: degrees of freedom of `noise` (seeds less groups), which widen the interval
            of one pair to Student's; None takes the noise as known.

    Raises:
        ValueError: no pairs, lists of different length, or a number that is not finite.
    """
    ours = np.asarray(values, dtype=np.float64)
    theirs = np.asarray(baseline_values, dtype=np.float64)
    if ours.ndim != 1 or ours.size == 0 or ours.shape != theirs.shape:
        raise ValueError(
            f"found losses of shape {ours.shape} and baseline losses of shape {theirs.shape}; "
            "expected a loss for each seed of both"
        )
    differences = ours - theirs
    if not np.isfinite(differences).all():
        raise ValueError("a final loss is not finite: leave out the seed that diverged, in both")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1")
    if noise is not None and not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"seed noise is {noise}; expected a finite number of at least 0")
    num_pairs, mean = len(differences), float(differences.mean())
    standard_error = low = high = None
    if num_pairs >= 2:
        standard_error = float(differences.std(ddof=1) / np.sqrt(num_pairs))
        reach = float(stats.t.ppf((1 + confidence) / 2, num_pairs - 1)) * standard_error
        low, high = mean - reach, mean + reach
    elif noise is not None:
        standard_error = float(noise * np.sqrt(2))
        spread = stats.norm if noise_degrees is None else stats.t(noise_degrees)
        reach = float(spread.ppf((1 + confidence) / 2)) * standard_error
        low, high = mean - reach, mean + reach
    verdict: Verdict = "not distinguishable"
    if low is not None and high is not None and (low > 0 or high < 0):
        verdict = "worse" if low > 0 else "better"
    return PairedDifference(
        mean=mean,
        standard_error=standard_error,
        low=low,
        high=high,
        confidence=confidence,
        num_pairs=num_pairs,
        verdict=verdict,
    )


def pooled_seed_noise(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation between seeds, pooled over groups of runs that differ in the seed only.

        sqrt( sum_g sum_s (y_gs - mean_g)^2 / sum_g (n_g - 1) )

    Args:
        groups: the values of each group, e.g. final losses in nats by seed.

    Returns:
        The noise in the unit of the values, or None where no group has two values.
    """
    degrees = sum(len(group) - 1 for group in groups if group)
    if degrees < 1:
        return None
    squares = sum(float(np.sum((np.asarray(g) - np.mean(g)) ** 2)) for g in groups if len(g) > 1)
    return float(np.sqrt(squares / degrees))
