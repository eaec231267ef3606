"""The mixture that a fitted law advises for one budget, how sure it is, and when to doubt it."""

# K domains, J validation sets

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import Constraints
from .estimate import Estimate
from .laws.records import ParametricLaw
from .laws.trees import TreeLaw
from .mixture import Mixture
from .mixture_objective import MixtureObjective, Pull, WeightedSum, Worst
from .objective import Objective
from .optimum import DEFAULT_SEARCH, Optimum, optimise
from .random_search import Search
from .token_count import round_token_count
from .uncertainty import CONFIDENCE, Decision, Gain

Array = NDArray[np.float64]

FAR_TOKENS = 4.0  # multiples of the largest budget, or size, beyond which a warning is due
FAR_WEIGHT = 1.25  # multiples of the largest weight probed
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
    law = None if isinstance(estimate.law, TreeLaw) else _law_for(estimate.law, question)
    tokens = question.token_budget if question.held_at is None else question.held_at

    def solve(surface: Any, search: Search = DEFAULT_SEARCH) -> Optimum:
        limits = None
        if question.no_harm is not None:
            limits = surface.losses(question.reference.as_array()) + question.no_harm
        return optimise(
            surface,
            mixture_objective(estimate.objective, surface.sets),
            question.constraints,
            limits=limits,
            pull=question.pull,
            search=search,
        )

    warnings = [*_reach(estimate, question)]
    if law is None:
        optimum = solve(estimate.law.surface(tokens, question.parameters))
        sentence = "The trees have no intervals: nothing says how sure this mixture is."
        warnings += _about_optimum(estimate, optimum)
        return Advice(
            optimum=optimum, low=None, high=None, gains={}, sentence=sentence,
            warnings=tuple(warnings),
        )  # fmt: skip
    optimum = solve(law.surface(tokens, question.parameters))
    nearby = Search(reference=optimum.mixture, num_starts=1)  # draws differ little from the fit
    decision = Decision(
        law,
        estimate.objective,
        lambda surface: solve(surface, nearby).mixture.as_array(),
        tokens=tokens,
        parameters=question.parameters,
    )
    gains = {
        name: decision.gain(mixture.as_array()) for name, mixture in question.baselines.items()
    }
    interval = decision.weight_interval()
    warnings += _about_optimum(estimate, optimum)
    return Advice(
        optimum=optimum,
        low=dict(zip(law.domains, interval.low.tolist(), strict=True)),
        high=dict(zip(law.domains, interval.high.tolist(), strict=True)),
        gains=gains,
        sentence=gain_sentence(gains, unit_of(law.metric, estimate.objective)),
        warnings=tuple(warnings),
    )


def mixture_objective(objective: Objective, sets: tuple[str, ...]) -> MixtureObjective:
    """The objective as the solver takes it."""
    coefficients_J = objective.coefficients(sets)
    if objective.kind == "worst_loss":
        return Worst(offsets=np.where(coefficients_J > 0, 0.0, np.inf))
    of_perplexity = objective.kind == "mean_perplexity"
    return WeightedSum(weights=coefficients_J, of="perplexity" if of_perplexity else "loss")


def unit_of(metric: str, objective: Objective) -> str:
    """The unit of the objective, for sentences."""
    if objective.kind == "mean_perplexity":
        return "perplexity"
    in_bits = metric == "bits_per_byte" or objective.kind == "mean_bits_per_byte"
    return "bits per byte" if in_bits else "nats"


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


def _law_for(law: ParametricLaw, question: Question) -> ParametricLaw:
    """The law with domains as scarce as at the budget asked for, where it is solved at another."""
    if law.repetition is None or question.held_at is None or question.token_budget is None:
        return law
    share = question.held_at / question.token_budget
    scarce = replace(law.repetition, unique_tokens=law.repetition.unique_tokens * share)
    return law.with_repetition(scarce)


def _reach(estimate: Estimate, question: Question) -> list[str]:
    """Extrapolation in tokens and model size."""
    found, facts = [], estimate.facts
    budget = question.token_budget
    if budget is not None and facts.tokens is not None and budget > FAR_TOKENS * facts.tokens[1]:
        held = question.held_at is not None or not estimate.law.uses_tokens
        how = "the weights are held" if held else "the law is extrapolated"
        found.append(
            f"{round_token_count(budget)} tokens are {budget / facts.tokens[1]:.3g} times the "
            f"largest budget probed; {how}."
        )
    size = question.parameters
    if size is not None and facts.parameters is not None:
        low, high = facts.parameters
        if not 0.98 * low <= size <= 1.02 * high:
            found.append(
                f"The model of {round_token_count(size)} parameters lies outside the sizes probed "
                f"({round_token_count(low)} to {round_token_count(high)}): intervals from the "
                "bootstrap are too narrow there."
            )
    return found


def _about_optimum(estimate: Estimate, optimum: Optimum) -> list[str]:
    found = []
    for names, side in ((optimum.at_lower, "least"), (optimum.at_upper, "greatest")):
        if names:
            found.append(
                f"The {side} weight allowed holds {', '.join(names)}: the bound chose it, not the "
                "law."
            )
    beyond = [
        name
        for name, weight in optimum.mixture.to_dict().items()
        if weight > FAR_WEIGHT * estimate.facts.weights[name][1]
    ]
    if beyond:
        found.append(
            f"The optimal weight of {', '.join(beyond)} lies far above any that was probed; the "
            "law is extrapolated there."
        )
    if optimum.duality_gap is None:
        found.append(
            "The law is not convex: the mixture is the best of several starts, without a proof "
            "that none is better."
        )
    return found
