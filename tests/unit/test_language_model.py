"""The loss of masked language models beside that of transformers itself."""

import json

import numpy as np
import pytest
import torch

from autoscale.language_model import sum_masked_losses
from autoscale.masking import KEPT, Masking
from autoscale.model import build_model
from autoscale.model_shape import resolve_model

LENGTH, VOCABULARY = 40, 300
MODERN = {
    "model_type": "modernbert", "vocab_size": 310, "hidden_size": 48, "intermediate_size": 72,
    "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", ["bert-nano", "modernbert"])
def test_the_mean_over_chosen_tokens_is_the_loss_of_transformers(name, tmp_path):
    if name == "modernbert":
        name = str(tmp_path / "config.json")
        (tmp_path / "config.json").write_text(json.dumps(MODERN))
    fields = resolve_model(
        name, {}, vocab_size=VOCABULARY, end_of_text_id=0, sequence_length=LENGTH
    )
    model = build_model(fields, seed=1, activation_checkpointing=False).eval()
    masking = Masking(
        mask_token_id=fields["mask_token_id"], vocab_size=VOCABULARY, sequence_length=LENGTH
    )
    rows = torch.from_numpy(np.random.default_rng(2).integers(0, VOCABULARY, (6, LENGTH + 1)))
    masks = masking.validation(np.arange(6))
    kept = rows.clone()
    found = sum_masked_losses(model, rows, torch.from_numpy(masks))
    assert torch.equal(rows, kept)  # the batch is used again

    inputs, labels = rows[:, :-1].clone(), torch.full((6, LENGTH), -100)
    for row, (places, seen) in enumerate(masks.tolist()):
        for place, token in zip(places, seen, strict=True):
            labels[row, place] = inputs[row, place]
            if token != KEPT:
                inputs[row, place] = token
    expected = model(input_ids=inputs, labels=labels).loss
    assert found.shape == (6,)
    assert (found.sum() / 6 / masking.num_chosen).item() == pytest.approx(expected.item(), abs=1e-5)
    each = [model(input_ids=inputs[i : i + 1], labels=labels[i : i + 1]).loss for i in range(6)]
    assert (found / masking.num_chosen).tolist() == pytest.approx(
        [x.item() for x in each], abs=1e-5
    )
