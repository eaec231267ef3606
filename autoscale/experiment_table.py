"""The finished probe runs of an experiment as a table of runs for the joint laws."""

# P runs, K domains, J validation sets

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .planning import Experiment, PlannedProbe
from .run_table import ReplicateNoise, RunTable
from .runs import Evaluation, RunResult

Array = NDArray[np.float64]
Index = NDArray[np.int64]
FinishedProbe = tuple[PlannedProbe, RunResult]


class ProbeTable(NamedTuple):
    """Runs for a fit, and the noise between seeds that the other runs measured."""

    table: RunTable
    budgets: Index
    """The probe budget that each row belongs to, as the experiment file has it."""
    final: NDArray[np.bool_]
    """Rows at the end of their run; the others are on the way (`fit.trajectories`)."""
    noise: ReplicateNoise | None


class _Row(NamedTuple):
    """One evaluation of one run."""

    planned: PlannedProbe
    result: RunResult
    number: int

    @property
    def evaluation(self) -> Evaluation:
        return self.result.evaluations[self.number]

    @property
    def is_final(self) -> bool:
        return self.number == len(self.result.evaluations) - 1

    @property
    def name(self) -> str:
        run_id = self.planned.spec.run_id
        return run_id if self.is_final else f"{run_id}@{self.evaluation.tokens}"


def probe_table(experiment: Experiment, finished: Sequence[FinishedProbe]) -> ProbeTable:
    """Realised tokens and losses of the probe runs, in the unit of `fit.metric`.

    Runs that share a seed share part of their noise, which cancels in the differences between them:
    the fit takes the runs of the seeds that all mixtures were planned under, each seed moved to the
    common level. Reference runs under further seeds only measure the noise.
    """
    config = experiment.config
    ends = [_Row(planned, result, len(result.evaluations) - 1) for planned, result in finished]
    most = max(row.planned.token_budget for row in ends)
    largest = [row for row in ends if row.planned.token_budget == most]
    seeds = range(config.seed, config.seed + config.probe.replicates)
    rows = [row for row in ends if row.planned.probe.seed in seeds]
    if config.fit.trajectories:
        rows = _with_trajectories(experiment, rows)
    return ProbeTable(
        table=_at_common_level(_table(experiment, rows), rows),
        budgets=np.array([row.planned.token_budget for row in rows], dtype=np.int64),
        final=np.array([row.is_final for row in rows]),
        noise=_table(experiment, largest).replicate_noise(),
    )


def _table(experiment: Experiment, rows: Sequence[_Row], *, with_seeds: bool = True) -> RunTable:
    domains = experiment.domains
    tokens_PK = np.array([[row.result.tokens[name] for name in domains] for row in rows], float)
    sets = experiment.sets
    losses_PJ = np.array([[row.evaluation.losses[name] for name in sets] for row in rows])
    return RunTable(
        runs=tuple(row.name for row in rows),
        domains=domains,
        sets=sets,
        weights=tokens_PK / tokens_PK.sum(axis=1, keepdims=True),
        tokens=np.array([float(row.evaluation.tokens) for row in rows]),
        parameters=np.array([float(row.planned.parameters) for row in rows]),
        seeds=tuple(row.planned.probe.seed for row in rows) if with_seeds else None,
        losses=losses_PJ / _unit(experiment),
        metric=experiment.config.fit.metric,
    )


def _unit(experiment: Experiment) -> Array:
    """Nats a token that make one of the metric's units, by validation set, shape (num_sets,)."""
    if experiment.config.fit.metric == "nats":
        return np.ones(len(experiment.sets))
    return np.array(
        [math.log(2) * experiment.manifest.bytes_per_token(name) for name in experiment.sets]
    )


def _with_trajectories(experiment: Experiment, ends: Sequence[_Row]) -> list[_Row]:
    """The evaluations on the way too.

    Where runs of one mixture and seed pass the same token count, only the one that is nearest to
    its end stays: its learning rate has decayed furthest.
    """
    rows = [row._replace(number=number) for row in ends for number in range(row.number + 1)]
    cells = _table(experiment, rows, with_seeds=False).cells()
    share = [row.evaluation.tokens / row.result.total_tokens for row in rows]
    nearest: dict[tuple[int, int], int] = {}
    for index in sorted(range(len(rows)), key=lambda index: -share[index]):
        nearest.setdefault((int(cells[index]), rows[index].planned.probe.seed), index)
    return [rows[index] for index in sorted(nearest.values())]


def _at_common_level(table: RunTable, rows: Sequence[_Row]) -> RunTable:
    """Losses less what their seed differs by from the mean of the seeds.

    The difference is that on the mixtures which finished under every seed; each budget, model size
    and evaluation has its own.
    """
    seeds_P = np.array([row.planned.probe.seed for row in rows])
    mixtures_P = table.mixture_groups()
    alike: dict[tuple[int, int, int], list[int]] = {}
    for index, (planned, result, number) in enumerate(rows):
        key = (planned.token_budget, planned.parameters, len(result.evaluations) - number)
        alike.setdefault(key, []).append(index)
    losses_PJ = np.array(table.losses)
    for members in map(np.array, alike.values()):
        by_seed = [members[seeds_P[members] == seed] for seed in np.unique(seeds_P[members])]
        common = set.intersection(*({int(m) for m in mixtures_P[own]} for own in by_seed))
        if len(by_seed) == 1 or not common:
            continue
        shared = [own[np.isin(mixtures_P[own], list(common))] for own in by_seed]
        levels_SJ = np.stack([table.losses[own].mean(axis=0) for own in shared])
        for own, level_J in zip(by_seed, levels_SJ, strict=True):
            losses_PJ[own] += levels_SJ.mean(axis=0) - level_J
    return replace(table, losses=losses_PJ)
