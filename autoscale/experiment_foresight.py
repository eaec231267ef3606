"""What the planned probes of an experiment are expected to tell about its decision.

The part of `plan.json` that says what the runs are worth, beside what they cost: for the planned
number of mixtures at the largest probe budget, and for half, twice and four times as many.
"""

# P mixtures, K domains

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .decision import unit_of
from .designs import dirichlet_mixtures, optimal_mixtures
from .estimate import CONFIDENCE, Estimate
from .foresight import MOST_TRUTHS, Simulation, foresee, num_affordable_truths, prior_truths
from .joint_fit import fit_objective
from .laws.trees import TreeLaw
from .mixture import Mixture
from .mixture_objective import LossSurface
from .objective import Objective
from .planning import Experiment, PlannedProbe
from .probes import NUM_CANDIDATES
from .records import read_json
from .token_count import format_token_count

Array = NDArray[np.float64]

MULTIPLES = (0.5, 1.0, 2.0, 4.0)  # of the planned number of mixtures
ASSUMED_NOISE = 0.005  # nats between two runs of one mixture, where nothing was measured
ASSUMED_LOSS = 0.5  # of the logarithm of the vocabulary, the loss of a model that only guesses


class Basis(NamedTuple):
    """Truths and noise to simulate with, and where they come from, in words."""

    truths: Sequence[LossSurface]
    said: str
    objective: Objective
    metric: str  # of the truths' losses, and of the noise
    noise: float
    noise_said: str


def foresee_decision(experiment: Experiment, fit_path: Path) -> dict[str, Any] | None:
    """Expected interval on the decision, by simulation; None with a law that has no intervals.

    The truths are the bootstrap draws of an earlier fit of the experiment, or else laws drawn from
    the priors.

    Args:
        fit_path: the `fit.json` that the experiment has, or will have.
    """
    if experiment.config.fit.law in ("autoscale", "trees"):
        return None
    probes = _probes_of_largest_budget(experiment)
    num_planned = len(_own_mixtures(experiment, probes)) - 1
    size = len(experiment.domains), len(experiment.sets)
    designs = _affordable(_designs(experiment, probes), num_planned, *size)
    basis = _basis(experiment, probes, fit_path)
    rows = []
    if designs:
        num_truths = num_affordable_truths(map(len, designs.values()), *size)
        truths = basis.truths[:num_truths]
        outlooks = foresee(truths, list(designs.values()), _simulation(experiment, basis))
        rows = [
            {"mixtures": num, **_cost(experiment, probes, num), **asdict(outlook)}
            for num, outlook in zip(designs, outlooks, strict=True)
        ]
    content = {
        "token_budget": probes[0].token_budget,
        "planned": num_planned,
        "baseline": "uniform",
        "unit": unit_of(basis.metric, basis.objective),
        "basis": basis.said,
        "noise": basis.noise,
        "noise_unit": unit_of(basis.metric, Objective.create("mean_loss", experiment.domains)),
        "noise_basis": basis.noise_said,
        "rows": rows,
    }
    return content | {"sentence": _sentence(content, experiment.domains)}


def _probes_of_largest_budget(experiment: Experiment) -> list[PlannedProbe]:
    """Those of the largest model, where several have that budget."""

    def rank(planned: PlannedProbe) -> tuple[int, int]:
        return planned.token_budget, planned.parameters

    probes = experiment.probes()
    largest = max(map(rank, probes))
    return [planned for planned in probes if rank(planned) == largest]


def _own_mixtures(experiment: Experiment, probes: Sequence[PlannedProbe]) -> Array:
    """Mixtures of the planned runs as realised, the reference first, shape (P, K)."""
    seed = experiment.config.seed
    sequences = [planned.probe.sequences for planned in probes if planned.probe.seed == seed]
    counts_PK = np.array(sequences, dtype=np.float64)
    return np.asarray(counts_PK / counts_PK.sum(axis=1, keepdims=True))


def _designs(experiment: Experiment, probes: Sequence[PlannedProbe]) -> dict[int, Array]:
    """Mixtures of shape (P, K), the reference first, by their number beside it.

    Each design begins with the shorter ones. A design one at a time has no half and no double:
    those stand for Dirichlet designs.
    """
    own_PK = _own_mixtures(experiment, probes)
    num_planned = len(own_PK) - 1
    numbers = [int(multiple * num_planned) for multiple in MULTIPLES]
    drawn_PK = _drawn_mixtures(experiment, probes[0], max(numbers))
    if experiment.config.probe_design == "one_at_a_time":
        longest_PK = np.vstack([own_PK[:1], drawn_PK])
    else:
        longest_PK = np.vstack([own_PK, drawn_PK[num_planned:]])
    designs = {num: longest_PK[: 1 + num] for num in numbers}
    return designs | {num_planned: own_PK}


def _drawn_mixtures(experiment: Experiment, reference: PlannedProbe, num: int) -> Array:
    """What the experiment's design would draw with more runs, shape (num, K)."""
    config = experiment.config
    total = sum(reference.probe.sequences)
    optimal = config.probe_design == "optimal"
    drawn_PK = dirichlet_mixtures(
        experiment.reference,
        max(num, NUM_CANDIDATES) if optimal else num,
        stream=(config.seed, total),
        concentration=config.probe.concentration,
        upper=config.data.max_epochs * experiment.supply(reference.token_budget).windows / total,
    )
    if not optimal:
        return drawn_PK
    known_1K = np.array([reference.probe.sequences]) / total
    return optimal_mixtures(drawn_PK, num, known=known_1K)


def _affordable(
    designs: Mapping[int, Array], num_planned: int, num_domains: int, num_sets: int
) -> dict[int, Array]:
    """Those that can carry a law; the planned one alone if all would take long, or none."""
    kept = {num: design for num, design in designs.items() if len(design) >= num_domains}
    while kept and not num_affordable_truths(map(len, kept.values()), num_domains, num_sets):
        others = [num for num in kept if num != num_planned]
        del kept[max(others, default=num_planned)]
    return kept


def _cost(experiment: Experiment, probes: Sequence[PlannedProbe], num: int) -> dict[str, int]:
    """Runs and tokens of a design of so many mixtures, at the one budget."""
    config = experiment.config.probe
    runs = config.reference_seeds + num * config.replicates
    if runs == len(probes):
        return {"runs": runs, "tokens": sum(planned.spec.total_tokens for planned in probes)}
    return {"runs": runs, "tokens": runs * probes[0].spec.total_tokens}


def _simulation(experiment: Experiment, basis: Basis) -> Simulation:
    config = experiment.config
    return Simulation(
        objective=basis.objective,
        constraints=experiment.constraints(config.train.budget.tokens),
        baseline=Mixture.uniform(experiment.domains),
        noise=basis.noise / math.sqrt(config.probe.replicates),
        seed=config.seed,
    )


def _basis(experiment: Experiment, probes: Sequence[PlannedProbe], fit_path: Path) -> Basis:
    estimate = _earlier_estimate(experiment, fit_path)
    if estimate is None:
        return _prior_basis(experiment, probes)
    law = estimate.law
    assert not isinstance(law, TreeLaw)
    objective = fit_objective(experiment)
    tokens, parameters = float(probes[0].token_budget), float(probes[0].parameters)
    unrepeated = law.with_repetition(None)
    reference_K = experiment.reference.as_array()
    value = float(objective.values(law.predict(reference_K, tokens, parameters), law.sets)[0])
    noise = estimate.objective_noise
    if objective.kind == "mean_perplexity":  # a relative change of it is a change of the loss
        noise = noise if estimate.relative else noise / value
    elif estimate.relative:
        noise = noise * value
    return Basis(
        truths=[
            unrepeated.surface(tokens, parameters, draw)
            for draw in range(min(law.num_draws, MOST_TRUTHS))
        ],
        said=f"bootstrap draws of the law {law.law} in {fit_path.name}",
        objective=objective,
        metric=law.metric,
        noise=noise,
        noise_said="residuals of that fit",
    )


def _earlier_estimate(experiment: Experiment, fit_path: Path) -> Estimate | None:
    """That of an earlier fit of the same domains and sets in the same metric, if it has draws."""
    if not fit_path.is_file():
        return None
    fitted = read_json(fit_path, "fit")
    if fitted["law"] == "autoscale" or fitted["domains"] != list(experiment.domains):
        return None
    estimate = Estimate.from_dict(fitted["estimate"])
    law = estimate.law
    if isinstance(law, TreeLaw) or law.metric != experiment.config.fit.metric:
        return None
    return estimate if law.sets == experiment.sets else None


def _prior_basis(experiment: Experiment, probes: Sequence[PlannedProbe]) -> Basis:
    sets = experiment.sets
    results = [
        experiment.store.result(planned.spec).final_losses
        for planned in probes
        if planned.probe.is_reference and experiment.store.status(planned.spec) == "finished"
    ]
    losses_PJ = np.array([[losses[name] for name in sets] for losses in results])
    if results:
        level_J = losses_PJ.mean(axis=0)
        said = "laws drawn from the priors at the losses of the reference run"
    else:
        level = ASSUMED_LOSS * math.log(experiment.manifest.tokenizer.vocab_size)
        level_J = np.full(len(sets), level)
        said = f"laws drawn from the priors at a loss of {level:.2f} nats, half that of guessing"
    noise, noise_said = ASSUMED_NOISE, "assumed"
    if len(results) > 1:
        noise = float(losses_PJ.mean(axis=1).std(ddof=1))
        noise_said = f"between {len(results)} seeds of the reference run"
    seed = experiment.config.seed
    return Basis(
        truths=prior_truths(experiment.reference, level_J, num=MOST_TRUTHS, seed=seed, sets=sets),
        said=said,
        objective=experiment.objective,
        metric="nats",
        noise=noise,
        noise_said=noise_said,
    )


def _sentence(content: Mapping[str, Any], domains: Sequence[str]) -> str:
    """What to expect of the planned runs."""
    num, unit = content["planned"], content["unit"]
    where = f"{num} mixtures at {format_token_count(content['token_budget'])}"
    planned = [row for row in content["rows"] if row["mixtures"] == num]
    if num + 1 < len(domains):
        return (
            f"{where} beside the reference are too few for a law of {len(domains)} domains, which "
            f"needs {len(domains) - 1}, better {2 * len(domains)}; raise probe.runs."
        )
    if not planned:
        return (
            f"What {where} of {len(domains)} domains will tell was not simulated, as that would "
            "take too long."
        )
    row = planned[0]
    return (
        f"With {where} and a noise of {content['noise']:.4f} {content['noise_unit']} a run "
        f"({content['noise_basis']}), the gain of the mixture found over {content['baseline']} is "
        f"expected to be known to ±{row['half_width']:.4f} {unit} ({CONFIDENCE:.0%}), and the "
        f"mixture to lose {row['regret']:.4f} {unit} against the best."
    )
