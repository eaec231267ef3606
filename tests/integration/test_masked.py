"""Masked language models: real runs beside plain transformers, on any ranks, resumed."""

import pytest
import torch

from autoscale.data import RunStream, validation_windows
from autoscale.language_model import masking_of
from autoscale.masking import KEPT
from autoscale.model import build_model, parameter_groups
from autoscale.schedule import learning_rate
from tests.integration.children import planned, train, train_a_part

SHAPE = "overrides={num_hidden_layers=1, hidden_size=32, intermediate_size=64}"
BERT = f"model={{name='bert-nano', {SHAPE}}}"


def with_labels(tokens, masks, length):
    """Rows and labels as models of transformers take them, -100 where nothing is predicted."""
    inputs = torch.from_numpy(tokens.astype("int64"))[:, :length]
    labels = torch.full_like(inputs, -100)
    for row, (places, seen) in enumerate(masks.tolist()):
        for place, token in zip(places, seen, strict=True):
            labels[row, place] = inputs[row, place]
            if token != KEPT:
                inputs[row, place] = token
    return {"input_ids": inputs, "labels": labels}


@pytest.mark.usefixtures("on_cpu")
def test_two_ranks_train_like_plain_transformers(tiny, tmp_path, worker):
    """With a large eps AdamW heeds the scale of the gradient, so a wrong count would show."""
    experiment, spec = planned(tiny, BERT, "trainer.eps=1e-2", "trainer.grad_clip=1e3")
    result = train(worker, experiment, spec, tmp_path / "run", world_size=2, micro_batch_size=1)
    assert result.total_tokens == spec.total_tokens

    masking, optimisation = masking_of(spec, experiment.manifest), spec.optimisation
    model = build_model(spec.model, seed=spec.seed, activation_checkpointing=False)
    assert type(model).__name__ == "BertForMaskedLM"
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimisation["weight_decay"]),
        betas=optimisation["betas"],
        eps=optimisation["eps"],
    )
    keys = ("lr", "min_lr_ratio", "schedule", "warmup_fraction", "decay_fraction")
    for batch in RunStream(spec, experiment.manifest):
        rate = learning_rate(batch.step, spec.num_steps, **{key: optimisation[key] for key in keys})
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        masks = masking.training(batch.located)
        model(**with_labels(batch.tokens, masks, spec.sequence_length)).loss.backward()
        optimizer.step()
    held_out = validation_windows(
        experiment.manifest, spec.domains, sequence_length=spec.sequence_length, limit=21,
        masking=masking,
    )  # fmt: skip
    model.eval()
    with torch.no_grad():
        expected = {
            name: model(**with_labels(rows.tokens, rows.masks, spec.sequence_length)).loss.item()
            for name, rows in held_out.items()
        }
    assert result.final_losses == pytest.approx(expected, abs=2e-4)


@pytest.mark.usefixtures("on_cpu")
def test_a_resumed_run_is_the_whole_one(tiny, tmp_path, worker):
    experiment, spec = planned(tiny, BERT, "train.budget='48K'", "data.max_epochs=20")
    whole = train(worker, experiment, spec, tmp_path / "whole")
    train_a_part(worker, experiment, spec, tmp_path / "parts")
    assert train(worker, experiment, spec, tmp_path / "parts").evaluations == whole.evaluations
