"""`fit` and `project` with the published law, one domain at a time (law `autoscale`)."""

# P runs, K domains

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .experiment_table import FinishedProbe
from .mixture import Mixture
from .objective import Objective
from .planning import Experiment, PlannedProbe
from .projection import Projection, ProjectionKind
from .projection import project as project_tokens
from .runs import RunResult
from .scaling_law import FitError, fit_separable
from .solver import solve_mixture
from .token_count import format_token_count

PROJECTIONS: tuple[ProjectionKind, ...] = ("full", "hold", "damped")


def fit_published(experiment: Experiment, finished: Sequence[FinishedProbe]) -> dict[str, Any]:
    """Content of `fit.json`: a law a domain and the optimum, at every probe budget.

    Raises:
        FitError: the points of a domain do not determine its law.
    """
    config, objective = experiment.config, experiment.objective
    return {
        "law": config.fit.law,
        "amplitude": config.fit.amplitude,
        "objective": objective.to_dict(),
        "domains": list(experiment.domains),
        "sets": list(experiment.sets),
        "reference": experiment.reference.to_dict(),
        "fixed_budget": config.fixed_budget,
        "budgets": [
            _fit_budget(
                budget.tokens,
                [(p, r) for p, r in finished if p.token_budget == budget.tokens],
                experiment,
                objective,
            )
            for budget in config.probe.budgets
        ],
    }


def project_published(
    experiment: Experiment, fitted: Mapping[str, Any], token_budget: int
) -> dict[str, Any]:
    """Content of `mixture-<budget>.json`: the optima at the probe budgets carried to another."""
    domains, config = experiment.domains, experiment.config
    by_budget = {entry["token_budget"]: entry["solution"]["tokens"] for entry in fitted["budgets"]}
    pair = config.projection_budgets
    small, large = pair or (max(by_budget), max(by_budget))
    if small not in by_budget or large not in by_budget:
        raise ValueError(
            f"fit.json has no optimum at {format_token_count(small)} and "
            f"{format_token_count(large)}; run `autoscale fit` again"
        )
    lower, upper = experiment.bounds(token_budget)

    def projected(kind: ProjectionKind) -> Projection:
        return project_tokens(
            kind,
            domains=domains,
            small_tokens=[by_budget[small][name] for name in domains],
            large_tokens=[by_budget[large][name] for name in domains],
            token_budget=token_budget,
            lower=lower,
            upper=upper,
        )

    kind = config.projection
    assert kind in PROJECTIONS, kind
    chosen = projected(kind)
    # A path starts at the small of two budgets with positive tokens; holding needs none of that.
    positive = float(np.min(experiment.bounds(small)[0])) > 0
    has_path = pair is not None and token_budget >= small and positive
    kinds: tuple[ProjectionKind, ...] = PROJECTIONS if has_path else ("hold",)
    return {
        "token_budget": token_budget,
        "projection": chosen.kind,
        "budgets": [small, large],
        "t": chosen.t,
        "weights": chosen.weights.to_dict(),
        "unbounded_weights": chosen.unbounded_weights.to_dict(),
        "bounded": list(chosen.bounded),
        "change_l1": chosen.change_l1,
        "lower": dict(zip(domains, lower.tolist(), strict=True)),
        "upper": dict(zip(domains, upper.tolist(), strict=True)),
        "alternatives": {kind: projected(kind).weights.to_dict() for kind in kinds},
    }


def _fit_budget(
    token_budget: int,
    runs: Sequence[FinishedProbe],
    experiment: Experiment,
    objective: Objective,
) -> dict[str, Any]:
    """Laws and optimum of one budget; all from realised tokens."""
    config, domains = experiment.config, experiment.domains
    references = [(p, r) for p, r in runs if p.probe.is_reference]
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
    scaled = [(p, result) for p, result in paired if p.probe.domain is not None]
    for planned, result in sorted(scaled, key=lambda pair: abs(np.log(pair[0].probe.factor or 1))):
        probe = planned.probe
        assert probe.domain is not None and probe.factor is not None
        change = objective.value(result.final_losses) - base_value
        effects.setdefault(probe.domain, {})["up" if probe.factor > 1 else "down"] = change
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
