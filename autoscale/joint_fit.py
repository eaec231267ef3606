"""`fit` and `project` with a joint law: from probe results to a law, from the law to a mixture."""

# K domains

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decision import Advice, Question, advise
from .estimate import Estimate, Options, estimate, estimate_at_largest_budget
from .experiment_table import FinishedProbe, ProbeTable, probe_table
from .laws.repetition import PUBLISHED_RATE, Repetition
from .mixture import Mixture
from .mixture_objective import Pull
from .model_shape import model_size
from .objective import Objective
from .planning import Experiment
from .projection import ProjectionKind
from .projection import project as project_tokens
from .run_table import RunTable
from .token_count import format_token_count

Array = NDArray[np.float64]

SAME_BUDGET = 0.35  # logarithm; runs one at a time differ in their total
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
    found, kept = _estimate(experiment, probes, options)
    budgets = sorted({planned.token_budget for planned, _ in finished})
    content: dict[str, Any] = {
        "law": config.fit.law,
        "objective": experiment.objective.to_dict(),
        "metric": config.fit.metric,
        "domains": list(experiment.domains),
        "reference": experiment.reference.to_dict(),
        "estimate": found.to_dict(),
        "uses_smaller_budgets": kept,
        "projection": "joint" if kept else "hold",
        "projection_reason": _projection_reason(budgets, kept),
        "budgets": [],
    }
    for token_budget in budgets:
        here = found
        if not kept and token_budget < budgets[-1]:  # the law knows the largest budget only
            here = _estimate_of_budget(probes.table, token_budget, found, options)
        advice = _advise(experiment, here, token_budget, held_at=None)
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
            "project.projection 'joint' needs a law that knows several token budgets, and this fit "
            f"uses one ({fitted['projection_reason']}); use 'hold' or 'auto'"
        )
    mixtures |= _paths(experiment, fitted, token_budget)
    chosen = mixtures[kind]
    lower_K, upper_K = experiment.bounds(token_budget)
    on_path = kind in ("full", "damped")
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
    return Objective.create("mean_loss", experiment.domains, experiment.objective.weights)


def _estimate(
    experiment: Experiment, probes: ProbeTable, options: Options
) -> tuple[Estimate, bool]:
    """The law, and whether it knows more budgets than the largest."""
    objective = fit_objective(experiment)
    table = probes.table
    on_the_way = probes.run_weights < 1
    if table.has_sizes or on_the_way.any():
        found = estimate(
            table,
            objective,
            options,
            noise=probes.noise,
            run_weights=probes.run_weights,
            judged=~on_the_way,
        )
        return found, table.has_budgets
    return estimate_at_largest_budget(table, objective, options, noise=probes.noise)


def _estimate_of_budget(
    table: RunTable, token_budget: int, found: Estimate, options: Options
) -> Estimate:
    """The chosen law fitted to the runs of one budget alone."""
    assert table.tokens is not None
    near = np.abs(np.log(table.tokens / token_budget)) < SAME_BUDGET
    return estimate(table.select(near), found.objective, replace(options, law=found.law.law))


def _repetition(experiment: Experiment, probes: ProbeTable) -> Repetition | None:
    """The worth of repeated tokens, where the experiment models it and anything could repeat."""
    asked = experiment.config.fit.repetition
    if asked == "none":
        return None
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


def _projection_reason(budgets: Sequence[int], kept: bool) -> str:
    largest = format_token_count(budgets[-1])
    if len(budgets) == 1:
        return (
            f"The probes have one budget, {largest}: its optimum is held, for nothing measured how "
            "it changes with tokens."
        )
    if kept:
        return (
            "The runs at smaller budgets lower the held-out error on the mixtures of "
            f"{largest}: the joint law is solved at the target."
        )
    return (
        f"The runs at smaller budgets do not lower the held-out error on the mixtures of {largest}: "
        "its optimum is held."
    )


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
    references = [objective.value(r.final_losses) for p, r in runs if p.probe.is_reference]
    weights = advice.optimum.mixture.to_dict()
    lower_K, upper_K = experiment.bounds(token_budget)
    return {
        "token_budget": token_budget,
        "num_runs": len(runs),
        "seed_noise": float(np.std(references, ddof=1)) if len(references) > 1 else None,
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


def _paths(
    experiment: Experiment, fitted: Mapping[str, Any], token_budget: int
) -> dict[str, Mixture]:
    """The published path and its damped form through the optima of two budgets, if there are."""
    pair = experiment.config.projection_budgets
    if pair is None or token_budget < pair[0]:
        return {}
    tokens = {entry["token_budget"]: entry["solution"]["tokens"] for entry in fitted["budgets"]}
    if float(np.min(experiment.bounds(pair[0])[0])) <= 0:
        return {}
    lower_K, upper_K = experiment.bounds(token_budget)
    kinds: tuple[ProjectionKind, ...] = ("full", "damped")
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
        for kind in kinds
    }
