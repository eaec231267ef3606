"""Dirichlet swarms as RegMix and Olmix draw them, around the natural mixture.

    w ~ Dirichlet(s * prior^temperature / sum),   s from a grid of strengths, equal steps of log s

Small strengths give mixtures near the corners of the simplex. Mixtures beyond an upper weight are
drawn again, weights below a minimum become 0, the others whole multiples of it, and doubles are
left out (github.com/sail-sg/regmix, mixture_config/synthesize_mixture.py).
"""

# K domains

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..constraints import project_onto_bounds
from ..mixture import Mixture
from .method import Probe
from .problem import MixingProblem

Array = NDArray[np.float64]

NUM_STRENGTHS = 15
NUM_DRAWS = 100  # for every mixture wanted, as published; after that bounds are imposed
SAME = 1e-5  # unit of weights, to which equal ones are one mixture


@dataclass(frozen=True, kw_only=True, slots=True)
class Swarm:
    """How a swarm is drawn.

    Attributes:
        temperature: exponent of the prior; 1 leaves it, 0 makes it uniform.
        strengths: least and greatest sum of the Dirichlet parameters.
        minimum: smaller weights are 0, the others multiples of it.
    """

    temperature: float
    strengths: tuple[float, float]
    minimum: float

    def mixtures(self, problem: MixingProblem, num: int, rng: np.random.Generator) -> Array:
        """Weights within the upper weights at the target, shape (num, num_domains)."""
        center_K = problem.prior.as_array() ** self.temperature
        center_K /= center_K.sum()
        upper_K = problem.constraints(problem.target_tokens).upper
        strengths = np.geomspace(*self.strengths, NUM_STRENGTHS)
        found: dict[tuple[int, ...], Array] = {}
        for draw in range(2 * NUM_DRAWS * num):
            weights_K = _dirichlet(rng.choice(strengths) * center_K, rng)
            if draw < NUM_DRAWS * num and (weights_K > upper_K).any():
                continue
            weights_K = self._rounded(weights_K)
            if (weights_K > upper_K + self.minimum).any():  # the bounds are tight
                weights_K = project_onto_bounds(
                    weights_K,
                    domains=problem.domains,
                    lower=np.zeros_like(upper_K),
                    upper=upper_K,
                )
            found.setdefault(tuple(np.round(weights_K / SAME).astype(int).tolist()), weights_K)
            if len(found) == num:
                return np.stack(list(found.values()))
        raise ValueError(
            f"the bounds leave {len(found)} different mixtures of the {num} that a swarm of this "
            "size wants; relax them or ask for fewer runs"
        )

    def probes(
        self, problem: MixingProblem, num: int, run_tokens: int, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        """Runs of such mixtures, all of one budget."""
        return tuple(
            Probe(
                label=f"swarm-{p:03d}",
                mixture=Mixture.from_array(problem.domains, weights_K),
                tokens=run_tokens,
            )
            for p, weights_K in enumerate(self.mixtures(problem, num, rng))
        )

    def _rounded(self, weights_K: Array) -> Array:
        kept_K = np.where(weights_K < self.minimum, 0.0, weights_K)
        whole_K = np.round(kept_K / kept_K.sum() / self.minimum)
        return np.asarray(whole_K / whole_K.sum())


def _dirichlet(alpha_K: Array, rng: np.random.Generator) -> Array:
    """One draw; domains of prior weight 0 keep it."""
    weights_K = np.zeros_like(alpha_K)
    weights_K[alpha_K > 0] = rng.dirichlet(alpha_K[alpha_K > 0])
    return weights_K
