"""From a table of runs to a law to decide by: choice, fit, draws, and what to make of it.

This is what `autoscale fit` does, for an experiment and for a table; its record is what
`predict` and `solve` read.
"""

# P runs, J validation sets, K domains

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .law_choice import (
    BUDGET_LAWS,
    DEFAULT_LAW,
    JOINT_LAWS,
    TREES,
    Candidate,
    Choice,
    Judge,
    choose_law,
    edge_errors,
    hypotheses,
)
from .laws.fit import bootstrap
from .laws.records import Law, law_from_dict
from .laws.repetition import Repetition
from .laws.rescaled import rescaled
from .laws.trees import TreeLaw
from .objective import Objective, unit_of
from .repetition_rate import fitted_rate
from .residuals import misfits
from .run_table import ReplicateNoise, RunTable
from .token_count import round_token_count

Array = NDArray[np.float64]
T = TypeVar("T")

CONFIDENCE = 0.9
OUTSIDE = 1.05  # ratio to the range of the runs from which a count is beyond it
SD_OF_MEAN_ERROR = float(np.sqrt(np.pi / 2))  # of a normal error
SMALLER_BUDGETS_WEIGHTS = (1 / 9, 1.0)
"""What a run at a smaller budget may count for: most on public tables, and as much as any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to estimate.

    Attributes:
        law: "auto", or the name of a law.
        folds: K of the K-fold error; up to 20 mixtures each is a fold of its own.
        draws: bootstrap draws.
        seed: of folds and draws.
        repetition: worth of repeated tokens, or None.
        fit_rate: fit R* of the repetition instead of taking its rate.
    """

    law: str = "auto"
    folds: int = 5
    draws: int = 40
    seed: int = 0
    repetition: Repetition | None = None
    fit_rate: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the runs of a fit covered; arrays of names and numbers by domain or set.

    Attributes:
        num_runs: that entered the fit.
        num_mixtures: different ones.
        tokens: least and greatest budget, or None where not known.
        parameters: least and greatest model size, or None.
        weights: least and greatest weight of every domain.
        never_varied: domains whose weight was the same in all runs.
        seed_noise: standard deviation between seeds by set, with its degrees of freedom, or None.
    """

    num_runs: int
    num_mixtures: int
    tokens: tuple[float, float] | None
    parameters: tuple[float, float] | None
    weights: Mapping[str, tuple[float, float]]
    never_varied: tuple[str, ...]
    seed_noise: Mapping[str, float] | None
    seed_degrees_of_freedom: int

    @classmethod
    def of(cls, table: RunTable, noise: ReplicateNoise | None) -> Self:
        low_K, high_K = table.weights.min(axis=0), table.weights.max(axis=0)
        return cls(
            num_runs=table.num_runs,
            num_mixtures=len(np.unique(table.mixture_groups())),
            tokens=_range(table.tokens),
            parameters=_range(table.parameters),
            weights={
                name: (low, high)
                for name, low, high in zip(
                    table.domains, low_K.tolist(), high_K.tolist(), strict=True
                )
            },
            never_varied=table.never_varied(),
            seed_noise=None
            if noise is None
            else dict(zip(table.sets, noise.standard_deviation.tolist(), strict=True)),
            seed_degrees_of_freedom=0 if noise is None else noise.degrees_of_freedom,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        pairs = {
            key: None if record[key] is None else tuple(record[key])
            for key in ("tokens", "parameters")
        }
        weights = {name: tuple(pair) for name, pair in record["weights"].items()}
        never = tuple(record["never_varied"])
        return cls(**{**record, **pairs, "weights": weights, "never_varied": never})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimate:
    """A law with its draws, how it was chosen, and reasons for doubt.

    Attributes:
        law: fitted to all runs.
        objective: what laws were judged by and mixtures are chosen for.
        scores: of all candidates as JSON, the chosen one first.
        reason: the choice in a sentence.
        half_widths: of 90% intervals of the losses inside the runs, by set: quantiles of the
            absolute held-out errors; relative to the loss where `relative`.
        objective_half_width: that of the objective.
        objective_noise: standard deviation of a run's objective about the law; relative to the
            objective where `relative`.
        relative: unit of `objective_noise`.
        edge_errors: relative errors on the largest budgets (`tokens`) and sizes (`size`) by the law
            fitted to the rest; empty where the rest is too little.
        facts: what the runs covered.
        warnings: sentences.
    """

    law: Law
    objective: Objective
    scores: tuple[Mapping[str, Any], ...]
    reason: str
    half_widths: Mapping[str, float]
    objective_half_width: float
    objective_noise: float
    relative: bool
    edge_errors: Mapping[str, float]
    facts: Facts
    warnings: tuple[str, ...]

    def with_objective(self, objective: Objective) -> Self:
        """The same law for another objective; its noise stays that of the one fitted for."""
        return replace(self, objective=objective)

    def counts(self, tokens: T | None, parameters: T | None) -> tuple[T | None, T | None]:
        """Tokens and parameters as the law takes them: None where those of its runs are unknown.

        Raises:
            ValueError: the runs had several budgets or sizes, and none is given.
        """
        known = {"tokens": self.facts.tokens, "parameters": self.facts.parameters}
        for (what, seen), given in zip(known.items(), (tokens, parameters), strict=True):
            if given is None and seen is not None and seen[1] > OUTSIDE * seen[0]:
                low, high = map(round_token_count, seen)
                raise ValueError(
                    f"the law was fitted to runs of {low} to {high} {what}; give the {what} to "
                    "solve or predict for"
                )
        return (
            None if self.facts.tokens is None else tokens,
            None if self.facts.parameters is None else parameters,
        )

    def extrapolation_error(
        self, tokens: ArrayLike | None, parameters: ArrayLike | None, num_runs: int
    ) -> Array:
        """Relative error to expect beyond the budgets and sizes of the runs, shape (num_runs,).

        It is that of the law fitted to the smaller ones on the largest, as a standard deviation;
        0 inside, and where the runs could not tell.
        """
        worst = max(self.edge_errors.values(), default=0.0)
        outside_P = np.zeros(num_runs, dtype=bool)
        for counts, seen in ((tokens, self.facts.tokens), (parameters, self.facts.parameters)):
            if counts is not None and seen is not None:
                counts_P = np.asarray(counts, dtype=np.float64)
                outside_P |= (counts_P < seen[0] / OUTSIDE) | (counts_P > seen[1] * OUTSIDE)
        return np.asarray(outside_P * worst * SD_OF_MEAN_ERROR)

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law.to_dict(),
            "objective": self.objective.to_dict(),
            "scores": list(self.scores),
            "reason": self.reason,
            "half_widths": dict(self.half_widths),
            "objective_half_width": self.objective_half_width,
            "objective_noise": self.objective_noise,
            "relative": self.relative,
            "edge_errors": dict(self.edge_errors),
            "facts": asdict(self.facts),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            law=law_from_dict(record["law"]),
            objective=Objective(**record["objective"]),
            scores=tuple(record["scores"]),
            reason=record["reason"],
            half_widths=dict(record["half_widths"]),
            objective_half_width=record["objective_half_width"],
            objective_noise=record["objective_noise"],
            relative=record["relative"],
            edge_errors=dict(record["edge_errors"]),
            facts=Facts.from_dict(record["facts"]),
            warnings=tuple(record["warnings"]),
        )


def estimate(
    table: RunTable,
    objective: Objective,
    options: Options,
    *,
    noise: ReplicateNoise | None = None,
    run_weights: Array | None = None,
    judged: NDArray[np.bool_] | None = None,
) -> Estimate:
    """Choose a law, fit it to all runs and draw its parameters again.

    Args:
        noise: between seeds; by default that of the table's replicates.
        run_weights: how much every run counts, shape (num_runs,); by default its tokens over those
            of the largest budget, as early losses say less about long runs.
        judged: runs on which laws are compared, shape (num_runs,); all by default.

    Raises:
        ValueError: the table cannot carry a law, or the law is unknown.
    """
    _check(table)
    if run_weights is None and table.tokens is not None:
        run_weights = table.tokens / table.tokens.max()
    judge = Judge.create(
        table,
        objective,
        num_folds=options.folds,
        seed=options.seed,
        run_weights=run_weights,
        judged=judged,
    )
    return _finished(judge, _choose(judge, options), options, noise)


def estimate_at_largest_budget(
    table: RunTable,
    objective: Objective,
    options: Options,
    *,
    noise: ReplicateNoise | None = None,
    largest: NDArray[np.bool_] | None = None,
    keep: bool | None = None,
) -> tuple[Estimate, bool]:
    """The same for the largest budget, with the smaller ones only if they help there.

    The law is fitted to the runs of the largest budget alone, and to all runs with the smaller
    budgets at weight 1/9 and 1; all three are judged on the mixtures of the largest.

    Args:
        noise: see `estimate`.
        largest: runs of the largest budget, shape (num_runs,); by default those of most tokens.
        keep: whether to keep the smaller budgets, where that is not to be judged.

    Returns:
        The better estimate, and whether it keeps the smaller budgets.
    """
    if largest is None and table.tokens is not None:
        largest = np.asarray(table.tokens > 0.99 * table.tokens.max())
    if largest is None or largest.all():
        return estimate(table, objective, options, noise=noise), False
    alone_table = table.select(largest)
    _check(alone_table)
    alone = Judge.create(alone_table, objective, num_folds=options.folds, seed=options.seed)
    choice = _choose(alone, options)
    if options.law == TREES:
        return _finished(alone, choice, options, noise), False
    best, kept = (_mean_error(alone, choice), alone, choice), False
    for weight in SMALLER_BUDGETS_WEIGHTS:
        together = Judge.create(
            table,
            objective,
            num_folds=options.folds,
            seed=options.seed,
            run_weights=np.where(largest, 1.0, weight),
            judged=largest,
        )
        choice = _choose(together, options)
        error = _mean_error(together, choice)
        if keep is not False and (error < best[0] or (keep and not kept)):
            best, kept = (error, together, choice), True
    return _finished(best[1], best[2], options, noise), kept


def _mean_error(judge: Judge, choice: Choice) -> float:
    """Held-out error of the objective on the judged runs."""
    return float(judge.errors(choice.best)[1].mean())


def _check(table: RunTable) -> None:
    table.check_for_fit()
    num_mixtures = len(np.unique(table.mixture_groups()))
    if num_mixtures < table.num_domains:
        raise ValueError(
            f"{table.num_runs} runs of {num_mixtures} different mixtures cannot carry a law of "
            f"{table.num_domains} domains; expected at least {table.num_domains} mixtures, better "
            f"{2 * table.num_domains} or more: train more of them, or join domains"
        )


def _choose(judge: Judge, options: Options) -> Choice:
    if options.law == TREES:
        return choose_law(judge, [Candidate(law=TREES)])
    laws: tuple[str, ...] = (options.law,)
    if options.law == "auto":
        laws = JOINT_LAWS + (BUDGET_LAWS if judge.table.has_budgets else ())
    repetition = options.repetition
    if repetition is not None and options.fit_rate:
        repetition = fitted_rate(judge, repetition)
    return choose_law(
        judge,
        [
            Candidate(
                law=law, forms=hypotheses(law, judge.table, repetition), repetition=repetition
            )
            for law in laws
        ],
    )


def _finished(
    judge: Judge, choice: Choice, options: Options, noise: ReplicateNoise | None
) -> Estimate:
    """Draws, noise and warnings for the law chosen."""
    law = choice.best.law
    table, objective = judge.table, judge.objective
    relative = table.has_budgets or table.has_sizes
    final: Law = law
    if not isinstance(law, TreeLaw):
        drawn = bootstrap(
            law,
            table,
            num_draws=options.draws,
            seed=options.seed,
            run_weights=judge.run_weights,
        )
        final = rescaled(drawn, table)
    noise = noise or table.replicate_noise()
    facts = Facts.of(table, noise)
    widths_J, objective_width = _half_widths(judge, choice, relative)
    return Estimate(
        law=final,
        objective=objective,
        scores=tuple(score.to_dict() for score in choice.scores),
        reason=_reason(choice, judge),
        half_widths=dict(zip(table.sets, widths_J.tolist(), strict=True)),
        objective_half_width=objective_width,
        objective_noise=_objective_noise(final, judge, choice, relative),
        relative=relative,
        edge_errors={} if isinstance(law, TreeLaw) else edge_errors(judge, choice.best.candidate),
        facts=facts,
        warnings=(*_warnings(final, facts), *misfits(judge, choice.best, noise)),
    )


def _half_widths(judge: Judge, choice: Choice, relative: bool) -> tuple[Array, float]:
    """Quantiles of the absolute held-out errors, by set (J,) and of the objective (conformal)."""
    error_PJ, error_P = judge.errors(choice.best)
    if relative:
        table = judge.table.select(judge.judged)
        error_PJ = error_PJ / table.losses
        error_P = error_P / judge.objective.values(table.losses, table.sets)
    level = min(1.0, CONFIDENCE * (len(error_P) + 1) / len(error_P))
    return np.quantile(error_PJ, level, axis=0), float(np.quantile(error_P, level))


def _objective_noise(law: Law, judge: Judge, choice: Choice, relative: bool) -> float:
    table, judged = judge.table, judge.judged
    observed_P = judge.objective.values(table.losses, table.sets)
    if isinstance(law, TreeLaw):  # trees follow their own runs too closely
        predicted_PJ, used = choice.best.held_out, 0.0
    else:
        predicted_PJ = law.predict(table.weights, table.tokens, table.parameters)
        used = float(law.effective_parameters.mean())
    residual_P = (judge.objective.values(predicted_PJ, table.sets) - observed_P)[judged]
    if relative:
        residual_P = residual_P / observed_P[judged]
    free = max(len(residual_P) - used, 0.1 * len(residual_P))
    return float(np.sqrt((residual_P**2).sum() / free))


def _reason(choice: Choice, judge: Judge) -> str:
    best = choice.scores[0]
    unit = unit_of(judge.table.metric, judge.objective)
    num_folds = len(np.unique(judge.folds[judge.judged]))
    error = f"{num_folds}-fold error of the objective {best.objective_error:.4f} {unit}"
    if len(choice.scores) == 1:
        return f"Law {best.candidate.describe()}, as asked for: {error}."
    others = [score for score in choice.scores if score is not best]
    second = min(others, key=lambda score: score.objective_error)
    beside = (
        f"{error}, the best of the others, {second.candidate.law}, {second.objective_error:.4f}"
    )
    if best.advantage > 0:
        return (
            f"Law {best.candidate.describe()}: its held-out errors lie {best.advantage:.1f} "
            f"standard errors below those of {DEFAULT_LAW}; {beside}."
        )
    return (
        f"Law {best.candidate.describe()}: no other predicts held-out runs better by more than one "
        f"standard error; {beside}."
    )


def _warnings(law: Law, facts: Facts) -> list[str]:
    found = []
    num_domains = len(law.domains)
    if facts.num_mixtures < 2 * num_domains:
        found.append(
            f"{facts.num_mixtures} mixtures for {num_domains} domains are few: priors decide much; "
            f"{2 * num_domains} or more would leave it to the data."
        )
    if facts.never_varied:
        names = ", ".join(facts.never_varied)
        found.append(
            f"The weight of {names} never varied: what its tokens are worth is prior alone."
        )
    if not isinstance(law, TreeLaw) and not all(law.converged):
        sets = [name for name, done in zip(law.sets, law.converged, strict=True) if not done]
        found.append(
            f"The fit of {', '.join(sets)} did not converge; its parameters are not final."
        )
    return found


def _range(counts_P: Array | None) -> tuple[float, float] | None:
    return None if counts_P is None else (float(counts_P.min()), float(counts_P.max()))
