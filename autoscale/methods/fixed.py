"""Mixtures that no probe changes: uniform, natural, and constants published for a data set.

They are taken as they are, even where they repeat a domain more often than the problem allows: a
uniform mixture that gives way to an epoch cap is UniMax, which is a method of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..mixture import Mixture
from ..run_table import RunTable
from .method import About, Chosen, WithoutProbes
from .problem import MixingProblem
from .published_weights import OTHER_NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform(WithoutProbes):
    """The same weight for every domain."""

    name = "uniform"
    about = About(citation="none", needs="nothing")

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        mixture = Mixture.uniform(problem.domains)
        return Chosen(mixture=mixture, message=f"Uniform weights.{problem.repeats(mixture)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Natural(WithoutProbes):
    """Weights in proportion to the tokens that exist."""

    name = "natural"
    about = About(citation="none", needs="the tokens that exist")

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        mixture = problem.natural
        message = f"Weights in proportion to the tokens available.{problem.repeats(mixture)}"
        return Chosen(mixture=mixture, message=message)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights(WithoutProbes):
    """Constants that others published, for the domains of the problem by name.

    Names match without case, spaces and punctuation, and in the spellings of `published_weights`.
    Published domains that the problem has not are left out and the rest normalised, as RegMix does
    with DoReMi's.

    Attributes:
        name: of the method.
        weights: as published, by domain.
        about: citation and needs.
        names: published name of a domain of the problem, where it is spelt in another way.
    """

    name: str
    weights: Mapping[str, float]
    about: About
    names: Mapping[str, str] = field(default_factory=dict)

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        """See `Method`.

        Raises:
            ValueError: a domain has no published weight, or two have the same one.
        """
        published = {_spelling(name): name for name in self.weights}
        taken: dict[str, str] = {}
        for domain in problem.domains:
            name = published.get(_spelling(self.names.get(domain, domain)))
            if name is None:
                raise ValueError(
                    f"method {self.name!r} has no published weight for domain {domain!r}; it has "
                    f"those of {', '.join(self.weights)}. Name the one that is meant in "
                    "`names`, or leave the method out"
                )
            if name in taken.values():
                raise ValueError(
                    f"method {self.name!r}: domains {domain!r} and another both stand for "
                    f"{name!r}; join them, or leave the method out"
                )
            taken[domain] = name
        amounts = [self.weights[name] for name in taken.values()]
        mixture = Mixture.from_array(problem.domains, amounts)
        share = sum(amounts) / sum(self.weights.values())
        message = f"Published weights, of which these domains hold {share:.1%}."
        return Chosen(mixture=mixture, message=message + problem.repeats(mixture))


def _spelling(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return OTHER_NAMES.get(letters, letters)
