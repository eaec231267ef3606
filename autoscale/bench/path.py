"""Whether optima move with the budget, and whether the projection from small ones finds them.

The mixtures of the search are trained at several budgets. Each budget has a law and an optimum of
its own; the optima of the first two budgets are carried to every later one, where the law of that
budget says what following them would have cost (regret).
"""

# S draws of a law, K domains

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..decision import advise
from ..estimate import Estimate, Options, estimate_at_largest_budget
from ..laws.trees import TreeLaw
from ..methods.problem import MixingProblem
from ..mixture import Mixture
from ..projection import ProjectionKind, project
from ..run_table import RunTable
from .choices import fit_search, question_at, runs_table, solve_at
from .plan import BenchPlan
from .standing import CONFIDENCE

PROJECTIONS: tuple[ProjectionKind, ...] = ("full", "hold", "damped")


def path_section(plan: BenchPlan) -> list[dict[str, Any]] | None:
    """For every objective: the optimum of each budget, and the regret of projections at later ones.

    None where the benchmark trains no path.
    """
    if not plan.bench.path_budgets:
        return None
    return [_path(plan, name, problem) for name, problem in plan.problems.items()]


def _path(plan: BenchPlan, name: str, problem: MixingProblem) -> dict[str, Any]:
    budgets = [*plan.bench.path_budgets, plan.target_tokens]
    laws = {tokens: fit_search(plan, problem, plan.search(tokens)) for tokens in budgets}
    advices = {tokens: advise(law, question_at(problem, tokens)) for tokens, law in laws.items()}
    optima = {tokens: advice.optimum.mixture for tokens, advice in advices.items()}
    return {
        "objective": name,
        "optima": [
            {
                "tokens": tokens,
                "law": laws[tokens].law.law,
                "weights": advice.optimum.mixture.to_dict(),
                "low": advice.low and dict(advice.low),
                "high": advice.high and dict(advice.high),
            }
            for tokens, advice in advices.items()
        ],
        "projected": [
            {
                "tokens": tokens,
                "regrets": {
                    who: _regret(laws[tokens], optima[tokens], mixture)
                    for who, mixture in _projections(plan, problem, optima, tokens).items()
                },
            }
            for tokens in budgets[2:]
        ],
    }


def _projections(
    plan: BenchPlan, problem: MixingProblem, optima: Mapping[int, Mixture], tokens: int
) -> dict[str, Mixture]:
    """The mixtures that the first two budgets suggest for a later one, and uniform."""
    small, large = plan.bench.path_budgets[:2]
    bounds = problem.constraints(tokens)
    found: dict[str, Mixture] = {
        kind: project(
            kind,
            domains=problem.domains,
            small_tokens=optima[small].as_array() * small,
            large_tokens=optima[large].as_array() * large,
            token_budget=tokens,
            lower=bounds.lower,
            upper=bounds.upper,
        ).weights
        for kind in PROJECTIONS
    }
    return {
        **found,
        "joint": _joint(plan, problem, tokens),
        "uniform": Mixture.uniform(problem.domains),
    }


def _joint(plan: BenchPlan, problem: MixingProblem, tokens: int) -> Mixture:
    """By the joint law of two budgets' runs, or held where the larger alone predicts better."""
    small, large = plan.bench.path_budgets[:2]
    specs = [*plan.search(small), *plan.search(large)]
    table: RunTable = problem.runs_for(
        "search", runs_table(plan.experiment.store, specs), least_mixtures=3
    )
    options = Options(seed=plan.experiment.config.seed)
    found, kept = estimate_at_largest_budget(table, problem.objective, options)
    return solve_at(found, problem, tokens, held_at=None if kept else float(large))


def _regret(found: Estimate, optimum: Mixture, mixture: Mixture) -> dict[str, float | None]:
    """By how much the law of a budget holds a mixture for worse than its optimum.

    In every draw of the law the same two mixtures are compared; the interval holds what the draws
    differ by, and is absent for trees, which have none.
    """
    weights = np.stack([mixture.as_array(), optimum.as_array()])
    tokens = None if found.facts.tokens is None else np.full(2, found.facts.tokens[1])
    law, objective = found.law, found.objective
    mine, best = objective.values(law.predict(weights, tokens, None), law.sets)
    regret: dict[str, float | None] = {"mean": float(mine - best), "low": None, "high": None}
    if isinstance(law, TreeLaw):
        return regret
    draws_S2 = objective.values(law.predict_draws(weights, tokens, None), law.sets)
    low, high = np.quantile(
        draws_S2[:, 0] - draws_S2[:, 1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    )
    return regret | {"low": float(low), "high": float(high)}
