"""The mixture stream: batches of windows of several domains, exact and without state on disk.

    stream = MixtureStream(manifest, sequence_length=1024, batch_size=8, weights={"web": 0.7, ...})
    for batch in stream: ...                      # or stream.batch(step), for any step

Global batch s holds the positions `[s B, (s + 1) B)` of the mixture order (`sampler`), shuffled and
cut into one slice a rank. Everything follows from the position, the number of samples consumed: a
stream goes on from any position at any world size and batch size, and quotas are met exactly.

What a change of the batch size keeps: which windows stand at the positions `[0, n)`, for every n.
What it does not keep: the order inside a batch, and so the slice that a rank is given.

Tokens are read as they are written, and travel in the narrowest type that holds the vocabulary;
`batch(step, out=...)` widens them while they are copied. The stream needs no torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest
from .mixture import require_same_names
from .sampler import Located, MixtureOrder
from .stage_quotas import OPEN_END, Stage
from .stream_plan import LEAST_SAMPLES, MOST_SAMPLES, Slice, StepPlan
from .windows.form import Packing
from .windows.opening import Split, open_windows
from .windows.ranges import begins_of
from .windows.reading import WindowReader

_STREAM_VERSION: Final = 1

# B rows of this rank's batch, T sequence length, K domains


@dataclass(slots=True, eq=False)
class TokenBatch:
    """One rank's share of a global batch.

    Attributes:
        tokens: shape (B, T + 1); the model reads `inputs` and is scored on `labels`.
        positions: of each token in its document, shape (B, T + 1), int32: 0 at the first token of
            every piece, -1 at padding; the label of column j counts where
            `positions[:, j + 1] > 0`. None for contiguous windows: there every label counts.
        step: number of the global batch.
    """

    tokens: NDArray[Any]
    positions: NDArray[np.int32] | None
    step: int
    _plan: StepPlan

    @property
    def inputs(self) -> NDArray[Any]:
        return self.tokens[:, :-1]

    @property
    def labels(self) -> NDArray[Any]:
        return self.tokens[:, 1:]

    @property
    def located(self) -> Located:
        """Domain, epoch and window of each row, shape (B,)."""
        return self._plan.located(self.step)


class MixtureStream:
    """The batches of one rank.

    Args:
        manifest: the data, or the path of its file.
        sequence_length: T, tokens that a row feeds to the model; a row has one more.
        batch_size: rows of a global batch, over all ranks.
        weights: of the domains, by name or in their order, of any scale; or `stages`.
        num_samples: length of the stream with `weights`, a multiple of the batch size; None means
            without an end.
        stages: weights that change at known positions, instead of `weights`.
        domains: names to draw from, in the order of every quota; all with such shards by default.
        seed: of the order of windows.
        rank, world_size: of this process among those that share the batches. Where the ranks do
            not divide the batch, slices differ by one row.
        packing: how documents fill rows.
        shares: of each domain's tokens, the part to draw from, by whole documents; 1 where a
            domain is not named.
        locality: windows shuffled as blocks of so many neighbours, for cold and network storage.
        split: "train" or "validation".

    Attributes:
        manifest, domains, batch_size, rank, world_size: as given.
        windows: of all domains, numbered through in the order of `domains`.
        shape: (B, T + 1), of the tokens of every batch.
        wire_dtype: of the tokens of a batch, unless a buffer of another type is given.
        delivered: rows of each domain that this rank was handed since it began, shape (K,).

    Raises:
        ValueError: an argument is impossible, a shard is damaged, or the last batch would not be
            full.
    """

    def __init__(
        self,
        manifest: Manifest | Path | str,
        *,
        sequence_length: int,
        batch_size: int,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        num_samples: int | None = None,
        stages: Sequence[Stage] | None = None,
        domains: Sequence[str] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        packing: Packing = "contiguous",
        shares: Mapping[str, float] | None = None,
        locality: int = 1,
        split: Split = "train",
    ) -> None:
        if not isinstance(manifest, Manifest):
            manifest = Manifest.load(manifest)
        self.manifest = manifest
        every = manifest.training_domains if split == "train" else manifest.domain_names
        self.domains = every if domains is None else tuple(domains)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        shares = dict(shares or {})
        self._check_settings(shares)
        self._identity = {
            "manifest": manifest.fingerprint,
            "split": split,
            "sequence_length": sequence_length,
            "packing": packing,
            "shares": {name: shares[name] for name in sorted(shares) if shares[name] != 1},
        }
        windows_K = [
            open_windows(
                manifest,
                name,
                split,
                sequence_length=sequence_length,
                packing=packing,
                share=shares.get(name, 1.0),
            )
            for name in self.domains
        ]
        self.windows = type(windows_K[0]).concatenate(windows_K)
        self._first_window_K = begins_of(np.array([len(windows) for windows in windows_K]))
        order = MixtureOrder(
            domains=self.domains,
            num_windows=[len(windows) for windows in windows_K],
            seed=seed,
            stages=self._stages(weights, num_samples, stages),
            locality=locality,
        )
        self.shape = (self._part(0).num_rows, sequence_length + 1)
        self.wire_dtype = manifest.wire_dtype
        # With locality the windows near one that is read are wanted next.
        block_tokens = locality * sequence_length if locality > 1 else 0
        self._reader = WindowReader(
            self.windows, read_block_bytes=block_tokens * np.dtype(manifest.dtype).itemsize
        )
        self._plan: StepPlan | None = None
        self._place(order, 0)
        self.delivered = np.zeros(len(self.domains), dtype=np.int64)

    @property
    def order(self) -> MixtureOrder:
        """What stands at each position; replaced as a whole when the weights change."""
        return self._order

    @property
    def position(self) -> int:
        """Samples consumed, over all ranks."""
        return self._position

    @property
    def num_steps(self) -> int:
        """Global batches from the first step to the end of the last stage."""
        return self._slice.num_steps(self._order)

    @property
    def step(self) -> int:
        """Number of the next global batch."""
        return (self._position - self._slice.offset) // self.batch_size

    def batch(
        self,
        step: int,
        out: NDArray[Any] | None = None,
        positions: NDArray[np.int32] | None = None,
    ) -> TokenBatch:
        """This rank's share of global batch `step`; nothing is advanced or counted.

        Args:
            step: any, from 0 to `num_steps` - 1.
            out: filled instead of a new array, shape (B, T + 1), C-contiguous; uint16, uint32,
                int32 or int64.
            positions: likewise, int32, where documents are packed.

        Raises:
            ValueError: there is no such step, a buffer does not fit, or a file cannot be read.
        """
        plan = self._plan
        if plan is None or plan.order is not self._order or not plan.begin <= step < plan.end:
            plan = self._plan = self._plan_from(step, plan)
        if out is None:
            out = np.empty(self.shape, dtype=self.wire_dtype)
        elif out.shape != self.shape:
            raise ValueError(f"out has shape {out.shape}; expected {self.shape}")
        here = step - plan.begin
        first, last, first_row = plan.bounds[here], plan.bounds[here + 1], here * self.shape[0]
        if not self.windows.resets:
            positions = None
        elif positions is None:
            positions = np.empty(self.shape, dtype=np.int32)
        self._reader.fill(plan.rows, first, last, first_row, out, positions)
        return TokenBatch(out, positions, step, plan)

    def _plan_from(self, step: int, before: StepPlan | None) -> StepPlan:
        """Few steps at first, and twice as many each time that the steps follow each other."""
        samples = LEAST_SAMPLES
        if before is not None and step == before.end:
            samples = min(2 * (before.end - before.begin) * self.shape[0], MOST_SAMPLES)
        return StepPlan.make(
            self._order,
            self._slice,
            step,
            self._reader,
            self._first_window_K,
            max(samples, LEAST_SAMPLES),
        )

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches from the current position to the end, each consumed as it is handed over."""
        while self.step < self.num_steps:
            batch = self.batch(self.step)
            self.hand_over(batch)
            yield batch

    def is_current(self, batch: TokenBatch) -> bool:
        """Whether the weights are still those that the batch was drawn with."""
        return batch._plan.order is self._order

    def hand_over(self, batch: TokenBatch) -> None:
        """Count a batch as consumed: the position is behind it now."""
        self._position = self._slice.offset + (batch.step + 1) * self.batch_size
        domain_B = batch._plan.everything.domain[batch._plan.rows_of(batch.step)]
        self.delivered += np.bincount(domain_B, minlength=len(self.domains))

    def change_weights(
        self, weights: Mapping[str, float] | Sequence[float], num_samples: int | None = None
    ) -> None:
        """Draw with other weights from the current position on; draws and epochs count through.

        All ranks have to do so at the same position (`torch_stream.broadcast_weights` sees to it).

        Args:
            weights: of the domains, by name or in their order, of any scale.
            num_samples: to draw with them, whole batches; None means without an end.

        Raises:
            ValueError: a weight is impossible, or the last batch would not be full.
        """
        self.adopt(self.changed(self.stage(weights, num_samples)))

    def stage(
        self, weights: Mapping[str, float] | Sequence[float], num_samples: int | None = None
    ) -> Stage:
        """A stage of these weights, rounded to whole windows, as `change_weights` takes them."""
        return Stage.of_weights(self._by_domain(weights), num_samples)

    def changed(self, stage: Stage) -> MixtureOrder:
        """The order with `stage` from the current position on; the stream keeps its own."""
        order = MixtureOrder.from_state(self._order.state())
        order.change_stage(self._position, stage)
        self._check_whole(order, self._slice)
        return order

    def adopt(self, order: MixtureOrder) -> None:
        """Go on with an order that `changed` returned."""
        self._order = order

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """All that determines the rest of the stream, as JSON; the same on every rank.

        Args:
            position: samples consumed, where others than this stream have counted them.
        """
        return {
            "stream_version": _STREAM_VERSION,
            **self._identity,
            "position": self._position if position is None else int(position),
            "order": self._order.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the weights are the state's, as they changed until then.

        World size and batch size may be others than those of the stream that wrote the state.

        Raises:
            ValueError: the state is of other data, another seed or another form of windows, or
                what is left of it is not whole batches.
        """
        if state.get("stream_version") != _STREAM_VERSION:
            raise ValueError(
                f"stream state has version {state.get('stream_version')!r}; this version of "
                f"autoscale continues {_STREAM_VERSION}: resume with the version that wrote it"
            )
        order = MixtureOrder.from_state(state["order"])
        expected = self._identity | _identity_of(self._order)
        found = dict(state) | _identity_of(order)
        for what, value in expected.items():
            if found.get(what) != value:
                raise ValueError(
                    f"stream state has {what} {found.get(what)!r}; this stream has {value!r}: "
                    "resume with what the state was made with, or begin a new stream"
                )
        self._place(order, int(state["position"]))

    def _place(self, order: MixtureOrder, position: int) -> None:
        """Stand at a position; batches are counted so that one begins there."""
        if not 0 <= position <= order.num_samples:
            raise ValueError(
                f"position {position} is outside the stream's {order.num_samples} samples"
            )
        part = self._part(position % self.batch_size)
        self._check_whole(order, part)
        self._order, self._slice, self._position = order, part, position
        self._plan = None

    def _part(self, offset: int) -> Slice:
        return Slice(
            batch_size=self.batch_size, rank=self.rank, world_size=self.world_size, offset=offset
        )

    def _check_whole(self, order: MixtureOrder, part: Slice) -> None:
        rest = (order.num_samples - part.offset) % self.batch_size
        if rest and order.stages[-1].num_samples < OPEN_END:
            raise ValueError(
                f"the stages end at sample {order.num_samples}, {rest} after the last whole batch "
                f"of {self.batch_size}; make their samples, or what is left of them, a multiple"
            )

    def _stages(
        self,
        weights: Mapping[str, float] | Sequence[float] | None,
        num_samples: int | None,
        stages: Sequence[Stage] | None,
    ) -> Sequence[Stage]:
        if (weights is None) == (stages is None):
            raise ValueError(
                f"{'neither' if stages is None else 'both'} of weights and stages given; give one"
            )
        if stages is None:
            assert weights is not None
            return [self.stage(weights, num_samples)]
        if num_samples is not None:
            raise ValueError("num_samples goes with weights; stages say how long they are")
        return stages

    def _check_settings(self, shares: Mapping[str, float]) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank is {self.rank} of {self.world_size}; expected 0 to {self.world_size - 1}"
            )
        if not self.domains:
            raise ValueError("domains are none; name at least one to draw from")
        unknown = [name for name in shares if name not in self.domains]
        if unknown:
            raise ValueError(
                f"shares name domain {unknown[0]!r}, which the stream does not draw from; it draws "
                f"from {', '.join(self.domains)}"
            )

    def _by_domain(self, weights: Mapping[str, float] | Sequence[float]) -> list[float]:
        """Weights in the order of the domains."""
        if isinstance(weights, Mapping):
            require_same_names(weights, self.domains, what="weights")
            weights = [weights[name] for name in self.domains]
        if len(weights) != len(self.domains):
            raise ValueError(
                f"{len(weights)} weights for the {len(self.domains)} domains "
                f"{', '.join(self.domains)}; give one for each"
            )
        for name, weight in zip(self.domains, weights, strict=True):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"weight of domain {name!r} is {weight}; expected a finite number of at least 0"
                )
        return [float(weight) for weight in weights]


def _identity_of(order: MixtureOrder) -> dict[str, Any]:
    """What an order is made from, but for its stages."""
    return {
        "seed": order.seed,
        "locality": order.locality,
        "domains": order.domains,
        "num_windows": order.num_windows,
    }
