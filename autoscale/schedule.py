"""Learning rate as a pure function of the step, stretched to each run's own length."""

import math


def learning_rate(
    step: int,
    num_steps: int,
    *,
    lr: float,
    min_lr_ratio: float,
    schedule: str,
    warmup_fraction: float,
    decay_fraction: float,
) -> float:
    """The rate of optimiser step `step` (from 0) out of `num_steps`.

    Linear warm-up over `warmup_fraction` of the steps, then decay from `lr` to `min_lr_ratio * lr`:
    `cosine` and `linear` over all that remains, `wsd` (warm-up, stable, decay) linearly over the
    last `decay_fraction` only.
    """
    warmup = round(warmup_fraction * num_steps)
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    decay_steps = num_steps - warmup
    if schedule == "wsd":
        decay_steps = min(decay_steps, max(1, round(decay_fraction * num_steps)))
    elapsed = step + 1 - (num_steps - decay_steps)
    progress = min(1.0, max(0.0, elapsed / decay_steps))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return lr * (min_lr_ratio + (1 - min_lr_ratio) * remaining)


def evaluation_steps(num_steps: int, points: int) -> list[int]:
    """Completed steps after which to evaluate: log-spaced from a tenth of the run to its end."""
    if points == 1:
        return [num_steps]
    exponents = [index / (points - 1) - 1 for index in range(points)]
    return sorted({max(1, round(num_steps * 10.0**exponent)) for exponent in exponents})
