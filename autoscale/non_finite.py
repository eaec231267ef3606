"""Which ranks' training loss was no finite number first.

A loss that is NaN on one rank makes the weights of all NaN with the next step, so that a moment
later all ranks look alike. Each rank keeps the step at which its own loss was so first, on the
device, where nobody waits for it; the ranks compare when something is found to be wrong.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstSeen:
    """The ranks that had it first, as `rank 1 on w2`, and the step, counted from one."""

    ranks: tuple[str, ...]
    step: int


class NonFiniteLosses:
    """The losses of this rank, as far as they were no finite numbers."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def see(self, loss: torch.Tensor, step: int) -> None:
        """Take note of the loss of a step, counted from one."""
        found = torch.where(torch.isfinite(loss), _NEVER, step)
        self._first = torch.minimum(self._first, found)

    def first_seen(self) -> FirstSeen | None:
        """By whom and when; None when every loss was finite. All ranks of the run call."""
        gathered: list[tuple[int, str]] = [(0, "")] * dist.get_world_size()
        dist.all_gather_object(gathered, (int(self._first), socket.gethostname()))
        return compare(gathered)


def compare(found: Sequence[tuple[int, str]]) -> FirstSeen | None:
    """Of the first step and the host of ranks 0, 1, ..., those that had it first."""
    step = min(first for first, _ in found)
    if step == _NEVER:
        return None
    ranks = [f"rank {rank} on {host}" for rank, (first, host) in enumerate(found) if first == step]
    return FirstSeen(ranks=tuple(ranks), step=step)
