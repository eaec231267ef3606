"""Validation loss: the mean negative log-likelihood a label, on windows that never change.

Labels are all tokens, and of a masked language model the chosen ones, which never change either.

Every run is measured on the same windows, so that two runs differ by their training alone. The
mean is over tokens, exact whatever the number of ranks: sums and counts are reduced, never means.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from .attention import packed_logits
from .data import Rows
from .language_model import sum_masked_losses
from .torch_stream import IGNORED

# B sequences of a micro-batch, T sequence length, V vocabulary


def sum_losses(
    engine: Any, tokens_BT: torch.Tensor, positions_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihood of each sequence, nats, summed over its labels, shape (B,)."""
    return token_losses(engine, tokens_BT, positions_BT).sum(dim=1)


def token_losses(
    engine: Any, tokens_BT: torch.Tensor, positions_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihood of each label, nats, 0 at what is no label, shape (B, T).

    Args:
        engine: the DeepSpeed engine of a causal language model, or the model.
        tokens_BT: shape (B, T + 1).
        positions_BT: of each token in its document where documents are packed, -1 at padding, of
            the same shape. The first token of a document is no label then, nor is padding.
    """
    inputs_BT, labels_BT = tokens_BT[:, :-1], tokens_BT[:, 1:].flatten()
    if positions_BT is None:
        logits_BTV = engine(input_ids=inputs_BT, use_cache=False).logits
    else:
        logits_BTV = packed_logits(
            engine,
            inputs_BT,
            positions_BT[:, :-1],
            implementation=getattr(engine, "module", engine).config._attn_implementation,
        )
        labels_BT = labels_BT.masked_fill(positions_BT[:, 1:].flatten() <= 0, IGNORED)
    return cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT, reduction="none", ignore_index=IGNORED
    ).view(len(tokens_BT), -1)


class Evaluator:
    """Validation sets of a run, cut over its ranks.

    Args:
        windows: rows of each set.
        micro_batch_size: sequences a forward pass.
    """

    def __init__(
        self,
        windows: Mapping[str, Rows],
        *,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._names = list(windows)
        self._device = device
        self._micro_batch_size = micro_batch_size
        rows = torch.cat([torch.from_numpy(each.tokens) for each in windows.values()])
        sets = torch.cat(
            [torch.full((len(each.tokens),), index) for index, each in enumerate(windows.values())]
        )
        # ZeRO-3 gathers parameters in every forward pass, so all ranks make equally many: the
        # last ones repeat a window for a set behind the real ones, which counts for nothing.
        padding = -len(rows) % (world_size * micro_batch_size)

        def own(all_rows: torch.Tensor) -> torch.Tensor:
            repeated = all_rows[:1].expand(padding, *all_rows.shape[1:])
            return torch.cat([all_rows, repeated])[rank::world_size]

        self._rows = own(rows)
        self._sets = torch.cat([sets, torch.full((padding,), len(windows))])[rank::world_size]
        positions = [each.positions for each in windows.values() if each.positions is not None]
        self._positions = None
        self._counts = torch.full((len(self._rows),), rows.shape[1] - 1)
        if positions:
            self._positions = own(torch.cat([torch.from_numpy(each) for each in positions]))
            self._counts = (self._positions[:, 1:] > 0).sum(dim=1)
        masks = [each.masks for each in windows.values() if each.masks is not None]
        self._masks = own(torch.cat([torch.from_numpy(each) for each in masks])) if masks else None
        if self._masks is not None:
            self._counts.fill_(self._masks.shape[2])

    @torch.no_grad()
    def losses(self, engine: Any, alive: Callable[[], None]) -> dict[str, float]:
        """Validation loss of each set, nats a token; the same on every rank.

        Args:
            alive: called after every micro-batch.
        """
        engine.eval()
        sums = torch.zeros(len(self._names) + 1, dtype=torch.float64)
        counts = torch.zeros_like(sums)
        for start in range(0, len(self._rows), self._micro_batch_size):
            part = slice(start, start + self._micro_batch_size)
            rows, positions = self._rows[part].to(self._device), None
            if self._positions is not None:
                positions = self._positions[part].to(self._device)
            sets = self._sets[part] % len(sums)
            if self._masks is None:
                losses = sum_losses(engine, rows, positions)
            else:
                losses = sum_masked_losses(engine, rows, self._masks[part].to(self._device))
            sums.index_add_(0, sets, losses.double().cpu())
            counts.index_add_(0, sets, self._counts[part].double())
            alive()
        engine.train()
        totals = torch.stack([sums[:-1], counts[:-1]]).to(self._device)
        dist.all_reduce(totals)
        means = (totals[0] / totals[1]).tolist()
        return dict(zip(self._names, means, strict=True))
