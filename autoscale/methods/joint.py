"""The package's joint law: a Dirichlet design, a law judged on held-out runs, its optimum.

At one probe budget its optimum is held. Smaller budgets enter only where they lower the held-out
error at the largest; then the law is solved at the target. Runs of several model sizes enter one
fit, solved at the target too.
"""

from dataclasses import dataclass

import numpy as np

from ..decision import Question, advise
from ..designs import dirichlet_mixtures
from ..estimate import Options, estimate, estimate_at_largest_budget
from ..laws.repetition import PUBLISHED_RATE, Repetition
from ..mixture import Mixture
from ..run_table import RunTable
from .method import About, Chosen, Probe, ProbeBudget
from .problem import MixingProblem

RUNS_PER_DOMAIN = 4
REPEATED = 1.05  # epochs from which repetition is part of the law


@dataclass(frozen=True, kw_only=True, slots=True)
class Joint:
    """The method.

    Attributes:
        law: a name of `laws.terms`, or "auto" to choose by held-out error.
        repetition_rate: R* of repeated tokens, in the law where probes or target can repeat a
            domain; None where probes repeat every domain as the target will.
        draws: bootstrap draws, for the interval in the message.
        seed: of folds and draws.
    """

    law: str = "auto"
    repetition_rate: float | None = PUBLISHED_RATE
    draws: int = 40
    seed: int = 0

    name = "joint"
    about = About(
        citation="this package; laws/README.md",
        needs="probe runs of at least as many mixtures as domains, better four times as many",
    )

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        """See `Method`; the prior itself is the first run."""
        num_domains = problem.num_domains
        num = budget.num_runs(self.name, published=RUNS_PER_DOMAIN * num_domains, least=num_domains)
        drawn_PK = dirichlet_mixtures(
            problem.prior,
            num - 1,
            stream=(int(rng.integers(2**32)),),
            upper=problem.constraints(problem.target_tokens).upper,
        )
        mixtures = [problem.prior, *(Mixture.from_array(problem.domains, w) for w in drawn_PK)]
        return tuple(
            Probe(
                label="reference" if p == 0 else f"mix-{p:03d}",
                mixture=mixture,
                tokens=budget.whole_run_tokens,
            )
            for p, mixture in enumerate(mixtures)
        )

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        table = problem.runs_for(self.name, runs, least_mixtures=problem.num_domains)
        options = Options(
            law=self.law,
            draws=self.draws,
            seed=self.seed,
            repetition=self._repetition(problem, table),
        )
        if table.has_sizes:
            found, kept = estimate(table, problem.objective, options), True
        else:
            found, kept = estimate_at_largest_budget(table, problem.objective, options)
        held_at = None if kept or table.tokens is None else float(table.tokens.max())
        advice = advise(
            found,
            Question(
                token_budget=problem.target_tokens,
                parameters=problem.target_parameters,
                constraints=problem.constraints(problem.target_tokens),
                baselines={"uniform": Mixture.uniform(problem.domains)},
                reference=problem.prior,
                held_at=held_at,
            ),
        )
        where = "held from the largest probe budget" if held_at else "solved at the target"
        return Chosen(
            mixture=advice.optimum.mixture,
            message=f"Optimum of law {found.law.law}, {where}. {found.reason} {advice.sentence}",
        )

    def _repetition(self, problem: MixingProblem, table: RunTable) -> Repetition | None:
        """The worth of repeated tokens, where any could repeat."""
        if self.repetition_rate is None or table.tokens is None:
            return None
        upper_K = problem.constraints(problem.target_tokens).upper
        drawn_K = (table.weights * table.tokens[:, None]).max(axis=0)
        most_K = np.maximum(drawn_K, upper_K * problem.target_tokens)
        if (most_K <= REPEATED * problem.available_tokens).all():
            return None
        return Repetition(rate=self.repetition_rate, unique_tokens=problem.available_tokens)
