"""Rows of a block of steps, planned together: numpy calls are dear, and one call plans thousands.

A plan answers what stands in the rows of a step, and which pieces fill them. It is made from an
order, and holds for as long as the order does.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from .batch_order import batch_positions
from .sampler import Located, MixtureOrder
from .windows.reading import PlannedRows, WindowReader

LEAST_SAMPLES: Final = 1 << 8  # of this rank: where single steps are asked for
MOST_SAMPLES: Final = 1 << 14  # a few milliseconds of work
_POSITIONS: Final = 1 << 16  # of all ranks, since the shuffle covers the global batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """This rank's part of the global batches.

    Attributes:
        batch_size: rows of a global batch.
        rank, world_size: of this process among those that share the batches.
        offset: position at which step 0 begins.
    """

    batch_size: int
    rank: int
    world_size: int
    offset: int

    @property
    def num_rows(self) -> int:
        """Rows of this rank in every batch."""
        begin, end = (
            self.batch_size * edge // self.world_size for edge in (self.rank, self.rank + 1)
        )
        return end - begin

    def num_steps(self, order: MixtureOrder) -> int:
        """Whole batches to the end of the order."""
        return (order.num_samples - self.offset) // self.batch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """The rows of the steps `[begin, end)`.

    Attributes:
        order: that it was made from.
        begin, end: the steps.
        num_rows: of this rank, in a step.
        everything: what stands in the rows of all steps.
        rows: what fills them.
        bounds: step `begin + i` has the pieces `[bounds[i], bounds[i + 1])`.
    """

    order: MixtureOrder
    begin: int
    end: int
    num_rows: int
    everything: Located
    rows: PlannedRows
    bounds: list[int]

    @classmethod
    def make(
        cls,
        order: MixtureOrder,
        part: Slice,
        step: int,
        reader: WindowReader,
        first_window_K: NDArray[np.int64],
        num_samples: int,
    ) -> Self:
        """Plan some steps from `step` on.

        Args:
            num_samples: of this rank, as many as are planned if the global batches are not large.
            reader: of the windows of all domains, numbered through.
            first_window_K: number of the first window of each domain, shape (K,).

        Raises:
            ValueError: there is no such step.
        """
        num_steps = part.num_steps(order)
        if not 0 <= step < num_steps:
            raise ValueError(f"step {step} is outside the stream's {num_steps} steps")
        count = max(1, min(num_samples // max(1, part.num_rows), _POSITIONS // part.batch_size))
        steps = np.arange(step, min(step + count, num_steps))
        positions = batch_positions(
            step=steps,
            batch_size=part.batch_size,
            rank=part.rank,
            world_size=part.world_size,
            seed=order.seed,
        )
        located = order.locate(positions.reshape(-1) + part.offset)
        rows = reader.plan(first_window_K[located.domain] + located.window)
        edges = np.arange(steps.size + 1) * part.num_rows
        return cls(
            order=order,
            begin=step,
            end=step + steps.size,
            num_rows=part.num_rows,
            everything=located,
            rows=rows,
            bounds=np.searchsorted(rows.pieces.row, edges).tolist(),
        )

    def rows_of(self, step: int) -> slice:
        """Where the rows of one step are among all rows."""
        first = (step - self.begin) * self.num_rows
        return slice(first, first + self.num_rows)

    def located(self, step: int) -> Located:
        """What stands in the rows of one step, shape (num_rows,)."""
        rows = self.rows_of(step)
        return Located(
            domain=self.everything.domain[rows],
            epoch=self.everything.epoch[rows],
            window=self.everything.window[rows],
        )
