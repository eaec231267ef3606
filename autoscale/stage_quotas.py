"""A stage: a stretch of a run with constant weights, as whole numbers of windows.

Weights become quotas by largest remainder, so that a stage draws of each domain within one window
of weight x samples at its end; its schedule follows the weights themselves (`quota_tree`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from .mixture import largest_remainder
from .quota_tree import MAX_DRAWS

OPEN_END: Final = 2**40
"""Samples of a stage without an end."""

_UNIT_OF_SHARES: Final = 2**49  # room below 2**50 for weights that are rounded up to one


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of a run with constant weights.

    Attributes:
        quotas: windows to draw of each domain, zeros allowed.
        shares: integers proportional to the weights that the quotas were rounded from, with a sum
            up to 2**50; the schedule then stays closer to the weights. Empty: the quotas are taken.
        cut: samples after which the stage ends, where it does so before its quotas are drawn.
    """

    quotas: tuple[int, ...]
    shares: tuple[int, ...] = ()
    cut: int | None = None

    @property
    def num_samples(self) -> int:
        """Length of the stage."""
        return sum(self.quotas) if self.cut is None else self.cut

    @classmethod
    def of_weights(cls, weights: Sequence[float], num_samples: int | None = None) -> Self:
        """The stage that follows `weights`, its quotas rounded by largest remainder.

        Args:
            weights: of the domains, at least 0, of any scale.
            num_samples: length of the stage; None is a stage without an end, which holds 2**40
                samples and is meant to be cut (`MixtureOrder.change_stage`).

        Raises:
            ValueError: a weight is negative or not finite, or all are 0.
        """
        for number, weight in enumerate(weights):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"weight number {number} is {weight}; expected a finite number of at least 0"
                )
        total = math.fsum(weights)
        if not total > 0:
            raise ValueError("all weights are 0; give at least one domain a positive weight")
        if num_samples is None:
            num_samples = OPEN_END
        return cls(
            quotas=tuple(largest_remainder(weights, num_samples).tolist()),
            shares=tuple(
                max(int(weight / total * _UNIT_OF_SHARES), 1) if weight else 0 for weight in weights
            ),
        )

    def record(self) -> list[int] | dict[str, Any]:
        """As JSON; a plain list where the quotas say all, as in the states of earlier versions."""
        if self.cut is None and not self.shares:
            return list(self.quotas)
        return {
            "quotas": list(self.quotas),
            "shares": list(self.shares),
            "num_samples": self.num_samples,
        }

    @classmethod
    def of_record(cls, record: Sequence[int] | Mapping[str, Any]) -> Self:
        """The stage that `record` wrote."""
        if not isinstance(record, Mapping):
            return cls(quotas=tuple(record))
        quotas, num_samples = tuple(record["quotas"]), int(record["num_samples"])
        cut = None if num_samples == sum(quotas) else num_samples
        return cls(quotas=quotas, shares=tuple(record["shares"]), cut=cut)

    def check(self, domains: Sequence[str], num_windows: Sequence[int]) -> None:
        """Whether the stage can be drawn from these domains.

        Args:
            num_windows: that each domain has.

        Raises:
            ValueError: naming the domain or number that does not fit.
        """
        self._check_lengths(domains)
        for name, quota, available in zip(domains, self.quotas, num_windows, strict=True):
            if quota < 0:
                raise ValueError(f"domain {name!r} has quota {quota}; expected at least 0")
            if quota and not available:
                raise ValueError(
                    f"domain {name!r} has quota {quota} but no windows; give it weight 0, or "
                    "shorten the sequences until it has some"
                )
        most = sum(self.quotas)
        if most == 0:
            raise ValueError("stage draws nothing: all quotas are 0; give one domain a quota")
        if not 1 <= self.num_samples <= most:
            raise ValueError(f"stage has {self.num_samples} samples; its quotas allow 1 to {most}")
        if self.shares and (min(self.shares) < 0 or not 1 <= sum(self.shares) <= MAX_DRAWS):
            raise ValueError(
                f"stage has shares from {min(self.shares)} on, {sum(self.shares)} together; "
                f"expected at least 0, and 1 to {MAX_DRAWS} together"
            )

    def _check_lengths(self, domains: Sequence[str]) -> None:
        for what, numbers in (("quotas", self.quotas), ("shares", self.shares or domains)):
            if len(numbers) != len(domains):
                raise ValueError(
                    f"stage has {len(numbers)} {what}; expected one for each of the "
                    f"{len(domains)} domains {', '.join(domains)}"
                )
