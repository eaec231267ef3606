"""The common form of mixture methods: a design of probe runs, and a choice made from their losses.

A method without probes has an empty design. A method that changes the weights while the target
model trains has no place here: its choice is no mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..mixture import Mixture
from ..run_table import RunTable
from ..token_count import round_token_count
from .problem import MixingProblem


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A probe run that a method wants.

    Attributes:
        label: unique in a design.
        mixture: what it trains on.
        tokens: its budget.
    """

    label: str
    mixture: Mixture
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeBudget:
    """What probes may cost.

    Attributes:
        run_tokens: tokens of one probe run, of the largest where a method wants several budgets.
        total_tokens: of all its runs together. A swarm buys as many runs of `run_tokens` as fit;
            a design of fixed length makes its runs as large as fit, up to the target. None gives
            every method the number of runs that it published.
        batch_tokens: of a global batch; runs are whole batches, so that the tokens asked for are
            the tokens drawn.

    Raises:
        ValueError: a number is below 1, or a run is smaller than a batch.
    """

    run_tokens: int
    total_tokens: int | None = None
    batch_tokens: int = 1

    def __post_init__(self) -> None:
        counts = {"run": self.run_tokens, "total": self.total_tokens, "batch": self.batch_tokens}
        for what, tokens in counts.items():
            if tokens is not None and tokens < 1:
                raise ValueError(f"probe budget of {tokens} {what} tokens; expected at least 1")
        if self.run_tokens < self.batch_tokens:
            raise ValueError(
                f"a probe run of {self.run_tokens} tokens is smaller than a batch of "
                f"{self.batch_tokens}; raise the one or lower the other"
            )

    @property
    def whole_run_tokens(self) -> int:
        """Tokens of a run of a swarm, in whole batches."""
        return self.run_tokens // self.batch_tokens * self.batch_tokens

    def num_runs(self, method: str, *, published: int, least: int) -> int:
        """Runs of a swarm.

        Raises:
            ValueError: fewer fit than the method needs.
        """
        if self.total_tokens is None:
            return published
        num_runs = self.total_tokens // self.whole_run_tokens
        if num_runs < least:
            raise ValueError(
                f"method {method!r} needs at least {least} probe runs; "
                f"{round_token_count(self.total_tokens)} tokens are {num_runs} of "
                f"{round_token_count(self.run_tokens)}: raise the total to "
                f"{round_token_count(least * self.run_tokens)} or make the runs smaller"
            )
        return num_runs

    def tokens_per_run(self, method: str, problem: MixingProblem, cost: float) -> int:
        """Tokens of the largest run of a design of fixed length, in whole batches.

        Args:
            method: its name, for messages.
            problem: whose target no probe exceeds.
            cost: of the design, in multiples of that run.

        Raises:
            ValueError: not a batch is left for it.
        """
        tokens = self.run_tokens
        if self.total_tokens is not None:
            tokens = min(int(self.total_tokens / cost), problem.target_tokens)
        if tokens < self.batch_tokens:
            raise ValueError(
                f"method {method!r} costs {cost:.3g} times its largest probe run, for which "
                f"{tokens} tokens are left: less than a batch of {self.batch_tokens}; raise the "
                "total"
            )
        return tokens // self.batch_tokens * self.batch_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The mixture that a method chose.

    Attributes:
        mixture: its weights for the target run.
        message: how it came about, in sentences.
    """

    mixture: Mixture
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """Where a method comes from.

    Attributes:
        citation: paper, or where constants were published.
        needs: what it is given beside the problem, in words.
    """

    citation: str
    needs: str


class WithoutProbes:
    """The design of methods that need no probe runs."""

    __slots__ = ()

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        """None."""
        return ()


class Method(Protocol):
    """A mixture method.

    Attributes:
        name: in the registry.
        about: citation and needs.
    """

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> About: ...

    def design(
        self, problem: MixingProblem, budget: ProbeBudget, rng: np.random.Generator
    ) -> tuple[Probe, ...]:
        """The probe runs that it wants, within the budget; none for methods without probes.

        Raises:
            ValueError: the budget is too small for the method.
        """

    def choose(self, problem: MixingProblem, runs: RunTable | None) -> Chosen:
        """The weights for the target.

        Args:
            problem: bounds and repetition are those at the target.
            runs: the finished probes; their order and names do not matter. None without probes.

        Raises:
            ValueError: the runs are too few or not of the design's kind.
        """


def num_tokens(probes: Sequence[Probe]) -> int:
    """What a design costs, in tokens of all its runs."""
    return sum(probe.tokens for probe in probes)
