"""Everything that an experiment has found so far, gathered from its artifacts into one dict.

The dict is plain JSON: `report.json` is this dict, and the page, the figures and the tables on the
terminal show nothing that is not in it. It works at any moment of an experiment: what has not been
done is None, and `missing` says which command makes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import ExperimentConfig
from .findings import warnings
from .joint_summary import (
    decision_section,
    joint_fit_section,
    joint_projection_section,
    known_mixtures,
    same_weights,
    with_measured_gains,
)
from .mixture import Mixture
from .model_shape import model_size
from .objective import unit_of
from .outcomes import is_finished, mixture_rows, targets_section
from .planning import Experiment, PlannedTarget
from .published_summary import published_fit_section, published_projection_section
from .records import read_json
from .runs import RunResult, RunSpec
from .stages import artifact, target_mixtures
from .token_count import format_token_count

PUBLISHED = "autoscale"  # the law's name
EXPERIMENT_FILE = "experiment.toml"  # results do not know what theirs was called


def summarise(config: ExperimentConfig) -> dict[str, Any]:
    """Gather the artifacts and run results of an experiment.

    Raises:
        ValueError: the data or an artifact cannot be read, see `Experiment` and `read_json`.
    """
    experiment = Experiment(config)
    missing: list[dict[str, str]] = []
    fit, projection = _law_sections(
        _read("fit", experiment, missing), _read("mixture", experiment, missing), experiment
    )
    mixtures = target_mixtures(experiment) if projection is not None else {}
    targets = experiment.targets(mixtures)
    runs = _run_rows(experiment, targets)
    results = {
        row["run_id"]: experiment.store.result(spec) for row, spec in runs if is_finished(row)
    }
    rows = [row for row, _ in runs]
    listed = mixture_rows(experiment, mixtures, rows, results)
    targets_found = targets_section(experiment, rows, results)
    published = config.fit.law == PUBLISHED
    decision = None if published else decision_section(projection, fit, experiment)
    summary: dict[str, Any] = {
        "name": config.name,
        "domains": list(experiment.domains),
        "sets": list(experiment.sets),
        "experiment": _experiment_section(experiment),
        "data": _data_section(experiment),
        "fit": fit,
        "projection": projection,
        "decision": decision and with_measured_gains(decision, targets_found, listed),
        "mixtures": listed,
        "baselines": _baseline_rows(experiment, mixtures, decision),
        "targets": targets_found,
        "runs": rows,
        "costs": _costs(rows),
        "provenance": _provenance(results.values()),
        "commands": _commands(config, rows),
        "config": config.model_dump(mode="json"),
        "missing": missing + _missing_runs(rows, projection is not None),
    }
    summary["weights"] = _weight_rows(summary)
    summary["warnings"] = warnings(summary)
    return summary


def _law_sections(
    fit: dict[str, Any] | None, mixture: dict[str, Any] | None, experiment: Experiment
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Fit and projection, in the form of the law."""
    if experiment.config.fit.law == PUBLISHED:
        fitted = fit and published_fit_section(fit)
        return fitted, mixture and published_projection_section(mixture, fitted, experiment)
    return (
        fit and joint_fit_section(fit, experiment),
        mixture and joint_projection_section(mixture, experiment),
    )


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
    is_fit = content["kind"] == "fit"
    found = content["domains"] if is_fit else list(content["weights"])
    if sorted(found) != sorted(experiment.domains):
        return f"its domains are {', '.join(found)}"
    measured = content.get("sets", found) if is_fit else None
    if measured is not None and sorted(measured) != sorted(experiment.sets):
        return f"its validation sets are {', '.join(measured)}"
    published = "estimate" not in content if is_fit else "advice" not in content
    if published != (experiment.config.fit.law == PUBLISHED):
        which = "the published law" if published else "a joint law"
        return f"it is of {which}, and fit.law is now {experiment.config.fit.law!r}"
    if is_fit:
        budgets = [entry["token_budget"] for entry in content["budgets"]]
        if budgets != _probe_budgets(experiment):
            return f"its budgets are {', '.join(map(format_token_count, budgets))}"
        return None
    wanted = {b.name for b in experiment.config.train.baselines if b.weights is None}
    absent = sorted(wanted - content["alternatives"].keys() - known_mixtures(experiment).keys())
    return f"it has no mixture {', '.join(absent)}" if absent else None


def _probe_budgets(experiment: Experiment) -> list[int]:
    """Token budgets of the probe runs, rising; models of several sizes may share one."""
    return sorted({budget.tokens for budget in experiment.config.probe.budgets})


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
        "probe_budgets": _probe_budgets(experiment),
        "probe_design": config.probe_design,
        "probe_factors": list(config.probe.factors),
        "concentration": list(config.probe.concentration),
        "fixed_budget": config.fixed_budget,
        "reference": experiment.reference.to_dict(),
        "law": config.fit.law,
        "published": config.fit.law == PUBLISHED,
        "amplitude": config.fit.amplitude,
        "metric": config.fit.metric,
        "repetition": config.fit.repetition,
        "match_repetition": config.probe.match_repetition,
        "objective": objective.to_dict(),
        "unit": unit_of(config.fit.metric, objective),
        "projection": config.projection,
        "max_epochs": config.data.max_epochs,
        "sequence_length": config.data.sequence_length,
        "schedule": config.trainer.schedule,
        "model": {
            "name": Path(config.model.config_source).name,
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
        "bytes_per_token": {name: manifest.find_bytes_per_token(name) for name in experiment.sets},
    }


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


def _baseline_rows(
    experiment: Experiment, mixtures: Mapping[str, Mixture], decision: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """What the mixture stands beside: the baselines of the target runs; with a joint law also the
    mixtures that its gains are stated over, where they are others."""
    rows: list[dict[str, Any]] = [
        {"name": name, "weights": mixture.to_dict(), "trained": True}
        for name, mixture in mixtures.items()
        if name != "autoscale"
    ]
    known = known_mixtures(experiment) if decision is not None else {}
    for name, weights in known.items():
        if not any(same_weights(weights, row["weights"]) for row in rows):
            rows.append({"name": name, "weights": weights, "trained": False})
    return rows


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
        if found.get("change_l1", 0) > 1e-9:  # of the published law's record
            row = {"name": f"{kind} projection, no bounds", "token_budget": target}
            rows.append({**row, "weights": found["unbounded_weights"]})
        row = {"name": f"{kind} projection", "token_budget": target}
        rows.append({**row, "weights": found["weights"]})
    chosen = {"name": f"chosen ({projection['projection']})", "token_budget": target}
    rows.append({**chosen, "weights": projection["weights"]})
    return rows
