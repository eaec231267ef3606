"""Whether probe runs are long enough to say anything about longer ones.

A model first learns how frequent each token is, then to use context. A run that ends near the first
level was steered by token counts alone, and the mixture that serves counting best is not the one
that serves language best: the optimum of such probes can lie in a corner, far from uniform, with
small errors of the law. The level is the entropy of a validation set's own token counts (nats),
which no model without context can pass.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .data import validation_windows
from .experiment_table import FinishedProbe
from .manifest import Manifest
from .model_shape import is_masked
from .planning import Experiment
from .runs import RunResult

EARLY = 0.9  # share of the entropy above which context hardly counts yet
_MOST_WINDOWS = 4096  # a set is counted in: more change the entropy in the third digit


def unigram_entropy(manifest: Manifest, name: str, *, sequence_length: int) -> float:
    """Entropy of the token counts of a validation set, nats a token."""
    rows = validation_windows(
        manifest, [name], sequence_length=sequence_length, limit=_MOST_WINDOWS
    )[name]
    counts = np.bincount(rows.tokens[:, 1:].ravel())
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def level_of(experiment: Experiment, results: Sequence[RunResult]) -> dict[str, float] | None:
    """Mean loss of runs over the training domains' sets, beside the entropy of these.

    Returns:
        `loss` and `unigram_entropy`; None for masked models, which see context from the first step.
    """
    if is_masked(experiment.model) or not results:
        return None
    entropies = [
        unigram_entropy(
            experiment.manifest, name, sequence_length=experiment.config.data.sequence_length
        )
        for name in experiment.domains
    ]
    return {
        "loss": float(np.mean([result.final_mean_loss for result in results])),
        "unigram_entropy": float(np.mean(entropies)),
    }


def probe_levels(experiment: Experiment, finished: Sequence[FinishedProbe]) -> list[dict[str, Any]]:
    """The level of the reference runs of every probe budget, budgets rising."""
    levels = []
    for token_budget in sorted({planned.token_budget for planned, _ in finished}):
        references = [
            result
            for planned, result in finished
            if planned.token_budget == token_budget and planned.probe.is_reference
        ]
        level = level_of(experiment, references)
        if level is not None:
            levels.append({"token_budget": token_budget, **level})
    return levels


def is_early(level: dict[str, Any]) -> bool:
    """Whether the runs of a level hardly use context yet."""
    return bool(level["loss"] > EARLY * level["unigram_entropy"])


def early_sentence(level: dict[str, Any], what: str) -> str:
    """What to make of runs that are too short; `what` names them, such as `the probe runs`."""
    return (
        f"On the mean over the training domains {what} end at {level['loss']:.2f} nats, and "
        f"counting tokens alone gives {level['unigram_entropy']:.2f}: they hardly use context yet, "
        "and the best mixture of so short runs is seldom that of longer ones. Make them longer, or "
        "their batches smaller."
    )
