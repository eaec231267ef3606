"""The loss of each kind of language model: tokens that follow, or tokens that are masked.

causal    every token of a row from those before it (`evaluation.sum_losses`)
masked    the chosen tokens of a row (`masking`) from all others, in nats a chosen token
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .manifest import Manifest
from .masking import KEPT, Masking
from .model_shape import is_masked
from .runs import RunSpec

# B sequences of a micro-batch, T sequence length, M chosen tokens of a row, V vocabulary


def masking_of(spec: RunSpec, manifest: Manifest) -> Masking | None:
    """How the rows of a run are masked; None for a causal model."""
    if not is_masked(spec.model):
        return None
    return Masking(
        mask_token_id=spec.model["mask_token_id"],
        vocab_size=manifest.tokenizer.vocab_size,
        sequence_length=spec.sequence_length,
        domains=spec.domains,
        seed=spec.seed,
    )


def sum_masked_losses(
    engine: Any, tokens_BT: torch.Tensor, masks_B2M: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood of each sequence, nats, summed over its chosen tokens, shape (B,)."""
    return masked_losses(engine, tokens_BT, masks_B2M).sum(dim=1)


def masked_losses(engine: Any, tokens_BT: torch.Tensor, masks_B2M: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each chosen token, nats, shape (B, M).

    Args:
        engine: the DeepSpeed engine of a masked language model, or the model.
        tokens_BT: shape (B, T + 1); the last column belongs to the next window.
        masks_B2M: as `Masking.draw` gives them, shape (B, 2, M).
    """
    places_BM, seen_BM = masks_B2M.unbind(dim=1)
    inputs_BT = tokens_BT[:, :-1].clone()
    labels_BM = inputs_BT.gather(1, places_BM)
    inputs_BT.scatter_(1, places_BM, torch.where(seen_BM == KEPT, labels_BM, seen_BM))
    logits_BTV = engine(input_ids=inputs_BT).logits
    batch, length = inputs_BT.shape
    rows_B1 = torch.arange(batch, device=places_BM.device)[:, None]
    # Only what is chosen is copied to float32.
    logits = logits_BTV.flatten(0, 1).index_select(0, (rows_B1 * length + places_BM).flatten())
    losses = cross_entropy(logits.float(), labels_BM.flatten(), reduction="none")
    return losses.view(batch, -1)
