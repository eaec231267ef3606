"""Attention that begins anew at every document of a packed row.

A row of packed documents comes with the position of each token in its own document, 0 at its first
token and -1 at padding. From these the model gets

    position ids     the positions; 0 at padding
    a mask           token i sees token j iff j <= i and both lie in the same document

in the form that its attention implementation takes: a mask of shape (B, 1, T, T) for `sdpa`
(boolean) and `eager` (added to the scores), or for `flash_attention_2` and `_3` all rows as one
with the bounds of the documents. Padding is a document of its own, so that no row of the mask is
empty. `require_resets` refuses models that would let one document see another, before training.
"""

import inspect
from typing import Any

import torch

# B rows, T sequence length, V vocabulary

_MASKED = ("sdpa", "eager")
_FLATTENED = ("flash_attention_2", "flash_attention_3")
_WINDOW_KEYS = ("sliding_window", "window_size", "attention_chunk_size")
_TRIAL_TOKENS = 8


def packed_logits(
    model: Any, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, *, implementation: str
) -> torch.Tensor:
    """Logits of packed rows, shape (B, T, V).

    Args:
        model: a causal language model of transformers, or the engine around it.
        tokens_BT: inputs, shape (B, T).
        positions_BT: of each token in its document, -1 at padding, shape (B, T).
        implementation: of the model's attention, as its config names it.
    """
    if implementation in _FLATTENED:
        return _flattened_logits(model, tokens_BT, positions_BT)
    mask_BTT = document_mask(positions_BT)[:, None]
    if implementation == "eager":
        scores = torch.zeros_like(mask_BTT, dtype=_dtype_of(model))
        mask_BTT = scores.masked_fill_(~mask_BTT, torch.finfo(scores.dtype).min)
    return model(
        input_ids=tokens_BT,
        position_ids=positions_BT.clamp(min=0).long(),
        attention_mask=mask_BTT,
        use_cache=False,
    ).logits


def document_mask(positions_BT: torch.Tensor) -> torch.Tensor:
    """Which tokens (last axis) a token (axis before) sees, boolean, shape (B, T, T)."""
    document_BT = (positions_BT == 0).cumsum(dim=1).masked_fill(positions_BT < 0, -1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril_()


def _flattened_logits(
    model: Any, tokens_BT: torch.Tensor, positions_BT: torch.Tensor
) -> torch.Tensor:
    """All rows as one sequence; flash attention takes the bounds of the documents in it."""
    (batch, length), device = tokens_BT.shape, tokens_BT.device
    positions = positions_BT.flatten()
    padding = positions < 0
    # Padding begins where there was none before, and with every row.
    begins = (positions == 0) | (padding & ~padding.roll(1))
    begins[::length] = True
    first = begins.nonzero().flatten()
    end = torch.tensor([batch * length], device=device)
    bounds = torch.cat([first, end]).to(torch.int32)
    logits = model(
        input_ids=tokens_BT.reshape(1, -1),
        position_ids=positions.clamp(min=0).long()[None],
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=length,  # at most; the exact length would make the host wait
        max_length_k=length,
        use_cache=False,
    ).logits
    return logits.view(batch, length, -1)


def require_resets(model: Any, sequence_length: int) -> None:
    """Refuse a model in which packed documents would not stay apart; tries it on a short row.

    Args:
        model: on the CPU, or the engine around it where no rank has the whole model; then all
            ranks call.
        sequence_length: T.

    Raises:
        ValueError: the attention implementation cannot be masked, the model looks at less than the
            sequence in some layer, or its tokens see those of another document.
    """
    module = getattr(model, "module", model)
    config = module.config
    where = f"model_type {config.model_type!r}"
    implementation = config._attn_implementation
    remedy = "use data.packing = 'contiguous' or another model"
    if implementation not in (*_MASKED, *_FLATTENED):
        raise ValueError(
            f"{where} has attention implementation {implementation!r}, which takes no mask by "
            f"document; expected one of {', '.join((*_MASKED, *_FLATTENED))}: {remedy}"
        )
    taken = inspect.signature(module.forward).parameters
    missing = [name for name in ("position_ids", "attention_mask") if name not in taken]
    if missing:
        raise ValueError(
            f"{where} takes no {' and no '.join(missing)}, which packed documents need; {remedy}"
        )
    if implementation in _FLATTENED:
        return  # it masks windows by itself, and does not run on the CPU
    for key in _WINDOW_KEYS:
        window = getattr(config, key, None)
        if isinstance(window, int) and window < sequence_length:
            raise ValueError(
                f"{where} has layers that see {key} = {window} tokens, fewer than "
                f"data.sequence_length {sequence_length}, and a mask by document would widen them; "
                f"{remedy}"
            )
    if _leaks(model, config.vocab_size, implementation):
        raise ValueError(
            f"{where} lets a document see what stands before it in the row, whatever the mask "
            f"says; {remedy}"
        )


def _leaks(model: Any, vocab_size: int, implementation: str) -> bool:
    """Whether the second of two packed documents notices a change of the first."""
    each = _TRIAL_TOKENS // 2
    device = next(model.parameters()).device
    positions = torch.arange(each, device=device).repeat(2)[None]
    tokens = torch.arange(_TRIAL_TOKENS, device=device)[None] % vocab_size
    changed = tokens.clone()
    changed[:, :each] = tokens[:, each:]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        before, after = (
            packed_logits(model, row, positions, implementation=implementation)[:, each:]
            for row in (tokens, changed)
        )
    model.train(was_training)
    return not torch.equal(before, after)


def _dtype_of(model: Any) -> torch.dtype:
    return next(model.parameters()).dtype
