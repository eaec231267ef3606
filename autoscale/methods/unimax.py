"""UniMax: as uniform as an epoch cap allows (Chung et al., arXiv 2304.09151, algorithm 1)."""

# K domains

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..constraints import project_onto_bounds
from ..mixture import Mixture
from ..run_table import RunTable
from .method import About, Chosen, WithoutProbes
from .problem import MixingProblem

Array = NDArray[np.float64]

EPOCHS = 1.0  # the paper's best N, where the problem sets no cap


def unimax(available: ArrayLike, budget: float, epochs: float) -> Array:
    """Tokens of each domain, shape (num_domains,).

    From the smallest domain to the largest, each gets an equal share of the budget that is left,
    or all of its allowed epochs where that is less. What no domain can take is not spent, so that
    the sum falls short of a budget above `epochs * sum(available)`.

    Args:
        available: unique tokens, shape (num_domains,).
        budget: tokens of the run.
        epochs: most passes over a domain, the paper's N.
    """
    available_K = np.asarray(available, dtype=np.float64)
    tokens_K = np.zeros_like(available_K)
    left, num_left = float(budget), len(available_K)
    for i in np.argsort(available_K, kind="stable"):
        tokens_K[i] = min(left / num_left, epochs * available_K[i])
        left -= tokens_K[i]
        num_left -= 1
    return tokens_K


@dataclass(frozen=True, kw_only=True, slots=True)
class UniMax(WithoutProbes):
    """The method, with the problem's cap or, without one, the paper's single epoch."""

    name = "unimax"
    about = About(
        citation="Chung et al. 2023, arXiv 2304.09151", needs="the tokens that exist, an epoch cap"
    )

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        epochs = EPOCHS if problem.max_epochs is None else problem.max_epochs
        tokens_K = unimax(problem.available_tokens, problem.target_tokens, epochs)
        bounds = problem.constraints(problem.target_tokens)
        weights_K = project_onto_bounds(
            tokens_K / tokens_K.sum(),
            domains=problem.domains,
            lower=bounds.lower,
            upper=bounds.upper,
        )
        capped = [
            name
            for name, tokens, available in zip(
                problem.domains, tokens_K, problem.available_tokens, strict=True
            )
            if tokens >= epochs * available
        ]
        return Chosen(
            mixture=Mixture.from_array(problem.domains, weights_K),
            message=f"Equal shares with at most {epochs:g} epochs, which "
            f"{', '.join(capped) or 'no domain'} use up.",
        )
