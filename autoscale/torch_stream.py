"""The mixture stream for PyTorch: a dataset for loaders, and weights that change on all ranks.

`MixtureDataset` hands out dictionaries of int64 tensors under the names that transformers' models
know, so that `model(**batch).loss` is the loss. `broadcast_weights` carries new weights from rank 0
to all ranks as integers, and makes sure that all of them go on with the same order.

Needs torch, and no DeepSpeed. `prefetch` is the faster way to a GPU where no `DataLoader` is asked
for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from .mixture_stream import MixtureStream, TokenBatch
from .stage_quotas import Stage

IGNORED: Final = -100
"""Label of a token that is not predicted, as torch's and transformers' losses expect it."""

# B rows of this rank's batch, T sequence length


class MixtureDataset(IterableDataset[dict[str, torch.Tensor]]):
    """This rank's batches of a stream, from its position to its end.

    Each item is a whole batch, for `DataLoader(dataset, batch_size=None)` or for a loop of its own:

        input_ids     (B, T)
        labels        (B, T): the token after each of `input_ids`, -100 where none is predicted
        shift_labels  `labels` once more: by this name transformers does not shift them again
        position_ids  (B, T), where documents are packed; transformers keeps attention inside a
                      document by them. 0 at padding

    The ranks are those of the stream: do not let a trainer shard the dataset again. Any number of
    loader workers gives the same batches in the same order. The position is known to the process
    that iterates; with workers, the trainer counts, and saves `state_dict(position)`.

    Args:
        stream: what to hand out.
    """

    def __init__(self, stream: MixtureStream) -> None:
        self.stream = stream
        self._in_workers = torch.zeros((), dtype=torch.bool).share_memory_()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        if worker is None:
            yield from map(to_tensors, self.stream)
            return
        self._in_workers.fill_(True)
        # The loader takes a batch from each worker in turn.
        for step in range(self.stream.step + worker.id, self.stream.num_steps, worker.num_workers):
            batch = self.stream.batch(step)
            self.stream.hand_over(batch)
            yield to_tensors(batch)

    def __len__(self) -> int:
        """Global batches of the whole stream, those before its position included."""
        return self.stream.num_steps

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """The stream's state.

        Args:
            position: samples consumed over all ranks; needed where workers read the batches.

        Raises:
            ValueError: workers read the batches, and `position` is not given.
        """
        worker = get_worker_info()
        elsewhere = bool(self._in_workers) if worker is None else worker.num_workers > 1
        if position is None and elsewhere:
            raise ValueError(
                "the batches were read by workers of a loader, which are ahead of the trainer: "
                "give state_dict the number of samples consumed, or iterate without workers"
            )
        return self.stream.state_dict(position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, at any world size and batch size."""
        self.stream.load_state_dict(state)


def to_tensors(batch: TokenBatch) -> dict[str, torch.Tensor]:
    """What a model is given, under the names that `MixtureDataset` lists."""
    tensors = {
        name: torch.from_numpy(tokens).to(torch.int64, memory_format=torch.contiguous_format)
        for name, tokens in (("input_ids", batch.inputs), ("labels", batch.labels))
    }
    if batch.positions is not None:
        positions = torch.from_numpy(batch.positions)
        tensors["labels"] = tensors["labels"].masked_fill(positions[:, 1:] <= 0, IGNORED)
        tensors["position_ids"] = positions[:, :-1].clamp(min=0).to(torch.int64)
    return tensors | {"shift_labels": tensors["labels"]}


def broadcast_weights(
    stream: MixtureStream,
    weights: Mapping[str, float] | Sequence[float] | None,
    num_samples: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Change the weights on all ranks, from their common position on; all ranks call it together.

    Rank 0 rounds the weights to integers, so that no rank's arithmetic enters. No rank changes
    anything unless all of them can, stand at the same sample, and end up with the same order.

    Args:
        stream: this rank's.
        weights: new weights, as `MixtureStream.change_weights` takes them, of which rank 0's count;
            None on rank 0 leaves them as they are and compares the ranks only.
        num_samples: to draw with them, of which rank 0's counts; None means without an end.
        group: of the ranks that share the batches; all by default.

    Raises:
        ValueError: on all ranks, if one of them cannot go on or differs from the others.
    """
    messages: list[dict[str, Any]] = [{}]
    if dist.get_rank(group) == 0:
        messages = [_attempt(lambda: _proposal(stream, weights, num_samples))]
    first = 0 if group is None else dist.get_global_rank(group, 0)
    dist.broadcast_object_list(messages, src=first, group=group)
    orders = []

    def apply() -> dict[str, Any]:
        proposal = messages[0]
        if stream.position != proposal["position"]:
            raise ValueError(
                f"it stands at sample {stream.position} and rank 0 at {proposal['position']}: "
                "change the weights after the same step on all ranks"
            )
        stage = proposal["stage"]
        orders.append(stream.order if stage is None else stream.changed(Stage(**stage)))
        return {"digest": orders[0].digest()}

    answer = messages[0] if "error" in messages[0] else _attempt(apply)
    answers: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(answers, answer, group=group)
    for rank, other in enumerate(answers):
        if "error" in other:
            raise ValueError(f"weights cannot change, says rank {rank}: {other['error']}")
    differing = [rank for rank, other in enumerate(answers) if other != answers[0]]
    if differing:
        raise ValueError(
            f"rank {differing[0]} draws in another order than rank 0; start all ranks with the "
            "same data, weights and state"
        )
    stream.adopt(orders[0])


def _proposal(
    stream: MixtureStream,
    weights: Mapping[str, float] | Sequence[float] | None,
    num_samples: int | None,
) -> dict[str, Any]:
    """What rank 0 sends: integers only."""
    stage = None if weights is None else asdict(stream.stage(weights, num_samples))
    return {"position": stream.position, "stage": stage}


def _attempt(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Its result, or its error as data: a rank that raised by itself would leave others waiting."""
    try:
        return action()
    except Exception as error:
        return {"error": str(error)}
