"""Build the causal language model of a run: random weights from a seed."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel


def build_model(
    fields: Mapping[str, Any], *, seed: int, activation_checkpointing: bool
) -> PreTrainedModel:
    """A model in float32 on the CPU; the same seed gives the same weights on every rank.

    Args:
        fields: the transformers config, from `model_shape.resolve_model`.
        seed: of the initialisation.
        activation_checkpointing: recompute activations in the backward pass.
    """
    model_type = fields["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model_type {model_type!r}")
    config = CONFIG_MAPPING[model_type](**{k: v for k, v in fields.items() if k != "model_type"})
    config.use_cache = False
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, vectors (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
