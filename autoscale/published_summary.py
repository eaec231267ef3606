"""What a summary holds of a fit and a projection with the published law (law `autoscale`)."""

# K domains

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .planning import Experiment
from .projection import full_projection, project
from .scaling_law import PowerLaw

PATH_POINTS = 33


def published_fit_section(fit: Mapping[str, Any]) -> dict[str, Any]:
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


def published_projection_section(
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
