"""A run whose weights follow its own training losses (ADO), decided round by round.

A round is a stage of the mixture order, whole batches with whole quotas. Every step sums its losses
by domain; at the end of a round these are added up over the ranks, rank 0 fits the laws and decides
the quotas of the next round (`methods.ado`), and all ranks take these integers over. So the ranks
of a run cannot differ, draws and epochs are counted through, no window comes twice in an epoch, and
no domain exceeds its epochs. Behind the current round stands what would follow on its weights, for
batches that are read ahead; it is never drawn.

A checkpoint keeps the quotas of all rounds, the losses so far and the state of the method. The
losses are kept in at most `MOST_RECORDS` records of successive steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from .data import RunStream
from .masking import Masking
from .methods.ado import LivePolicy, capped_quotas
from .mixture import largest_remainder
from .prefetch import DeviceBatch
from .runs import RunSpec
from .sampler import MixtureOrder
from .stage_quotas import Stage
from .training_step import MicroBatch, TrainingStep, sum_by_domain

# R records, B rows of a micro-batch, K domains

MOST_RECORDS: Final = 2000


class LiveStep(TrainingStep):
    """Steps of a run whose weights change with its losses.

    Args:
        stream: of the run; its order is changed round by round.

    Raises:
        ValueError: the domains do not hold enough for the run, repetition included.
    """

    def __init__(
        self,
        engine: Any,
        spec: RunSpec,
        *,
        micro_batch_size: int,
        masking: Masking | None,
        stream: RunStream,
    ) -> None:
        super().__init__(engine, spec, micro_batch_size=micro_batch_size, masking=masking)
        self._stream, self._device = stream, engine.device
        windows_K = np.array(stream.order.num_windows)
        # Quotas of the plan may exceed the epochs by the part of a window.
        allowed_K = np.floor(spec.online["max_epochs"] * windows_K).astype(np.int64)
        self._most_K = np.maximum(allowed_K, np.minimum(spec.sequences, allowed_K + 1))
        total = sum(spec.sequences)
        if self._most_K.sum() < total:
            raise ValueError(
                f"the run draws {total:_} windows, and its domains give {self._most_K.sum():_} "
                f"within {spec.online['max_epochs']:g} epochs; allow more repetition, prepare more "
                "text, or lower the budget"
            )
        self._policy = LivePolicy(
            spec.online, spec.sequences, samples_per_step=spec.sequences_per_batch
        )
        self._record_steps = -(-spec.num_steps // MOST_RECORDS)
        num_records = -(-spec.num_steps // self._record_steps)
        self._sums_R2K = np.zeros((num_records, 2, len(spec.domains)))
        self._pending: list[tuple[int, torch.Tensor]] = []
        self._rounds: list[tuple[int, ...]] = []
        self._draw_in([self._quotas(spec.sequences, spec.online["warm_up_steps"])])

    @property
    def _round_end(self) -> int:
        """Steps until the end of the current round."""
        return sum(map(sum, self._rounds)) // self.spec.sequences_per_batch

    def __call__(self, batch: DeviceBatch) -> torch.Tensor:
        shape = (2, len(self.spec.domains))
        sums_2K = torch.zeros(shape, dtype=torch.float64, device=self._device)
        self._pending.append((batch.step, sums_2K))
        return super().__call__(batch)

    def row_losses(self, part: MicroBatch) -> torch.Tensor:
        """As every step has them, and remembered by domain."""
        losses_B = super().row_losses(part)
        _, sums_2K = self._pending[-1]
        sum_by_domain(sums_2K, part.domain, losses_B, self.row_labels(part))
        return losses_B

    def after_step(self, done: int) -> None:
        """Begin the next round if one has ended."""
        if done != self._round_end or done == self.spec.num_steps:
            return
        self._add_up()
        decision: list[Any] = [None]
        if dist.get_rank() == 0:
            samples, losses = self._records(done)
            self._policy.fit(samples, losses)
            num_steps = min(self.spec.online["round_steps"], self.spec.num_steps - done)
            quotas = self._quotas(self._policy.advance(done, num_steps), num_steps)
            decision = [{"quotas": quotas, "policy": self._policy.state()}]
        dist.broadcast_object_list(decision)
        self._policy.restore(decision[0]["policy"])
        self._draw_in([*self._rounds, tuple(decision[0]["quotas"])])

    def _quotas(self, weights: Any, num_steps: int) -> tuple[int, ...]:
        """Windows of each domain in a round that begins now."""
        drawn_K = np.sum(self._rounds, axis=0, dtype=np.int64) if self._rounds else 0
        total = num_steps * self.spec.sequences_per_batch
        return tuple(capped_quotas(weights, total, self._most_K - drawn_K).tolist())

    def _draw_in(self, rounds: Sequence[tuple[int, ...]]) -> None:
        """Let the stream draw these rounds, and go on with the weights of the last."""
        self._rounds = list(rounds)
        left = sum(self.spec.sequences) - sum(map(sum, self._rounds))
        stages = [Stage(quotas=quotas) for quotas in self._rounds]
        if left:
            rest = largest_remainder(self._rounds[-1], left).tolist()
            stages.append(Stage(quotas=tuple(rest)))
        order = self._stream.order
        self._stream.adopt(
            MixtureOrder(
                domains=order.domains,
                num_windows=order.num_windows,
                seed=order.seed,
                locality=order.locality,
                stages=stages,
            )
        )

    def _add_up(self) -> None:
        """Add the losses since the last time to the records, over all ranks."""
        if not self._pending:
            return
        sums = torch.stack([sums_2K for _, sums_2K in self._pending])
        dist.all_reduce(sums)
        for (step, _), sums_2K in zip(self._pending, sums.cpu().numpy(), strict=True):
            self._sums_R2K[step // self._record_steps] += sums_2K
        self._pending.clear()

    def _records(self, done: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Samples by the end of each record, shape (R,); mean losses, NaN where none, (R, K)."""
        num_records = -(-done // self._record_steps)
        ends = np.minimum(np.arange(1, num_records + 1) * self._record_steps, done)
        losses, labels = self._sums_R2K[:num_records].swapaxes(0, 1)
        means = np.divide(losses, labels, out=np.full_like(losses, np.nan), where=labels > 0)
        return ends * self.spec.sequences_per_batch, means

    def state(self) -> dict[str, Any]:
        """The rounds, the losses and the method's state; adds up the losses of all ranks."""
        self._add_up()
        used = np.flatnonzero(self._sums_R2K[:, 1].any(axis=1))
        return {
            "rounds": [list(quotas) for quotas in self._rounds],
            "losses": self._sums_R2K[: used.max(initial=-1) + 1].tolist(),
            "policy": self._policy.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._policy.restore(state["policy"])
        sums = state["losses"]
        self._sums_R2K[: len(sums)] = sums
        self._draw_in([tuple(quotas) for quotas in state["rounds"]])

    def outcome(self, labels_K: NDArray[Any]) -> dict[str, Any]:
        """The weights by tokens of the whole run, and the windows of each round."""
        weights_K = (labels_K / labels_K.sum()).tolist()
        return {
            "weights": dict(zip(self.spec.domains, weights_K, strict=True)),
            "stages": [list(quotas) for quotas in self._rounds],
        }
