"""AutoScale as published: one domain at a time at two budgets, a law each, and a projection.

Kang et al., arXiv 2407.20177, by the package's own fit (`published_table`), solver and
`projection`. The kinds differ in the projection alone, and `hold` does without the small budget.
"""

# P runs, K domains

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..mixture import Mixture
from ..projection import ProjectionKind, project
from ..published_table import SAME_TOKENS, fit_published_table, solve_published
from ..run_table import RunTable
from ..token_count import round_token_count
from .method import About, Chosen, Probe, ProbeBudget
from .problem import MixingProblem

Array = NDArray[np.float64]
Index = NDArray[np.int64]

FACTOR = 3.0  # r
BUDGET_RATIO = 2.0  # of the two probe budgets, as 0.3B and 0.6B
LEAST_WEIGHT = 0.2  # over the number of domains: the authors' lower bound


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoScale:
    """The published method with one of its projections.

    Attributes:
        kind: `full` is the paper's.
    """

    kind: ProjectionKind = "full"

    @property
    def name(self) -> str:
        return f"autoscale_{self.kind}"

    @property
    def about(self) -> About:
        return About(
            citation="Kang et al. 2025, arXiv 2407.20177",
            needs="2K + 1 probe runs, one domain at a time, at "
            + ("one budget" if self.kind == "hold" else "two budgets"),
        )

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        """See `Method`; around uniform weights, the other domains' tokens unchanged.

        Every domain has whole batches, so that no rounding changes the others.
        """
        num_domains, batch = problem.num_domains, budget.batch_tokens
        runs = 2 * num_domains + 1 + (FACTOR - 1) - (1 - 1 / FACTOR)  # in reference runs
        ratios = (1.0,) if self.kind == "hold" else (1 / BUDGET_RATIO, 1.0)
        tokens = budget.tokens_per_run(self.name, problem, cost=runs * sum(ratios))
        batches = [int(tokens * ratio / (num_domains * batch)) for ratio in ratios]
        if batches[0] < 2:
            raise ValueError(
                f"method {self.name!r} scales every domain down and up, which needs two batches of "
                f"each; its probe runs of {round_token_count(tokens * ratios[0])} tokens have "
                f"{batches[0]} of {round_token_count(batch)}: raise the budget or lower the batch"
            )
        return tuple(
            probe for each in batches for probe in _scaled_runs(problem.domains, each, batch)
        )

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        """See `Method`.

        Raises:
            FitError: the runs of a domain do not determine its law.
            ValueError: also where runs are not one domain at a time, or of one budget only where
                the projection needs two.
        """
        num_domains = problem.num_domains
        table = problem.runs_for(self.name, runs, least_mixtures=2 * num_domains + 1)
        if table.tokens is None:
            raise ValueError(f"method {self.name!r} needs the tokens of the probe runs")
        groups = _designs(table.weights * table.tokens[:, None])
        wanted = 1 if self.kind == "hold" else 2
        complete = [rows for rows in groups if len(rows) > 2 * num_domains]
        if len(complete) < wanted:
            raise ValueError(
                f"method {self.name!r} needs {wanted} probe budget(s) with a reference run and "
                f"every domain scaled up and down, {2 * num_domains + 1} runs each; found "
                f"{len(complete)}. Runs that change several domains are of no use to it"
            )
        optima = []
        for rows in complete:
            fitted = fit_published_table(table.select(rows), problem.objective)
            tokens = fitted["token_budget"]
            bounds = problem.constraints(tokens, least_weight=LEAST_WEIGHT / num_domains)
            solution, _ = solve_published(fitted, tokens, bounds.lower, bounds.upper)
            optima.append((tokens, solution.mixture.as_array() * tokens))
        optima.sort(key=lambda optimum: optimum[0])
        bounds = problem.constraints(problem.target_tokens)
        projection = project(
            self.kind,
            domains=problem.domains,
            small_tokens=optima[-wanted][1],
            large_tokens=optima[-1][1],
            token_budget=problem.target_tokens,
            lower=bounds.lower,
            upper=bounds.upper,
        )
        path = "" if projection.t is None else f" at t = {projection.t:.3g}"
        return Chosen(
            mixture=projection.weights,
            message=f"Projection {self.kind}{path} from optima at "
            f"{', '.join(f'{tokens:,}' for tokens, _ in optima[-wanted:])} tokens.",
        )


def _scaled_runs(domains: tuple[str, ...], each: int, batch_tokens: int) -> list[Probe]:
    """The reference run with so many batches of each domain, and every domain down and up."""
    reference_K = np.full(len(domains), each)
    rows = [("reference", reference_K)]
    for i, name in enumerate(domains):
        for word, count in (("down", max(int(each / FACTOR), 1)), ("up", int(each * FACTOR))):
            batches_K = reference_K.copy()
            batches_K[i] = count
            rows.append((f"{name}-{word}", batches_K))
    return [
        Probe(
            label=f"{label}-{int(reference_K.sum()) * batch_tokens}",
            mixture=Mixture.from_array(domains, batches_K),
            tokens=int(batches_K.sum()) * batch_tokens,
        )
        for label, batches_K in rows
    ]


def _designs(tokens_PK: Array) -> list[Index]:
    """Rows of each budget: a run, and those that differ from it in one domain's tokens at most.

    The largest such set first; each run belongs to one.
    """
    distance_PPK = np.abs(tokens_PK[:, None] - tokens_PK[None])
    scale_PPK = np.maximum(tokens_PK[:, None], tokens_PK[None])
    near_PP = (distance_PPK > SAME_TOKENS * scale_PPK).sum(axis=2) <= 1
    left_P = np.ones(len(tokens_PK), dtype=bool)
    found = []
    while left_P.any():
        sizes_P = (near_PP & left_P).sum(axis=1) * left_P
        members_P = near_PP[int(sizes_P.argmax())] & left_P
        found.append(np.flatnonzero(members_P))
        left_P &= ~members_P
    return found
