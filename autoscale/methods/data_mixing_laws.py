"""Data Mixing Laws: an exponential law of the mixture, nested in laws of tokens and model size.

Ye et al., arXiv 2403.16952. Probe runs have proportions that halve again and again ("double
diminishing"); every loss is first carried to the target (`nested_laws`), then the law is fitted and
minimised. The authors look for the minimum on a grid; the law is convex, so that it is solved
here, within the problem's bounds.
"""

# K domains

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..decision import mixture_objective
from ..mixture import Mixture
from ..optimum import optimise
from ..run_table import RunTable
from .exponential_law import fit_exponential
from .method import About, Chosen, Probe, ProbeBudget
from .nested_laws import at_target
from .problem import MixingProblem

Array = NDArray[np.float64]

PUBLISHED_RUNS = 20  # mixtures of their RedPajama experiment
GRID = 1 / 16  # smallest proportion but 0, `GRID_SZ` of pipeline/find_opt.py
WITHOUT_A_DOMAIN = 0.25  # share of mixtures that leave one out; 6 of the published 20 do
HUBER_DELTA = 0.01
NUM_DRAWS = 5000  # for each mixture wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class DataMixingLaws:
    """The method. With probes of one budget their mixture law is solved as it is."""

    name = "data_mixing_laws"
    about = About(
        citation="Ye et al. 2024, arXiv 2403.16952",
        needs="probe runs of 20 mixtures (published), for the laws of tokens and size at three "
        "budgets and sizes",
    )

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        least = problem.num_domains + 2
        num = budget.num_runs(self.name, published=max(PUBLISHED_RUNS, least), least=least)
        return tuple(
            Probe(
                label=f"halved-{p:03d}",
                mixture=Mixture.from_array(problem.domains, weights_K),
                tokens=budget.whole_run_tokens,
            )
            for p, weights_K in enumerate(halving_mixtures(problem, num, rng))
        )

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        least = problem.num_domains + 1
        table = problem.runs_for(self.name, runs, least_mixtures=least)
        target = at_target(table, problem.target_tokens, problem.target_parameters)
        law = fit_exponential(target, delta=HUBER_DELTA)
        found = optimise(
            law,
            mixture_objective(problem.objective, law.sets),
            problem.constraints(problem.target_tokens),
        )
        carried = " carried to the target" if target is not table else ""
        return Chosen(
            mixture=found.mixture,
            message=f"Optimum of the exponential law of {table.num_runs} runs' losses{carried}: "
            f"{found.message}.",
        )


def halving_mixtures(problem: MixingProblem, num: int, rng: np.random.Generator) -> Array:
    """Mixtures of proportions `most / 2^s`, or 0, shape (num, num_domains), all different.

    The greatest proportion of a domain is what its tokens allow at the target, rounded down to the
    grid; the last domain takes the rest, any of the domains in turn, as one of the published order
    would have no mixture where its last domain is scarce.

    Raises:
        ValueError: the bounds leave fewer mixtures.
    """
    most_K = problem.constraints(problem.target_tokens).upper
    num_without = round(WITHOUT_A_DOMAIN * num)
    wanted = {True: num_without, False: num - num_without}
    found: dict[bool, list[Array]] = {True: [], False: []}
    seen: set[tuple[float, ...]] = set()
    spent = 0
    while sum(map(len, found.values())) < num and spent < NUM_DRAWS * num:
        spent += 1
        weights_K = _draw(most_K, rng)
        if weights_K is None or tuple(np.round(weights_K, 9)) in seen:
            continue
        without = bool((weights_K == 0).any())
        # Where one kind runs out of mixtures, the other makes up for it.
        if len(found[without]) < wanted[without] or spent > NUM_DRAWS * num // 2:
            seen.add(tuple(np.round(weights_K, 9)))
            found[without].append(weights_K)
    mixtures: Sequence[Array] = found[False] + found[True]
    if len(mixtures) < num:
        raise ValueError(
            f"found {len(mixtures)} different mixtures of halved proportions within the bounds; "
            f"the design wants {num}: relax the bounds or ask for fewer runs"
        )
    return np.stack(mixtures)


def _draw(most_K: Array, rng: np.random.Generator) -> Array | None:
    """One mixture, or None where the proportions drawn do not fit."""
    num_domains = len(most_K)
    weights_K = np.zeros(num_domains)
    order = rng.permutation(num_domains)
    for i in order[:-1]:
        most = max(GRID * np.floor(most_K[i] / GRID), min(most_K[i], GRID))
        halvings = int(np.floor(np.log2(max(most / GRID, 1.0)))) + 1
        proportion = most * 2.0 ** -rng.integers(0, halvings + 1)
        weights_K[i] = proportion if proportion >= min(GRID, most) else 0.0
    rest = 1 - weights_K.sum()
    last = order[-1]
    if not -1e-12 <= rest <= most_K[last] + 1e-12:
        return None
    weights_K[last] = max(rest, 0.0)
    return weights_K
