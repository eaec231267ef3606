"""Commands that need no experiment: fit a table of runs, predict others, solve for a mixture."""

# P runs, J validation sets, K domains

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import Constraints, Group, weight_bounds
from .decision import Question, advise
from .estimate import Estimate, Options, estimate
from .laws.repetition import PUBLISHED_RATE, Repetition
from .mixture import Mixture, require_same_names
from .mixture_objective import Pull
from .objective import Objective
from .published_table import fit_published_table, solve_published
from .records import read_json, write_json
from .run_table import Metric
from .run_table_file import match_domains, read_run_table, write_predictions
from .token_count import parse_token_count
from .uncertainty import predict_interval

Array = NDArray[np.float64]

PUBLISHED = "autoscale"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFit:
    """How to fit a table.

    Attributes:
        law: "auto", "autoscale" or another law's name.
        objective: see `Objective.parse`.
        perplexity: the losses of the table are perplexities.
        metric: unit of the losses.
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
    table = read_run_table(path, perplexity=settings.perplexity, metric=settings.metric)
    objective = Objective.parse(settings.objective, table.sets)
    _require_one_unit(objective, settings.metric)
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
        repetition = Repetition(rate=settings.rate or PUBLISHED_RATE, unique_tokens=unique_K)
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
    found = _read_estimate(fit)
    table = match_domains(read_run_table(path, require_losses=False), found.law.domains)
    counts = (table.tokens, table.parameters)
    beyond_P = found.extrapolation_error(*counts, table.num_runs)
    interval = predict_interval(found.law, table.weights, *counts, beyond=beyond_P)
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
        min_weight: of every domain.
        max_weight: of every domain.
        max_epochs: cap from the tokens available, which the fit or `available` names.
        available: unique tokens of every domain.
        groups: `name:domain+domain=low..high`.
        reference: mixture file or "uniform"; gains are stated over it too.
        no_harm: most that a loss may lie above its value under the reference, in the fit's unit.
        pull: `kl:strength` or `l2:strength`, towards the reference.
    """

    tokens: int | None = None
    parameters: int | None = None
    objective: str | None = None
    min_weight: float = 0.0
    max_weight: float = 1.0
    max_epochs: float | None = None
    available: Mapping[str, int] | None = None
    groups: tuple[str, ...] = ()
    reference: str = "uniform"
    no_harm: float | None = None
    pull: str | None = None


def solve_table(fit: Path, output: Path, question: TableQuestion) -> Path:
    """Solve a fitted law for the best mixture at a budget and write it as a mixture.

    Raises:
        InfeasibleError: no mixture satisfies the constraints.
        ValueError: the law needs a budget or size that is not given.
    """
    record = read_json(fit, "fit")
    domains = tuple(record["domains"])
    available = question.available or record.get("available_tokens")
    constraints = _constraints(domains, question, available)
    if record["law"] == PUBLISHED:
        return _solve_published(record, output, question, constraints)
    found = Estimate.from_dict(record["estimate"])
    if question.objective is not None:
        objective = Objective.parse(question.objective, found.law.sets)
        _require_one_unit(objective, record["metric"])
        found = found.with_objective(objective)
    reference = _reference(question.reference, domains)
    baselines = {"uniform": Mixture.uniform(domains)}
    if question.reference != "uniform":
        baselines["reference"] = reference
    if available is not None:
        tokens_K = _by_domain(available, domains, "available tokens")
        baselines["natural"] = Mixture.natural(domains, tokens_K)
    advice = advise(
        found,
        Question(
            token_budget=question.tokens,
            parameters=question.parameters,
            constraints=constraints,
            baselines=baselines,
            reference=reference,
            no_harm=question.no_harm,
            pull=_pull(question.pull, reference),
        ),
    )
    content = {
        "token_budget": question.tokens,
        "parameters": question.parameters,
        "law": found.law.law,
        **advice.to_dict(),
    }
    return write_json(output, "mixture", content)


def parse_available(text: str) -> dict[str, int]:
    """`arxiv=2.1B,github=900M`, or a JSON file of tokens by domain."""
    path = Path(text)
    if path.suffix == ".json":
        if not path.is_file():
            raise ValueError(f"{path} does not exist; expected tokens by domain as JSON")
        return {name: parse_token_count(count) for name, count in json.loads(path.read_text()).items()}
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(
            f"available tokens {text!r} cannot be read; expected domain=tokens,..., such as "
            "arxiv=2.1B,github=900M, or a .json file"
        )
    return {name.strip(): parse_token_count(count) for name, _, count in pairs}


def parse_rate(text: str) -> float | None:
    """R*, or None for `fit`."""
    if text == "fit":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"rate {text!r} is neither a number of epochs nor 'fit'") from None


def _read_estimate(fit: Path) -> Estimate:
    record = read_json(fit, "fit")
    if record["law"] == PUBLISHED:
        raise ValueError(
            f"{fit} holds law 'autoscale', which describes the objective and not the single "
            "losses; fit another law to predict them, e.g. --law auto"
        )
    return Estimate.from_dict(record["estimate"])


def _solve_published(
    record: Mapping[str, Any], output: Path, question: TableQuestion, constraints: Constraints
) -> Path:
    unused = {
        "--objective": question.objective,
        "--group": question.groups or None,
        "--no-harm": question.no_harm,
        "--pull": question.pull,
        "--parameters": question.parameters,
    }
    for option, value in unused.items():
        if value is not None:
            raise ValueError(f"{option} has no place in law 'autoscale'; fit another law to use it")
    budget = record["budgets"][-1]
    tokens = question.tokens or budget["token_budget"]
    solution = solve_published(budget, tokens, constraints.lower, constraints.upper)
    change = solution.objective - sum(law["amplitude"] * (1 + law["equivalent"]) ** -law["exponent"] + law["irreducible"] for law in budget["laws"])
    content = {
        "token_budget": tokens,
        "parameters": None,
        "law": PUBLISHED,
        "weights": solution.mixture.to_dict(),
        "objective": budget["base_objective"] * (1 + change),
        "duality_gap": solution.duality_gap,
        "at_lower": list(solution.at_lower),
        "at_upper": list(solution.at_upper),
    }
    return write_json(output, "mixture", content)


def _constraints(
    domains: tuple[str, ...], question: TableQuestion, available: Mapping[str, int] | None
) -> Constraints:
    if question.max_epochs is not None and (available is None or question.tokens is None):
        raise ValueError(
            "--max-epochs caps weights by the tokens that exist; give --available and --tokens too"
        )
    lower_K, upper_K = weight_bounds(
        domains,
        minimum=question.min_weight,
        maximum=question.max_weight,
        available_tokens=1
        if available is None
        else _by_domain(available, domains, "available tokens"),
        token_budget=question.tokens or 1,
        max_epochs=question.max_epochs,
    )
    groups = tuple(map(_parse_group, question.groups))
    constraints = Constraints(domains=domains, lower=lower_K, upper=upper_K, groups=groups)
    constraints.check()
    return constraints


def _parse_group(text: str) -> Group:
    """`web:c4+commoncrawl=0.2..0.5`."""
    name, colon, rest = text.partition(":")
    members, equals, bounds = rest.partition("=")
    low, dots, high = bounds.partition("..")
    try:
        if not (colon and equals and dots):
            raise ValueError
        lower, upper = float(low or 0), float(high or 1)
    except ValueError:
        raise ValueError(
            f"group {text!r} cannot be read; expected name:domain+domain=low..high, such as "
            "web:c4+commoncrawl=0.2..0.5"
        ) from None
    return Group(name=name, domains=tuple(members.split("+")), lower=lower, upper=upper)


def _parse_pull(text: str) -> tuple[str, float]:
    kind, _, strength = text.partition(":")
    try:
        return kind, float(strength)
    except ValueError:
        raise ValueError(
            f"pull {text!r} cannot be read; expected kl:strength or l2:strength, such as kl:0.01"
        ) from None


def _pull(text: str | None, reference: Mixture) -> Pull | None:
    if text is None:
        return None
    kind, strength = _parse_pull(text)
    if kind not in ("kl", "l2"):
        raise ValueError(f"pull {text!r} is neither kl nor l2; expected such as kl:0.01")
    return Pull(kind="kl" if kind == "kl" else "l2", strength=strength, mixture=reference)


def _reference(given: str, domains: tuple[str, ...]) -> Mixture:
    if given == "uniform":
        return Mixture.uniform(domains)
    weights = read_json(Path(given), "mixture")["weights"]
    return Mixture.from_mapping(weights).reordered(domains)


def _require_one_unit(objective: Objective, metric: str) -> None:
    if metric == "bits_per_byte" and objective.kind in ("mean_bits_per_byte", "mean_perplexity"):
        raise ValueError(
            f"objective {objective.kind!r} converts losses in nats, and the table is in bits per "
            "byte; use 'mean' or 'worst'"
        )


def _by_domain(found: Mapping[str, int], domains: tuple[str, ...], what: str) -> Array:
    require_same_names(found, domains, what=what)
    return np.array([found[name] for name in domains], dtype=np.float64)
