"""UtiliMax: a portfolio of domains by what each alone is worth to every validation set.

Held et al., arXiv 2501.11747:

    minimise   |w'U - 1|_2 + m |w|^2
    subject to w_i <= epochs * available_i / target tokens

U_ij in [0, 1] is the utility of domain i for set j, 1 the best that any domain reaches; m weighs
the risk, taken as equal and independent for all domains. Utilities come from one probe run a domain
(`UtiliMax`), or from anywhere else, such as a language model that judges samples (`GivenUtilities`,
the paper's MEDU without the judging).
"""

# K domains, J validation sets

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from ..constraints import Constraints, project_onto_bounds
from ..feasible_set import least_linear
from ..mixture import Mixture, require_same_names
from ..run_table import RunTable
from .method import About, Chosen, Probe, ProbeBudget, WithoutProbes
from .problem import MixingProblem, require_one_budget

Array = NDArray[np.float64]

RISK = 1.0
SINGLE = 0.999  # weight from which a run counts as one of a single domain
SMALLEST = 1e-12  # added under the root: the distance has no gradient at 0
TOLERANCE = 1e-6  # of the objective, by the duality gap


def solve_utilities(
    utilities: ArrayLike,
    bounds: Constraints,
    *,
    set_weights: ArrayLike | None = None,
    risk: float = RISK,
) -> tuple[Mixture, float]:
    """The mixture of least distance and risk.

    Args:
        utilities: U, shape (num_domains, num_sets).
        bounds: of the weights.
        set_weights: of the squared distances, any scale, shape (num_sets,); by default equal, as
            published.
        risk: m.

    Returns:
        The mixture, and a bound on how far its objective is above the least.

    Raises:
        ValueError: shapes do not fit, or a utility is not a number.
    """
    utility_KJ = np.asarray(utilities, dtype=np.float64)
    num_domains = len(bounds.domains)
    if utility_KJ.ndim != 2 or len(utility_KJ) != num_domains or not utility_KJ.size:
        raise ValueError(
            f"utilities have shape {utility_KJ.shape}; expected a row for each of the "
            f"{num_domains} domains and a column a task"
        )
    if not np.isfinite(utility_KJ).all():
        name = bounds.domains[int(np.argwhere(~np.isfinite(utility_KJ))[0, 0])]
        raise ValueError(f"a utility of domain {name!r} is not a finite number")
    share_J = np.ones(utility_KJ.shape[1]) if set_weights is None else np.asarray(set_weights)
    share_J = share_J * (len(share_J) / share_J.sum())

    def value(weights_K: Array) -> tuple[float, Array]:
        short_J = weights_K @ utility_KJ - 1
        distance = np.sqrt(share_J @ short_J**2 + SMALLEST)
        gradient_K = utility_KJ @ (share_J * short_J) / distance + 2 * risk * weights_K
        return float(distance + risk * weights_K @ weights_K), np.asarray(gradient_K)

    def within(weights_K: Array) -> Array:
        return project_onto_bounds(
            np.maximum(weights_K, 0),
            domains=bounds.domains,
            lower=bounds.lower,
            upper=bounds.upper,
        )

    found = minimize(
        value,
        within(np.full(num_domains, 1 / num_domains)),
        jac=True,
        method="SLSQP",
        bounds=list(zip(bounds.lower, bounds.upper, strict=True)),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights_K = within(np.asarray(found.x))
    _, gradient_K = value(weights_K)
    least_K = least_linear(gradient_K, bounds.lower, bounds.upper)
    gap = float(gradient_K @ (weights_K - least_K))
    if gap > TOLERANCE:
        raise ValueError(
            f"the portfolio of utilities was not solved: {found.message} (gap {gap:.1e})"
        )
    return Mixture.from_array(bounds.domains, weights_K), gap


@dataclass(frozen=True, kw_only=True, slots=True)
class UtiliMax:
    """Utilities from the losses of runs on single domains.

    For every set the domain with the lowest loss has utility 1, that with the highest 0.

    Attributes:
        risk: m.
    """

    risk: float = RISK

    name = "utilimax"
    about = About(
        citation="Held et al. 2025, arXiv 2501.11747",
        needs="one probe run on each domain alone",
    )

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        num_domains = problem.num_domains
        tokens = budget.tokens_per_run(self.name, problem, cost=num_domains)
        return tuple(
            Probe(
                label=f"only-{name}",
                mixture=Mixture.from_array(problem.domains, weights_K),
                tokens=tokens,
            )
            for name, weights_K in zip(problem.domains, np.eye(num_domains), strict=True)
        )

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        """See `Method`; several runs of a domain are averaged, runs of several domains unused.

        Raises:
            ValueError: also where a domain has no run of its own.
        """
        table = problem.runs_for(self.name, runs, least_mixtures=2)
        alone_P = table.weights.max(axis=1) >= SINGLE
        owner_P = table.weights.argmax(axis=1)
        for i, name in enumerate(problem.domains):
            if not (alone_P & (owner_P == i)).any():
                raise ValueError(
                    f"method {self.name!r} needs a probe run on domain {name!r} alone; found none"
                )
        require_one_budget(self.name, table.select(alone_P))
        losses_KJ = np.stack(
            [
                table.losses[alone_P & (owner_P == i)].mean(axis=0)
                for i in range(problem.num_domains)
            ]
        )
        lowest_J, highest_J = losses_KJ.min(axis=0), losses_KJ.max(axis=0)
        # A set on which all domains do as well tells nothing: all reach its best.
        spread_J = highest_J - lowest_J
        utility_KJ = np.divide(
            highest_J - losses_KJ,
            spread_J,
            out=np.ones_like(losses_KJ),
            where=np.broadcast_to(spread_J > 0, losses_KJ.shape),
        )
        mixture, gap = solve_utilities(
            utility_KJ,
            problem.constraints(problem.target_tokens),
            set_weights=problem.objective.coefficients(table.sets),
            risk=self.risk,
        )
        return Chosen(
            mixture=mixture,
            message=f"Portfolio of the utilities of {problem.num_domains} runs on single domains, "
            f"within {max(gap, 0.0):.0e} of its optimum.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenUtilities(WithoutProbes):
    """Utilities estimated elsewhere, as MEDU's by a language model.

    Attributes:
        utilities: of each domain for every task, in [0, 1] where 1 is the best there is.
        risk: m.
    """

    utilities: Mapping[str, tuple[float, ...]]
    risk: float = RISK

    name = "medu"
    about = About(
        citation="Held et al. 2025, arXiv 2501.11747",
        needs="a utility of every domain for every task",
    )

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        """See `Method`.

        Raises:
            ValueError: also where a domain has no utilities, or another number of them.
        """
        require_same_names(self.utilities, problem.domains, what="utilities")
        lengths = {len(self.utilities[name]) for name in problem.domains}
        if len(lengths) > 1:
            raise ValueError(
                f"domains have {min(lengths)} to {max(lengths)} utilities; expected one a task"
            )
        mixture, gap = solve_utilities(
            [self.utilities[name] for name in problem.domains],
            problem.constraints(problem.target_tokens),
            risk=self.risk,
        )
        return Chosen(
            mixture=mixture,
            message=f"Portfolio of given utilities, within {max(gap, 0.0):.0e} of its optimum.",
        )
