"""The finished probe runs of an experiment as a table of runs for the joint laws."""

# P runs, J validation sets

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .planning import Experiment, PlannedProbe
from .run_table import Metric, ReplicateNoise, RunTable
from .runs import RunResult

Array = NDArray[np.float64]
FinishedProbe = tuple[PlannedProbe, RunResult]


class ProbeTable(NamedTuple):
    """Runs for a fit, and the noise between seeds that the other runs measured."""

    table: RunTable
    run_weights: Array
    noise: ReplicateNoise | None


def probe_table(experiment: Experiment, finished: Sequence[FinishedProbe]) -> ProbeTable:
    """Realised tokens and final losses of the probe runs, in the unit of `fit.metric`.

    Runs that share a seed share part of their noise, which cancels in the differences between them:
    the fit takes the runs of the seeds under which all mixtures ran, each seed moved to the common
    level. Reference runs under further seeds only measure the noise.
    """
    everything = _table(experiment, finished, last_only=True)
    budgets = np.array([planned.token_budget for planned, _ in finished])
    largest = everything.select(budgets == budgets.max())
    seeds = _complete_seeds(finished)
    fitted = [pair for pair in finished if pair[0].probe.seed in seeds]
    share = experiment.config.fit.trajectories
    table = _table(experiment, fitted, last_only=not share)
    final = np.array([not _is_on_the_way(name) for name in table.runs])
    return ProbeTable(
        table=_at_common_level(table) if len(seeds) > 1 else table,
        run_weights=np.where(final, 1.0, share),
        noise=largest.replicate_noise(),
    )


def _table(
    experiment: Experiment, finished: Sequence[FinishedProbe], *, last_only: bool
) -> RunTable:
    domains = experiment.domains
    rows = [
        (planned, result, evaluation)
        for planned, result in finished
        for evaluation in (result.evaluations[-1:] if last_only else result.evaluations)
    ]
    tokens_PK = np.array([[result.tokens[name] for name in domains] for _, result, _ in rows], float)
    return RunTable(
        runs=tuple(
            planned.spec.run_id
            if evaluation is result.evaluations[-1]
            else f"{planned.spec.run_id}@{evaluation.tokens}"
            for planned, result, evaluation in rows
        ),
        domains=domains,
        sets=domains,
        weights=tokens_PK / tokens_PK.sum(axis=1, keepdims=True),
        tokens=np.array([float(evaluation.tokens) for _, _, evaluation in rows]),
        parameters=np.array([float(planned.parameters) for planned, _, _ in rows]),
        seeds=tuple(planned.probe.seed for planned, _, _ in rows),
        losses=np.array([[evaluation.losses[name] for name in domains] for _, _, evaluation in rows])
        / _unit(experiment),
        metric=_metric(experiment),
    )


def _metric(experiment: Experiment) -> Metric:
    return experiment.config.fit.metric


def _unit(experiment: Experiment) -> Array:
    """Nats a token that make one of the metric's units, by validation set, shape (num_sets,)."""
    if _metric(experiment) == "nats":
        return np.ones(len(experiment.domains))
    return np.array(
        [math.log(2) * experiment.manifest.bytes_per_token(name) for name in experiment.domains]
    )


def _is_on_the_way(name: str) -> bool:
    return "@" in name


def _complete_seeds(finished: Sequence[FinishedProbe]) -> set[int]:
    """The experiment's seed, and all seeds under which as many runs finished."""
    count: dict[int, int] = {}
    for planned, _ in finished:
        count[planned.probe.seed] = count.get(planned.probe.seed, 0) + 1
    most = max(count.values())
    return {seed for seed, number in count.items() if number == most}


def _at_common_level(table: RunTable) -> RunTable:
    """Losses less the mean difference of their seed from all seeds, budget by budget."""
    assert table.seeds is not None and table.tokens is not None
    losses_PJ, seeds_P = np.array(table.losses), np.array(table.seeds)
    for tokens in np.unique(table.tokens):
        budget = table.tokens == tokens
        level_J = table.losses[budget].mean(axis=0)
        for seed in np.unique(seeds_P[budget]):
            rows = budget & (seeds_P == seed)
            losses_PJ[rows] += level_J - table.losses[rows].mean(axis=0)
    return replace(table, losses=losses_PJ)
