"""Prefetch: one thread reads the next batches into reused buffers, and the device widens them.

The thread fills host buffers in the narrow type in which tokens travel (page-locked ones where the
device is a GPU). Each is copied to the device as it is and widened to int64 there. A buffer is
written again only after the copy out of it is done.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from .mixture_stream import MixtureStream, TokenBatch
from .sampler import Located

# B rows of this rank's batch, T sequence length


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBatch:
    """One rank's share of a global batch, on the device.

    Attributes:
        tokens: shape (B, T + 1), int64; the model reads all but the last column and is scored on
            all but the first.
        positions: of each token in its document, shape (B, T + 1), int64: 0 at the first token of
            every piece, -1 at padding; the label of column j counts where
            `positions[:, j + 1] > 0`. None for contiguous windows: there every label counts.
        step: number of the global batch.
        located: domain, epoch and window of each row, on the host.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    step: int
    located: Located


class Prefetcher:
    """Batches of a stream on a device; the stream stands behind the one that was handed out last.

    A context manager, at whose end the thread is gone:

        with Prefetcher(stream, device="cuda") as batches:
            for batch in batches: ...

    The stream's weights may change inside the loop: what was read ahead is then read again.

    Args:
        stream: what to read.
        steps: numbers of the global batches; from the stream's position to its end by default.
        device: where the batches are wanted.
        depth: batches to read ahead in the thread; 0 reads each one when it is asked for, without a
            thread, which on a CPU would only take time from the model.
    """

    def __init__(
        self,
        stream: MixtureStream,
        steps: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        depth: int = 2,
    ) -> None:
        if depth < 0:
            raise ValueError(f"depth is {depth}; expected 0 or more batches to read ahead")
        self._stream, self._steps = stream, steps
        self._depth = depth
        self._buffers = [_Buffer(stream, torch.device(device)) for _ in range(max(depth, 1))]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self._ahead() if self._depth else self._on_demand()

    def _on_demand(self) -> Iterator[DeviceBatch]:
        (buffer,) = self._buffers
        first, asked = self._stream.step, 0
        while (step := self._step(first, asked)) is not None:
            batch = buffer.read(self._stream, step)
            on_device = buffer.to_device(batch)
            self._stream.hand_over(batch)
            asked += 1
            yield on_device

    def _ahead(self) -> Iterator[DeviceBatch]:
        free = list(self._buffers)
        ahead: deque[tuple[int, _Buffer, Future[TokenBatch]]] = deque()
        first, asked = self._stream.step, 0
        try:
            while True:
                while free and (step := self._step(first, asked)) is not None:
                    buffer = free.pop()
                    reading = self._thread.submit(buffer.read, self._stream, step)
                    ahead.append((step, buffer, reading))
                    asked += 1
                if not ahead:
                    return
                step, buffer, reading = ahead.popleft()
                free.append(buffer)
                batch = reading.result()
                if not self._stream.is_current(batch):
                    if self._steps is None and step >= self._stream.num_steps:
                        continue  # the new weights end earlier
                    batch = buffer.read(self._stream, step)
                on_device = buffer.to_device(batch)
                self._stream.hand_over(batch)
                yield on_device
        finally:
            wait([reading for _, _, reading in ahead])  # the next loop gets the buffers unused

    def close(self) -> None:
        """End the thread; what was read ahead is dropped, and was never drawn."""
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _step(self, first: int, asked: int) -> int | None:
        """The step to read after `asked` others, or None at the end."""
        if self._steps is not None:
            return self._steps[asked] if asked < len(self._steps) else None
        return first + asked if first + asked < self._stream.num_steps else None


class _Buffer:
    """Host memory for one batch, and the copy out of it that may still be going on."""

    def __init__(self, stream: MixtureStream, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._copied = torch.cuda.Event() if on_gpu else None
        wire = getattr(torch, stream.wire_dtype.name)
        self._tokens = torch.empty(stream.shape, dtype=wire, pin_memory=on_gpu)
        self._positions = torch.empty(stream.shape, dtype=torch.int32, pin_memory=on_gpu)

    def read(self, stream: MixtureStream, step: int) -> TokenBatch:
        """Fill the buffer; waits for the last copy out of it."""
        if self._copied is not None:
            self._copied.synchronize()
        return stream.batch(step, self._tokens.numpy(), self._positions.numpy())

    def to_device(self, batch: TokenBatch) -> DeviceBatch:
        """Copy out what `read` returned last."""
        tokens = self._widened(self._tokens)
        positions = None if batch.positions is None else self._widened(self._positions)
        if self._copied is not None:
            self._copied.record()
        return DeviceBatch(
            tokens=tokens, positions=positions, step=batch.step, located=batch.located
        )

    def _widened(self, host: torch.Tensor) -> torch.Tensor:
        """A new tensor on the device; widening there moves a quarter or half of the bytes."""
        return host.to(self._device, non_blocking=True).to(torch.int64)
