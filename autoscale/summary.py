"""Everything that an experiment has found so far, gathered from its artifacts into one dict.

The dict is plain JSON: `report.json` is this dict, and the page, the figures and the tables on the
terminal show nothing that is not in it. It works at any moment of an experiment: what has not been
done is None, and `missing` says which command makes it.

Tokens saved compare a curve with the end of another. The learning rate of a run decays towards its
own end, so a curve read in its middle is higher than a run that ends there: a low estimate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from . import comparison
from .config import ExperimentConfig
from .findings import verdict_sentence, warnings
from .model_shape import model_size
from .objective import Objective
from .planning import Experiment, PlannedTarget
from .projection import full_projection, project
from .records import read_json
from .runs import RunResult, RunSpec
from .scaling_law import PowerLaw
from .stages import artifact, target_mixtures
from .token_count import format_token_count

PATH_POINTS = 33
CONFIDENCE = 0.9
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
    results = {row["run_id"]: experiment.store.result(spec) for row, spec in runs if _done(row)}
    rows = [row for row, _ in runs]
    summary: dict[str, Any] = {
        "name": config.name,
        "domains": list(experiment.domains),
        "experiment": _experiment_section(experiment),
        "data": _data_section(experiment),
        "fit": fit,
        "projection": mixture and _projection_section(mixture, fit, experiment),
        "mixtures": _mixture_rows(experiment, mixtures, rows, results),
        "targets": _targets_section(experiment, rows, results),
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
        left = [row for row in planned if not _done(row)]
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


def _done(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] == "finished")


def _experiment_section(experiment: Experiment) -> dict[str, Any]:
    config = experiment.config
    size = model_size(experiment.model, config.data.sequence_length)
    objective = Objective.create(
        config.fit.objective, experiment.domains, config.fit.objective_weights
    )
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


def _mixture_rows(
    experiment: Experiment,
    mixtures: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    results: Mapping[str, RunResult],
) -> list[dict[str, Any]]:
    """Each mixture of the target runs with what its finished runs gave, on average over seeds."""
    objective = Objective.create(
        experiment.config.fit.objective,
        experiment.domains,
        experiment.config.fit.objective_weights,
    )
    listed = []
    for name, mixture in mixtures.items():
        of_mixture = [row for row in rows if row["mixture"] == name]
        done = [results[row["run_id"]] for row in of_mixture if _done(row)]
        entry: dict[str, Any] = {
            "name": name,
            "weights": mixture.to_dict(),
            "seeds": [result.spec.seed for result in done],
            "num_planned": len(of_mixture),
        }
        if done:
            loss = fmean(result.final_mean_loss for result in done)
            entry |= {
                "final_mean_loss": loss,
                "perplexity": math.exp(loss),
                "objective": fmean(objective.value(result.final_losses) for result in done),
                "tokens": dict(done[0].tokens),
                "epochs": dict(done[0].epochs),
                "domains": _domain_losses(done, experiment),
                "curve": _curve(done),
            }
        listed.append(entry)
    return listed


def _domain_losses(done: Sequence[RunResult], experiment: Experiment) -> dict[str, Any]:
    table = {}
    for name in experiment.domains:
        losses = [result.final_losses[name] for result in done]
        loss = fmean(losses)
        table[name] = {
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": loss / math.log(2) / experiment.manifest.bytes_per_token(name),
        }
    return table


def _curve(done: Sequence[RunResult]) -> dict[str, Any]:
    """Mean and range over seeds of the loss, at the token counts that all of them evaluated."""
    by_seed = [{e.tokens: e.mean_loss for e in result.evaluations} for result in done]
    common = sorted(set.intersection(*(set(seed) for seed in by_seed)) - {0})
    losses = [[seed[tokens] for seed in by_seed] for tokens in common]
    return {
        "tokens": common,
        "mean": [fmean(values) for values in losses],
        "low": [min(values) for values in losses],
        "high": [max(values) for values in losses],
    }


def _targets_section(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]], results: Mapping[str, RunResult]
) -> dict[str, Any] | None:
    done = [row for row in rows if row["stage"] == "train" and _done(row)]
    if not done:
        return None
    noise = _seed_noise(experiment, rows)
    baselines = [baseline.name for baseline in experiment.config.train.baselines]
    compared = (_compare(name, done, results, noise) for name in baselines)
    return {
        "token_budget": experiment.config.train.budget.tokens,
        "seed_noise": noise,
        "comparisons": [entry for entry in compared if entry is not None],
    }


def _seed_noise(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Noise of the final mean loss between seeds: of the target runs, else of the probe runs."""
    largest = max(budget.tokens for budget in experiment.config.probe.budgets)
    references = {
        planned.spec.label
        for planned in experiment.probes()
        if planned.probe.domain is None and planned.token_budget == largest
    }
    finished = [row for row in rows if _done(row)]
    targets = {row["run_id"]: row for row in finished if row["stage"] == "train"}.values()
    groups: dict[str, dict[str, list[float]]] = {
        "target runs": {},
        f"reference probe runs at {format_token_count(largest)}": {
            "reference": [r["final_mean_loss"] for r in finished if r["label"] in references]
        },
    }
    for row in targets:
        groups["target runs"].setdefault(row["mixture"], []).append(row["final_mean_loss"])
    for source, by_name in groups.items():
        values = list(by_name.values())
        sd = comparison.pooled_seed_noise(values)
        if sd is not None:
            degrees = sum(len(group) - 1 for group in values)
            difference = math.sqrt(2) * sd
            return {
                "sd": sd,
                "difference": difference,
                "source": source,
                "degrees_of_freedom": degrees,
            }
    return {"sd": None, "difference": None, "source": None, "degrees_of_freedom": 0}


def _compare(
    baseline: str,
    done: Sequence[Mapping[str, Any]],
    results: Mapping[str, RunResult],
    noise: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The AutoScale mixture against one baseline, over the seeds that both have finished."""
    ours, theirs = (
        {row["seed"]: row["run_id"] for row in done if row["mixture"] == name}
        for name in ("autoscale", baseline)
    )
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    pairs = [(results[ours[seed]], results[theirs[seed]]) for seed in seeds]
    difference = comparison.paired_difference(
        [a.final_mean_loss for a, _ in pairs],
        [b.final_mean_loss for _, b in pairs],
        confidence=CONFIDENCE,
        noise=noise["sd"],
    )
    by_seed = [_savings(seed, *pair) for seed, pair in zip(seeds, pairs, strict=True)]
    reached = [entry for entry in by_seed if entry["reached"]]
    everywhere = len(reached) == len(by_seed)
    entry: dict[str, Any] = {
        "baseline": baseline,
        "same_runs": all(ours[seed] == theirs[seed] for seed in seeds),
        "seeds": seeds,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "standard_error": difference.standard_error,
        "confidence": difference.confidence,
        "verdict": difference.verdict,
        "noise": noise["sd"],
        "noise_source": noise["source"],
        "num_reached": len(reached),
        "tokens_saved": fmean(e["tokens_saved"] for e in reached) if everywhere else None,
        "speed_up": fmean(e["speed_up"] for e in reached) if everywhere else None,
        "by_seed": by_seed,
        "domains": {
            name: fmean(a.final_losses[name] - b.final_losses[name] for a, b in pairs)
            for name in pairs[0][0].final_losses
        },
    }
    return {**entry, "sentence": verdict_sentence(entry)}


def _savings(seed: int, ours: RunResult, theirs: RunResult) -> dict[str, Any]:
    seen = [evaluation for evaluation in ours.evaluations if evaluation.tokens > 0]
    saved = comparison.savings(
        [evaluation.tokens for evaluation in seen],
        [evaluation.mean_loss for evaluation in seen],
        baseline_tokens=theirs.evaluations[-1].tokens,
        baseline_final_loss=theirs.final_mean_loss,
    )
    return {
        "seed": seed,
        "difference": ours.final_mean_loss - theirs.final_mean_loss,
        "reached": saved.reached,
        "tokens": saved.tokens,
        "tokens_saved": saved.tokens_saved,
        "speed_up": saved.speed_up,
    }


def _costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What finished runs took; a run that serves two mixtures counts once."""
    finished = {row["run_id"]: row for row in rows if _done(row)}
    target = [row for row in rows if row["mixture"] == "autoscale" and _done(row)]
    costs: dict[str, Any] = {
        "probe": _cost([row for row in finished.values() if row["stage"] == "probe"]),
        "train": _cost([row for row in finished.values() if row["stage"] == "train"]),
        "target_run": _cost(target[:1]),
    }
    probes_done = all(_done(row) for row in rows if row["stage"] == "probe")
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
    ranks = max((row["world_size"] for row in rows if _done(row)), default=1)
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
