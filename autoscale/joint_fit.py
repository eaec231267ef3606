"""`fit` and `project` with a joint law: from probe results to a law, from the law to a mixture."""

# K domains

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decision import Advice, Question, advise
from .estimate import Estimate, Options, estimate, estimate_at_largest_budget
from .experiment_table import FinishedProbe, ProbeTable, probe_table
from .laws.repetition import PUBLISHED_RATE, Repetition
from .laws.trees import TreeLaw
from .mixture import Mixture
from .mixture_objective import Pull
from .model_shape import model_size
from .objective import Objective
from .planning import Experiment, PlannedProbe
from .projection import ProjectionKind
from .projection import project as project_tokens
from .token_count import format_token_count

Index = NDArray[np.int64]

PATHS: tuple[ProjectionKind, ...] = ("full", "damped")
WORTH_MODELLING = 1.05  # epochs from which repetition is part of the law


def fit_joint(experiment: Experiment, finished: Sequence[FinishedProbe]) -> dict[str, Any]:
    """Content of `fit.json`: the law chosen, and its optimum at every probe budget.

    Raises:
        ValueError: the runs cannot carry a law.
    """
    config = experiment.config
    probes = probe_table(experiment, finished)
    options = Options(
        law=config.fit.law,
        folds=config.fit.folds,
        draws=config.fit.draws,
        seed=config.seed,
        repetition=_repetition(experiment, probes),
        fit_rate=config.fit.repetition == "fit",
    )
    found, kept, reason = _estimate(experiment, probes, options)
    budgets = np.unique(probes.budgets).tolist()
    content: dict[str, Any] = {
        "law": config.fit.law,
        "objective": experiment.objective.to_dict(),
        "metric": config.fit.metric,
        "domains": list(experiment.domains),
        "sets": list(experiment.sets),
        "available_tokens": dict(zip(experiment.domains, experiment.available_tokens, strict=True)),
        "reference": experiment.reference.to_dict(),
        "estimate": found.to_dict(),
        "uses_smaller_budgets": kept,
        "projection": "joint" if kept else "hold",
        "projection_reason": reason,
        "budgets": [],
    }
    for token_budget in budgets:
        if kept or token_budget == budgets[-1]:
            advice = _advise(experiment, found, token_budget, held_at=None)
        else:  # the law knows the largest budget only
            advice = _optimum_of_smaller(experiment, probes, token_budget, found, options)
        runs = [(p, r) for p, r in finished if p.token_budget == token_budget]
        content["budgets"].append(_budget(experiment, token_budget, advice, runs))
    return content


def project_joint(
    experiment: Experiment, fitted: Mapping[str, Any], token_budget: int
) -> dict[str, Any]:
    """Content of `mixture-<budget>.json`, in the projection asked for."""
    found = Estimate.from_dict(fitted["estimate"])
    asked = experiment.config.projection
    kind = fitted["projection"] if asked == "auto" else asked
    reason = fitted["projection_reason"] if asked == "auto" else f"{kind!r} was asked for."
    largest = max(entry["token_budget"] for entry in fitted["budgets"])
    held = _advise(experiment, found, token_budget, held_at=largest)
    mixtures = {"hold": held.optimum.mixture}
    advice = held
    if fitted["uses_smaller_budgets"]:
        joint = _advise(experiment, found, token_budget, held_at=None)
        mixtures["joint"] = joint.optimum.mixture
        advice = joint if kind == "joint" else held
    elif kind == "joint":
        raise ValueError(
            "project.projection 'joint' needs a law of several token budgets, and that of fit.json "
            f"knows one ({fitted['projection_reason']}); with probes at another budget run "
            "`autoscale fit` again, or use 'hold' or 'auto'"
        )
    on_path = kind in PATHS
    mixtures |= _paths(experiment, fitted, token_budget, required=on_path)
    chosen = mixtures[kind]
    lower_K, upper_K = experiment.bounds(token_budget)
    return {
        "token_budget": token_budget,
        "projection": kind,
        "reason": reason,
        "weights": chosen.to_dict(),
        "lower": dict(zip(experiment.domains, lower_K.tolist(), strict=True)),
        "upper": dict(zip(experiment.domains, upper_K.tolist(), strict=True)),
        "advice": None if on_path else advice.to_dict(),
        "alternatives": {name: mixture.to_dict() for name, mixture in mixtures.items()},
    }


def fit_objective(experiment: Experiment) -> Objective:
    """The objective of losses in `fit.metric`: a table in bits per byte is not converted again."""
    if experiment.config.fit.metric == "nats":
        return experiment.objective
    return Objective.create("mean_loss", experiment.sets, experiment.objective.weights)


def _estimate(
    experiment: Experiment, probes: ProbeTable, options: Options
) -> tuple[Estimate, bool, str]:
    """The law, whether it knows more budgets than the largest, and why in a sentence."""
    config, objective = experiment.config, fit_objective(experiment)
    table, budgets, final, noise = probes
    assert table.tokens is not None
    largest = budgets == budgets.max()
    several = not largest.all()
    if several and final.all() and not table.has_sizes:
        asked = config.projection == "joint"
        found, kept = estimate_at_largest_budget(
            table, objective, options, noise=noise, largest=largest, keep=asked or None
        )
        return found, kept, _reason(probes, kept, asked)
    on_the_way = np.where(final, 1.0, config.fit.trajectories)
    found = estimate(
        table,
        objective,
        options,
        noise=noise,
        run_weights=on_the_way * table.tokens / table.tokens.max(),
        judged=final,
    )
    return found, several, _reason(probes, several, asked=False)


def _reason(probes: ProbeTable, kept: bool, asked: bool) -> str:
    """Why the law knows several budgets, or one."""
    budgets, final = probes.budgets, probes.final
    largest = format_token_count(int(budgets.max()))
    if (budgets == budgets.max()).all():
        return (
            f"The probes have one budget, {largest}: its optimum is held, for nothing measured how "
            "it changes with tokens."
        )
    if probes.table.has_sizes or not final.all():
        what = "of several model sizes" if probes.table.has_sizes else "with their trajectories"
        return f"The runs {what} enter one fit: the joint law is solved at the target."
    if asked and kept:
        return "The law of all probe budgets was asked for: it is solved at the target."
    if kept:
        return (
            "The runs at smaller budgets lower the held-out error on the mixtures of "
            f"{largest}: the joint law is solved at the target."
        )
    return (
        "The runs at smaller budgets do not lower the held-out error on the mixtures of "
        f"{largest}: its optimum is held."
    )


def _optimum_of_smaller(
    experiment: Experiment,
    probes: ProbeTable,
    token_budget: int,
    found: Estimate,
    options: Options,
) -> Advice:
    """The optimum at a smaller budget, by the law chosen fitted to its runs alone."""
    table = probes.table.select(probes.budgets == token_budget)
    if len(np.unique(table.mixture_groups())) < table.num_domains:
        advice = _advise(experiment, found, token_budget, held_at=None)
        few = (
            f"The runs at {format_token_count(token_budget)} are too few for a law of their own; "
            "this is the law of the largest budget."
        )
        return replace(advice, warnings=(*advice.warnings, few))
    law = found.law
    options = replace(
        options,
        law=law.law,
        repetition=None if isinstance(law, TreeLaw) else law.repetition,
        fit_rate=False,
    )
    here = estimate(table, found.objective, options)
    return _advise(experiment, here, token_budget, held_at=None)


def _repetition(experiment: Experiment, probes: ProbeTable) -> Repetition | None:
    """The worth of repeated tokens, where the experiment models it and anything could repeat."""
    asked = experiment.config.fit.repetition
    law = experiment.config.fit.law
    if asked == "none" or (law == "trees" and asked == "auto"):
        return None
    if experiment.config.probe.match_repetition:
        # At every mixture the probes repeat what the target run would: their losses hold its price.
        return None
    if law == "trees":
        raise ValueError(
            f"fit.repetition ({asked}) has no place in law 'trees', which knows no tokens of "
            "domains; use 'none' or 'auto', or another law"
        )
    unique_K = np.array(experiment.available_tokens, dtype=np.float64)
    if asked == "auto":
        table = probes.table
        assert table.tokens is not None
        drawn = (table.weights * table.tokens[:, None]).max(axis=0)
        _, upper_K = experiment.bounds(experiment.config.train.budget.tokens)
        possible = upper_K * experiment.config.train.budget.tokens
        if (np.maximum(drawn, possible) <= WORTH_MODELLING * unique_K).all():
            return None
    rate = PUBLISHED_RATE if asked in ("auto", "fit") else float(asked)
    return Repetition(rate=rate, unique_tokens=unique_K)


def _advise(
    experiment: Experiment, found: Estimate, token_budget: int, *, held_at: int | None
) -> Advice:
    config = experiment.config
    prior = config.solve.prior
    size = model_size(experiment.model, config.data.sequence_length).parameters
    baselines = {
        "uniform": Mixture.uniform(experiment.domains),
        "natural": Mixture.natural(experiment.domains, experiment.available_tokens),
        "reference": experiment.reference,
    }
    question = Question(
        token_budget=token_budget,
        parameters=size,
        constraints=experiment.constraints(token_budget),
        baselines=baselines,
        reference=experiment.reference,
        held_at=held_at,
        no_harm=config.solve.no_harm,
        pull=None
        if prior is None or experiment.prior is None
        else Pull(kind=prior.kind, strength=prior.strength, mixture=experiment.prior),
    )
    return advise(found, question)


def _budget(
    experiment: Experiment,
    token_budget: int,
    advice: Advice,
    runs: Sequence[FinishedProbe],
) -> dict[str, Any]:
    """The runs of a budget with what the law says of them, and its optimum there."""
    domains, objective = experiment.domains, experiment.objective
    references = [(p, objective.value(r.final_losses)) for p, r in runs if p.probe.is_reference]
    weights = advice.optimum.mixture.to_dict()
    lower_K, upper_K = experiment.bounds(token_budget)
    return {
        "token_budget": token_budget,
        "num_runs": len(runs),
        "seed_noise": _spread_by_size(references),
        "num_references": len(references),
        "points": [
            {
                "run_id": planned.spec.run_id,
                "label": planned.probe.label,
                "seed": planned.probe.seed,
                "is_reference": planned.probe.is_reference,
                "parameters": planned.parameters,
                "tokens": dict(result.tokens),
                "objective": objective.value(result.final_losses),
                "losses": dict(result.final_losses),
            }
            for planned, result in runs
        ],
        "solution": advice.to_dict()
        | {
            "weights": weights,
            "tokens": {name: weight * token_budget for name, weight in weights.items()},
            "lower": dict(zip(domains, lower_K.tolist(), strict=True)),
            "upper": dict(zip(domains, upper_K.tolist(), strict=True)),
        },
    }


def _spread_by_size(references: Sequence[tuple[PlannedProbe, float]]) -> float | None:
    """Standard deviation between seeds, pooled over model sizes; None without repeated runs."""
    by_size: dict[int, list[float]] = {}
    for planned, value in references:
        by_size.setdefault(planned.parameters, []).append(value)
    degrees = len(references) - len(by_size)
    squares = sum(float(np.var(values)) * len(values) for values in by_size.values())
    return math.sqrt(squares / degrees) if degrees else None


def _paths(
    experiment: Experiment, fitted: Mapping[str, Any], token_budget: int, *, required: bool
) -> dict[str, Mixture]:
    """The published path and its damped form through the optima of two budgets, if there are.

    Args:
        required: whether to raise ValueError where there are none.
    """
    pair = experiment.config.projection_budgets
    if not required:
        if pair is None or token_budget < pair[0]:
            return {}
        if float(np.min(experiment.bounds(pair[0])[0])) <= 0:
            return {}
    assert pair is not None  # the config was checked
    tokens = {entry["token_budget"]: entry["solution"]["tokens"] for entry in fitted["budgets"]}
    if pair[0] not in tokens or pair[1] not in tokens:
        raise ValueError(
            f"fit.json has no optimum at {format_token_count(pair[0])} and "
            f"{format_token_count(pair[1])}; run `autoscale fit` again"
        )
    lower_K, upper_K = experiment.bounds(token_budget)
    return {
        kind: project_tokens(
            kind,
            domains=experiment.domains,
            small_tokens=[tokens[pair[0]][name] for name in experiment.domains],
            large_tokens=[tokens[pair[1]][name] for name in experiment.domains],
            token_budget=token_budget,
            lower=lower_K,
            upper=upper_K,
        ).weights
        for kind in PATHS
    }
