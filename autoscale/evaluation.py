"""Validation loss: the mean negative log-likelihood a token, on windows that never change.

Every run is measured on the same windows, so that two runs differ by their training alone. The
mean is over tokens, exact whatever the number of ranks: sums and counts are reduced, never means.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

# B sequences of a micro-batch, T sequence length, V vocabulary


def sum_losses(engine: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each sequence, nats, summed over its tokens, shape (B,)."""
    logits_BTV = engine(input_ids=tokens_BT[:, :-1], use_cache=False).logits
    losses_BT = cross_entropy(
        logits_BTV.float().flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
    ).view(len(tokens_BT), -1)
    return losses_BT.sum(dim=1)


class Evaluator:
    """Validation sets of a run, cut over its ranks.

    Args:
        windows: tokens of each set, shape (num_windows, T + 1).
        micro_batch_size: sequences a forward pass.
    """

    def __init__(
        self,
        windows: Mapping[str, NDArray[np.int64]],
        *,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._names = list(windows)
        self._device = device
        self._micro_batch_size = micro_batch_size
        rows, sets = [], []
        for index, tokens in enumerate(windows.values()):
            rows.append(torch.from_numpy(tokens))
            sets.append(torch.full((len(tokens),), index))
        all_rows, all_sets = torch.cat(rows), torch.cat(sets)
        # ZeRO-3 gathers parameters in every forward pass, so all ranks make equally many: the
        # last ones repeat a window for a set behind the real ones, which counts for nothing.
        padding = -len(all_rows) % (world_size * micro_batch_size)
        all_rows = torch.cat([all_rows, all_rows[:1].expand(padding, -1)])
        all_sets = torch.cat([all_sets, torch.full((padding,), len(windows))])
        self._rows, self._sets = all_rows[rank::world_size], all_sets[rank::world_size]

    @torch.no_grad()
    def losses(self, engine: Any) -> dict[str, float]:
        """Validation loss of each set, nats a token; the same on every rank."""
        engine.eval()
        tokens_a_window = self._rows.shape[1] - 1
        sums = torch.zeros(len(self._names) + 1, dtype=torch.float64)
        counts = torch.zeros_like(sums)
        for start in range(0, len(self._rows), self._micro_batch_size):
            rows = self._rows[start : start + self._micro_batch_size].to(self._device)
            sets = self._sets[start : start + self._micro_batch_size]
            sums.index_add_(0, sets % len(sums), sum_losses(engine, rows).double().cpu())
            counts.index_add_(
                0, sets % len(sums), torch.full((len(sets),), tokens_a_window).double()
            )
        engine.train()
        totals = torch.stack([sums[:-1], counts[:-1]]).to(self._device)
        dist.all_reduce(totals)
        means = (totals[0] / totals[1]).tolist()
        return dict(zip(self._names, means, strict=True))
