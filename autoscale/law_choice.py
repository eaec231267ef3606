"""Which law, in which form, describes a table of runs best: judged on runs it was not fitted to.

Every candidate predicts every run from the runs of other mixtures (K-fold by mixture). With several
budgets or model sizes it also predicts the largest from the rest, which is what the law will be
asked for; forms that agree inside the data part there. A candidate's score is the geometric mean of
these errors over the validation sets; the lowest score wins.
"""

# P runs, J validation sets, K domains

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .laws.fit import Index, fit_law, mixture_folds, predict_held_out
from .laws.fitted_law import FittedLaw
from .laws.frame import Form, Placement
from .laws.repetition import Repetition
from .laws.trees import TreeLaw, predict_held_out_trees
from .objective import Objective
from .run_table import RunTable

Array = NDArray[np.float64]
Law = FittedLaw | TreeLaw

JOINT_LAWS = ("eti", "etk", "separable", "inverse_sum", "log_linear")
"""Laws that `auto` tries; `bimix`, `separable_unit` and `trees` only on demand."""

FASTEST = "etk"
TREES = "trees"
FEW = 20  # mixtures up to which each is a fold of its own
LEAST_ERROR = 1e-9  # of a logarithm
EDGE = 0.7  # budgets and sizes above this share of the largest are the edge


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A law in a form, with the worth of repeated tokens."""

    law: str
    form: Form
    repetition: Repetition | None = None

    def describe(self) -> str:
        """Such as `eti, tokens product, size sum`."""
        parts = [self.law]
        parts += [f"tokens {self.form.tokens}"] * (self.form.tokens != "none")
        parts += [f"size {self.form.size}"] * (self.form.size != "none")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well a candidate predicted runs that it was not fitted to.

    Attributes:
        candidate: law and form.
        set_errors: mean absolute error of each validation set over the K folds, in the table's
            metric, by name.
        objective_error: that of the objective.
        edge_errors: mean absolute errors, averaged over the sets, when the largest token budgets
            (`tokens`) or model sizes (`size`) are predicted from the rest.
        inside: mean logarithm of the K-fold errors, half of the sets', half of the objective's.
        score: what candidates are compared by: mean of `inside` and the edges' logarithms.
        converged: share of the sets whose fit converged.
    """

    candidate: Candidate
    set_errors: Mapping[str, float]
    objective_error: float
    edge_errors: Mapping[str, float]
    inside: float
    score: float
    converged: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.candidate.law,
            "form": self.candidate.form.to_dict(),
            "set_errors": dict(self.set_errors),
            "objective_error": self.objective_error,
            "edge_errors": dict(self.edge_errors),
            "inside": self.inside,
            "score": self.score,
            "converged": self.converged,
        }


def candidates(table: RunTable, laws: Sequence[str], repetition: Repetition | None) -> list[Candidate]:
    """The laws in every form that the table can tell apart."""
    tokens: tuple[Placement, ...] = ("product", "sum", "both") if table.has_budgets else ("none",)
    sizes: tuple[Placement, ...] = ("product", "sum", "both") if table.has_sizes else ("none",)
    if repetition is not None:  # the effective total varies, and convexity needs the factor
        tokens = ("product", "both") if table.has_budgets else ("product",)
    return [
        Candidate(law=law, form=Form(tokens=in_tokens, size=in_size), repetition=repetition)
        for law in laws
        for in_tokens in tokens
        for in_size in sizes
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """What candidates are judged by, the same for all of them.

    Attributes:
        table: the runs.
        objective: what a mixture will be chosen for.
        folds: fold of every run; -1 for runs that are fitted but not judged, shape (num_runs,).
        run_weights: how much every run counts in fits, shape (num_runs,).
    """

    table: RunTable
    objective: Objective
    folds: Index
    run_weights: Array

    @classmethod
    def create(
        cls,
        table: RunTable,
        objective: Objective,
        *,
        num_folds: int = 5,
        seed: int = 0,
        run_weights: Array | None = None,
        judged: NDArray[np.bool_] | None = None,
    ) -> Self:
        """Folds by mixture; with few mixtures each is a fold of its own."""
        num_mixtures = len(np.unique(table.mixture_groups()))
        folds_P = mixture_folds(table, num_mixtures if num_mixtures <= FEW else num_folds, seed)
        if judged is not None:
            folds_P = np.where(judged, folds_P, -1)
        weights_P = np.ones(table.num_runs) if run_weights is None else run_weights
        return cls(table=table, objective=objective, folds=folds_P, run_weights=weights_P)

    def score(self, candidate: Candidate) -> "Judged":
        """The candidate's errors, and the candidate fitted to all runs."""
        table = self.table
        fitted, predicted_PJ = self._held_out(candidate)
        judged = self.folds >= 0
        error_PJ = np.abs(predicted_PJ - table.losses)[judged]
        objective_error = np.abs(
            self.objective.values(predicted_PJ[judged], table.sets)
            - self.objective.values(table.losses[judged], table.sets)
        ).mean()
        edges = {} if candidate.law == TREES else self._edge_errors(candidate)
        set_errors_J = np.maximum(error_PJ.mean(axis=0), LEAST_ERROR)
        inside = 0.5 * (np.log(set_errors_J).mean() + np.log(max(objective_error, LEAST_ERROR)))
        terms = [inside, *(float(np.log(max(error, LEAST_ERROR))) for error in edges.values())]
        score = Score(
            candidate=candidate,
            set_errors=dict(zip(table.sets, set_errors_J.tolist(), strict=True)),
            objective_error=float(objective_error),
            edge_errors=edges,
            inside=float(inside),
            score=float(np.mean(terms)),
            converged=1.0 if isinstance(fitted, TreeLaw) else float(np.mean(fitted.converged)),
        )
        return Judged(score, fitted, predicted_PJ)

    def _held_out(self, candidate: Candidate) -> tuple[Law, Array]:
        if candidate.law == TREES:
            return TreeLaw.fit(self.table), predict_held_out_trees(self.table, self.folds)
        fitted = fit_law(
            self.table,
            candidate.law,
            form=candidate.form,
            repetition=candidate.repetition,
            run_weights=self.run_weights,
        )
        return fitted, predict_held_out(fitted, self.table, self.folds, self.run_weights)

    def _edge_errors(self, candidate: Candidate) -> dict[str, float]:
        """Relative errors on the largest budgets and sizes, predicted from the rest."""
        errors = {}
        for what, placement, counts_P in (
            ("tokens", candidate.form.tokens, self.table.tokens),
            ("size", candidate.form.size, self.table.parameters),
        ):
            if placement == "none" or counts_P is None:
                continue
            beyond = _edge(counts_P)
            if beyond is None:
                continue
            rest = self.table.select(~beyond)
            law = fit_law(
                rest,
                candidate.law,
                form=_without_lost_terms(candidate.form, rest),
                repetition=candidate.repetition,
                run_weights=self.run_weights[~beyond],
            )
            edge = self.table.select(beyond)
            predicted_PJ = law.predict(edge.weights, edge.tokens, edge.parameters)
            errors[what] = float(np.abs(predicted_PJ / edge.losses - 1).mean())
        return errors


class Judged(NamedTuple):
    """A candidate with its score."""

    score: Score
    law: Law
    held_out: Array
    """K-fold predictions, NaN for runs that are not judged, shape (num_runs, num_sets)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """All candidates' scores, lowest first, and the best candidate."""

    scores: tuple[Score, ...]
    best: Judged


def choose_law(judge: Judge, candidates: Sequence[Candidate]) -> Choice:
    """Score all candidates and take the best."""
    judged = sorted(map(judge.score, candidates), key=lambda found: found.score.score)
    return Choice(scores=tuple(found.score for found in judged), best=judged[0])


def choose_automatically(judge: Judge, repetition: Repetition | None = None) -> Choice:
    """`law = "auto"`: the form by the fastest law, then the law in that form."""
    forms = choose_law(judge, candidates(judge.table, (FASTEST,), repetition))
    form = forms.best.score.candidate.form
    others = [
        Candidate(law=law, form=form, repetition=repetition)
        for law in JOINT_LAWS
        if law != FASTEST
    ]
    laws = choose_law(judge, others)
    first, second = sorted((forms, laws), key=lambda choice: choice.scores[0].score)
    scores = sorted([*first.scores, *second.scores], key=lambda score: score.score)
    return Choice(scores=tuple(scores), best=first.best)


def _edge(counts_P: Array) -> NDArray[np.bool_] | None:
    """Runs with the largest counts, or None when the rest has no two counts to learn from."""
    beyond = counts_P > EDGE * counts_P.max()
    rest = counts_P[~beyond]
    return beyond if len(rest) and rest.max() > 1.05 * rest.min() else None


def _without_lost_terms(form: Form, rest: RunTable) -> Form:
    """The form less the terms whose counts no longer vary."""
    return Form(
        tokens=form.tokens if rest.has_budgets else "none",
        size=form.size if rest.has_sizes else "none",
    )
