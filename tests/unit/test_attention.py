import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, MambaConfig, MistralConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autoscale.attention import document_mask, packed_logits, require_resets
from autoscale.model import build_model
from autoscale.model_shape import resolve_model

LENGTH = 24


def model_of(name: str, implementation: str = "sdpa"):
    overrides = {} if implementation == "sdpa" else {"attn_implementation": implementation}
    fields = resolve_model(name, overrides, vocab_size=64, end_of_text_id=0, sequence_length=LENGTH)
    model = build_model(fields, seed=1, activation_checkpointing=False)
    assert model.config._attn_implementation == implementation
    return model.eval()


def packed_rows(*rows: tuple[int, ...]):
    """Tokens and positions of rows with documents of these lengths, padded to LENGTH."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 64, (len(rows), LENGTH))
    positions = np.full((len(rows), LENGTH), -1, dtype=np.int32)
    for row, lengths in enumerate(rows):
        filled = np.concatenate([np.arange(length) for length in lengths])
        positions[row, : len(filled)] = filled
    return torch.from_numpy(tokens), torch.from_numpy(positions)


def documents_in(positions: torch.Tensor):
    """Row, first and last token of each document."""
    for row, of_row in enumerate(positions.tolist()):
        begins = [i for i, position in enumerate(of_row) if position == 0]
        end = sum(position >= 0 for position in of_row)
        for begin, stop in zip(begins, [*begins[1:], end], strict=True):
            yield row, begin, stop


ROWS = ((5, 1, 9, 9), (24,), (7, 4), (1, 1, 20))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
@torch.no_grad()
def test_packed_documents_have_the_logits_that_each_has_alone(name, implementation):
    model = model_of(name, implementation)
    tokens, positions = packed_rows(*ROWS)
    logits = packed_logits(model, tokens, positions, implementation=implementation)
    assert torch.isfinite(logits).all()
    found = 0
    for row, begin, end in documents_in(positions):
        alone = model(input_ids=tokens[row : row + 1, begin:end], use_cache=False).logits[0]
        torch.testing.assert_close(logits[row, begin:end], alone, rtol=0, atol=2e-6)
        found += end - begin
    assert found == int((positions >= 0).sum())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
def test_no_loss_of_a_document_has_a_gradient_in_another_or_in_padding(name, implementation):
    model = model_of(name, implementation)
    tokens, positions = packed_rows(*ROWS)
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    inside = {}
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: embedded)
    for row, begin, end in documents_in(positions):
        logits = packed_logits(model, tokens, positions, implementation=implementation)
        (gradient,) = torch.autograd.grad(logits[row, begin:end].square().sum(), embedded)
        touched = gradient.abs().sum(dim=2) > 0
        inside[row, begin] = touched.nonzero().tolist()
        assert inside[row, begin] == [[row, i] for i in range(begin, end)]
    handle.remove()


@torch.no_grad()
def test_padding_and_other_documents_change_no_bit():
    model = model_of("llama-nano")
    tokens, positions = packed_rows((7, 4))
    before = packed_logits(model, tokens, positions, implementation="sdpa")
    changed = tokens.clone()
    changed[:, 11:] = 5
    changed[:, :7] = 9
    after = packed_logits(model, changed, positions, implementation="sdpa")
    assert torch.equal(before[:, 7:11], after[:, 7:11])


def test_the_mask_is_causal_within_documents():
    _, positions = packed_rows((3, 2))
    mask = document_mask(positions)[0, :7, :7].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],  # padding sees padding: no row of the mask is empty
        [0, 0, 0, 0, 0, 1, 1],
    ]


def varlen_attention(module, query, key, value, attention_mask, **given):
    """What flash attention computes from the bounds of sequences, in plain torch."""
    assert attention_mask is None and query.shape[0] == 1
    bounds = given["cu_seq_lens_q"].tolist()
    assert given["cu_seq_lens_k"].tolist() == bounds
    assert given["cu_seq_lens_q"].dtype == torch.int32
    lengths = np.diff(bounds)
    assert lengths.max() <= given["max_length_q"] == given["max_length_k"]
    assert (bounds[0], bounds[-1]) == (0, query.shape[2])
    parts = [
        scaled_dot_product_attention(*each, is_causal=True, scale=given["scaling"])
        for each in zip(
            *(x.split(lengths.tolist(), dim=2) for x in (query, key, value)), strict=True
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
@torch.no_grad()
def test_flash_attention_gets_the_bounds_of_the_documents(name, monkeypatch):
    """Its kernels need a GPU: the same contract is met in plain torch, inside the real model."""
    tokens, positions = packed_rows(*ROWS)
    model = model_of(name)
    masked = packed_logits(model, tokens, positions, implementation="sdpa")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", varlen_attention)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    logits = packed_logits(model, tokens, positions, implementation="flash_attention_2")
    # Padding has position ids of its own and attends to itself in both forms.
    torch.testing.assert_close(logits, masked, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
def test_known_models_are_accepted(name):
    for implementation in ("sdpa", "eager"):
        require_resets(model_of(name, implementation), LENGTH)


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}


def mistral(**changes):
    config = MistralConfig(
        **SMALL, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, **changes
    )
    return AutoModelForCausalLM.from_config(config)


def leaking():
    """A model that takes a mask and does not heed it in every layer."""
    model = model_of("llama-nano")
    layer = model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, **inputs: forward(hidden.cumsum(dim=1), **inputs)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: mistral(sliding_window=LENGTH - 1), "sliding_window = 23 tokens, fewer than"),
        (lambda: AutoModelForCausalLM.from_config(MambaConfig(**SMALL)), "takes no position_ids"),
        (lambda: mistral(attn_implementation="flex_attention"), "'flex_attention', which takes no"),
        (leaking, "lets a document see what stands before it"),
    ],
)
def test_models_that_cannot_keep_documents_apart_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        require_resets(model(), LENGTH)


def test_a_window_as_long_as_the_sequence_is_accepted():
    require_resets(mistral(sliding_window=LENGTH), LENGTH)
