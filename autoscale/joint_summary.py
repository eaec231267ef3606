"""What a summary holds of a joint law: how it was chosen, what it advises, how sure it is."""

# P runs, K domains

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .decision import SURE
from .estimate import Estimate
from .law_choice import Candidate
from .laws.average import AveragedLaw
from .laws.fitted_law import FittedLaw
from .laws.frame import Form
from .laws.records import Law
from .laws.rescaled import RescaledLaw
from .laws.trees import TreeLaw
from .mixture import Mixture
from .objective import Objective, unit_of
from .planning import Experiment
from .token_count import format_token_count

SAME_WEIGHT = 1e-9
EDGES = {"tokens": "the largest token budgets", "size": "the largest models"}
WORTH_LAWS = ("eti", "etk")  # laws whose parameters say what a domain's tokens are worth


def joint_fit_section(fit: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """The fit without its bootstrap draws, with what the law says of the runs it was fitted to."""
    record = fit["estimate"]
    found = Estimate.from_dict(record)
    best = record["scores"][0]
    candidates = [
        {
            "name": _describe(score),
            "chosen": score is best,
            "objective_error": score["objective_error"],
            "mean_set_error": float(np.mean(list(score["set_errors"].values()))),
            "advantage": score["advantage"],
        }
        for score in record["scores"]
    ]
    # Trees follow the runs that they were fitted to: their predictions of them would say nothing.
    law = None if isinstance(found.law, TreeLaw) else found.law
    largest = fit["budgets"][-1]["token_budget"]
    left_out = ("kind", "schema_version", "estimate", "budgets")
    repetition = law and law.repetition
    return {
        **{key: value for key, value in fit.items() if key not in left_out},
        "chosen": best["law"],
        "candidates": candidates,
        "reason": record["reason"],
        "objective_noise": record["objective_noise"],
        "relative": record["relative"],
        "facts": record["facts"],
        "warnings": record["warnings"],
        "repetition_rate": repetition and repetition.rate,
        "edges": [
            f"Fitted without {EDGES[edge]}, it misses the losses there by {error:.2%}."
            for edge, error in record["edge_errors"].items()
        ],
        "corrected_size": found.law.size if isinstance(found.law, RescaledLaw) else None,
        "sets": _sets(found, best),
        "parameters": _parameters(found.law),
        "worth": _worth(found.law, experiment.reference),
        "budgets": [
            _budget(
                budget,
                law if fit["uses_smaller_budgets"] or budget["token_budget"] == largest else None,
                found.objective,
                experiment,
            )
            for budget in fit["budgets"]
        ],
    }


def _describe(score: Mapping[str, Any]) -> str:
    """A candidate with its forms, such as `eti, tokens both`."""
    forms = tuple(Form(**form) for form in score["forms"])
    return Candidate(law=score["law"], forms=forms).describe()


def _sets(found: Estimate, best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every validation set with the errors of its law."""
    noise, law = found.facts.seed_noise, found.law
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "held_out_error": best["set_errors"][name],
            "seed_noise": noise and noise[name],
            "effective_parameters": None,
            "converged": None,
        }
        for name in law.sets
    ]
    if not isinstance(law, TreeLaw):
        for row, number, done in zip(rows, law.effective_parameters, law.converged, strict=True):
            row |= {"effective_parameters": float(number), "converged": done}
    return rows


def _members(law: Law) -> Sequence[FittedLaw]:
    """The fits that a law consists of; none of trees."""
    if isinstance(law, TreeLaw):
        return ()
    base = law.base if isinstance(law, RescaledLaw) else law
    return base.members if isinstance(base, AveragedLaw) else (base,)


def _parameters(law: Law) -> list[dict[str, Any]]:
    """The numbers that describe the law of every set, form by form, less those by domain."""
    return [
        {
            "form": " and ".join(
                f"{what} {where}"
                for what, where in member.form.to_dict().items()
                if where != "none"
            ),
            "sets": {
                name: {key: value for key, value in own.items() if not isinstance(value, Mapping)}
                for name, own in member.readable().items()
            },
        }
        for member in _members(law)
    ]


def _worth(law: Law, reference: Mixture) -> dict[str, dict[str, float]] | None:
    """What a further token of each domain is worth to every validation set.

    In tokens of the set's own domain, at the reference mixture: `t k w^(k-1)` over the same of the
    own domain; of several forms the mean. None for laws that have no transfers; sets without a
    domain are left out.
    """
    if law.law not in WORTH_LAWS:
        return None
    weights = reference.to_dict()
    found: dict[str, list[dict[str, float]]] = {}
    for member in _members(law):
        for name, own in member.readable().items():
            power, transfer = own["power"], own["transfer"]
            further = {
                domain: transfer[domain] * power[domain] * weights[domain] ** (power[domain] - 1)
                for domain in law.domains
            }
            if name in further:
                ratios = {domain: value / further[name] for domain, value in further.items()}
                found.setdefault(name, []).append(ratios)
    return {
        name: {domain: float(np.mean([row[domain] for row in rows])) for domain in law.domains}
        for name, rows in found.items()
    }


def _budget(
    budget: Mapping[str, Any], law: Law | None, objective: Objective, experiment: Experiment
) -> dict[str, Any]:
    """A probe budget, every run with what the law says of it, if it knows that budget."""
    sd = budget["seed_noise"]
    points = _in_metric(budget["points"], experiment)
    predicted = [None] * len(points) if law is None else _predicted(points, law, objective)
    return {
        **budget,
        "difference_noise": None if sd is None else math.sqrt(2) * sd,
        "points": [
            {**point, "predicted": value} for point, value in zip(points, predicted, strict=True)
        ],
    }


def _in_metric(points: Sequence[Mapping[str, Any]], experiment: Experiment) -> list[dict[str, Any]]:
    """Points with their losses in the unit of `fit.metric`, as the law has them."""
    if experiment.config.fit.metric == "nats":
        return [dict(point) for point in points]
    unit = {
        name: math.log(2) * experiment.manifest.bytes_per_token(name) for name in experiment.sets
    }
    return [
        {**point, "losses": {name: loss / unit[name] for name, loss in point["losses"].items()}}
        for point in points
    ]


def _predicted(
    points: Sequence[Mapping[str, Any]], law: Law, objective: Objective
) -> list[dict[str, Any]]:
    """The law's losses and objective for every run."""
    tokens_PK = np.array([[run["tokens"][name] for name in law.domains] for run in points], float)
    tokens_P = tokens_PK.sum(axis=1)
    parameters_P = np.array([run["parameters"] for run in points], float)
    losses_PJ = law.predict(tokens_PK / tokens_P[:, None], tokens_P, parameters_P)
    objective_P = objective.values(losses_PJ, law.sets)
    return [
        {"objective": value, "losses": dict(zip(law.sets, losses_J, strict=True))}
        for value, losses_J in zip(objective_P.tolist(), losses_PJ.tolist(), strict=True)
    ]


def joint_projection_section(mixture: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """The mixture record with every projection that was possible."""
    kept = {key: value for key, value in mixture.items() if key not in ("kind", "schema_version")}
    largest = max(budget.tokens for budget in experiment.config.probe.budgets)
    return {
        **kept,
        "reach": mixture["token_budget"] / largest,
        "path": None,
        "kinds": {kind: {"weights": weights} for kind, weights in mixture["alternatives"].items()},
    }


def known_mixtures(experiment: Experiment) -> dict[str, dict[str, float]]:
    """The mixtures that every decision is compared with."""
    natural = Mixture.natural(experiment.domains, experiment.available_tokens)
    return {
        "uniform": Mixture.uniform(experiment.domains).to_dict(),
        "natural": natural.to_dict(),
        "reference": experiment.reference.to_dict(),
    }


def same_weights(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two mixtures of the same domains are one."""
    return all(abs(weight - other[name]) < SAME_WEIGHT for name, weight in one.items())


def decision_section(
    projection: Mapping[str, Any] | None, fit: Mapping[str, Any] | None, experiment: Experiment
) -> dict[str, Any] | None:
    """What to do, in a sentence: the mixture with its intervals, and gains over known mixtures.

    It is the projected mixture, and before `project` has run the optimum of the largest probe
    budget. None before the fit.
    """
    largest = max(budget.tokens for budget in experiment.config.probe.budgets)
    if projection is not None:
        mixture, advice = projection, projection["advice"]
        held = projection["projection"] == "hold"
        gain_tokens = largest if held else projection["token_budget"]
        where = format_token_count(gain_tokens)
        elsewhere = f"The gain is that at {where} tokens, from which the weights are held."
        note = elsewhere if gain_tokens != projection["token_budget"] else None
    elif fit is not None:
        mixture = fit["budgets"][-1]
        advice, gain_tokens = mixture["solution"], largest
        note = f"The mixture is that of {format_token_count(largest)}, the largest probe budget."
    else:
        return None
    gains = _gain_rows(advice["gains"], known_mixtures(experiment)) if advice else []
    path = (
        "The projection follows the published path; the law states neither gain nor intervals for "
        "it."
    )
    return {
        "token_budget": mixture["token_budget"],
        "gain_tokens": gain_tokens,
        "sentence": advice["sentence"] if advice else path,
        "sure": gains[0]["probability"] >= SURE if gains else None,
        "note": note if gains else None,
        "weights": (advice or mixture)["weights"],
        **{
            key: advice[key] if advice else None
            for key in ("low", "high", "duality_gap", "at_lower", "at_upper")
        },
        "certificate": _certificate(advice, experiment),
        "gains": gains,
    }


def _certificate(advice: Mapping[str, Any] | None, experiment: Experiment) -> str | None:
    """How near the mixture is to the best by its law, in a sentence."""
    if advice is None or advice["duality_gap"] is None:
        return None
    unit = unit_of(experiment.config.fit.metric, experiment.objective)
    return (
        f"By this law no mixture allowed is better by more than {advice['duality_gap']:.1e} {unit}."
    )


def _gain_rows(
    gains: Mapping[str, Mapping[str, float]], known: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """One row a baseline; baselines that are the same mixture share theirs."""
    rows: list[dict[str, Any]] = []
    for name, gain in gains.items():
        same = next((row for row in rows if same_weights(row["weights"], known[name])), None)
        if same is None:
            rows.append({"names": [name], "weights": known[name], **gain})
        else:
            same["names"].append(name)
    return rows


def with_measured_gains(
    decision: Mapping[str, Any],
    targets: Mapping[str, Any] | None,
    mixtures: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The decision with what the target runs gained over those baselines that were trained.

    A gain predicted and one measured agree when their intervals have a point in common.
    """
    weights_of = {mixture["name"]: mixture["weights"] for mixture in mixtures}
    rows = []
    for row in decision["gains"]:
        measured = next(
            (
                comparison["gain"]
                for comparison in (targets["comparisons"] if targets else ())
                if same_weights(row["weights"], weights_of[comparison["baseline"]])
            ),
            None,
        )
        agrees = None
        if measured is not None and measured["low"] is not None:
            agrees = row["low"] <= measured["high"] and measured["low"] <= row["high"]
        rows.append({**row, "measured": measured, "agrees": agrees})
    return {**decision, "gains": rows}
