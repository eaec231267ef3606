"""What the ranks of a run decide together after each step: whether to save, whether to stop.

A rank may be told to stop before the others are, and clocks differ, but all must save after the
same step. Each rank casts its votes after every step; one vote is enough. The exchange travels in
the background and is read one step later, so that no rank waits for it.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist


class Votes:
    """Votes of the ranks of the default process group; every rank makes one and casts as often."""

    def __init__(self, num_questions: int) -> None:
        # On the host, beside the gradients: a device would have to be waited for.
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._cast = torch.zeros(num_questions, dtype=torch.int32)
        self._exchange: dist.Work | None = None

    def cast(self, votes: Sequence[bool]) -> list[bool]:
        """Vote after a step; returns, for each question, whether any rank said yes at the last one.

        In a run of one rank the answer is that of this step.
        """
        if self._group is None:
            return list(votes)
        answers = self.close()
        self._cast = torch.tensor(votes, dtype=torch.int32)
        self._exchange = dist.all_reduce(
            self._cast, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return answers

    def close(self) -> list[bool]:
        """Wait for the exchange under way, and return its answers."""
        if self._exchange is not None:
            self._exchange.wait()
            self._exchange = None
        return [bool(vote) for vote in self._cast.tolist()]
