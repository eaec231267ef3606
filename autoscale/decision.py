"""The mixture that a fitted law advises for one budget, how sure it is, and when to doubt it."""

# K domains, J validation sets, S draws

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import Constraints, InfeasibleError
from .estimate import CONFIDENCE, Estimate
from .laws.records import Law
from .laws.trees import TreeLaw
from .mixture import Mixture
from .mixture_objective import MixtureObjective, Pull, WeightedSum, Worst
from .mixture_program import Choice
from .objective import Objective
from .objective import unit_of as unit_of
from .optimum import DEFAULT_SEARCH, Optimum, make_choice, solve
from .pareto import FrontPoint, pareto_front
from .random_search import Search
from .token_count import round_token_count
from .uncertainty import Decision, Gain

Array = NDArray[np.float64]

SAME_COUNT = 1.02  # ratio of tokens or model sizes that differ by rounding alone
FAR_TOKENS = 4.0 * SAME_COUNT  # multiples of the largest budget, or parts of the smallest
FAR_WEIGHT = 1.25  # multiples of the largest weight probed that are far
SURE = 0.95  # probability of being better from which a gain is called distinguishable


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """What a mixture is wanted for.

    Attributes:
        token_budget: of the run; None where the law knows one budget and asks for none.
        parameters: of the model; None where the law knows one size only.
        constraints: on the mixture.
        baselines: mixtures to state the gain over, by name; the first is the one that the
            sentence compares with.
        reference: what `no_harm` refers to.
        held_at: solve the law at this budget instead (projection `hold`).
        no_harm: most that any loss may lie above its value under the reference.
        pull: to a prior mixture.
    """

    token_budget: float | None
    parameters: float | None
    constraints: Constraints
    baselines: Mapping[str, Mixture]
    reference: Mixture
    held_at: float | None = None
    no_harm: float | None = None
    pull: Pull | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Advice:
    """The answer.

    Attributes:
        optimum: the mixture with its certificate.
        low: lower bounds of 90% intervals of the weights by domain, or None without draws.
        high: upper bounds, or None.
        gains: over every baseline; empty without draws.
        sentence: what to make of it.
        warnings: reasons for doubt, in sentences.
    """

    optimum: Optimum
    low: Mapping[str, float] | None
    high: Mapping[str, float] | None
    gains: Mapping[str, Gain]
    sentence: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        optimum = self.optimum
        return {
            "weights": optimum.mixture.to_dict(),
            "low": self.low and dict(self.low),
            "high": self.high and dict(self.high),
            "objective": optimum.objective,
            "duality_gap": optimum.duality_gap,
            "at_lower": list(optimum.at_lower),
            "at_upper": list(optimum.at_upper),
            "message": optimum.message,
            "gains": {name: gain.to_dict() for name, gain in self.gains.items()},
            "sentence": self.sentence,
            "warnings": list(self.warnings),
        }


def advise(estimate: Estimate, question: Question) -> Advice:
    """Solve the law for the question, with intervals from its draws.

    Raises:
        InfeasibleError: no mixture satisfies the constraints.
        ValueError: the law needs a budget or a size that the question does not give.
    """
    law = _law_for(estimate, question)
    tokens, parameters = _counts(estimate, question)
    optimum = solve(
        _choice(law.surface(tokens, parameters), estimate.objective, question), DEFAULT_SEARCH
    )
    warnings = [*_reach(estimate, question), *_about_optimum(estimate, optimum)]
    if isinstance(law, TreeLaw):
        return Advice(
            optimum=optimum,
            low=None,
            high=None,
            gains={},
            sentence="The trees have no intervals: nothing says how sure this mixture is.",
            warnings=tuple(warnings),
        )
    solver = _DrawSolver(estimate.objective, question, optimum.mixture)
    decision = Decision(
        law,
        estimate.objective,
        solver,
        tokens=tokens,
        parameters=parameters,
        num_mixtures=estimate.facts.num_mixtures,
    )
    gains = {
        name: decision.gain(mixture.as_array()) for name, mixture in question.baselines.items()
    }
    interval = decision.weight_interval(question.constraints.lower, question.constraints.upper)
    if solver.num_infeasible:
        warnings.append(
            f"In {solver.num_infeasible} of {law.num_draws} draws of the law no mixture keeps the "
            "losses within their limits; the mixture found stands in for theirs."
        )
    return Advice(
        optimum=optimum,
        low=dict(zip(law.domains, interval.low.tolist(), strict=True)),
        high=dict(zip(law.domains, interval.high.tolist(), strict=True)),
        gains=gains,
        sentence=gain_sentence(gains, unit_of(law.metric, estimate.objective)),
        warnings=tuple(warnings),
    )


def trade_off(
    estimate: Estimate, question: Question, second: Objective, num_points: int
) -> tuple[FrontPoint, ...]:
    """The front between the estimate's objective and a second one, see `pareto_front`.

    Raises:
        InfeasibleError: no mixture satisfies the constraints.
        ValueError: the question has a pull, or see `advise` and `pareto_front`.
    """
    if question.pull is not None:
        raise ValueError(
            "a front between two objectives has no place for a pull, which is a third; leave it out"
        )
    surface: Any = _law_for(estimate, question).surface(*_counts(estimate, question))
    return pareto_front(
        surface,
        mixture_objective(estimate.objective, surface.sets),
        mixture_objective(second, surface.sets),
        question.constraints,
        num_points=num_points,
        limits=_limits(surface, question),
    )


def mixture_objective(objective: Objective, sets: tuple[str, ...]) -> MixtureObjective:
    """The objective as the solver takes it."""
    coefficients_J = objective.coefficients(sets)
    if objective.kind == "worst_loss":
        return Worst(offsets=np.where(coefficients_J > 0, 0.0, np.inf))
    of_perplexity = objective.kind == "mean_perplexity"
    return WeightedSum(weights=coefficients_J, of="perplexity" if of_perplexity else "loss")


def gain_sentence(gains: Mapping[str, Gain], unit: str) -> str:
    """Expected gain over the first baseline, with what it is worth."""
    name, gain = next(iter(gains.items()))
    numbers = (
        f"{gain.expected:.4f} {unit}, {CONFIDENCE:.0%} interval {gain.low:.4f} to {gain.high:.4f}, "
        f"probability of being better {gain.probability:.2f}"
    )
    if gain.probability >= SURE:
        return f"Expected gain over {name} {numbers}."
    return (
        f"No gain over {name} can be told from chance: expected {numbers}. Keeping {name} costs "
        "nothing that these runs can see."
    )


class _DrawSolver:
    """Solves draws of a law near the optimum of the fit, from which they differ little."""

    def __init__(self, objective: Objective, question: Question, mixture: Mixture) -> None:
        self.objective, self.question, self.mixture = objective, question, mixture
        self.num_infeasible = 0
        self.search = Search(reference=mixture, num_starts=2)

    def __call__(self, surface: Any) -> Array:
        choice = _choice(surface, self.objective, self.question)
        try:
            return solve(choice, self.search).mixture.as_array()
        except InfeasibleError:  # the fit itself has an optimum: the limits are at fault
            self.num_infeasible += 1
            return self.mixture.as_array()


def _choice(surface: Any, objective: Objective, question: Question) -> Choice:
    return make_choice(
        surface,
        mixture_objective(objective, surface.sets),
        question.constraints,
        limits=_limits(surface, question),
        pull=question.pull,
    )


def _limits(surface: Any, question: Question) -> Array | None:
    """Greatest losses that do no harm, shape (num_sets,), or None."""
    if question.no_harm is None:
        return None
    return np.asarray(surface.losses(question.reference.as_array()) + question.no_harm)


def _law_for(estimate: Estimate, question: Question) -> Law:
    """The law with domains as scarce as at the budget asked for, where it is solved at another."""
    law = estimate.law
    if isinstance(law, TreeLaw) or law.repetition is None:
        return law
    if question.held_at is None or question.token_budget is None:
        return law
    share = question.held_at / question.token_budget
    scarce = replace(law.repetition, unique_tokens=law.repetition.unique_tokens * share)
    return law.with_repetition(scarce)


def _counts(estimate: Estimate, question: Question) -> tuple[float | None, float | None]:
    """Tokens and parameters to solve at."""
    tokens = question.token_budget if question.held_at is None else question.held_at
    return estimate.counts(tokens, question.parameters)


def _reach(estimate: Estimate, question: Question) -> Iterator[str]:
    """Extrapolation in tokens and model size."""
    if question.token_budget is not None:
        yield from _token_reach(estimate, question, question.token_budget)
    if question.parameters is None:
        return
    size, known = question.parameters, estimate.facts.parameters
    if known is None:
        yield (
            f"The runs' model sizes are not known, so that {round_token_count(size)} parameters "
            "change nothing."
        )
    elif not known[0] / SAME_COUNT <= size <= known[1] * SAME_COUNT:
        low, high = map(round_token_count, known)
        sizes = f"size probed ({low})" if low == high else f"sizes probed ({low} to {high})"
        yield (
            f"The model of {round_token_count(size)} parameters lies outside the {sizes}: "
            "intervals from the bootstrap are too narrow there."
        )


def _token_reach(estimate: Estimate, question: Question, budget: float) -> Iterator[str]:
    known = estimate.facts.tokens
    said = round_token_count(budget)
    if known is None:
        yield f"The runs' tokens are not known, so that no law says what {said} tokens change."
        return
    held = question.held_at is not None or not estimate.law.uses_tokens
    how = "the weights are held" if held else "the law is extrapolated"
    if budget > FAR_TOKENS * known[1]:
        yield f"{said} tokens are {budget / known[1]:.3g} times the largest budget probed; {how}."
    elif budget < known[0] / FAR_TOKENS:
        yield (
            f"{said} tokens are {budget / known[0]:.2g} times the smallest budget probed; {how}."
        )


def _about_optimum(estimate: Estimate, optimum: Optimum) -> Iterator[str]:
    for names, side in ((optimum.at_lower, "least"), (optimum.at_upper, "greatest")):
        if names:
            yield (
                f"The {side} weight allowed holds {', '.join(names)}: the bound chose it, not the "
                "law."
            )
    probed = estimate.facts.weights
    beyond = [
        name
        for name, weight in optimum.mixture.to_dict().items()
        if weight > FAR_WEIGHT * probed[name][1]
    ]
    if beyond:
        yield (
            f"The optimal weight of {', '.join(beyond)} lies far above any that was probed; the "
            "law is extrapolated there."
        )
    if optimum.duality_gap is None:
        yield (
            "The law is not convex: the mixture is the best of several starts, without a proof "
            "that none is better."
        )
