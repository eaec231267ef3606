"""Everything that an experiment has found so far, gathered from its artifacts into one dict.

The dict is plain JSON: `report.json` is this dict, and the page, the figures and the tables on the
terminal show nothing that is not in it. It works at any moment of an experiment: what has not been
done is None, and `missing` says which command makes it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import ExperimentConfig
from .findings import warnings
from .model_shape import model_size
from .outcomes import is_finished, mixture_rows, targets_section
from .planning import Experiment, PlannedTarget
from .projection import full_projection, project
from .records import read_json
from .runs import RunResult, RunSpec
from .scaling_law import PowerLaw
from .stages import artifact, target_mixtures
from .token_count import format_token_count

PATH_POINTS = 33
EXPERIMENT_FILE = "experiment.toml"  # results do not know what theirs was called


def summarise(config: ExperimentConfig) -> dict[str, Any]:
    """Gather the artifacts and run results of an experiment.

    Raises:
        ValueError: the data or an artifact cannot be read, see `Experiment` and `read_json`.
    """
    experiment = Experiment(config)
    missing: list[dict[str, str]] = []
    fit = _read("fit", experiment, missing)
    mixture = _read("mixture", experiment, missing)
    if fit is not None:
        fit = _fit_section(fit)
    mixtures = target_mixtures(experiment) if mixture is not None else {}
    targets = experiment.targets(mixtures)
    runs = _run_rows(experiment, targets)
    results = {
        row["run_id"]: experiment.store.result(spec) for row, spec in runs if is_finished(row)
    }
    rows = [row for row, _ in runs]
    summary: dict[str, Any] = {
        "name": config.name,
        "domains": list(experiment.domains),
        "experiment": _experiment_section(experiment),
        "data": _data_section(experiment),
        "fit": fit,
        "projection": mixture and _projection_section(mixture, fit, experiment),
        "mixtures": mixture_rows(experiment, mixtures, rows, results),
        "targets": targets_section(experiment, rows, results),
        "runs": rows,
        "costs": _costs(rows),
        "provenance": _provenance(results.values()),
        "commands": _commands(config, rows),
        "config": config.model_dump(mode="json"),
        "missing": missing + _missing_runs(rows, mixture is not None),
    }
    summary["weights"] = _weight_rows(summary)
    summary["warnings"] = warnings(summary)
    return summary


def _read(
    name: str, experiment: Experiment, missing: list[dict[str, str]]
) -> dict[str, Any] | None:
    """An artifact, or None with a word in `missing` when it is not there or not of this config."""
    path = artifact(experiment.config, name)
    command = {"fit": "autoscale fit", "mixture": "autoscale project"}[name]
    why = f"{path.name} is not there yet"
    if path.is_file():
        content = read_json(path, name)
        stale = _stale(content, experiment)
        if stale is None:
            return content
        why = f"{path.name} is of another experiment: {stale}"
    missing.append({"section": name, "command": f"{command} {EXPERIMENT_FILE}", "why": why})
    return None


def _stale(content: Mapping[str, Any], experiment: Experiment) -> str | None:
    """Why a fit or a mixture does not belong to the experiment as it is now."""
    found = content["domains"] if content["kind"] == "fit" else list(content["weights"])
    if sorted(found) != sorted(experiment.domains):
        return f"its domains are {', '.join(found)}"
    if content["kind"] == "fit":
        budgets = [entry["token_budget"] for entry in content["budgets"]]
        if budgets != [budget.tokens for budget in experiment.config.probe.budgets]:
            return f"its budgets are {', '.join(map(format_token_count, budgets))}"
    return None


def _missing_runs(rows: Sequence[Mapping[str, Any]], has_mixture: bool) -> list[dict[str, str]]:
    missing = []
    for stage, name in (("probe", "probe runs"), ("train", "target runs")):
        planned = [row for row in rows if row["stage"] == stage]
        left = [row for row in planned if not is_finished(row)]
        if stage == "train" and not has_mixture:
            why = "the mixture of the target run is not known yet"
        elif left:
            why = f"{len(left)} of {len(planned)} {name} have no result"
        else:
            continue
        missing.append(
            {"section": name, "command": f"autoscale {stage} {EXPERIMENT_FILE}", "why": why}
        )
    return missing


def _experiment_section(experiment: Experiment) -> dict[str, Any]:
    config = experiment.config
    size = model_size(experiment.model, config.data.sequence_length)
    objective = experiment.objective
    return {
        "seed": config.seed,
        "target_budget": config.train.budget.tokens,
        "target_seeds": list(config.train_seeds),
        "probe_budgets": [budget.tokens for budget in config.probe.budgets],
        "probe_factors": list(config.probe.factors),
        "fixed_budget": config.probe.fixed_budget,
        "reference": experiment.reference.to_dict(),
        "law": config.fit.law,
        "amplitude": config.fit.amplitude,
        "objective": objective.to_dict(),
        "projection": config.project.projection,
        "max_epochs": config.data.max_epochs,
        "sequence_length": config.data.sequence_length,
        "schedule": config.trainer.schedule,
        "model": {
            "name": Path(config.model.name).name,
            "parameters": size.parameters,
            "flops_per_token": size.flops_per_token,
        },
    }


def _data_section(experiment: Experiment) -> dict[str, Any]:
    manifest = experiment.manifest
    return {
        "fingerprint": manifest.fingerprint,
        "vocab_size": manifest.tokenizer.vocab_size,
        "available_tokens": dict(
            zip(experiment.domains, map(int, experiment.available_tokens), strict=True)
        ),
        "bytes_per_token": {name: manifest.bytes_per_token(name) for name in experiment.domains},
    }


def _fit_section(fit: Mapping[str, Any]) -> dict[str, Any]:
    """The fit, with every probe effect next to the noise of a difference between two seeds.

    Probe runs share the seed of the reference run, which cancels part of that noise: the noise
    stated is that of independent runs, hence an upper estimate.
    """
    budgets = []
    for budget in fit["budgets"]:
        sd = budget["seed_noise"]
        noise = None if sd is None else math.sqrt(2) * sd
        effects = [
            {
                "domain": domain,
                "direction": direction,
                "effect": effect,
                "distinguishable": None if noise is None else abs(effect) > 2 * noise,
            }
            for domain, by_direction in budget["effects"].items()
            for direction, effect in by_direction.items()
        ]
        num_references = sum(point["domain"] is None for point in budget["points"])
        budgets.append(
            {
                **budget,
                "effects": effects,
                "difference_noise": noise,
                "num_references": num_references,
                "fitted_change": _fitted_change(budget),
            }
        )
    kept = {key: value for key, value in fit.items() if key not in ("kind", "schema_version")}
    return {**kept, "budgets": budgets}


def _fitted_change(budget: Mapping[str, Any]) -> float:
    """Change of the objective from the reference to the optimum, `sum_i f_i(x_i) - f_i(1)`."""
    solution, reference = budget["solution"]["tokens"], budget["reference_tokens"]
    change = 0.0
    for record in budget["laws"]:
        law, name = PowerLaw.from_dict(record), record["domain"]
        change += float(law(solution[name] / reference[name]) - law(1.0))
    return change * float(budget["base_objective"])


def _projection_section(
    mixture: Mapping[str, Any], fit: Mapping[str, Any] | None, experiment: Experiment
) -> dict[str, Any]:
    """The mixture record with all kinds of projection, and the paper's path for the figure."""
    kept = {key: value for key, value in mixture.items() if key not in ("kind", "schema_version")}
    largest = max(budget.tokens for budget in experiment.config.probe.budgets)
    section = {**kept, "reach": mixture["token_budget"] / largest, "path": None, "kinds": {}}
    small, large = mixture["budgets"]
    optima = {b["token_budget"]: b["solution"]["tokens"] for b in fit["budgets"]} if fit else {}
    if small not in optima or large not in optima:
        return section
    domains, target = experiment.domains, mixture["token_budget"]
    small_K, large_K = ([optima[b][name] for name in domains] for b in (small, large))
    for kind in mixture["alternatives"]:
        projected = project(
            kind,
            domains=domains,
            small_tokens=small_K,
            large_tokens=large_K,
            token_budget=target,
            lower=[mixture["lower"][name] for name in domains],
            upper=[mixture["upper"][name] for name in domains],
        )
        section["kinds"][kind] = {
            "weights": projected.weights.to_dict(),
            "unbounded_weights": projected.unbounded_weights.to_dict(),
            "change_l1": projected.change_l1,
            "bounded": list(projected.bounded),
        }
    if "full" in mixture["alternatives"] and target > small:
        budgets = np.geomspace(sum(small_K), target, PATH_POINTS)
        tokens = [
            full_projection(small_K, large_K, token_budget=budget, domains=domains)[0]
            for budget in budgets
        ]
        section["path"] = {
            "token_budgets": budgets.tolist(),
            "weights": {
                name: [float(at[i] / at.sum()) for at in tokens] for i, name in enumerate(domains)
            },
        }
    return section


def _run_rows(
    experiment: Experiment, targets: Sequence[PlannedTarget]
) -> list[tuple[dict[str, Any], RunSpec]]:
    planned: list[tuple[str, str | None, int | None, RunSpec]] = [
        ("probe", None, p.token_budget, p.spec) for p in experiment.probes()
    ]
    planned += [
        ("train", t.mixture, experiment.config.train.budget.tokens, t.spec) for t in targets
    ]
    rows = []
    for stage, mixture, budget, spec in planned:
        status = experiment.store.status(spec)
        row: dict[str, Any] = {
            "stage": stage,
            "label": spec.label,
            "run_id": experiment.store.folder(spec).name,
            "mixture": mixture,
            "token_budget": budget,
            "seed": spec.seed,
            "status": status,
            "tokens": spec.tokens,
            "total_tokens": spec.total_tokens,
        }
        if status == "finished":
            row |= _result_fields(experiment.store.result(spec))
        elif status == "failed":
            failure = experiment.store.failure(spec)
            row["reason"] = f"{failure.reason}: {failure.message}"
        rows.append((row, spec))
    return rows


def _result_fields(result: RunResult) -> dict[str, Any]:
    return {
        "tokens": dict(result.tokens),
        "total_tokens": result.total_tokens,
        "epochs": dict(result.epochs),
        "final_mean_loss": result.final_mean_loss,
        "final_losses": dict(result.final_losses),
        "seconds": result.seconds,
        "world_size": result.world_size,
        "tokens_per_second": result.tokens_per_second,
        "mfu": result.mfu,
        "flops": result.flops,
    }


def _costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What finished runs took; a run that serves two mixtures counts once."""
    finished = {row["run_id"]: row for row in rows if is_finished(row)}
    target = [row for row in rows if row["mixture"] == "autoscale" and is_finished(row)]
    costs: dict[str, Any] = {
        "probe": _cost([row for row in finished.values() if row["stage"] == "probe"]),
        "train": _cost([row for row in finished.values() if row["stage"] == "train"]),
        "target_run": _cost(target[:1]),
    }
    probes_done = all(is_finished(row) for row in rows if row["stage"] == "probe")
    share = costs["probe"]["flops"] / costs["target_run"]["flops"] if target else None
    return {**costs, "probe_share": share if probes_done else None}


def _cost(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    device_seconds = sum(row["seconds"] * row["world_size"] for row in rows)
    utilised = [row for row in rows if row["mfu"] is not None]
    weight = sum(row["seconds"] * row["world_size"] for row in utilised)
    mfu = sum(row["mfu"] * row["seconds"] * row["world_size"] for row in utilised)
    tokens = sum(row["total_tokens"] for row in rows)
    return {
        "runs": len(rows),
        "tokens": tokens,
        "flops": sum(row["flops"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "device_seconds": device_seconds,
        "tokens_per_device_second": tokens / device_seconds if device_seconds else None,
        "mfu": mfu / weight if weight else None,
    }


def _provenance(results: Iterable[RunResult]) -> dict[str, Any]:
    """What the finished runs were made with; more than one entry is worth a warning."""
    results = list(results)

    def distinct(values: Iterable[Any]) -> list[Any]:
        found: list[Any] = []
        for value in values:
            if value not in found:
                found.append(value)
        return found

    return {
        "versions": distinct(dict(result.versions) for result in results),
        "commits": distinct(result.commit for result in results),
        "devices": distinct(result.device for result in results),
        "world_sizes": distinct(result.world_size for result in results),
        "seeds": sorted({result.spec.seed for result in results}),
        "first_started_at": min((result.started_at for result in results), default=None),
        "last_finished_at": max((result.finished_at for result in results), default=None),
    }


def _commands(config: ExperimentConfig, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    name = EXPERIMENT_FILE
    ranks = max((row["world_size"] for row in rows if is_finished(row)), default=1)
    commands = [{"what": "everything in one job", "command": f"launch/local.sh {name} {ranks}"}]
    steps = {
        "prepare": "text to tokenized shards",
        "plan": "the runs and what they cost",
        "probe": "the probe runs that are left",
        "fit": "laws and the optimum of every probe budget",
        "project": "the mixture for the target budget",
        "train": "the target run and its baselines",
        "report": "this page",
    }
    if config.prepare is None:
        del steps["prepare"]
    commands += [
        {"what": what, "command": f"autoscale {step} {name}"} for step, what in steps.items()
    ]
    return commands


def _weight_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All mixtures that the experiment met, from the reference to the one chosen."""
    rows = [
        {"name": "reference", "token_budget": None, "weights": summary["experiment"]["reference"]}
    ]
    for budget in summary["fit"]["budgets"] if summary["fit"] else ():
        row = {"name": "optimum", "token_budget": budget["token_budget"]}
        rows.append({**row, "weights": budget["solution"]["weights"]})
    projection = summary["projection"]
    if projection is None:
        return rows
    target = projection["token_budget"]
    for kind, found in projection["kinds"].items():
        if found["change_l1"] > 1e-9:
            row = {"name": f"{kind} projection, no bounds", "token_budget": target}
            rows.append({**row, "weights": found["unbounded_weights"]})
        row = {"name": f"{kind} projection", "token_budget": target}
        rows.append({**row, "weights": found["weights"]})
    chosen = {"name": f"chosen ({projection['projection']})", "token_budget": target}
    rows.append({**chosen, "weights": projection["weights"]})
    return rows
