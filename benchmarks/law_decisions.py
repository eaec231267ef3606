"""How often the intervals of a decision hold: gains and weights, on simulated probes.

    python benchmarks/law_decisions.py > benchmarks/law_decisions.md

Truths are drawn from the priors of `eti`, 7 domains; every one is probed with Dirichlet mixtures
around uniform weights and noise, estimated as `autoscale fit --table` does with law `eti`, and
solved within 0.1/K.
"""

# K domains

from datetime import date

import numpy as np
from law_measure import heading, row

from autoscale.constraints import Constraints
from autoscale.decision import mixture_objective
from autoscale.designs import dirichlet_mixtures
from autoscale.estimate import Options, estimate
from autoscale.foresight import prior_truths
from autoscale.mixture import Mixture
from autoscale.mixture_objective import LossSurface
from autoscale.objective import Objective
from autoscale.optimum import optimise
from autoscale.run_table import RunTable
from autoscale.uncertainty import Decision

SEED = 20261121
NUM_TRUTHS = 20
DOMAINS = tuple("abcdefg")
SETTINGS = ((15, 0.005), (15, 0.02), (30, 0.005), (30, 0.02), (60, 0.005), (60, 0.02))
NEAR = 1e-3  # weight

Array = np.ndarray
UNIFORM = Mixture.uniform(DOMAINS)
OBJECTIVE = Objective.create("mean_loss", DOMAINS)
BOUNDS = Constraints(
    domains=DOMAINS, lower=np.full(len(DOMAINS), 0.1 / len(DOMAINS)), upper=np.ones(len(DOMAINS))
)


def solve(surface: LossSurface) -> Array:
    return optimise(surface, mixture_objective(OBJECTIVE, DOMAINS), BOUNDS).mixture.as_array()


def probed(truth: LossSurface, num_runs: int, noise: float, seed: int) -> RunTable:
    """Runs of one budget with independent noise on every loss."""
    drawn = dirichlet_mixtures(UNIFORM, num_runs - 1, stream=(seed,))
    weights = np.vstack([UNIFORM.as_array(), drawn])
    losses = truth.losses(weights)
    rng = np.random.default_rng([SEED, seed])
    return RunTable(
        runs=tuple(map(str, range(num_runs))),
        domains=DOMAINS,
        sets=DOMAINS,
        weights=weights,
        losses=losses + noise * rng.normal(size=losses.shape),
    )


def hits(truth: LossSurface, num_runs: int, noise: float, seed: int) -> list[float]:
    """Whether each interval holds the truth; expected less true gain; half width; regret."""
    table = probed(truth, num_runs, noise, seed)
    found = estimate(table, OBJECTIVE, Options(law="eti", seed=seed))
    decision = Decision(
        found.law, OBJECTIVE, solve, tokens=None, parameters=None, num_mixtures=num_runs
    )
    best_K, chosen_K = solve(truth), decision.weights_K

    def value(weights_K: Array) -> float:
        return float(truth.losses(weights_K).mean())

    gain = decision.gain(UNIFORM.as_array())
    true_gain = value(UNIFORM.as_array()) - value(chosen_K)
    interval = decision.weight_interval()
    inside_K = (best_K >= interval.low - NEAR) & (best_K <= interval.high + NEAR)
    return [
        float(gain.low <= true_gain <= gain.high),
        float(inside_K.mean()),
        1e3 * (gain.expected - true_gain),
        1e3 * (gain.high - gain.expected),
        1e3 * true_gain,
        1e3 * (value(chosen_K) - value(best_K)),
    ]


def main() -> None:
    losses = np.full(len(DOMAINS), 3.0)
    truths = prior_truths(UNIFORM, losses, num=NUM_TRUTHS, seed=SEED)
    print(f"# Intervals of decisions\n\n{date.today()}, seed {SEED}, numpy {np.__version__}.")
    text = (
        f"{NUM_TRUTHS} truths a row. Share of 90% intervals that hold the true gain over uniform "
        "weights, and the best weights; then means in mnats."
    )
    columns = ["runs", "noise", "gain", "weights", "error", "half width", "true gain", "regret"]
    print("\n".join(heading(text, columns)))
    for num_runs, noise in SETTINGS:
        found = np.array([hits(t, num_runs, noise, seed) for seed, t in enumerate(truths)])
        gain, weights, *rest = found.mean(axis=0)
        cells = [f"{gain:.2f}", f"{weights:.2f}", *(f"{number:.2f}" for number in rest)]
        print(row([str(num_runs), f"{noise:g}", *cells]), flush=True)


if __name__ == "__main__":
    main()
