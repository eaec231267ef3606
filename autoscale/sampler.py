"""The mixture order: which window of which domain stands at a global sample position.

A run is a list of stages; a stage draws a whole number of windows (a quota) of each domain.
Position n becomes (domain, epoch, window) by arithmetic alone, in three steps:

1.  **Domain.** The quotas of a stage are spread evenly over it (`quota_tree`), which also gives the
    rank of this draw among those of its domain.
2.  **Epoch.** draws before = those of earlier stages + rank; epoch = draws before // num_windows.
3.  **Window.** A permutation keyed by (seed, domain name, epoch) of the rest of that division.

So the order of the windows within a domain depends neither on the weights nor on the other
domains, nothing has to be stored but the quotas, and a run may go on from any position at any
world size. The last stage may be cut at any position for another one (`change_stage`). Ranks take
slices of each global batch after a keyed shuffle inside it (`batch_order`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from . import kernel
from .permutation import MAX_SIZE, derive_key, derive_subkeys, permute, permute_blocks
from .quota_tree import MAX_DRAWS, QuotaTree
from .stage_quotas import Stage

_ORDER_VERSION: Final = 1  # raise it when the same quotas and seed would give another order
_CHUNK: Final = 1 << 14  # positions located at a time: the working arrays stay in the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """What stands at each position: int64 arrays of the shape of the positions.

    Attributes:
        domain: index into the order's domains.
        epoch: how often the domain had been drawn completely before.
        window: index of the window within the domain.
    """

    domain: NDArray[np.int64]
    epoch: NDArray[np.int64]
    window: NDArray[np.int64]


class MixtureOrder:
    """The sequence of (domain, epoch, window) of a run, as a pure function of the position.

    Args:
        domains: distinct names, in the order of every quota.
        num_windows: windows that each domain has.
        seed: of the window order.
        stages: the run's stages so far; `append_stage` adds more.
        locality: windows that are read together: an epoch shuffles blocks of so many neighbours,
            and the windows inside each block. 1 shuffles single windows.

    Raises:
        ValueError: names repeat, lengths differ, a stage asks for what a domain does not have, or
            the locality is below 1.
    """

    def __init__(
        self,
        *,
        domains: Sequence[str],
        num_windows: Sequence[int],
        seed: int,
        stages: Sequence[Stage] = (),
        locality: int = 1,
    ) -> None:
        self.domains = tuple(domains)
        self.seed = int(seed)
        self.locality = int(locality)
        _check_domains(self.domains, num_windows)
        if self.locality < 1:
            raise ValueError(f"locality is {locality}; expected at least 1 window a block")
        self._windows = np.array([int(count) for count in num_windows], dtype=np.int64)
        self._keys = np.array(
            [derive_key("windows", self.seed, name) for name in self.domains], dtype=np.uint64
        )
        self._stages: list[_PlacedStage] = []
        self._end = _StageEnd(position=0, draws=np.zeros(len(self.domains), dtype=np.int64))
        for stage in stages:
            self.append_stage(stage)

    @property
    def num_windows(self) -> tuple[int, ...]:
        return tuple(self._windows.tolist())

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(placed.stage() for placed in self._stages)

    @property
    def num_samples(self) -> int:
        """Length of the order: the samples of all stages."""
        return self._end.position

    def append_stage(self, stage: Stage) -> None:
        """Go on with other quotas after the last stage; draws and epochs are counted through."""
        self._check_stage(stage)
        shares = np.array(stage.shares, dtype=np.int64) if stage.shares else None
        tree = QuotaTree(stage.quotas, None if shares is None else stage.shares)
        self._place(
            _PlacedStage(begin=self._end, num_samples=stage.num_samples, tree=tree, shares=shares)
        )

    def change_stage(self, position: int, stage: Stage) -> None:
        """Cut the last stage at `position` and go on with another; what came before stays.

        Draws and epochs are counted through: no window is drawn twice or left out in an epoch.

        Args:
            position: the first sample of the new stage, inside the last stage or at one of its
                ends.
            stage: the new stage.

        Raises:
            ValueError: the position lies elsewhere, or the stage does not fit the domains.
        """
        last = self._stages[-1] if self._stages else None
        first = last.begin.position if last else 0
        if not first <= position <= self.num_samples:
            raise ValueError(
                f"a stage cannot begin at position {position}: the last stage goes from {first} "
                f"to {self.num_samples}, and what was drawn before it cannot change"
            )
        self._check_stage(stage, position)
        if last and position < self.num_samples:
            self._stages.pop()
            self._end = last.begin
            if position > first:
                self._place(replace(last, num_samples=position - first))
        self.append_stage(stage)

    def _place(self, placed: "_PlacedStage") -> None:
        self._stages.append(placed)
        self._end = placed.end()

    def locate(self, positions: NDArray[np.int64]) -> Located:
        """What stands at the given positions, which may come in any order and span stages.

        Args:
            positions: global sample positions, any shape.

        Raises:
            ValueError: a position lies outside `[0, num_samples)`.
        """
        positions = np.asarray(positions)
        if not np.issubdtype(positions.dtype, np.integer):
            raise ValueError(f"positions are of type {positions.dtype}; expected integers")
        flat = positions.astype(np.int64, copy=False).reshape(-1)
        self._check_positions(flat)
        domain, epoch, window = (np.empty(flat.shape, dtype=np.int64) for _ in range(3))
        begins = np.array([placed.begin.position for placed in self._stages], dtype=np.int64)
        for first in range(0, flat.size, _CHUNK):
            part = slice(first, first + _CHUNK)
            domain[part], draws_before = self._draw(flat[part], begins)
            epoch[part], window[part] = self._window_of(domain[part], draws_before)
        shape = positions.shape
        return Located(
            domain=domain.reshape(shape), epoch=epoch.reshape(shape), window=window.reshape(shape)
        )

    def drawn(self, position: int) -> NDArray[np.int64]:
        """Draws of each domain among the first `position` samples, shape (num_domains,)."""
        if not 0 <= position <= self.num_samples:
            raise ValueError(
                f"position {position} is outside the order's {self.num_samples} samples"
            )
        if position == self.num_samples:
            return self._end.draws.copy()
        placed = next(s for s in reversed(self._stages) if s.begin.position <= position)
        return placed.begin.draws + placed.tree.counts(position - placed.begin.position)

    def epochs(self, position: int) -> NDArray[np.float64]:
        """How often each domain has been drawn by then, shape (num_domains,); 0 if it is empty."""
        return self.drawn(position) / np.maximum(self._windows, 1)

    def state(self) -> dict[str, Any]:
        """Everything that determines the order, as JSON; a checkpoint adds the position."""
        return {
            "order_version": _ORDER_VERSION,
            "seed": self.seed,
            "domains": list(self.domains),
            "num_windows": list(self.num_windows),
            "stages": [stage.record() for stage in self.stages],
        } | ({} if self.locality == 1 else {"locality": self.locality})

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The order that wrote `state`.

        Raises:
            ValueError: another version of autoscale wrote it, with another order.
        """
        version = state.get("order_version")
        if version != _ORDER_VERSION:
            raise ValueError(
                f"sampler state has order version {version!r}; this version of autoscale "
                f"continues {_ORDER_VERSION}: resume with the version that wrote it"
            )
        return cls(
            domains=state["domains"],
            num_windows=state["num_windows"],
            seed=state["seed"],
            stages=[Stage.of_record(record) for record in state["stages"]],
            locality=state.get("locality", 1),
        )

    def digest(self) -> str:
        """sha256 of the state; ranks compare theirs before they draw."""
        canonical = json.dumps(self.state(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _draw(
        self, positions: NDArray[np.int64], begins: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The domain at each position, and how often it was drawn before."""
        extremes = [positions.min(), positions.max()]
        first, last = (int(n) - 1 for n in np.searchsorted(begins, extremes, side="right"))
        if first == last:
            return self._stages[first].locate(positions)
        domain, draws_before = np.empty_like(positions), np.empty_like(positions)
        stage_of = np.searchsorted(begins, positions, side="right") - 1
        for number in range(first, last + 1):
            here = np.flatnonzero(stage_of == number)
            domain[here], draws_before[here] = self._stages[number].locate(positions[here])
        return domain, draws_before

    def _window_of(
        self, domain: NDArray[np.int64], draws_before: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch and the permuted window of draw number `draws_before` of each domain."""
        if kernel.compiled is not None and self.locality == 1:
            epoch, window = np.empty_like(domain), np.empty_like(domain)
            kernel.draw_windows(self._windows, self._keys, domain, draws_before, epoch, window)
            return epoch, window
        num_windows = self._windows[domain]
        epoch = draws_before // num_windows
        key = derive_subkeys(self._keys[domain], epoch)
        index = draws_before - epoch * num_windows
        if self.locality == 1:
            return epoch, permute(index, num_windows, key)
        return epoch, permute_blocks(index, num_windows, key, self.locality)

    def _check_stage(self, stage: Stage, position: int | None = None) -> None:
        """Raise ValueError unless the stage fits at `position`, the end of the order by default."""
        stage.check(self.domains, self._windows.tolist())
        end = (self.num_samples if position is None else position) + stage.num_samples
        most = max(end, sum(stage.quotas))
        if most > MAX_DRAWS:
            raise ValueError(
                f"the stages have {most} samples together; at most {MAX_DRAWS} are supported"
            )

    def _check_positions(self, positions: NDArray[np.int64]) -> None:
        outside = positions[(positions < 0) | (positions >= self.num_samples)]
        if outside.size:
            raise ValueError(
                f"position {outside[0]} is outside the order's {self.num_samples} samples; "
                "append a stage before drawing further"
            )


@dataclass(frozen=True, slots=True)
class _StageEnd:
    """A point between stages: its position, and the draws of each domain before it."""

    position: int
    draws: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlacedStage:
    """A stage, as arrays: what came before it, its length, its schedule and its shares."""

    begin: _StageEnd
    num_samples: int
    tree: QuotaTree
    shares: NDArray[np.int64] | None

    def stage(self) -> Stage:
        quotas = tuple(self.tree.quotas().tolist())
        return Stage(
            quotas=quotas,
            shares=() if self.shares is None else tuple(self.shares.tolist()),
            cut=None if self.num_samples == sum(quotas) else self.num_samples,
        )

    def end(self) -> _StageEnd:
        return _StageEnd(
            position=self.begin.position + self.num_samples,
            draws=self.begin.draws + self.tree.counts(self.num_samples),
        )

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Domain and draws of it before, for positions inside this stage, both of shape (n,)."""
        domain, rank = self.tree.locate(positions - self.begin.position)
        return domain, rank + self.begin.draws[domain]


def _check_domains(domains: tuple[str, ...], num_windows: Sequence[int]) -> None:
    if not domains:
        raise ValueError("a mixture order needs at least one domain; found none")
    if len(num_windows) != len(domains):
        raise ValueError(
            f"{len(domains)} domains but {len(num_windows)} numbers of windows; give one for each"
        )
    repeated = sorted(name for name, times in Counter(domains).items() if times > 1)
    if repeated:
        raise ValueError(f"domain {repeated[0]!r} is named more than once; names must be distinct")
    for name, count in zip(domains, num_windows, strict=True):
        if not 0 <= count <= MAX_SIZE:
            raise ValueError(
                f"domain {name!r} has {count} windows; expected between 0 and {MAX_SIZE}"
            )
