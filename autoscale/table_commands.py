"""Commands that need no experiment: fit a table of runs, predict others, solve for a mixture."""

# P runs, J validation sets, K domains

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import Constraints, Group, weight_bounds
from .decision import Question, advise, trade_off
from .estimate import Estimate, Options, estimate
from .laws.repetition import PUBLISHED_RATE, Repetition
from .laws.terms import TERMS
from .laws.trees import TreeLaw
from .mixture import Mixture, require_same_names
from .mixture_objective import Pull
from .objective import Objective
from .published_table import fit_published_table, solve_published
from .records import read_json, write_json
from .run_table import Metric
from .run_table_file import match_domains, read_run_table, write_predictions
from .table_options import PullOption
from .uncertainty import predict_interval

Array = NDArray[np.float64]

PUBLISHED = "autoscale"
LAWS = ("auto", PUBLISHED, *TERMS, TreeLaw.law)
WITHOUT_REPETITION = (PUBLISHED, TreeLaw.law)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFit:
    """How to fit a table.

    Attributes:
        law: "auto", "autoscale" or another law's name.
        objective: see `Objective.parse`.
        perplexity: the losses of the table are perplexities.
        metric: unit of the losses.
        bytes_per_token: by validation set, for the objective `bits_per_byte`.
        available: unique tokens of every domain, to model repetition; None leaves it out.
        rate: R* of the repetition; None fits it.
        folds: of the held-out error.
        draws: of the bootstrap.
        seed: of folds and draws.
    """

    law: str = "auto"
    objective: str = "mean"
    perplexity: bool = False
    metric: Metric = "nats"
    bytes_per_token: Mapping[str, float] | None = None
    available: Mapping[str, int] | None = None
    rate: float | None = PUBLISHED_RATE
    folds: int = 5
    draws: int = 40
    seed: int = 0


def fit_table(path: Path, output: Path, settings: TableFit) -> Path:
    """Fit a law to a table of runs and write it as `fit.json`.

    Raises:
        ValueError: the table cannot be read, or cannot carry the law.
    """
    _require_law(settings.law, settings.available)
    table = read_run_table(path, perplexity=settings.perplexity, metric=settings.metric)
    objective = _objective(
        settings.objective, table.sets, settings.metric, settings.bytes_per_token
    )
    content: dict[str, Any] = {
        "law": settings.law,
        "objective": objective.to_dict(),
        "metric": settings.metric,
        "domains": list(table.domains),
        "available_tokens": None if settings.available is None else dict(settings.available),
    }
    if settings.law == PUBLISHED:
        content["budgets"] = [fit_published_table(table, objective)]
        return write_json(output, "fit", content)
    repetition = None
    if settings.available is not None:
        unique_K = _by_domain(settings.available, table.domains, "available tokens")
        rate = PUBLISHED_RATE if settings.rate is None else settings.rate
        repetition = Repetition(rate=rate, unique_tokens=unique_K)
    options = Options(
        law=settings.law,
        folds=settings.folds,
        draws=settings.draws,
        seed=settings.seed,
        repetition=repetition,
        fit_rate=settings.rate is None,
    )
    content["estimate"] = estimate(table, objective, options).to_dict()
    return write_json(output, "fit", content)


def predict_table(fit: Path, path: Path, output: Path) -> Path:
    """Predict the losses of the runs of a table, with 90% intervals.

    Raises:
        ValueError: the fit has no law of losses, or the table lacks what the law needs.
    """
    record = read_json(fit, "fit")
    if record["law"] == PUBLISHED:
        raise ValueError(
            f"{fit} holds law 'autoscale', which describes the objective and not the single "
            "losses; fit another law to predict them, e.g. --law auto"
        )
    found = Estimate.from_dict(record["estimate"])
    table = match_domains(read_run_table(path, require_losses=False), found.law.domains)
    counts = found.counts(table.tokens, table.parameters)
    interval = predict_interval(found, table.weights, *counts)
    return write_predictions(
        output,
        table.runs,
        sets=found.law.sets,
        mean_PJ=interval.mean,
        low_PJ=interval.low,
        high_PJ=interval.high,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TableQuestion:
    """What mixture is wanted.

    Attributes:
        tokens: budget; None where the fit knows one budget.
        parameters: model size; None where the fit knows one size.
        objective: another than that of the fit, see `Objective.parse`.
        bytes_per_token: by validation set, for objectives `bits_per_byte`.
        pareto: a second objective, to trace the front between the two.
        num_points: of the front.
        min_weight: of every domain.
        max_weight: of every domain.
        max_epochs: cap from the tokens available, which the fit or `available` names.
        available: unique tokens of every domain, in place of those of the fit.
        groups: bounds of sums of weights.
        reference: "uniform", "natural" (by available tokens) or a mixture file; gains are stated
            over it too.
        no_harm: most that a loss may lie above its value under the reference, in the fit's unit.
        pull: towards the reference.
    """

    tokens: int | None = None
    parameters: int | None = None
    objective: str | None = None
    bytes_per_token: Mapping[str, float] | None = None
    pareto: str | None = None
    num_points: int = 11
    min_weight: float = 0.0
    max_weight: float = 1.0
    max_epochs: float | None = None
    available: Mapping[str, int] | None = None
    groups: tuple[Group, ...] = ()
    reference: str = "uniform"
    no_harm: float | None = None
    pull: PullOption | None = None


def solve_table(fit: Path, output: Path, question: TableQuestion) -> Path:
    """Solve a fitted law for the best mixture at a budget and write it as a mixture.

    Raises:
        InfeasibleError: no mixture satisfies the constraints.
        ValueError: the law needs a budget or size that is not given.
    """
    record = read_json(fit, "fit")
    domains = tuple(record["domains"])
    known = question.available or record.get("available_tokens")
    available_K = None if known is None else _by_domain(known, domains, "available tokens")
    constraints = _constraints(domains, question, available_K)
    if record["law"] == PUBLISHED:
        content = _solve_published(record, question, constraints)
        return write_json(output, "mixture", content)
    found = _asked_for(Estimate.from_dict(record["estimate"]), question, record["metric"])
    if question.available is not None and available_K is not None:
        found = _with_available(found, available_K)
    reference, baselines = _mixtures(question.reference, domains, available_K)
    asked = Question(
        token_budget=question.tokens,
        parameters=question.parameters,
        constraints=constraints,
        baselines=baselines,
        reference=reference,
        no_harm=question.no_harm,
        pull=question.pull and Pull(**question.pull._asdict(), mixture=reference),
    )
    content = {
        "token_budget": question.tokens,
        "parameters": question.parameters,
        "law": found.law.law,
        **advise(found, asked).to_dict(),
    }
    if question.pareto is not None:
        second = _objective(
            question.pareto, found.law.sets, record["metric"], question.bytes_per_token
        )
        content["pareto"] = [
            {
                "weights": point.optimum.mixture.to_dict(),
                "first": point.first,
                "second": point.second,
            }
            for point in trade_off(found, asked, second, question.num_points)
        ]
    return write_json(output, "mixture", content)


def _require_law(law: str, available: Mapping[str, int] | None) -> None:
    if law not in LAWS:
        near = get_close_matches(law, LAWS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"law {law!r} is unknown; {hint}Known are {', '.join(LAWS)}")
    if available is not None and law in WITHOUT_REPETITION:
        raise ValueError(
            f"--available models repetition, which law {law!r} cannot; leave it out here, and give "
            "it to `solve` where it caps weights"
        )


def _objective(
    text: str,
    sets: tuple[str, ...],
    metric: Metric,
    bytes_per_token: Mapping[str, float] | None,
) -> Objective:
    wanted = "bits_per_byte" in text
    objective = Objective.parse(text, sets, bytes_per_token=bytes_per_token if wanted else None)
    if metric == "bits_per_byte" and objective.kind in ("mean_bits_per_byte", "mean_perplexity"):
        raise ValueError(
            f"objective {objective.kind!r} converts losses in nats, and the table is in bits per "
            "byte; use 'mean' or 'worst'"
        )
    return objective


def _asked_for(found: Estimate, question: TableQuestion, metric: Metric) -> Estimate:
    """The estimate for the objective asked for, if another."""
    if question.objective is None:
        return found
    sets, bytes_per_token = found.law.sets, question.bytes_per_token
    return found.with_objective(_objective(question.objective, sets, metric, bytes_per_token))


def _with_available(found: Estimate, available_K: Array) -> Estimate:
    """The law with repetition, if it has any, of other numbers of unique tokens."""
    law = found.law
    if isinstance(law, TreeLaw) or law.repetition is None:
        return found
    repetition = replace(law.repetition, unique_tokens=available_K)
    return replace(found, law=law.with_repetition(repetition))


def _mixtures(
    given: str, domains: tuple[str, ...], available_K: Array | None
) -> tuple[Mixture, dict[str, Mixture]]:
    """The reference, and all mixtures to state the gain over, by name."""
    mixtures = {"uniform": Mixture.uniform(domains)}
    if available_K is not None:
        mixtures["natural"] = Mixture.natural(domains, available_K)
    if given == "natural" and available_K is None:
        raise ValueError("--reference natural follows the tokens that exist; give --available too")
    if given not in ("uniform", "natural"):
        weights = read_json(Path(given), "mixture")["weights"]
        mixtures["reference"] = Mixture.from_mapping(weights).reordered(domains)
    return mixtures.get(given) or mixtures["reference"], mixtures


def _solve_published(
    record: Mapping[str, Any], question: TableQuestion, constraints: Constraints
) -> dict[str, Any]:
    unused = {
        "--objective": question.objective,
        "--pareto": question.pareto,
        "--group": question.groups or None,
        "--reference": None if question.reference == "uniform" else question.reference,
        "--no-harm": question.no_harm,
        "--pull": question.pull,
        "--parameters": question.parameters,
    }
    for option, value in unused.items():
        if value is not None:
            raise ValueError(f"{option} has no place in law 'autoscale'; fit another law to use it")
    budget = record["budgets"][-1]
    tokens = question.tokens or budget["token_budget"]
    solution, objective = solve_published(budget, tokens, constraints.lower, constraints.upper)
    return {
        "token_budget": tokens,
        "parameters": None,
        "law": PUBLISHED,
        "weights": solution.mixture.to_dict(),
        "objective": objective,
        "duality_gap": solution.duality_gap,
        "at_lower": list(solution.at_lower),
        "at_upper": list(solution.at_upper),
    }


def _constraints(
    domains: tuple[str, ...], question: TableQuestion, available_K: Array | None
) -> Constraints:
    if question.max_epochs is not None and (available_K is None or question.tokens is None):
        raise ValueError(
            "--max-epochs caps weights by the tokens that exist; give --available and --tokens too"
        )
    lower_K, upper_K = weight_bounds(
        domains,
        minimum=question.min_weight,
        maximum=question.max_weight,
        available_tokens=1 if available_K is None else available_K,
        token_budget=question.tokens or 1,
        max_epochs=question.max_epochs,
    )
    constraints = Constraints(domains=domains, lower=lower_K, upper=upper_K, groups=question.groups)
    constraints.check()
    return constraints


def _by_domain(found: Mapping[str, int], domains: tuple[str, ...], what: str) -> Array:
    require_same_names(found, domains, what=what)
    return np.array([found[name] for name in domains], dtype=np.float64)
