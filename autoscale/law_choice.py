"""Which law describes a table of runs best: judged on runs it was not fitted to.

Every candidate predicts every run from the runs of other mixtures (K-fold by mixture). `eti` is the
law to beat: with few runs the lowest error is often luck, so another law takes its place only if
its errors are lower by more than one standard error of their paired difference. Where tokens or
model size vary, each law is the mean of two forms (see `hypotheses`), not the better of the two:
errors inside the runs, even at their largest budgets, mislead about which form extrapolates.
"""

# P runs, J validation sets, K domains

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .laws.average import AveragedLaw
from .laws.fit import Index, JointLaw, average_law, fit_law, mixture_folds, predict_held_out
from .laws.frame import Form, Placement
from .laws.repetition import Repetition
from .laws.terms import TERMS
from .laws.trees import TreeLaw, predict_held_out_trees
from .objective import Objective
from .run_table import RunTable

Array = NDArray[np.float64]

DEFAULT_LAW = "eti"
JOINT_LAWS = (DEFAULT_LAW, "etk", "separable", "inverse_sum", "log_linear")
"""Laws that `auto` tries; `bimix`, `separable_unit` and `trees` only on demand."""
BUDGET_LAWS = ("inverse_sum_tokens",)
"""Laws that it tries too with several budgets; at one they equal others."""

TREES = TreeLaw.law
FEW = 20  # mixtures up to which each is a fold of its own
EDGE = 0.7  # budgets and sizes above this share of the largest are the edge
LEAST_ERROR = 1e-9  # relative
SAME_COUNT = 1.05  # ratio of two counts that cannot tell a trend


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A law as the mean of its forms, with the worth of repeated tokens."""

    law: str
    forms: tuple[Form, ...] = (Form(),)
    repetition: Repetition | None = None

    def describe(self) -> str:
        """Such as `eti, tokens both and size sum, tokens sum and size product`."""
        return ", ".join([self.law, *filter(None, map(_describe_form, self.forms))])


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well a candidate predicted runs that it was not fitted to.

    Attributes:
        candidate: law and forms.
        set_errors: mean absolute error of each validation set over the K folds, in the table's
            metric, by name.
        objective_error: that of the objective.
        advantage: by how much its errors lie below those of `eti`, in standard errors of the
            paired difference; 0 for `eti` itself.
        converged: share of the sets whose fit converged.
    """

    candidate: Candidate
    set_errors: Mapping[str, float]
    objective_error: float
    advantage: float
    converged: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.candidate.law,
            "forms": [form.to_dict() for form in self.candidate.forms],
            "set_errors": dict(self.set_errors),
            "objective_error": self.objective_error,
            "advantage": self.advantage,
            "converged": self.converged,
        }


def hypotheses(law: str, table: RunTable, repetition: Repetition | None) -> tuple[Form, ...]:
    """The forms whose mean a law is: what the runs can hardly tell apart but targets depend on.

    Either data limit what a mixture can teach (a factor D^-b, and a term of model size), or
    capacity does (a factor P^-h, and a term of tokens). At one budget, sizes alone tell factor and
    term apart. A law of the domains' tokens knows the budget already.
    """
    if not table.has_budgets and repetition is None:
        return (Form(size="both" if table.has_sizes else "none"),)
    tokens: tuple[Placement, ...] = ("both", "sum") if table.has_budgets else ("none", "none")
    if law in TERMS and TERMS[law].in_tokens:
        tokens = ("none", "none")
    elif repetition is not None:  # the effective total varies; convexity needs the factor D^-b
        tokens = ("both", "both") if table.has_budgets else ("product", "product")
    sizes: tuple[Placement, ...] = ("sum", "product") if table.has_sizes else ("none", "none")
    forms = [Form(tokens=t, size=p) for t, p in zip(tokens, sizes, strict=True)]
    return tuple(dict.fromkeys(forms))


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """What candidates are judged by, the same for all of them.

    Attributes:
        table: the runs.
        objective: what a mixture will be chosen for.
        judged: runs whose predictions count, shape (num_runs,).
        folds: fold of every run, the same for runs of one mixture; -1 for mixtures of which no
            run is judged, which are in every fit. Shape (num_runs,).
        run_weights: how much every run counts in fits, shape (num_runs,).
    """

    table: RunTable
    objective: Objective
    judged: NDArray[np.bool_]
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
        """Folds by mixture; with few mixtures each is a fold of its own.

        The folds of the runs that are judged are those they have in a table without the others.
        """
        judged_P = np.ones(table.num_runs, dtype=bool) if judged is None else judged
        groups_P = table.mixture_groups()
        num_mixtures = len(np.unique(groups_P[judged_P]))
        num_folds = num_mixtures if num_mixtures <= FEW else num_folds
        fold_of_group = np.full(groups_P.max() + 1, -1)
        fold_of_group[groups_P[judged_P]] = mixture_folds(table.select(judged_P), num_folds, seed)
        return cls(
            table=table,
            objective=objective,
            judged=judged_P,
            folds=fold_of_group[groups_P],
            run_weights=np.ones(table.num_runs) if run_weights is None else run_weights,
        )

    def judge(self, candidate: Candidate) -> "Judged":
        """The candidate fitted to all runs, with its held-out predictions."""
        if candidate.law == TREES:
            trees = TreeLaw.fit(self.table)
            return Judged(candidate, trees, predict_held_out_trees(self.table, self.folds))
        law = fit_law(
            self.table,
            candidate.law,
            forms=candidate.forms,
            repetition=candidate.repetition,
            run_weights=self.run_weights,
        )
        if isinstance(law, AveragedLaw):
            law = self._shared_by_error(law)
        held_out_PJ = predict_held_out(law, self.table, self.folds, self.run_weights)
        return Judged(candidate, law, held_out_PJ)

    def _shared_by_error(self, law: AveragedLaw) -> AveragedLaw:
        """The mean with members' shares by the inverse square of their held-out errors."""
        shares = []
        for member in law.members:
            held_out_PJ = predict_held_out(member, self.table, self.folds, self.run_weights)
            error_PJ = np.abs(held_out_PJ / self.table.losses - 1)[self.judged]
            shares.append(max(float(error_PJ.mean()), LEAST_ERROR) ** -2)
        return average_law(law.members, shares, self.table, self.run_weights)

    def errors(self, judged: "Judged") -> tuple[Array, Array]:
        """Absolute held-out errors of the sets (P, J) and of the objective (P,), judged runs."""
        table, rows = self.table, self.judged
        error_PJ = np.abs(judged.held_out - table.losses)[rows]
        predicted_P = self.objective.values(judged.held_out[rows], table.sets)
        return error_PJ, np.abs(predicted_P - self.objective.values(table.losses[rows], table.sets))

    def score(self, judged: "Judged", base: "Judged") -> Score:
        """The candidate's errors, beside those of the law to beat."""
        error_PJ, objective_P = self.errors(judged)
        law = judged.law
        return Score(
            candidate=judged.candidate,
            set_errors=dict(zip(self.table.sets, error_PJ.mean(axis=0).tolist(), strict=True)),
            objective_error=float(objective_P.mean()),
            advantage=self._advantage(judged, base),
            converged=1.0 if isinstance(law, TreeLaw) else float(np.mean(law.converged)),
        )

    def _advantage(self, judged: "Judged", base: "Judged") -> float:
        """Mean over its standard error of the paired differences of the runs' errors.

        A run's error is half the mean over the sets and half the objective's, each in multiples
        of the base's mean error, so that no set and not the objective decides alone.
        """
        (own_PJ, own_P), (base_PJ, base_P) = self.errors(judged), self.errors(base)
        unit_J, unit = base_PJ.mean(axis=0), base_P.mean()
        gain_P = ((base_PJ - own_PJ) / unit_J).mean(axis=1) / 2 + (base_P - own_P) / unit / 2
        _, group_P = np.unique(self.folds[self.judged], return_inverse=True)
        mean_F = np.bincount(group_P, gain_P) / np.bincount(group_P)
        spread = float(mean_F.std(ddof=1)) if len(mean_F) > 1 else 0.0
        return 0.0 if spread == 0 else float(mean_F.mean() / spread * np.sqrt(len(mean_F)))


class Judged(NamedTuple):
    """A candidate fitted, with what it predicts of runs it was not fitted to."""

    candidate: Candidate
    law: JointLaw | TreeLaw
    held_out: Array
    """K-fold predictions, NaN for runs in every fit, shape (num_runs, num_sets)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """All candidates' scores, the chosen one first, then by advantage; and the chosen one."""

    scores: tuple[Score, ...]
    best: Judged


def choose_law(judge: Judge, candidates: Sequence[Candidate]) -> Choice:
    """The first candidate, unless another is better by more than one standard error.

    Of several the one with the largest advantage is taken.
    """
    judged = [judge.judge(candidate) for candidate in candidates]
    scores = [judge.score(found, judged[0]) for found in judged]
    order = sorted(range(len(scores)), key=lambda i: -scores[i].advantage)
    chosen = order[0] if scores[order[0]].advantage > 1 else 0
    ordered = [chosen, *(i for i in order if i != chosen)]
    return Choice(scores=tuple(scores[i] for i in ordered), best=judged[chosen])


def edge_errors(judge: Judge, candidate: Candidate) -> dict[str, float]:
    """Relative errors on the largest budgets and sizes, predicted from the rest.

    A measure of extrapolation inside the runs, by what varies: `tokens`, `size`.
    """
    errors = {}
    for what, counts_P in (("tokens", judge.table.tokens), ("size", judge.table.parameters)):
        beyond = None if counts_P is None else _edge(judge.table, counts_P)
        if beyond is None:
            continue
        rest, edge = judge.table.select(~beyond), judge.table.select(beyond)
        law = fit_law(
            rest,
            candidate.law,
            forms=hypotheses(candidate.law, rest, candidate.repetition),
            repetition=candidate.repetition,
            run_weights=judge.run_weights[~beyond],
        )
        predicted_PJ = law.predict(edge.weights, edge.tokens, edge.parameters)
        errors[what] = float(np.abs(predicted_PJ / edge.losses - 1).mean())
    return errors


def _describe_form(form: Form) -> str:
    parts = [f"{what} {placed}" for what, placed in form.to_dict().items() if placed != "none"]
    return " and ".join(parts)


def _edge(table: RunTable, counts_P: Array) -> NDArray[np.bool_] | None:
    """Runs with the largest counts, or None when the rest is too little to learn from.

    It needs two counts, and as many mixtures as domains.
    """
    beyond = np.asarray(counts_P > EDGE * counts_P.max())
    rest_P = counts_P[~beyond]
    num_mixtures = len(np.unique(table.mixture_groups()[~beyond]))
    if num_mixtures < table.num_domains or rest_P.max() <= SAME_COUNT * rest_P.min():
        return None
    return beyond
