"""What a design of probe runs will tell about the decision, before any of them ran: by simulation.

A truth is a law that could be: drawn from the priors, or a bootstrap draw of an earlier fit. Its
losses at the mixtures of a design, with noise, are fitted as `fit` would, and the mixture that the
fit advises is judged by the truth, over all truths:

    gain error   what the fit says the mixture gains over a baseline, less what it does gain
    regret       by how much the mixture loses against the best one

The standard deviation of the gain error is what an interval of the gain will have to cover. Its
mean is the optimism of a mixture that is judged on the runs it was chosen by, which `fit` takes
out. Designs that begin alike see the same noise, so that their differences are those of the
designs.
"""

# S truths, P runs, K domains, J validation sets, Q parameters of a law

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from .constraints import Constraints
from .decision import SURE, mixture_objective
from .estimate import CONFIDENCE
from .laws.fitted_law import FittedLaw
from .laws.fitter import Fitter, Units, own_domains
from .laws.frame import Form, Frame
from .laws.mixture_term import Amounts
from .laws.terms import TERMS
from .mixture import Mixture
from .mixture_objective import LossSurface
from .objective import Objective
from .optimum import optimise
from .run_table import RunTable

Array = NDArray[np.float64]

PRIOR_PURPOSE, NOISE_PURPOSE = 0xF0, 0xF1  # in the seed sequences
TRUTH, FITTED = "eti", "etk"  # laws; the second is the fastest, and as good with few runs
TRUTH_SPREAD = 0.5
"""Standard deviations of the priors that truths spread by. Fits to public tables differ between
domains by about half of them; the priors leave room beyond."""
MOST_IRREDUCIBLE = 0.95  # share of the loss
SECONDS = 2.0  # that a simulation should take on one core; its number of truths follows
PATIENCE = 15.0  # that it may take with the fewest
SECONDS_A_SOLUTION, SECONDS_A_PRODUCT = 0.01, 7e-8
MOST_TRUTHS, FEWEST_TRUTHS = 24, 6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Simulation:
    """What is decided, and how noisy the runs behind it are.

    Attributes:
        objective: what the mixture is chosen for.
        constraints: on the mixture.
        baseline: mixture that the gain is over.
        noise: standard deviation of a run's losses, in their unit. A run that ends high ends high
            on all validation sets.
        seed: of the noise.
    """

    objective: Objective
    constraints: Constraints
    baseline: Mixture
    noise: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What a design is expected to tell, in the objective's unit.

    Attributes:
        gain: mean over the truths of what the mixture found gains over the baseline.
        half_width: of the interval that the gain will be known to.
        regret: mean loss of the mixture found against the best one.
        probability: that the gain is told from chance.
    """

    gain: float
    half_width: float
    regret: float
    probability: float


def prior_truths(
    reference: Mixture,
    losses: ArrayLike,
    *,
    num: int,
    seed: int,
    sets: tuple[str, ...] | None = None,
) -> tuple[LossSurface, ...]:
    """Laws drawn from the priors.

    Args:
        reference: mixture at which the losses are known, or assumed.
        losses: under it, shape (num_sets,).
        num: how many laws.
        seed: a law depends on it and on its place alone.
        sets: names of the validation sets; by default one of every domain.
    """
    losses_J = np.asarray(losses, dtype=np.float64)
    domains = reference.domains
    sets = sets or domains
    frame, own_J = Frame(TERMS[TRUTH], Form()), own_domains(domains, sets)
    prior = frame.prior(losses_J, own_J, len(domains))
    truths = []
    for index in range(num):
        rng = np.random.default_rng(np.random.SeedSequence([seed, PRIOR_PURPOSE, index]))
        theta_JQ = prior.mean + TRUTH_SPREAD * prior.sd * rng.normal(size=prior.mean.shape)
        most_J = np.log(MOST_IRREDUCIBLE * losses_J)
        irreducible_J = theta_JQ[:, frame.position["log_irreducible"]]
        irreducible_J[:] = np.minimum(irreducible_J, most_J)
        at_reference = Amounts.of(reference.as_array())
        term_J1, _ = frame.term.evaluate(theta_JQ[:, frame.num_own :], at_reference, own_J)
        reducible_J = losses_J - np.exp(irreducible_J)
        theta_JQ[:, frame.position["log_amplitude"]] = np.log(reducible_J) - term_J1[:, 0]
        truths.append(_surface(TRUTH, domains, sets, theta_JQ))
    return tuple(truths)


def num_affordable_truths(num_runs: Iterable[int], num_domains: int, num_sets: int) -> int:
    """How many truths designs of these sizes can be simulated with in a few seconds.

    Between 6 and 24; 0 where even 6 would take more than a quarter of a minute.
    """
    num_parameters = num_domains + 4
    products = [runs * num_sets * num_parameters**2 for runs in num_runs]
    seconds = sum(SECONDS_A_SOLUTION + SECONDS_A_PRODUCT * each for each in products)
    if FEWEST_TRUTHS * seconds > PATIENCE:
        return 0
    return min(max(int(SECONDS / seconds), FEWEST_TRUTHS), MOST_TRUTHS)


def foresee(
    truths: Sequence[LossSurface], designs: Sequence[ArrayLike], simulation: Simulation
) -> tuple[Outlook, ...]:
    """The outlook of every design.

    Args:
        truths: at least two, of the same domains and validation sets.
        designs: mixtures of the runs, each of shape (num_runs, num_domains); those that share
            their first mixtures share these runs.
        simulation: what is decided, from which runs.
    """
    best = [_best(truth, simulation) for truth in truths]
    mixtures = [np.asarray(design, dtype=np.float64) for design in designs]
    noise_SP = _noise(simulation, len(truths), max(map(len, mixtures)))
    outlooks = []
    for weights_PK in mixtures:
        fits = _fit(truths, weights_PK, noise_SP)
        found = [_judge(*each, simulation) for each in zip(truths, fits, best, strict=True)]
        outlooks.append(_outlook(*np.transpose(found)))
    return tuple(outlooks)


def _noise(simulation: Simulation, num_truths: int, num_runs: int) -> Array:
    """Noise of the runs under every truth, shape (S, P); a longer design begins with the same."""
    streams = [
        np.random.SeedSequence([simulation.seed, NOISE_PURPOSE, index])
        for index in range(num_truths)
    ]
    drawn = [np.random.default_rng(stream).normal(size=num_runs) for stream in streams]
    return simulation.noise * np.array(drawn)


def _fit(truths: Sequence[LossSurface], weights_PK: Array, noise_SP: Array) -> list[LossSurface]:
    """The law fitted to the runs of a design, under every truth.

    Validation sets are fits of their own, so that those of all truths go into one batch.
    """
    num_truths, num_runs = len(truths), len(weights_PK)
    domains, sets = truths[0].domains, truths[0].sets
    losses_SPJ = np.array([truth.losses(weights_PK) for truth in truths])
    losses_SPJ *= np.exp(noise_SP[:, :num_runs, None] / losses_SPJ)  # stays positive
    table = RunTable(
        runs=tuple(f"run {p}" for p in range(num_runs)),
        domains=domains,
        sets=tuple(f"{name} of truth {s}" for s in range(num_truths) for name in sets),
        weights=weights_PK,
        losses=losses_SPJ.transpose(1, 0, 2).reshape(num_runs, -1),
    )
    fitter = Fitter(table, TERMS[FITTED], Form(), None)
    fitter.own_J = np.tile(own_domains(domains, sets), num_truths)  # the names no longer tell
    theta_SJQ = fitter.fit(np.ones((1, num_runs))).theta.reshape(num_truths, len(sets), -1)
    return [_surface(FITTED, domains, sets, theta_JQ) for theta_JQ in theta_SJQ]


def _surface(
    law: str, domains: tuple[str, ...], sets: tuple[str, ...], theta_JQ: Array
) -> LossSurface:
    """The surface of a law at one budget and size."""
    num_sets = len(sets)
    found = FittedLaw(
        law=law,
        form=Form(),
        domains=domains,
        sets=sets,
        metric="nats",
        units=Units(1.0, 1.0),
        repetition=None,
        theta=theta_JQ,
        draws=None,
        noise=np.zeros(num_sets),
        relative=False,
        effective_parameters=np.zeros(num_sets),
        converged=(True,) * num_sets,
    )
    return found.surface(None, None)


def _judge(
    truth: LossSurface, fitted: LossSurface, best_K: Array, simulation: Simulation
) -> tuple[float, float, float]:
    """Gain of the mixture found by the fit; its gain and its regret by the truth."""
    chosen_K, baseline_K = _best(fitted, simulation), simulation.baseline.as_array()
    mixtures = np.stack([baseline_K, chosen_K, best_K])
    claimed, true = (
        simulation.objective.values(surface.losses(mixtures), surface.sets)
        for surface in (fitted, truth)
    )
    return claimed[0] - claimed[1], true[0] - true[1], true[1] - true[2]


def _best(surface: LossSurface, simulation: Simulation) -> Array:
    objective = mixture_objective(simulation.objective, surface.sets)
    return optimise(surface, objective, simulation.constraints).mixture.as_array()


def _outlook(claimed_S: Array, gain_S: Array, regret_S: Array) -> Outlook:
    spread = float((claimed_S - gain_S).std(ddof=1))
    told = gain_S > 0 if spread == 0 else ndtr(gain_S / spread - ndtri(SURE))
    return Outlook(
        gain=float(gain_S.mean()),
        half_width=float(ndtri((1 + CONFIDENCE) / 2)) * spread,
        regret=float(regret_S.mean()),
        probability=float(np.mean(told)),
    )
