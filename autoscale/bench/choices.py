"""The mixtures that the methods of a benchmark choose from their probe runs, and the search's."""

# P runs, K domains, J validation sets

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..config import ExperimentConfig
from ..decision import Question, advise
from ..estimate import Estimate, Options, estimate
from ..laws.repetition import PUBLISHED_RATE, Repetition
from ..methods.ado import ADO
from ..methods.doremi import DoReMi
from ..methods.method import Chosen
from ..methods.problem import MixingProblem
from ..mixture import Mixture
from ..records import read_json, write_json
from ..run_table import RunTable
from ..runs import RunResult, RunSpec, RunStore
from ..stages import artifact
from .plan import Arm, BenchPlan

logger = logging.getLogger(__name__)

NUM_CONFIRMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A mixture with who chose it and why.

    Attributes:
        objective: name of the benchmark's objective.
        method: name of the arm, or `search-1` and so on.
        weights: by domain; None where the method could not choose.
        message: how it came about, or why not.
    """

    objective: str
    method: str
    weights: Mapping[str, float] | None
    message: str

    @property
    def name(self) -> str:
        """Of its target runs."""
        return f"{self.objective}-{self.method}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(**content)


def runs_table(store: RunStore, specs: Sequence[RunSpec]) -> RunTable:
    """Finished runs of one model as methods take them; those that diverged are left out.

    Raises:
        ValueError: a run is not finished.
    """
    results = []
    for spec in specs:
        status = store.status(spec)
        if status == "finished":
            results.append(store.result(spec))
        elif status != "failed":
            raise ValueError(f"run {spec.label} of the benchmark is not finished")
    return _table(results)


def _table(results: Sequence[RunResult]) -> RunTable:
    domains, sets = results[0].spec.domains, tuple(results[0].spec.evaluation["domains"])
    tokens_PK = np.array([[each.tokens[name] for name in domains] for each in results], float)
    return RunTable(
        runs=tuple(each.spec.run_id for each in results),
        domains=domains,
        sets=sets,
        weights=tokens_PK / tokens_PK.sum(axis=1, keepdims=True),
        tokens=tokens_PK.sum(axis=1),
        seeds=tuple(each.spec.seed for each in results),
        losses=np.array([[each.final_losses[name] for name in sets] for each in results]),
    )


def choose(plan: BenchPlan, path: Path) -> list[Choice]:
    """What every method chooses for every objective; written to `path`, and read again there.

    A method that cannot choose from its runs is left out with its reason: the others go on.
    """
    known = _read(path)
    choices: dict[str, dict[str, Any]] = {}
    found = []
    for objective, problem in plan.problems.items():
        for arm in plan.arms:
            specs = [spec for _, spec in plan.probes(arm)]
            key = _key("choice", arm.name, problem, specs)
            if key not in known:
                choice = _choose(plan, arm, objective, problem, specs)
                logger.info("%s for %s: %s", arm.name, objective, choice.message)
                known[key] = choice.to_dict()
            choices[key] = known[key]
            found.append(Choice.from_dict(known[key]))
        for key, choice in _trained(plan, objective, problem).items():
            choices[key] = choice.to_dict()
            found.append(choice)
        for key, choice in _searched(plan, objective, problem, known).items():
            choices[key] = choice.to_dict()
            found.append(choice)
    write_json(path, "bench choices", {"choices": choices})
    return found


def choices_path(config: ExperimentConfig) -> Path:
    """Where the choices of a benchmark lie."""
    return artifact(config, "bench-choices")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    return dict(read_json(path, "bench choices")["choices"]) if path.is_file() else {}


def _choose(
    plan: BenchPlan, arm: Arm, objective: str, problem: MixingProblem, specs: Sequence[RunSpec]
) -> Choice:
    runs = None
    if specs:
        runs = runs_table(plan.experiment.store, specs)
    try:
        chosen: Chosen = arm.method.choose(problem, runs)
    except ValueError as error:
        return Choice(objective=objective, method=arm.name, weights=None, message=str(error))
    return Choice(
        objective=objective,
        method=arm.name,
        weights=chosen.mixture.to_dict(),
        message=chosen.message,
    )


def _trained(plan: BenchPlan, objective: str, problem: MixingProblem) -> dict[str, Choice]:
    """What the methods chose that need the training engine, by key."""
    found = {}
    if plan.doremi is not None:
        proxy = plan.doremi[1]
        online = plan.experiment.store.result(proxy).online
        assert online is not None
        chosen = DoReMi().choose(problem, online["weights"])
        found[_key("choice", DoReMi.name, problem, [proxy])] = Choice(
            objective=objective,
            method=DoReMi.name,
            weights=chosen.mixture.to_dict(),
            message=chosen.message,
        )
    if plan.ado:
        found[_key("choice", ADO.name, problem, list(plan.ado.values()))] = Choice(
            objective=objective,
            method=ADO.name,
            weights=None,
            message="Weights follow the target's own losses as it trains, from the natural ones.",
        )
    return found


def _searched(
    plan: BenchPlan, objective: str, problem: MixingProblem, known: dict[str, dict[str, Any]]
) -> dict[str, Choice]:
    """The three mixtures that the law of the search's runs holds for best, by key.

    They are its optimum, and the two of the mixtures trained that it predicts best: what an
    optimum owes to the noise, they owe less.
    """
    specs = plan.search(plan.target_tokens)
    if not specs:
        return {}
    keys = [
        _key(f"search-{number + 1}", "search", problem, specs) for number in range(NUM_CONFIRMED)
    ]
    if any(key not in known for key in keys):
        found = fit_search(plan, problem, specs)
        optimum = solve_at(found, problem, plan.target_tokens)
        weights_PK = np.stack([mixture.as_array() for mixture in plan.search_mixtures])
        tokens_P = np.full(len(weights_PK), float(plan.target_tokens))
        predicted_PJ = found.law.predict(weights_PK, tokens_P, None)
        best = np.argsort(problem.objective.values(predicted_PJ, found.law.sets), kind="stable")
        mixtures = [optimum, *(plan.search_mixtures[index] for index in best)][:NUM_CONFIRMED]
        for number, (key, mixture) in enumerate(zip(keys, mixtures, strict=True)):
            what = "Optimum" if number == 0 else f"Place {number} of the mixtures trained"
            known[key] = Choice(
                objective=objective,
                method=f"search-{number + 1}",
                weights=mixture.to_dict(),
                message=f"{what} by law {found.law.law} of {len(specs)} runs at the target.",
            ).to_dict()
    return {key: Choice.from_dict(known[key]) for key in keys}


def fit_search(plan: BenchPlan, problem: MixingProblem, specs: Sequence[RunSpec]) -> Estimate:
    """The joint law of runs of one budget, for the objective of a problem."""
    table = problem.runs_for("search", runs_table(plan.experiment.store, specs), least_mixtures=3)
    assert table.tokens is not None
    drawn_K = (table.weights * table.tokens[:, None]).max(axis=0)
    repeats = (drawn_K > problem.available_tokens).any()
    repetition = None
    if repeats:
        repetition = Repetition(rate=PUBLISHED_RATE, unique_tokens=problem.available_tokens)
    return estimate(
        table,
        problem.objective,
        Options(seed=plan.experiment.config.seed, repetition=repetition),
    )


def solve_at(
    found: Estimate, problem: MixingProblem, tokens: int, *, held_at: float | None = None
) -> Mixture:
    """The optimum of a law at a budget, within the problem's bounds there."""
    return advise(found, question_at(problem, tokens, held_at=held_at)).optimum.mixture


def question_at(problem: MixingProblem, tokens: int, *, held_at: float | None = None) -> Question:
    """The best mixture at a budget, beside uniform; by the law at `held_at` where that is given."""
    return Question(
        token_budget=tokens,
        held_at=held_at,
        parameters=None,
        constraints=problem.constraints(tokens),
        baselines={"uniform": Mixture.uniform(problem.domains)},
        reference=problem.prior,
    )


def _key(what: str, who: str, problem: MixingProblem, specs: Sequence[RunSpec]) -> str:
    """What a choice depends on, as a digest."""
    bounds = problem.constraints(problem.target_tokens)
    content = [
        what,
        who,
        problem.objective.to_dict(),
        problem.target_tokens,
        bounds.lower.tolist(),
        bounds.upper.tolist(),
        [spec.identity for spec in specs],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
