"""Olmix: a log-linear law of a swarm, and a convex choice near the natural mixture.

Chen et al., arXiv 2602.12237 (github.com/allenai/olmix, Apache-2.0):

    minimise   sum_j s_j exp(t_j . w) + strength * KL(w || prior)
    subject to w_i <= epochs * available_i / target tokens

Constants of the law do not matter. The strength is in the unit of the losses, bits per byte in
their work.
"""

from dataclasses import dataclass

import numpy as np

from ..decision import mixture_objective
from ..mixture_objective import Pull
from ..optimum import optimise
from ..run_table import RunTable
from .exponential_law import fit_exponential
from .method import About, Chosen, Probe, ProbeBudget
from .problem import MixingProblem, require_one_budget
from .swarm import Swarm

RUNS_PER_DOMAIN = 5  # swarms in proportion to the number of domains; the factor is ours
SWARM = Swarm(temperature=1.0, strengths=(0.1, 5.0), minimum=2e-3)  # `ConfigDefaults`
HUBER_DELTA = 0.02
STRENGTH = 0.05  # `kl_reg` of the published fits (configs/examples/fit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Olmix:
    """The method.

    Attributes:
        strength: of the divergence, in the unit of the losses.
    """

    strength: float = STRENGTH

    name = "olmix"
    about = About(
        citation="Chen et al. 2026, arXiv 2602.12237",
        needs="a swarm of probe runs in proportion to the number of domains",
    )

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        num_domains = problem.num_domains
        num = budget.num_runs(
            self.name, published=RUNS_PER_DOMAIN * num_domains, least=num_domains + 2
        )
        return SWARM.probes(problem, num, budget.whole_run_tokens, rng)

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        table = problem.runs_for(self.name, runs, least_mixtures=problem.num_domains + 1)
        require_one_budget(self.name, table)
        law = fit_exponential(table, delta=HUBER_DELTA)
        found = optimise(
            law,
            mixture_objective(problem.objective, law.sets),
            problem.constraints(problem.target_tokens),
            pull=Pull(kind="kl", strength=self.strength, mixture=problem.prior),
        )
        return Chosen(
            mixture=found.mixture,
            message=f"Optimum of the log-linear law of {table.num_runs} runs with {self.strength:g}"
            f" times the divergence from the prior: {found.message}.",
        )
