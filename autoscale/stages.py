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
from .constraints import project_onto_bounds
from .experiment_foresight import foresee_decision
from .joint_fit import fit_joint, project_joint
from .mixture import Mixture
from .model_shape import model_size
from .planning import Experiment, PlannedProbe
from .published_fit import fit_published, project_published
from .records import read_json, write_json
from .runs import RunSpec
from .token_count import format_token_count

PROJECTIONS = ("joint", "hold", "full", "damped")
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
    targets = experiment.targets({"autoscale": experiment.mixture(stand_in), **mixtures})
    for target in targets:
        row = _planned("train", target.spec, experiment)
        runs.append({**row, "run_id": None, "status": "waiting", "max_epochs": None})
    rate, basis = _device_rate(config, experiment, size.flops_per_token)
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
        "packing": _packing(experiment),
        "matched_probes": _matched_probes(experiment),
        "train_stages": _train_stages(targets[0].spec),
        "foresight": foresee_decision(experiment, artifact(config, "fit")),
    }
    return write_json(artifact(config, "plan"), "plan", content)


def _packing(experiment: Experiment) -> dict[str, Any] | None:
    """How documents are packed, and the positions of each domain that predict nothing."""
    data = experiment.config.data
    if data.packing == "contiguous":
        return None
    supply = experiment.supply(experiment.config.train.budget.tokens)
    unused_K = 1 - supply.tokens / (supply.windows * data.sequence_length)
    unused = dict(zip(experiment.domains, unused_K.tolist(), strict=True))
    return {"mode": data.packing, "unused": unused}


def _matched_probes(experiment: Experiment) -> list[dict[str, Any]] | None:
    """The share of each domain that probes of a budget draw from, and the tokens in it."""
    config = experiment.config
    if not config.probe.match_repetition:
        return None
    rows = []
    for token_budget in dict.fromkeys(budget.tokens for budget in config.probe.budgets):
        tokens_K = experiment.supply(token_budget).tokens.tolist()
        rows.append(
            {
                "token_budget": token_budget,
                "share": experiment.share(token_budget),
                "tokens": dict(zip(experiment.domains, tokens_K, strict=True)),
            }
        )
    return rows


def _train_stages(spec: RunSpec) -> list[dict[str, Any]]:
    """The later parts of a target run, which are those of every one, as their weights are met."""
    rows, position = [], 0
    for quotas in spec.quotas:
        total = sum(quotas)
        weights = [quota / total for quota in quotas]
        rows.append(
            {
                "step": position // spec.sequences_per_batch,
                "tokens": total * spec.sequence_length,
                "weights": dict(zip(spec.domains, weights, strict=True)),
            }
        )
        position += total
    return rows[1:]


def _planned(stage: str, spec: RunSpec, experiment: Experiment) -> dict[str, Any]:
    epochs = [
        count / available
        for count, available in zip(
            spec.sequences, experiment.supply_of(spec).windows.tolist(), strict=True
        )
    ]
    most = int(np.argmax(epochs))
    size = model_size(spec.model, spec.sequence_length)
    return {
        "stage": stage,
        "label": spec.label,
        "run_id": spec.run_id,
        "seed": spec.seed,
        "tokens": spec.total_tokens,
        "tokens_by_domain": spec.tokens,
        "parameters": size.parameters,
        "flops": spec.total_tokens * size.flops_per_token,
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
    """Fit the law to the probe results and solve for the best mixture at every probe budget.

    Raises:
        ValueError: probe runs are missing, more failed than `probe.max_failed` allows, or the runs
            cannot carry the law.
    """
    experiment = Experiment(config)
    planned = experiment.probes()
    _require_results(planned, experiment)
    finished = [
        (probe, experiment.store.result(probe.spec))
        for probe in planned
        if experiment.store.status(probe.spec) == "finished"
    ]
    fit_law = fit_published if config.fit.law == "autoscale" else fit_joint
    return write_json(artifact(config, "fit"), "fit", fit_law(experiment, finished))


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


def project(config: ExperimentConfig, token_budget: int | None = None) -> Path:
    """Carry the optima at the probe budgets to the target budget; write the mixture.

    Args:
        token_budget: by default `train.budget`.
    """
    experiment = Experiment(config)
    target = config.train.budget.tokens if token_budget is None else token_budget
    if config.probe.match_repetition and target != config.train.budget.tokens:
        raise ValueError(
            f"the probe runs repeat their data as a run of {config.train.budget.tokens} tokens "
            f"would (probe.match_repetition), and a run of {target} repeats it otherwise; set "
            "train.budget to the tokens wanted and run `autoscale probe` again"
        )
    fitted = read_json(artifact(config, "fit"), "fit")
    if fitted["domains"] != list(experiment.domains):
        raise ValueError(
            f"{artifact(config, 'fit')} was fitted on {', '.join(fitted['domains'])} but the "
            f"experiment has {', '.join(experiment.domains)}; run `autoscale fit` again"
        )
    for key, now in (("law", config.fit.law), ("metric", config.fit.metric)):
        then = fitted.get(key, "nats")  # the published law's fit has no metric
        if then != now:
            raise ValueError(
                f"{artifact(config, 'fit')} was fitted with {key} {then!r} but fit.{key} is now "
                f"{now!r}; run `autoscale fit` again"
            )
    project_law = project_published if config.fit.law == "autoscale" else project_joint
    content = project_law(experiment, fitted, target)
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
