"""The published law fitted to a table of runs that scale one domain at a time."""

# P runs, K domains

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mixture import Mixture
from .objective import Objective
from .run_table import RunTable
from .scaling_law import Amplitude, PowerLaw, fit_separable
from .solver import Solution, solve_mixture

Array = NDArray[np.float64]

SAME_TOKENS = 1e-3  # relative difference of token counts that are meant to be equal


def fit_published_table(
    table: RunTable, objective: Objective, *, amplitude: Amplitude = "unit"
) -> dict[str, Any]:
    """A law a domain of the objective, relative to the run that the others scale.

    Returns:
        One entry of the budgets of `fit.json`, without a solution.

    Raises:
        ValueError: tokens are not known, or no run has all others within one domain of it.
        FitError: the points of a domain do not determine its law.
    """
    if table.tokens is None:
        raise ValueError(
            "law 'autoscale' is a law of the domains' tokens, and the table has weights only; add "
            "a column 'tokens', or columns 'tokens/<domain>'"
        )
    tokens_PK = table.weights * table.tokens[:, None]
    reference = _reference_run(tokens_PK)
    values_P = objective.values(table.losses, table.sets)
    if not tokens_PK[reference].all():
        raise ValueError(
            f"run {table.runs[reference]!r}, which the others scale, has no tokens of "
            f"{table.domains[int(tokens_PK[reference].argmin())]!r}, so that its law has no unit; "
            "leave the domain out or use another law, e.g. 'auto'"
        )
    multiples_PK = tokens_PK / tokens_PK[reference]
    multiples_PK[np.abs(multiples_PK - 1) < SAME_TOKENS] = 1.0
    laws = fit_separable(
        table.domains, multiples_PK, values_P / values_P[reference], amplitude=amplitude
    )
    return {
        "token_budget": round(float(tokens_PK[reference].sum())),
        "reference_tokens": dict(zip(table.domains, tokens_PK[reference].tolist(), strict=True)),
        "base_objective": float(values_P[reference]),
        "num_runs": table.num_runs,
        "laws": [law.to_dict() for law in laws],
    }


def solve_published(
    budget: Mapping[str, Any], token_budget: float, lower: Array, upper: Array
) -> tuple[Solution, float]:
    """The optimum of the published laws at a token budget, and the objective there.

    Args:
        budget: an entry of the budgets of `fit.json`.
        token_budget: solved for.
        lower: minimum weights, shape (num_domains,).
        upper: maximum weights, shape (num_domains,).

    Raises:
        InfeasibleError: the bounds contradict each other.
    """
    laws = [PowerLaw.from_dict(law) for law in budget["laws"]]
    reference_tokens = budget["reference_tokens"]
    total = sum(reference_tokens.values())
    reference = Mixture.from_array(list(reference_tokens), list(reference_tokens.values()))
    solution = solve_mixture(
        laws, reference, budget_ratio=token_budget / total, lower=lower, upper=upper
    )
    # The laws add up their changes from the reference; their levels are relative to it.
    change = solution.objective - sum(float(law(1.0)) for law in laws)
    return solution, budget["base_objective"] * (1 + change)


def _reference_run(tokens_PK: Array) -> int:
    """The run from which every other differs in one domain at most."""
    distance_PPK = np.abs(tokens_PK[:, None] - tokens_PK[None])
    close_PPK = distance_PPK <= SAME_TOKENS * np.maximum(tokens_PK[:, None], tokens_PK[None])
    differing_PP = (~close_PPK).sum(axis=2)
    candidates = np.flatnonzero((differing_PP <= 1).all(axis=1))
    if not len(candidates):
        raise ValueError(
            "law 'autoscale' needs a reference run from which every other run differs in the "
            "tokens of one domain; these runs change several at once: use another law, e.g. 'auto'"
        )
    return int(candidates[0])
