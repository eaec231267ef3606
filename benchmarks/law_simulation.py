"""Regret of the ways to decide on a mixture, where the truth is known.

Truths are laws fitted to the mixtures of one public table at one budget, which counts as the larger
probe budget N2. What such a table cannot tell, how losses fall with tokens, is drawn, or follows
from the law. Every draw has its own truth, noise and designs.
"""

# P runs, K domains, J validation sets

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from law_measure import SEED, heading, row
from law_tables import load_regmix, load_t61
from numpy.typing import NDArray
from scipy.optimize import minimize

from autoscale.constraints import Constraints
from autoscale.designs import dirichlet_mixtures
from autoscale.estimate import Options, estimate, estimate_at_largest_budget
from autoscale.laws.fit import fit_law
from autoscale.laws.fitted_law import FittedLaw
from autoscale.laws.frame import Form
from autoscale.mixture import Mixture
from autoscale.mixture_objective import LossSurface, WeightedSum
from autoscale.objective import Objective
from autoscale.optimum import optimise
from autoscale.projection import project
from autoscale.run_table import RunTable
from autoscale.scaling_law import fit_separable
from autoscale.solver import solve_mixture

Array = NDArray[np.float64]

TRUTHS = ("etk", "separable", "1/sum of shares", "1/sum of tokens", "exp")
FITTED_AS = {
    "1/sum of shares": "inverse_sum",
    "1/sum of tokens": "inverse_sum",
    "exp": "log_linear",
}
METHODS = ("auto", "hold", "full", "damped", "uniform")
RIVALS = ("hold", "full", "uniform")
MULTIPLES = (4, 16, 64)
LARGE, SMALL = 10_000_000_000, 5_000_000_000  # N2 and N1 in tokens
LEAST_SHARE = 0.1  # lower bound of every weight, as a share of the uniform one
FACTOR = 3.0  # of the one-at-a-time design
LOG_TOKEN_EXPONENT = (float(np.log(0.35)), 0.4)  # of b, where the law does not set it
NUM_MIXTURES = {7: 31, 17: 128}  # that a truth is fitted to
STEP = 1e-5  # of finite differences
NOISES = (0.002, 0.005)
NUM_DRAWS = 10
FIRST_DRAW = 100  # earlier ones were looked at while the rule of `auto` was made


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """Losses known exactly: `losses(weights of shape (P, K), tokens)` has shape (P, J)."""

    domains: tuple[str, ...]
    sets: tuple[str, ...]
    losses: Callable[[Array, Array | float], Array]

    @property
    def least_weight(self) -> float:
        return LEAST_SHARE / len(self.domains)

    @property
    def constraints(self) -> Constraints:
        ones_K = np.ones(len(self.domains))
        return Constraints(domains=self.domains, lower=self.least_weight * ones_K, upper=ones_K)

    def objective(self, weights: Array, tokens: float) -> Array:
        """Mean loss of mixtures."""
        return self.losses(np.atleast_2d(weights), tokens).mean(axis=1)

    def least_objective(self, tokens: float, starts: Sequence[Array]) -> float:
        """Of all mixtures within the bounds, by local search from every start."""
        room = 1 - LEAST_SHARE

        def weights(logits_K: Array) -> Array:
            softmax_K = np.exp(logits_K - logits_K.max())
            return self.least_weight + room * softmax_K / softmax_K.sum()

        def value_and_slope(logits_K: Array) -> tuple[float, Array]:
            middle_K = weights(logits_K)
            steps = STEP * middle_K[:, None] * np.eye(len(middle_K))
            around = self.objective(
                np.vstack([middle_K, middle_K + steps, middle_K - steps]), tokens
            )
            up, down = np.split(around[1:], 2)
            slope_K = (up - down) / (2 * STEP * middle_K)
            softmax_K = (middle_K - self.least_weight) / room
            return float(around[0]), room * softmax_K * (slope_K - softmax_K @ slope_K)

        found = []
        for start_K in starts:
            logits_K = np.log(np.maximum(start_K - self.least_weight, 1e-6))
            found.append(minimize(value_and_slope, logits_K, jac=True, method="L-BFGS-B").fun)
        return float(min(found))


def draw_truth(folder: Path, kind: str, num_domains: int, draw: int) -> Truth:
    """A law fitted to mixtures of T61 (7 domains) or RegMix (17), drawn by `draw`."""
    rng = np.random.default_rng([num_domains, TRUTHS.index(kind), draw])
    table = _single_budget(folder, num_domains, draw)
    rows = np.sort(rng.permutation(table.num_runs)[: NUM_MIXTURES[num_domains]])
    law = fit_law(table.select(rows), FITTED_AS.get(kind, kind), forms=(Form(),))
    if kind == "1/sum of tokens":
        return Truth(domains=law.domains, sets=law.sets, losses=_inverse_sum_of_tokens(law))
    if kind == "separable":
        return Truth(domains=law.domains, sets=law.sets, losses=_separable(law))
    exponent_J = np.exp(rng.normal(*LOG_TOKEN_EXPONENT, size=len(law.sets)))
    return Truth(domains=law.domains, sets=law.sets, losses=_with_factor(law, exponent_J))


def _single_budget(folder: Path, num_domains: int, draw: int) -> RunTable:
    """One budget at one size, which changes with the draw; tokens are left out."""
    if num_domains == 17:
        return (
            load_regmix(folder, "train", "1m") if draw % 2 else load_regmix(folder, "test", "60m")
        )
    table = load_t61(folder)
    assert table.tokens is not None and table.parameters is not None
    size = np.unique(table.parameters)[draw % 4]
    of_size = table.parameters == size
    final = of_size & (table.tokens == table.tokens[of_size].max())
    chosen = table.select(final)
    return RunTable(
        runs=chosen.runs,
        domains=chosen.domains,
        sets=chosen.sets,
        weights=chosen.weights,
        losses=chosen.losses,
    )


def _irreducible(law: FittedLaw) -> Array:
    return np.array([own["irreducible"] for own in law.readable().values()])


def _with_factor(law: FittedLaw, exponent_J: Array) -> Callable[[Array, Array | float], Array]:
    """E + (L(w) - E) (D / N2)^-b."""
    floor_J = _irreducible(law)

    def losses(weights: Array, tokens: Array | float) -> Array:
        ratio = np.broadcast_to(np.asarray(tokens) / LARGE, len(weights))[:, None]
        return floor_J + (law.predict(weights, None, None) - floor_J) * ratio**-exponent_J

    return losses


def _separable(law: FittedLaw) -> Callable[[Array, Array | float], Array]:
    """E + sum_i A_i (n_i + w_i D / N2)^-gamma_i."""
    unit = law.units.tokens
    return lambda weights, tokens: law.predict(weights, np.asarray(tokens) / LARGE * unit, None)


def _inverse_sum_of_tokens(law: FittedLaw) -> Callable[[Array, Array | float], Array]:
    """E + 1 / sum_i C_i (w_i D / N2)^gamma_i."""
    floor_J, parameters = _irreducible(law), law.readable().values()
    coefficient_JK = np.array([list(own["coefficient"].values()) for own in parameters])
    power_JK = np.array([list(own["power"].values()) for own in parameters])

    def losses(weights: Array, tokens: Array | float) -> Array:
        amounts_PK = weights * np.broadcast_to(np.asarray(tokens) / LARGE, len(weights))[:, None]
        return floor_J + 1 / (coefficient_JK * amounts_PK[:, None, :] ** power_JK).sum(axis=2)

    return losses


def decide(
    truth: Truth, noise: float, stream: Sequence[int]
) -> tuple[dict[str, list[Array]], bool]:
    """Mixtures for every target by every method; whether `auto` kept the smaller budget.

    Args:
        truth: what the probes measure.
        noise: standard deviation of a loss, in nats.
        stream: names the random stream of designs and noise.
    """
    uniform_K = Mixture.uniform(truth.domains).as_array()
    rng = np.random.default_rng([*stream, 1])
    table = _probe_table(truth, noise, stream, rng)
    objective = Objective.create("mean_loss", truth.sets)
    options = Options(draws=2)  # the study uses no interval
    found, kept = estimate_at_largest_budget(table, objective, options)
    largest = table.select(np.asarray(table.tokens) == LARGE)
    held = estimate(largest, objective, Options(law="eti", draws=2))
    paths = _published_paths(truth, noise, rng)
    targets = [multiple * LARGE for multiple in MULTIPLES]
    at = [float(tokens if kept else LARGE) for tokens in targets]
    hold_K = _optimum(held.law.surface(LARGE, None), truth)
    return {
        "auto": [_optimum(found.law.surface(tokens, None), truth) for tokens in at],
        "hold": [hold_K] * len(targets),
        **paths,
        "uniform": [uniform_K] * len(targets),
    }, kept


def _probe_table(
    truth: Truth, noise: float, stream: Sequence[int], rng: np.random.Generator
) -> RunTable:
    """Reference and 2K Dirichlet mixtures at both budgets."""
    reference = Mixture.uniform(truth.domains)
    weights, tokens = [], []
    for budget in (SMALL, LARGE):
        drawn = dirichlet_mixtures(reference, 2 * len(truth.domains), stream=(*stream, budget))
        weights += [reference.as_array()[None], drawn]
        tokens += [float(budget)] * (1 + len(drawn))
    weights_PK, tokens_P = np.vstack(weights), np.array(tokens)
    losses_PJ = truth.losses(weights_PK, tokens_P)
    return RunTable(
        runs=tuple(map(str, range(len(tokens)))),
        domains=truth.domains,
        sets=truth.sets,
        weights=weights_PK,
        tokens=tokens_P,
        losses=losses_PJ + noise * rng.normal(size=losses_PJ.shape),
    )


def _published_paths(
    truth: Truth, noise: float, rng: np.random.Generator
) -> dict[str, list[Array]]:
    """The published law at both budgets from one domain at a time, and its projections."""
    num_domains = len(truth.domains)
    multiples_PK = np.ones((1 + 2 * num_domains, num_domains))
    for i in range(num_domains):
        multiples_PK[1 + 2 * i : 3 + 2 * i, i] = 1 / FACTOR, FACTOR
    reference, limits = Mixture.uniform(truth.domains), truth.constraints
    weights = []
    for budget in (SMALL, LARGE):
        tokens_PK = multiples_PK * budget / num_domains
        total_P = tokens_PK.sum(axis=1)
        losses_PJ = truth.losses(tokens_PK / total_P[:, None], total_P)
        value_P = (losses_PJ + noise * rng.normal(size=losses_PJ.shape)).mean(axis=1)
        laws = fit_separable(truth.domains, multiples_PK, value_P / value_P[0])
        solved = solve_mixture(laws, reference, lower=limits.lower, upper=limits.upper)
        weights.append(solved.mixture.as_array())
    return {
        kind: [
            project(
                kind,
                domains=truth.domains,
                small_tokens=weights[0] * SMALL,
                large_tokens=weights[1] * LARGE,
                token_budget=multiple * LARGE,
                lower=limits.lower,
                upper=limits.upper,
            ).weights.as_array()
            for multiple in MULTIPLES
        ]
        for kind in ("full", "damped")
    }


def _optimum(surface: LossSurface, truth: Truth) -> Array:
    equal = WeightedSum(weights=np.full(len(truth.sets), 1 / len(truth.sets)))
    return optimise(surface, equal, truth.constraints).mixture.as_array()


def regrets(truth: Truth, mixtures: dict[str, list[Array]]) -> dict[str, Array]:
    """Nats above the best mixture, for every target, shape (num_targets,)."""
    found: dict[str, list[float]] = {method: [] for method in mixtures}
    for number, multiple in enumerate(MULTIPLES):
        tokens = multiple * LARGE
        values = {
            method: float(truth.objective(chosen[number], tokens)[0])
            for method, chosen in mixtures.items()
        }
        starts = [chosen[number] for chosen in mixtures.values()]
        best = min(truth.least_objective(tokens, starts), *values.values())
        for method, value in values.items():
            found[method].append(value - best)
    return {method: np.array(values) for method, values in found.items()}


def simulation(folder: Path) -> Iterator[str]:
    """Median regret by number of domains, truth, noise and target."""
    yield from heading(
        f"Median regret in mnats of the mean loss over {NUM_DRAWS} draws of truth, design and "
        "noise, against the best mixture with weights of at least 0.1/K. Probes: uniform and 2K "
        "Dirichlet mixtures at 5B and 10B tokens; for `full` and `damped` the published law from "
        "2K + 1 runs one at a time (factor 3) at both. Noise: standard deviation of each loss. "
        "Truths: fitted to the 31 or 21 mixtures of T61 (K = 7; final checkpoints of four sizes, "
        "in turn) or to 128 of RegMix (K = 17; 1M and 60M, in turn); token exponents of `etk`, "
        "`exp` and `1/sum of shares` drawn by loss, log b ~ N(log .35, .4). `hold` is `eti` at 10B "
        "tokens. Margin: of `auto` over the best of `hold`, `full` and `uniform`, positive when it "
        "is better; the goal is at least -1.",
        ["K", "truth", "noise", "target", *METHODS, "margin", "kept 5B"],
    )
    worst: list[float] = []
    for num_domains in NUM_MIXTURES:
        for kind in TRUTHS:
            for noise in NOISES:
                for cells in _cell(folder, kind, num_domains, noise, worst):
                    yield row(cells)
    met = sum(margin >= -1 for margin in worst)
    yield ""
    yield f"Goal met in {met} of {len(worst)} cells; smallest margin {min(worst):+.2f} mnats."


def _cell(
    folder: Path, kind: str, num_domains: int, noise: float, margins: list[float]
) -> Iterator[list[str]]:
    """One row a target; their margins are added to the list."""
    found, num_kept = [], 0
    for draw in range(FIRST_DRAW, FIRST_DRAW + NUM_DRAWS):
        truth = draw_truth(folder, kind, num_domains, draw)
        stream = (SEED, num_domains, TRUTHS.index(kind), draw, round(1e4 * noise))
        mixtures, kept = decide(truth, noise, stream)
        found.append([regrets(truth, mixtures)[method] for method in METHODS])
        num_kept += kept
    median_MT = 1e3 * np.median(found, axis=0)
    for number, multiple in enumerate(MULTIPLES):
        regret_M = median_MT[:, number]
        others = [
            regret for method, regret in zip(METHODS, regret_M, strict=True) if method in RIVALS
        ]
        margins.append(float(min(others) - regret_M[0]))
        values = [f"{regret:.2f}" for regret in regret_M]
        first = [str(num_domains), kind, f"{noise:g}", f"{multiple} x"]
        yield [*first, *values, f"{margins[-1]:+.2f}", f"{num_kept}/{NUM_DRAWS}"]
