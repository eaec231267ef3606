"""What the target runs gave: each mixture by itself, and the AutoScale mixture against the others.

Tokens saved compare a curve with the end of another. The learning rate of a run decays towards its
own end, so a curve read in its middle is higher than a run that ends there: a low estimate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from . import comparison
from .findings import verdict_sentence
from .mixture import Mixture
from .model_shape import is_masked
from .objective import Objective
from .planning import Experiment
from .runs import RunResult
from .token_count import format_token_count

CONFIDENCE = 0.9


def is_finished(row: Mapping[str, Any]) -> bool:
    """Whether a run row of the summary has a result."""
    return bool(row["status"] == "finished")


def mixture_rows(
    experiment: Experiment,
    mixtures: Mapping[str, Mixture],
    rows: Sequence[Mapping[str, Any]],
    results: Mapping[str, RunResult],
) -> list[dict[str, Any]]:
    """Each mixture of the target runs with what its finished runs gave, on average over seeds."""
    objective = experiment.objective
    listed = []
    for name, mixture in mixtures.items():
        of_mixture = [row for row in rows if row["mixture"] == name]
        done = [results[row["run_id"]] for row in of_mixture if is_finished(row)]
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
                "sets": _set_losses(done, experiment),
                "curve": _curve(done),
            }
        listed.append(entry)
    return listed


def _set_losses(done: Sequence[RunResult], experiment: Experiment) -> dict[str, Any]:
    table = {}
    for name in experiment.sets:
        losses = [result.final_losses[name] for result in done]
        loss = fmean(losses)
        masked = is_masked(experiment.model)  # some tokens of a text say nothing of its bytes
        size = None if masked else experiment.manifest.find_bytes_per_token(name)
        table[name] = {
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": None if size is None else loss / math.log(2) / size,
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


def targets_section(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]], results: Mapping[str, RunResult]
) -> dict[str, Any] | None:
    done = [row for row in rows if row["stage"] == "train" and is_finished(row)]
    if not done:
        return None
    noise = _seed_noise(experiment, rows, lambda row: float(row["final_mean_loss"]))
    objective = experiment.objective
    gain_noise = _seed_noise(experiment, rows, lambda row: objective.value(row["final_losses"]))
    comparisons = []
    for baseline in experiment.config.train.baselines:
        entry = _compare(baseline.name, done, results, noise)
        if entry is not None:
            gain = _gain(_pairs(baseline.name, done, results), objective, gain_noise)
            comparisons.append({**entry, "gain": gain})
    return {
        "token_budget": experiment.config.train.budget.tokens,
        "seed_noise": noise,
        "comparisons": comparisons,
    }


def _seed_noise(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], float],
) -> dict[str, Any]:
    """Noise of a value of runs between seeds: of the target runs, else of the probe runs."""
    largest = max(budget.tokens for budget in experiment.config.probe.budgets)
    size_of = {
        planned.spec.label: planned.parameters
        for planned in experiment.probes()
        if planned.probe.is_reference and planned.token_budget == largest
    }
    finished = [row for row in rows if is_finished(row)]
    targets = {row["run_id"]: row for row in finished if row["stage"] == "train"}.values()
    of_targets: dict[str, list[float]] = {}
    for row in targets:
        of_targets.setdefault(row["mixture"], []).append(value(row))
    of_references: dict[int, list[float]] = {}
    for row in finished:
        if row["label"] in size_of:
            of_references.setdefault(size_of[row["label"]], []).append(value(row))
    for source, values in (
        ("target runs", list(of_targets.values())),
        (f"reference probe runs at {format_token_count(largest)}", list(of_references.values())),
    ):
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


def _pairs(
    baseline: str, done: Sequence[Mapping[str, Any]], results: Mapping[str, RunResult]
) -> list[tuple[RunResult, RunResult]]:
    """Results of the AutoScale mixture and of a baseline, for the seeds that both finished."""
    ours, theirs = (
        {row["seed"]: results[row["run_id"]] for row in done if row["mixture"] == name}
        for name in ("autoscale", baseline)
    )
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def _gain(
    pairs: Sequence[tuple[RunResult, RunResult]], objective: Objective, noise: Mapping[str, Any]
) -> dict[str, float | None]:
    """By how much the objective of the AutoScale mixture ends below the baseline's."""
    difference = comparison.paired_difference(
        [objective.value(theirs.final_losses) for _, theirs in pairs],
        [objective.value(ours.final_losses) for ours, _ in pairs],
        confidence=CONFIDENCE,
        noise=noise["sd"],
        noise_degrees=noise["degrees_of_freedom"] or None,
    )
    return {"mean": difference.mean, "low": difference.low, "high": difference.high}


def _compare(
    baseline: str,
    done: Sequence[Mapping[str, Any]],
    results: Mapping[str, RunResult],
    noise: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The AutoScale mixture against one baseline, over the seeds that both have finished."""
    pairs = _pairs(baseline, done, results)
    if not pairs:
        return None
    seeds = [ours.spec.seed for ours, _ in pairs]
    difference = comparison.paired_difference(
        [a.final_mean_loss for a, _ in pairs],
        [b.final_mean_loss for _, b in pairs],
        confidence=CONFIDENCE,
        noise=noise["sd"],
        noise_degrees=noise["degrees_of_freedom"] or None,
    )
    by_seed = [_savings(seed, *pair) for seed, pair in zip(seeds, pairs, strict=True)]
    reached = [entry for entry in by_seed if entry["reached"]]
    everywhere = len(reached) == len(by_seed)
    entry: dict[str, Any] = {
        "baseline": baseline,
        "same_runs": all(a is b for a, b in pairs),
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
        "sets": {
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
