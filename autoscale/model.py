"""Build the language model of a run, causal or masked: random weights from a seed, or given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
)

from .initial_weights import tensor_files
from .model_shape import is_masked
from .partitioned import GiveAway, build_empty, build_in_pieces


def build_model(
    fields: Mapping[str, Any],
    *,
    seed: int,
    activation_checkpointing: bool,
    start_from: str | None = None,
    give_away: GiveAway | None = None,
) -> PreTrainedModel:
    """A model in float32 on the CPU; the same seed gives the same weights on every rank.

    Args:
        fields: the transformers config, from `model_shape.resolve_model`.
        seed: of the initialisation.
        activation_checkpointing: recompute activations in the backward pass.
        start_from: folder of the weights; None for random ones.
        give_away: takes each parameter once it has its weights, so that the whole model is never in
            one place; None to keep them.
    """
    model_type = fields["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model_type {model_type!r}")
    config = CONFIG_MAPPING[model_type](**{k: v for k, v in fields.items() if k != "model_type"})
    config.use_cache = False

    kind = AutoModelForMaskedLM if is_masked(fields) else AutoModelForCausalLM

    def make() -> PreTrainedModel:
        return kind.from_config(config, dtype=torch.float32, trust_remote_code=False)

    torch.manual_seed(seed)
    if start_from is not None:
        model = build_empty(make) if give_away else make()
        _load_weights(model, Path(start_from), give_away)
    else:
        model = build_in_pieces(make, give_away) if give_away else make()
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _load_weights(model: PreTrainedModel, folder: Path, give_away: GiveAway | None) -> None:
    """Set all parameters from the tensors of a folder, one at a time.

    Raises:
        ValueError: a parameter has no tensor there, or one of another shape.
    """
    file_of: dict[str, Path] = {}
    for path in tensor_files(folder):
        with safe_open(path, framework="pt") as tensors:
            file_of |= dict.fromkeys(tensors.keys(), path)
    names: dict[int, list[str]] = {}  # a tied parameter has several, and its tensor one of them
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    # Weights of the model without its head carry no prefix.
    prefix = f"{model.base_model_prefix}."
    for parameter in list(model.parameters()):
        own = names[id(parameter)]
        candidates = [*own, *(name.removeprefix(prefix) for name in own)]
        name = next((name for name in candidates if name in file_of), None)
        if name is None:
            raise ValueError(
                f"model.start_from: {folder} has no tensor {own[0]!r}, which a "
                f"{model.config.model_type} model of this transformers version has; save the model "
                "again with its save_pretrained"
            )
        with safe_open(file_of[name], framework="pt") as tensors:
            weights = tensors.get_tensor(name)
        if weights.shape != parameter.shape:
            raise ValueError(
                f"model.start_from: tensor {name!r} in {folder} has shape {tuple(weights.shape)}, "
                f"expected {tuple(parameter.shape)}; start from a model of the same shape"
            )
        parameter.data = weights.to(torch.float32)
        if give_away is not None:
            give_away([parameter])


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, also of one whose weights are shared out under ZeRO-3."""
    return getattr(parameter, "ds_shape", parameter.shape)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, vectors (biases, norms) do not."""
    parameters: Sequence[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if len(shape_of(p)) >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in parameters if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
