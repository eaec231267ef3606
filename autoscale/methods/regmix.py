"""RegMix: trees fitted to a swarm, then the mean of the best mixtures they predict.

Liu et al., arXiv 2407.01492. Probe runs are a Dirichlet swarm around the natural mixture; LightGBM
predicts the target loss from the weights; of 100,000 mixtures drawn around the natural one, the
128 with the lowest prediction are averaged (github.com/sail-sg/regmix). The authors stop the trees
early on further runs made to test them; here no run is set aside, and all of the published number
of trees are grown.
"""

# P runs, S simulated mixtures, K domains

from dataclasses import dataclass, replace

import numpy as np

from ..constraints import project_onto_bounds
from ..laws.trees import TreeLaw
from ..mixture import Mixture
from ..run_table import RunTable
from .method import About, Chosen, Probe, ProbeBudget
from .problem import MixingProblem, require_one_budget
from .swarm import Swarm

PUBLISHED_RUNS = 512
LEAST_RUNS = 10  # LightGBM splits no leaf of fewer
SWARM = Swarm(temperature=0.5, strengths=(0.1, 5.0), minimum=2e-4)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegMix:
    """The method with the published settings.

    Attributes:
        num_simulated: mixtures predicted.
        num_averaged: of the best of them.
        seed: of the simulation.
    """

    num_simulated: int = 100_000
    num_averaged: int = 128
    seed: int = 42

    name = "regmix"
    about = About(
        citation="Liu et al. 2024, arXiv 2407.01492",
        needs="a swarm of probe runs (512 published) and LightGBM",
    )

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        num = budget.num_runs(self.name, published=PUBLISHED_RUNS, least=LEAST_RUNS)
        return SWARM.probes(problem, num, budget.whole_run_tokens, rng)

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        """See `Method`; also raises ValueError where LightGBM is not installed."""
        table = problem.runs_for(self.name, runs, least_mixtures=LEAST_RUNS)
        require_one_budget(self.name, table)
        values_P = problem.objective.values(table.losses, table.sets)
        target = replace(
            table, sets=("objective",), losses=values_P[:, None], tokens=None, parameters=None
        )
        trees = TreeLaw.fit(target)
        bounds = problem.constraints(problem.target_tokens)
        rng = np.random.default_rng(self.seed)
        prior_K = problem.prior.as_array()
        simulated_SK = np.zeros((self.num_simulated, problem.num_domains))
        simulated_SK[:, prior_K > 0] = rng.dirichlet(prior_K[prior_K > 0], self.num_simulated)
        inside_S = ((simulated_SK >= bounds.lower) & (simulated_SK <= bounds.upper)).all(axis=1)
        enough = int(inside_S.sum()) >= self.num_averaged
        if enough:
            simulated_SK = simulated_SK[inside_S]
        predicted_S = trees.predict(simulated_SK, None, None)[:, 0]
        best = np.argsort(predicted_S, kind="stable")[: self.num_averaged]
        mean_K = project_onto_bounds(
            simulated_SK[best].mean(axis=0),
            domains=problem.domains,
            lower=bounds.lower,
            upper=bounds.upper,
        )
        where = "within the bounds" if enough else "brought within the bounds, which few were"
        return Chosen(
            mixture=Mixture.from_array(problem.domains, mean_K),
            message=f"Mean of the {len(best)} best of {len(simulated_SK)} simulated mixtures "
            f"{where}, by trees fitted to {table.num_runs} runs.",
        )
