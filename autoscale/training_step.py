"""One optimiser step: the losses of this rank's share of a batch, their gradient, the descent.

`TrainingStep` descends the mean loss over all labels of a batch. What `runs.RunSpec.online` names
changes how the losses of the rows are weighted (`online_doremi`) or what is drawn next
(`online_ado`): those are steps of their own, with state that goes into the checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from .evaluation import token_losses
from .language_model import masked_losses
from .masking import Masking
from .prefetch import DeviceBatch
from .runs import RunSpec

# B rows of a micro-batch, T sequence length, K domains


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Rows that pass through the model together.

    Attributes:
        tokens, positions: as in `DeviceBatch`, shape (B, T + 1).
        masks: of a masked language model, as `Masking.draw` gives them.
        domain: index of each row's domain, on the host, shape (B,).
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    masks: torch.Tensor | None
    domain: torch.Tensor


class TrainingStep:
    """Steps on the mean loss of a batch's labels.

    Args:
        engine: the DeepSpeed engine.
        spec: the run.
        micro_batch_size: rows that pass through the model at a time.
        masking: of a masked language model; None for a causal one.

    Attributes:
        work: FLOPs of a step, in those of the forward and backward pass of its rows.
    """

    work = 1.0

    def __init__(
        self, engine: Any, spec: RunSpec, *, micro_batch_size: int, masking: Masking | None
    ) -> None:
        self.engine, self.spec = engine, spec
        self._micro_batch_size, self._masking = micro_batch_size, masking
        # Packed rows, whose labels differ in number, are counted instead.
        self._row_labels = spec.sequence_length if masking is None else masking.num_chosen

    def __call__(self, batch: DeviceBatch) -> torch.Tensor:
        """One optimiser step; a loss whose mean over the ranks is that of the batch, nats a label.

        DeepSpeed takes the mean of the gradients over micro-batches and ranks. Rows with equally
        many labels make the mean of means the mean over labels. Packed rows have not: there the sum
        over a micro-batch counts as its share of the batch's labels.
        """
        parts = self.parts(batch)
        scale = None
        if batch.positions is not None:
            labels = (batch.positions[:, 1:] > 0).sum()
            dist.all_reduce(labels, group=self.engine.data_parallel_group)
            scale = len(parts) * self.engine.dp_world_size / labels.clamp(min=1)
        total = torch.zeros((), device=batch.tokens.device)
        for part in parts:
            losses_B = self.row_losses(part)
            if scale is None:
                total += self.descend(losses_B.mean() / self._row_labels)
            else:
                total += self.descend(losses_B.sum() * scale)
        return total / len(parts)

    def parts(self, batch: DeviceBatch) -> list[MicroBatch]:
        """The micro-batches of a batch."""
        size, device = self._micro_batch_size, batch.tokens.device
        tokens = batch.tokens.split(size)
        nothing = [None] * len(tokens)
        positions = nothing if batch.positions is None else batch.positions.split(size)
        masks = nothing
        if self._masking is not None:
            drawn = torch.from_numpy(self._masking.training(batch.located))
            masks = drawn.to(device).split(size)
        domains = torch.from_numpy(batch.located.domain).split(size)
        return [
            MicroBatch(tokens=part, positions=places, masks=chosen, domain=domain)
            for part, places, chosen, domain in zip(tokens, positions, masks, domains, strict=True)
        ]

    def label_losses(self, model: Any, part: MicroBatch) -> torch.Tensor:
        """Loss of each label, nats, in rows; 0 at what is no label, shape (B, labels of a row).

        Args:
            model: the engine, or another model of the same kind.
        """
        if part.masks is not None:
            return masked_losses(model, part.tokens, part.masks)
        return token_losses(model, part.tokens, part.positions)

    def row_losses(self, part: MicroBatch) -> torch.Tensor:
        """Loss of each row by the model in training, summed over its labels, shape (B,)."""
        return self.label_losses(self.engine, part).sum(dim=1)

    def row_labels(self, part: MicroBatch) -> torch.Tensor:
        """Labels of each row, float64, shape (B,)."""
        if part.positions is None:
            device = part.tokens.device
            return torch.full((len(part.tokens),), float(self._row_labels), device=device).double()
        return (part.positions[:, 1:] > 0).sum(dim=1).double()

    def descend(self, loss: torch.Tensor) -> torch.Tensor:
        """Backward pass of a micro-batch; DeepSpeed steps after the last of a batch."""
        self.engine.backward(loss)
        self.engine.step()
        return loss.detach()

    def after_step(self, done: int) -> None:
        """What follows `done` completed steps; all ranks call."""

    def scalars(self) -> dict[str, float]:
        """What the log of the run has beside the loss, by name."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON, the same on all ranks; all of them call."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""

    def outcome(self, labels_K: NDArray[Any]) -> dict[str, Any] | None:
        """What a finished run records of its weights (`runs.RunResult.online`).

        Args:
            labels_K: of each domain that the run learned from, shape (K,).
        """
        return None


def sum_by_domain(
    sums_2K: torch.Tensor, domain_B: torch.Tensor, losses_B: torch.Tensor, labels_B: torch.Tensor
) -> None:
    """Add rows to the sums of losses and labels of their domains.

    In float64 the sums of float32 losses are exact as long as a run's batches are: they do not
    depend on micro-batches, ranks or the moment of a save.

    Args:
        sums_2K: float64, shape (2, K).
        domain_B: on the host.
    """
    domain_B = domain_B.to(sums_2K.device)
    sums_2K[0].index_add_(0, domain_B, losses_B.detach().double())
    sums_2K[1].index_add_(0, domain_B, labels_B)
