"""A benchmark's results as one plain dict: what the report shows, and nothing else.

It can be made at any moment; what is not trained yet is None.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..comparison import paired_difference, pooled_seed_noise
from ..config import ExperimentConfig
from ..methods.ado import ADO
from ..methods.doremi import DoReMi
from ..mixture import Mixture
from ..model_shape import model_size
from ..objective import Objective, unit_of
from ..planning import Experiment
from ..probe_length import early_sentence, is_early, level_of
from ..runs import RunResult, RunSpec
from .choices import Choice, choices_path, choose
from .equal_loss import AnnealedCurve
from .path import path_section
from .plan import BenchPlan
from .standing import CONFIDENCE, Curve, Standing, share_of_attainable, stand

OURS = "joint"


def summarise_bench(config: ExperimentConfig) -> dict[str, Any]:
    """Gather what a benchmark has trained so far.

    Raises:
        ValueError: the experiment has no benchmark, or its first runs are not done.
    """
    plan = BenchPlan(Experiment(config))
    gathered = _Gathered(plan)
    needed = [*plan.first_specs(), *plan.second_specs()]
    left = [spec.label for spec in needed if not gathered.is_done(spec)]
    if left:
        raise ValueError(
            f"{len(left)} runs of the benchmark have no result yet ({', '.join(left[:3])}, ...); "
            "run `autoscale bench` first"
        )
    choices = choose(plan, choices_path(config))
    size = model_size(plan.experiment.model, config.data.sequence_length)
    sections = [
        _objective_section(plan, gathered, name, [c for c in choices if c.objective == name])
        for name in plan.problems
    ]
    results = list(gathered.results.values())
    probes = gathered.of([spec for arm in plan.arms for _, spec in plan.probes(arm)])
    level = level_of(plan.experiment, probes or [])
    return {
        "name": config.name,
        "domains": list(plan.experiment.domains),
        "sets": list(plan.experiment.sets),
        "available_tokens": dict(
            zip(plan.experiment.domains, map(int, plan.experiment.available_tokens), strict=True)
        ),
        "target_tokens": plan.target_tokens,
        "steps": plan.target_tokens // config.trainer.global_batch_tokens,
        "seeds": list(plan.seeds),
        "confidence": CONFIDENCE,
        "model": {"parameters": size.parameters, "flops_per_token": size.flops_per_token},
        "probe_tokens": plan.bench.probe_tokens,
        "total_probe_tokens": plan.bench.total_probe_tokens,
        "search_runs": plan.bench.search_runs,
        "probe_level": level,
        "warnings": [early_sentence(level, "the probe runs")] if level and is_early(level) else [],
        "objectives": sections,
        "path": path_section(plan),
        "runs": len(results),
        "tokens": sum(result.total_tokens for result in results),
        "run_seconds": sum(result.seconds for result in results),
        "versions": dict(results[-1].versions),
        "device": results[-1].device,
    }


class _Gathered:
    """Results of runs, each read once."""

    def __init__(self, plan: BenchPlan) -> None:
        self._store = plan.experiment.store
        self.results: dict[str, RunResult] = {}

    def is_done(self, spec: RunSpec) -> bool:
        return self._store.status(spec) in ("finished", "failed")

    def of(self, specs: Sequence[RunSpec]) -> list[RunResult] | None:
        """Results of all the runs; None where one is missing or failed."""
        for spec in specs:
            if spec.identity not in self.results:
                if self._store.status(spec) != "finished":
                    return None
                self.results[spec.identity] = self._store.result(spec)
        return [self.results[spec.identity] for spec in specs]


def _curve(result: RunResult, objective: Objective) -> Curve:
    evaluations = result.evaluations
    return Curve(
        tokens=tuple(float(each.tokens) for each in evaluations),
        objectives=tuple(objective.value(each.losses) for each in evaluations),
    )


def _objective_section(
    plan: BenchPlan, gathered: _Gathered, name: str, choices: Sequence[Choice]
) -> dict[str, Any]:
    objective = plan.problems[name].objective
    finals = {}
    for tokens in plan.uniform_budgets:
        results = gathered.of(list(plan.uniform(tokens).values()))
        if results is None:
            raise ValueError(f"a uniform run of {tokens} tokens diverged; lower trainer.lr")
        finals[tokens] = [objective.value(result.final_losses) for result in results]
    uniform = gathered.of(list(plan.uniform(plan.target_tokens).values()))
    assert uniform is not None
    curves = [_curve(result, objective) for result in uniform]
    annealed = AnnealedCurve(list(finals), [float(np.mean(values)) for values in finals.values()])
    rows = [
        _row(plan, gathered, choice, objective, curves, annealed)
        for choice in [_uniform_choice(plan, name), *choices]
    ]
    attainable = _attainable(rows)
    for row in rows:
        standing = row["_standing"]
        row["share"] = standing and attainable and share_of_attainable(standing, attainable)
    ours = next((row for row in rows if row["method"] == OURS), None)
    for row in rows:
        row["ours_less"] = _between(ours, row)
    groups = [row["finals"] for row in rows if row["finals"] is not None]
    for row in rows:
        del row["_standing"]
    return {
        "name": name,
        "objective": objective.to_dict(),
        "unit": unit_of("nats", objective),
        "uniform": [{"tokens": tokens, "finals": values} for tokens, values in finals.items()],
        "seed_noise": pooled_seed_noise(groups),
        "attainable": attainable and attainable.to_dict(),
        "rows": rows,
    }


def _uniform_choice(plan: BenchPlan, objective: str) -> Choice:
    uniform = Mixture.uniform(plan.experiment.domains)
    return Choice(
        objective=objective, method="uniform", weights=uniform.to_dict(), message="Equal weights."
    )


def _row(
    plan: BenchPlan,
    gathered: _Gathered,
    choice: Choice,
    objective: Objective,
    uniform: Sequence[Curve],
    annealed: AnnealedCurve,
) -> dict[str, Any]:
    """One mixture; `_standing` is for the caller."""
    probes = _probe_cost(plan, choice.method)
    row: dict[str, Any] = {
        "method": choice.method,
        "weights": choice.weights,
        "message": choice.message,
        **probes,
        "finals": None,
        "standing": None,
        "losses": None,
        "curves": None,
        "seconds": None,
        "_standing": None,
    }
    if choice.method == ADO.name:
        specs = plan.ado
    elif choice.weights is None:
        return row
    else:
        specs = plan.targets(choice.name, Mixture.from_mapping(choice.weights))
    results = gathered.of(list(specs.values()))
    if results is None:
        return row
    if choice.method == ADO.name:
        row["weights"] = _realised(results)
    curves = [_curve(result, objective) for result in results]
    size = model_size(plan.experiment.model, plan.experiment.config.data.sequence_length)
    standing = stand(
        curves, uniform, annealed, probe_cost=probes["probe_flops"] / size.flops_per_token
    )
    return row | {
        "finals": [curve.final for curve in curves],
        "standing": standing.to_dict(),
        "losses": {
            name: float(np.mean([result.final_losses[name] for result in results]))
            for name in plan.experiment.sets
        },
        "curves": [{"tokens": curve.tokens, "objectives": curve.objectives} for curve in curves],
        "seconds": float(np.mean([result.seconds for result in results])),
        "_standing": standing,
    }


def _realised(results: Sequence[RunResult]) -> dict[str, float]:
    """Shares of the domains in all tokens of some runs."""
    total = sum(result.total_tokens for result in results)
    return {
        name: sum(result.tokens[name] for result in results) / total
        for name in results[0].spec.domains
    }


def _probe_cost(plan: BenchPlan, method: str) -> dict[str, Any]:
    """What the probe runs of a method took, whether they are shared with another's or not."""
    specs = [spec for arm in plan.arms if arm.name == method for _, spec in plan.probes(arm)]
    if method == DoReMi.name and plan.doremi:
        specs = list(plan.doremi)
    if method.startswith("search-"):
        specs = list(plan.search(plan.target_tokens))
    return {
        "probe_runs": len(specs),
        "probe_tokens": sum(spec.total_tokens for spec in specs),
        "probe_flops": sum(
            spec.total_tokens * model_size(spec.model, spec.sequence_length).flops_per_token
            for spec in specs
        ),
    }


def _attainable(rows: Sequence[Mapping[str, Any]]) -> Standing | None:
    """Where the best of the mixtures stands that were searched for at the target."""
    searched: list[Standing] = [
        row["_standing"]
        for row in rows
        if row["method"].startswith("search-") and row["_standing"] is not None
    ]
    return min(searched, key=lambda standing: standing.final.mean, default=None)


def _between(ours: Mapping[str, Any] | None, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our method's final objective less another's, by seed."""
    if ours is None or ours["finals"] is None or row["finals"] is None or row is ours:
        return None
    found = paired_difference(ours["finals"], row["finals"], confidence=CONFIDENCE)
    return {
        "mean": found.mean, "low": found.low, "high": found.high, "verdict": found.verdict,
    }  # fmt: skip
