"""Problems with known answers, and runs of a design under a known law."""

import numpy as np

from autoscale.methods.exponential_law import ExponentialLaw
from autoscale.methods.problem import MixingProblem
from autoscale.objective import Objective
from autoscale.run_table import RunTable

DOMAINS = ("web", "code", "books", "wiki")
SETS = ("web", "code", "books", "mail")  # the last has no domain of its own
AVAILABLE = np.array([400e6, 100e6, 300e6, 200e6])
RATES = np.array(
    [
        [-1.6, 0.1, -0.2, -0.4],
        [-0.3, -2.6, 0.2, 0.1],
        [-0.5, 0.3, -1.9, -0.3],
        [-0.9, -0.4, -1.1, 0.3],
    ]
)
TRUTH = ExponentialLaw(
    domains=DOMAINS, sets=SETS, constant=np.array([2.6, 1.4, 2.9, 2.2]), rates=RATES
)


def problem(**changes):
    settings = {
        "domains": DOMAINS,
        "available_tokens": AVAILABLE,
        "target_tokens": 200_000_000,
        "objective": Objective.create("mean_loss", SETS),
    }
    return MixingProblem(**(settings | changes))


def rng(seed=0):
    return np.random.default_rng(seed)


def runs_of(probes, losses_of=TRUTH.losses, *, noise=0.0, seed=0, sets=SETS):
    """The finished probes, their losses a function of the weights, in another order."""
    order = rng(seed).permutation(len(probes))
    probes = [probes[p] for p in order]
    weights = np.stack([probe.mixture.as_array() for probe in probes])
    losses = losses_of(weights)
    return RunTable(
        runs=tuple(probe.label for probe in probes),
        domains=probes[0].mixture.domains,
        sets=sets,
        weights=weights,
        tokens=np.array([probe.tokens for probe in probes]),
        losses=losses + noise * rng(seed + 1).normal(size=losses.shape),
    )


def best_on_simplex(value, num_domains=4, rounds=60, seed=0):
    """The minimum of a function of weights by a search that shrinks around its best."""
    generator = rng(seed)
    points = generator.dirichlet(np.ones(num_domains), 20_000)
    best = points[np.argmin(value(points))]
    for step in np.geomspace(0.3, 1e-5, rounds):
        near = np.abs(best + step * generator.normal(size=(2000, num_domains)))
        points = np.vstack([best, near / near.sum(axis=1, keepdims=True)])
        best = points[np.argmin(value(points))]
    return best
