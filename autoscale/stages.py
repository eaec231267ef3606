"""The steps between the training runs: plan, fit, project, status. Files in, files out, no torch.

plan     experiment            -> plan.json            which runs, what they cost
fit      probe results         -> fit.json             laws and optimal mixture per budget
project  fit.json              -> mixture-<B>.json     weights for the target budget
status   run folders           -> what is done, left, failed
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import ExperimentConfig
from .mixture import Mixture
from .model_shape import model_size
from .objective import Objective
from .planning import Experiment, PlannedProbe
from .projection import Projection, ProjectionKind
from .projection import project as project_tokens
from .records import read_json, write_json
from .runs import RunResult, RunSpec
from .scaling_law import FitError, fit_separable
from .solver import project_onto_bounds, solve_mixture
from .token_count import format_token_count

PROJECTIONS: tuple[ProjectionKind, ...] = ("full", "hold", "damped")
ASSUMED_MFU = 0.4
"""Share of the peak rate assumed where nothing was measured yet; a usual value for dense models."""


def artifact(config: ExperimentConfig, name: str, token_budget: int | None = None) -> Path:
    """Where an artifact of the experiment lies: `plan`, `fit`, `mixture` or `report`.

    Args:
        token_budget: of a mixture; by default `train.budget`.
    """
    if name == "mixture":
        name = f"mixture-{format_token_count(token_budget or config.train.budget.tokens)}"
    return Path(config.output_dir) / f"{name}.json"


def plan(config: ExperimentConfig) -> Path:
    """Write which runs the experiment needs, with their tokens, FLOPs and estimated cost.

    The mixture of the target run is not known yet; its tokens and FLOPs are.
    """
    experiment = Experiment(config)
    size = model_size(experiment.model, config.data.sequence_length)
    runs = [_planned("probe", planned.spec, experiment) for planned in experiment.probes()]
    # Mixtures that only the fit will give are stood in for by a feasible one of the same size.
    lower, upper = experiment.bounds(config.train.budget.tokens)
    weights = project_onto_bounds(
        experiment.reference.as_array(), domains=experiment.domains, lower=lower, upper=upper
    )
    stand_in = dict(zip(experiment.domains, weights.tolist(), strict=True))
    mixtures = experiment.baselines(dict.fromkeys(PROJECTIONS, stand_in))
    for target in experiment.targets({"autoscale": experiment.mixture(stand_in), **mixtures}):
        row = _planned("train", target.spec, experiment)
        runs.append({**row, "run_id": None, "status": "waiting", "max_epochs": None})
    rate, basis = _device_rate(config, experiment, size.flops_per_token)
    for row in runs:
        row["flops"] = row["tokens"] * size.flops_per_token
    totals = {}
    for stage in ("probe", "train"):
        rows = [row for row in runs if row["stage"] == stage]
        left = [row for row in rows if row["status"] != "finished"]
        flops = sum(row["flops"] for row in left)
        totals[stage] = {
            "runs": len(rows),
            "tokens": sum(row["tokens"] for row in rows),
            "flops": sum(row["flops"] for row in rows),
            "left_runs": len(left),
            "left_tokens": sum(row["tokens"] for row in left),
            "device_hours": None if rate is None else flops / rate / 3600,
        }
    content = {
        "name": config.name,
        "domains": list(experiment.domains),
        "available_tokens": dict(zip(experiment.domains, experiment.available_tokens, strict=True)),
        "model": {"parameters": size.parameters, "flops_per_token": size.flops_per_token},
        "runs": runs,
        "totals": totals,
        "cost_basis": basis,
    }
    return write_json(artifact(config, "plan"), "plan", content)


def _planned(stage: str, spec: RunSpec, experiment: Experiment) -> dict[str, Any]:
    epochs = [
        count / available
        for count, available in zip(spec.sequences, experiment.num_windows, strict=True)
    ]
    most = int(np.argmax(epochs))
    return {
        "stage": stage,
        "label": spec.label,
        "run_id": spec.run_id,
        "seed": spec.seed,
        "tokens": spec.total_tokens,
        "tokens_by_domain": spec.tokens,
        "steps": spec.num_steps,
        "max_epochs": {"domain": spec.domains[most], "epochs": epochs[most]},
        "status": experiment.store.status(spec),
    }


def _device_rate(
    config: ExperimentConfig, experiment: Experiment, flops_per_token: float
) -> tuple[float | None, str]:
    """FLOP/s that one device will do, and where the figure comes from."""
    for planned in experiment.probes():
        if experiment.store.status(planned.spec) == "finished":
            result = experiment.store.result(planned.spec)
            rate = result.tokens_per_second * flops_per_token / result.world_size
            return rate, f"measured in run {planned.spec.label} on {result.device}"
    if config.trainer.peak_tflops is not None:
        rate = ASSUMED_MFU * config.trainer.peak_tflops * 1e12
        peak = f"{config.trainer.peak_tflops:g} TFLOP/s"
        return rate, f"assumed {ASSUMED_MFU:.0%} of trainer.peak_tflops ({peak})"
    return None, "unknown until a run is finished; give trainer.peak_tflops for an estimate"


def fit(config: ExperimentConfig) -> Path:
    """Fit the law of every domain at every probe budget and solve for the best mixture there.

    Raises:
        ValueError: probe runs are missing, or more failed than `probe.max_failed` allows.
    """
    experiment = Experiment(config)
    objective = experiment.objective
    planned = experiment.probes()
    _require_results(planned, experiment)
    budgets = [
        _fit_budget(budget.tokens, planned, experiment, objective)
        for budget in config.probe.budgets
    ]
    content = {
        "law": config.fit.law,
        "amplitude": config.fit.amplitude,
        "objective": objective.to_dict(),
        "domains": list(experiment.domains),
        "reference": experiment.reference.to_dict(),
        "fixed_budget": config.probe.fixed_budget,
        "budgets": budgets,
    }
    return write_json(artifact(config, "fit"), "fit", content)


def _require_results(planned: Sequence[PlannedProbe], experiment: Experiment) -> None:
    unfinished, failures = [], []
    for probe in planned:
        status = experiment.store.status(probe.spec)
        if status == "failed":
            failures.append(probe)
        elif status != "finished":
            unfinished.append(probe.spec.label)
    if unfinished:
        shown = ", ".join(unfinished[:5]) + (" ..." if len(unfinished) > 5 else "")
        raise ValueError(
            f"{len(unfinished)} of {len(planned)} probe runs have no result yet ({shown}); run "
            "`autoscale probe` first"
        )
    for budget in {probe.token_budget for probe in failures}:
        failed = [probe for probe in failures if probe.token_budget == budget]
        limit = experiment.config.probe.max_failed
        if len(failed) > limit:
            reasons = "; ".join(
                f"{probe.spec.label}: {experiment.store.failure(probe.spec).message}"
                for probe in failed
            )
            raise ValueError(
                f"{len(failed)} probe runs at {format_token_count(budget)} failed, and "
                f"probe.max_failed is {limit}: {reasons}"
            )


def _fit_budget(
    token_budget: int,
    planned: Sequence[PlannedProbe],
    experiment: Experiment,
    objective: Objective,
) -> dict[str, Any]:
    """Laws and optimum of one budget; all from realised tokens."""
    config, domains, store = experiment.config, experiment.domains, experiment.store
    runs = [
        (probe, store.result(probe.spec))
        for probe in planned
        if probe.token_budget == token_budget and store.status(probe.spec) == "finished"
    ]
    references = [(p, r) for p, r in runs if p.probe.domain is None]
    paired = [(p, r) for p, r in runs if p.probe.seed == config.seed]
    base = next((r for p, r in references if p.probe.seed == config.seed), None)
    if base is None:
        raise FitError(
            f"the reference run at {format_token_count(token_budget)} failed; every law is "
            "relative to it. Remove its folder and run `autoscale probe` again"
        )
    base_tokens = np.array([base.tokens[name] for name in domains], dtype=np.float64)
    base_value = objective.value(base.final_losses)
    multiples_PK = np.array([[r.tokens[name] for name in domains] for _, r in paired]) / base_tokens
    values_P = np.array([objective.value(r.final_losses) for _, r in paired])
    laws = fit_separable(
        domains, multiples_PK, values_P / base_value, amplitude=config.fit.amplitude
    )
    lower, upper = experiment.bounds(token_budget)
    reference = Mixture.from_array(domains, base_tokens)
    solution = solve_mixture(laws, reference, lower=lower, upper=upper)
    at_reference = sum(float(law(1.0)) for law in laws)
    noise = [objective.value(result.final_losses) for _, result in references]
    weights = solution.mixture.to_dict()
    return {
        "token_budget": token_budget,
        "reference_tokens": dict(base.tokens),
        "base_objective": base_value,
        "num_runs": len(runs),
        "seed_noise": float(np.std(noise, ddof=1)) if len(noise) > 1 else None,
        "effects": _effects(paired, base_value, objective),
        "points": [_point(p, r, domains, base_tokens, objective) for p, r in runs],
        "laws": [law.to_dict() for law in laws],
        "solution": {
            "weights": weights,
            "tokens": {name: weight * token_budget for name, weight in weights.items()},
            # The laws add up their changes from the reference; their levels are relative to it.
            "objective": base_value * (1 + solution.objective - at_reference),
            "duality_gap": solution.duality_gap,
            "at_lower": list(solution.at_lower),
            "at_upper": list(solution.at_upper),
            "lower": dict(zip(domains, lower.tolist(), strict=True)),
            "upper": dict(zip(domains, upper.tolist(), strict=True)),
        },
    }


def _effects(
    paired: Sequence[tuple[PlannedProbe, RunResult]], base_value: float, objective: Objective
) -> dict[str, dict[str, float]]:
    """Change of the objective when one domain is scaled by the outermost factors."""
    effects: dict[str, dict[str, float]] = {}
    for planned, result in sorted(paired, key=lambda pair: abs(np.log(pair[0].probe.factor))):
        if planned.probe.domain is not None:
            direction = "up" if planned.probe.factor > 1 else "down"
            change = objective.value(result.final_losses) - base_value
            effects.setdefault(planned.probe.domain, {})[direction] = change
    return effects


def _point(
    planned: PlannedProbe,
    result: RunResult,
    domains: Sequence[str],
    base_tokens: Any,
    objective: Objective,
) -> dict[str, Any]:
    domain = planned.probe.domain
    factor = 1.0
    if domain is not None:
        factor = result.tokens[domain] / float(base_tokens[domains.index(domain)])
    return {
        "run_id": planned.spec.run_id,
        "label": planned.probe.label,
        "seed": planned.probe.seed,
        "domain": domain,
        "factor": factor,
        "tokens": dict(result.tokens),
        "objective": objective.value(result.final_losses),
        "losses": dict(result.final_losses),
    }


def project(config: ExperimentConfig, token_budget: int | None = None) -> Path:
    """Carry the optima at the probe budgets to the target budget; write the mixture.

    Args:
        token_budget: by default `train.budget`.
    """
    experiment = Experiment(config)
    target = config.train.budget.tokens if token_budget is None else token_budget
    fitted = read_json(artifact(config, "fit"), "fit")
    if fitted["domains"] != list(experiment.domains):
        raise ValueError(
            f"{artifact(config, 'fit')} was fitted on {', '.join(fitted['domains'])} but the "
            f"experiment has {', '.join(experiment.domains)}; run `autoscale fit` again"
        )
    by_budget = {entry["token_budget"]: entry["solution"]["tokens"] for entry in fitted["budgets"]}
    small, large = config.projection_budgets
    if small not in by_budget or large not in by_budget:
        raise ValueError(
            f"{artifact(config, 'fit')} has no optimum at {format_token_count(small)} and "
            f"{format_token_count(large)}; run `autoscale fit` again"
        )
    lower, upper = experiment.bounds(target)

    def projected(kind: ProjectionKind) -> Projection:
        return project_tokens(
            kind,
            domains=experiment.domains,
            small_tokens=[by_budget[small][name] for name in experiment.domains],
            large_tokens=[by_budget[large][name] for name in experiment.domains],
            token_budget=target,
            lower=lower,
            upper=upper,
        )

    chosen = projected(config.project.projection)
    # A path starts at the small budget with positive tokens; holding needs neither.
    has_path = target >= small and float(np.min(experiment.bounds(small)[0])) > 0
    kinds: tuple[ProjectionKind, ...] = PROJECTIONS if has_path else ("hold",)
    content = {
        "token_budget": target,
        "projection": chosen.kind,
        "budgets": [small, large],
        "t": chosen.t,
        "weights": chosen.weights.to_dict(),
        "unbounded_weights": chosen.unbounded_weights.to_dict(),
        "bounded": list(chosen.bounded),
        "change_l1": chosen.change_l1,
        "lower": dict(zip(experiment.domains, lower.tolist(), strict=True)),
        "upper": dict(zip(experiment.domains, upper.tolist(), strict=True)),
        "alternatives": {kind: projected(kind).weights.to_dict() for kind in kinds},
    }
    return write_json(artifact(config, "mixture", target), "mixture", content)


def target_mixtures(experiment: Experiment) -> dict[str, Mixture]:
    """The projected mixture, called `autoscale`, and the baselines, from the artifacts."""
    path = artifact(experiment.config, "mixture")
    content = read_json(path, "mixture")
    chosen = Mixture.from_mapping(content["weights"]).reordered(experiment.domains)
    return {"autoscale": chosen, **experiment.baselines(content["alternatives"])}


def status(config: ExperimentConfig) -> dict[str, Any]:
    """What is done, left and failed, from the folders alone."""
    experiment = Experiment(config)
    specs = [("probe", planned.spec) for planned in experiment.probes()]
    present = {name: artifact(config, name).is_file() for name in ("plan", "fit", "mixture")}
    present["report"] = artifact(config, "report").is_file()
    problems = []
    if present["mixture"]:
        try:
            targets = experiment.targets(target_mixtures(experiment))
            specs += [("train", target.spec) for target in targets]
        except ValueError as error:
            problems.append(f"{artifact(config, 'mixture').name} is no use any more: {error}")
    rows = []
    for stage, spec in specs:
        state = experiment.store.status(spec)
        failure = experiment.store.failure(spec) if state == "failed" else None
        rows.append(
            {
                "stage": stage,
                "label": spec.label,
                "run_id": experiment.store.folder(spec).name,
                "status": state,
                "tokens": _tokens_seen(experiment, spec, state),
                "total_tokens": spec.total_tokens,
                "reason": failure and f"{failure.reason}: {failure.message}",
            }
        )
    return {"name": config.name, "runs": rows, "artifacts": present, "problems": problems}


def _tokens_seen(experiment: Experiment, spec: RunSpec, state: str) -> int:
    if state == "finished":
        return spec.total_tokens
    return last_logged_tokens(experiment.store.folder(spec))


def last_logged_tokens(folder: Path) -> int:
    """Tokens of the last whole line in a run's `metrics.jsonl`; 0 before the first."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["tokens"])
        except (json.JSONDecodeError, KeyError):
            continue  # a line that is being written
    return 0
