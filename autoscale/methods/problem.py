"""What every mixture method is asked: domains, their tokens, a target and an objective."""

# P runs, K domains, J validation sets

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..constraints import Constraints, weight_bounds
from ..mixture import Mixture, require_same_names
from ..objective import Objective
from ..run_table import RunTable
from ..token_count import round_token_count

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixingProblem:
    """A run to find weights for.

    Attributes:
        domains: distinct names, in the order of all arrays.
        available_tokens: unique training tokens of each domain, shape (num_domains,).
        target_tokens: budget of the run.
        objective: what a low loss is worth, in losses of the probes' validation sets.
        reference: the mixture that methods stay near or draw around; by default the natural one,
            in proportion to the tokens available.
        max_epochs: most passes over a domain in the target run; None for no limit.
        min_weight: least weights, shape (num_domains,); by default 0.
        max_weight: greatest weights, shape (num_domains,); by default 1.
        target_parameters: size of the target model; None where the probes have its size.

    Raises:
        InfeasibleError: no mixture satisfies bounds and epochs at the target.
        ValueError: a number of tokens is not positive, or the reference has other domains.
    """

    domains: tuple[str, ...]
    available_tokens: Array
    target_tokens: int
    objective: Objective
    reference: Mixture | None = None
    max_epochs: float | None = None
    min_weight: Array | float = 0.0
    max_weight: Array | float = 1.0
    target_parameters: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        available_K = np.array(self.available_tokens, dtype=np.float64)
        if available_K.shape != (len(self.domains),):
            raise ValueError(
                f"available tokens have shape {available_K.shape}; expected one number for each of "
                f"{', '.join(self.domains)}"
            )
        for name, tokens in zip(self.domains, available_K, strict=True):
            if not (np.isfinite(tokens) and tokens > 0):
                raise ValueError(
                    f"domain {name!r} has {tokens:g} available tokens; expected a positive number, "
                    "or leave the domain out"
                )
        if self.target_tokens < 1:
            raise ValueError(f"target of {self.target_tokens} tokens; expected at least 1")
        object.__setattr__(self, "available_tokens", available_K)
        if self.reference is not None:
            object.__setattr__(self, "reference", self.reference.reordered(self.domains))
        self.constraints(self.target_tokens)

    @property
    def num_domains(self) -> int:
        return len(self.domains)

    @property
    def natural(self) -> Mixture:
        """Weights in proportion to the tokens that exist."""
        return Mixture.natural(self.domains, self.available_tokens)

    @property
    def prior(self) -> Mixture:
        """The reference, or the natural mixture."""
        return self.natural if self.reference is None else self.reference

    def constraints(self, tokens: int, *, least_weight: float = 0.0) -> Constraints:
        """Bounds of the weights of a run, its epochs included.

        Args:
            tokens: of the run.
            least_weight: every minimum is at least this.

        Raises:
            InfeasibleError: no mixture satisfies them.
        """
        lower_K, upper_K = weight_bounds(
            self.domains,
            minimum=np.maximum(self.min_weight, least_weight),
            maximum=self.max_weight,
            available_tokens=self.available_tokens,
            token_budget=tokens,
            max_epochs=self.max_epochs,
        )
        return Constraints(domains=self.domains, lower=lower_K, upper=upper_K)

    def runs_for(self, method: str, runs: RunTable | None, *, least_mixtures: int) -> RunTable:
        """Finished probes as a method takes them: domains in order, only the sets that count.

        Args:
            method: its name, for messages.
            runs: all of them; matched to the problem by the names of domains and sets.
            least_mixtures: fewest different mixtures that it can do with.

        Raises:
            ValueError: there are none or too few, a domain or a set is missing, or the losses are
                in another unit than the objective.
        """
        if runs is None:
            raise ValueError(f"method {method!r} chooses from probe runs; found none")
        require_same_names(dict.fromkeys(runs.domains), self.domains, what="table of probe runs")
        needs_nats = self.objective.kind in ("mean_perplexity", "mean_bits_per_byte")
        if runs.metric != "nats" and needs_nats:
            raise ValueError(
                f"objective {self.objective.kind!r} takes losses in nats; the runs have "
                f"{runs.metric}"
            )
        used_J = self.objective.coefficients(runs.sets) > 0
        order = [runs.domains.index(name) for name in self.domains]
        table = replace(
            runs,
            domains=self.domains,
            sets=tuple(name for name, used in zip(runs.sets, used_J, strict=True) if used),
            weights=runs.weights[:, order],
            losses=runs.losses[:, used_J],
        )
        num_mixtures = int(table.mixture_groups().max()) + 1
        if num_mixtures < least_mixtures:
            raise ValueError(
                f"method {method!r} needs probe runs of at least {least_mixtures} different "
                f"mixtures with {self.num_domains} domains; found {num_mixtures}: train more of "
                "them, or leave the method out"
            )
        table.check_for_fit()
        return table

    def repeats(self, mixture: Mixture) -> str:
        """A sentence on domains that a mixture repeats more often than allowed, or ""."""
        if self.max_epochs is None:
            return ""
        epochs_K = mixture.as_array() * self.target_tokens / self.available_tokens
        over = [
            f"{name!r} {epochs:.1f} times"
            for name, epochs in zip(self.domains, epochs_K, strict=True)
            if epochs > self.max_epochs * (1 + 1e-9)
        ]
        if not over:
            return ""
        return f" It passes over {', '.join(over)}, above max_epochs {self.max_epochs:g}."


def require_one_budget(method: str, table: RunTable) -> None:
    """Raise ValueError where runs differ in tokens or model size, which a method cannot tell."""
    counts: Sequence[tuple[bool, Array | None, str]] = (
        (table.has_budgets, table.tokens, "tokens"),
        (table.has_sizes, table.parameters, "parameters"),
    )
    for several, found, what in counts:
        if several and found is not None:
            low, high = round_token_count(found.min()), round_token_count(found.max())
            raise ValueError(
                f"method {method!r} knows the mixture only, and the probe runs have {low} to "
                f"{high} {what}; give it the runs of one budget and size"
            )
