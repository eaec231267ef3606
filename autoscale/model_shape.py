"""Model configurations by short name, file or hub name, with parameter and FLOP counts.

A model is described by the fields of its transformers config, as plain JSON, so that planning and
run identities need no torch; `model.py` builds it. Counts follow Kaplan et al. 2020 and PaLM
(Chowdhery et al. 2022, appendix B): training costs 6 FLOPs a matrix parameter and token, plus
12 * layers * width * sequence_length for attention. A masked language model costs as much: its
head runs on all tokens of a row.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# layers, width, heads; a number in a name counts the weights outside of the embeddings
_GPT2_SHAPES = {
    "gpt2-nano": (2, 64, 2), "gpt2-micro": (2, 96, 3), "gpt2-mini": (4, 128, 4),
    "gpt2-1m": (5, 128, 4), "gpt2-3m": (7, 192, 6), "gpt2-tiny": (6, 256, 8),
    "gpt2-10m": (8, 320, 10), "gpt2-25m": (8, 512, 8), "gpt2-50m": (12, 576, 9),
    "gpt2-small": (12, 768, 12), "gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25),
}  # fmt: skip
# From tiny on as published: Turc et al. 2019 (arXiv 1908.08962), Devlin et al. 2018.
_BERT_SHAPES = {
    "bert-nano": (2, 64, 2), "bert-tiny": (2, 128, 2), "bert-mini": (4, 256, 4),
    "bert-small": (4, 512, 8), "bert-medium": (8, 512, 8), "bert-base": (12, 768, 12),
    "bert-large": (24, 1024, 16),
}  # fmt: skip
# layers, width, heads, key-value heads, inner width
_LLAMA_SHAPES = {
    "llama-nano": (2, 64, 2, 2, 192), "llama-micro": (2, 96, 3, 3, 256),
    "llama-mini": (4, 128, 4, 4, 352), "llama-60m": (8, 512, 8, 8, 1376),
    "llama-130m": (12, 768, 12, 12, 2048), "llama-350m": (24, 1024, 16, 16, 2736),
    "llama-1b": (16, 2048, 32, 8, 8192), "llama-7b": (32, 4096, 32, 32, 11008),
}  # fmt: skip
SHORT_NAMES = (*_GPT2_SHAPES, *_LLAMA_SHAPES, *_BERT_SHAPES)
_MASKED_TYPES = ("bert", "modernbert")
# Encoders that would be built as causal models and see the tokens that they are to predict.
_OTHER_ENCODERS = ("camembert", "electra", "roberta", "roberta-prelayernorm", "xlm-roberta")
_POSITION_KEYS = ("n_positions", "max_position_embeddings")


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads,
        "n_inner": 4 * width, "activation_function": "gelu_new", "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    }  # fmt: skip


def _llama(layers: int, width: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": width,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": inner, "hidden_act": "silu", "initializer_range": 0.02,
        "rms_norm_eps": 1e-5, "attention_dropout": 0.0, "tie_word_embeddings": False,
    }  # fmt: skip


def _bert(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": width,
        "num_attention_heads": heads, "intermediate_size": 4 * width, "hidden_act": "gelu",
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": True,
    }  # fmt: skip


def is_masked(fields: Mapping[str, Any]) -> bool:
    """Whether a model predicts masked tokens from both sides, not the next token."""
    return fields["model_type"] in _MASKED_TYPES


def resolve_model(
    name: str,
    overrides: Mapping[str, Any],
    *,
    vocab_size: int,
    end_of_text_id: int,
    sequence_length: int,
    mask_token_id: int | None = None,
) -> dict[str, Any]:
    """The full transformers config of a model for this tokenizer and sequence length.

    Dropout is set to 0, whatever the config says. Short names take the tokenizer's vocabulary and
    the sequence length as they are; a config from elsewhere must be large enough for both. A masked
    language model has one token more where the tokenizer has no mask token.

    Args:
        mask_token_id: of the tokenizer; None where it has no mask token.

    Raises:
        ValueError: unknown name or override, too small a vocabulary or context.
    """
    fields = _base_fields(name)
    if fields["model_type"] in _OTHER_ENCODERS:
        raise ValueError(
            f"model {name!r} is of model_type {fields['model_type']!r}; of models that predict "
            f"masked tokens {' and '.join(_MASKED_TYPES)} are supported"
        )
    if fields["model_type"] == "bert":  # a config file may leave out what is not 0 by default
        fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # Masks would depend on the rank and on where a run was resumed, and add noise to every probe.
    fields |= {key: 0.0 for key, value in fields.items() if _is_dropout(key, value)}
    for key, value in overrides.items():
        known = [*fields, "vocab_size", *_POSITION_KEYS, "attn_implementation"]
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"model.overrides.{key}: no field of {name!r}; {hint}")
        if _is_dropout(key, value):
            raise ValueError(f"model.overrides.{key}: dropout is not supported; leave it at 0")
        fields[key] = value
    if is_masked(fields):
        has_none = mask_token_id is None
        fields["mask_token_id"] = vocab_size if has_none else mask_token_id
        fields["pad_token_id"] = None  # rows are full, and the id may be that of a word here
        vocab_size += has_none
    _fit_vocabulary(fields, name, vocab_size)
    position_key = next((key for key in _POSITION_KEYS if key in fields), None)
    if position_key is None:
        position_key = "n_positions" if fields["model_type"] == "gpt2" else _POSITION_KEYS[1]
    if fields.setdefault(position_key, sequence_length) < sequence_length:
        raise ValueError(
            f"model {name!r} has {fields[position_key]} positions ({position_key}) but "
            f"data.sequence_length is {sequence_length}; shorten it or override {position_key}"
        )
    fields["bos_token_id"] = fields["eos_token_id"] = end_of_text_id
    return fields


def check_masked(models: Sequence[Mapping[str, Any]], *, packing: str, metric: str) -> None:
    """Refuse what masked language models of an experiment cannot do.

    Args:
        models: configs of the target and of all probes.
        packing: of documents.
        metric: of the losses that a law is fitted to.
    """
    kinds = {is_masked(fields) for fields in models}
    if kinds == {False}:
        return
    if len(kinds) == 2:
        raise ValueError(
            "model and probe.budgets name causal and masked language models, whose losses do not "
            "compare; use one kind"
        )
    if packing != "contiguous":
        raise ValueError(
            f"data.packing {packing!r} with a masked language model: attention from both sides is "
            "not kept inside documents; use 'contiguous'"
        )
    if metric != "nats":
        raise ValueError(
            f"fit.metric {metric!r} with a masked language model: it predicts some of the tokens "
            "of a text, which say nothing of its bytes; use 'nats'"
        )


def _is_dropout(key: str, value: Any) -> bool:
    is_rate = isinstance(value, int | float) and not isinstance(value, bool)
    return ("dropout" in key or key.endswith(("_pdrop", "_dropout_prob"))) and is_rate and value > 0


def _base_fields(name: str) -> dict[str, Any]:
    if name in _GPT2_SHAPES:
        return _gpt2(*_GPT2_SHAPES[name])
    if name in _LLAMA_SHAPES:
        return _llama(*_LLAMA_SHAPES[name])
    if name in _BERT_SHAPES:
        return _bert(*_BERT_SHAPES[name])
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        path = _hub_config(name)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"model config {path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(f"model config {path} has no 'model_type'; expected a transformers config")
    if "auto_map" in fields:
        raise ValueError(
            f"model {name!r} needs code from its repository (auto_map), and remote code is never "
            "run; use a model that transformers itself knows"
        )
    return fields


def _hub_config(name: str) -> Path:
    if name.count("/") != 1:
        near = get_close_matches(name, SHORT_NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SHORT_NAMES)}"
        raise ValueError(
            f"model {name!r} is no short name, no config file or folder, and no hub name (these "
            f"are owner/name); {hint}"
        )
    from huggingface_hub import hf_hub_download  # heavy, and only this case needs it

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:
        raise ValueError(
            f"the hub did not give the config of model {name!r} ({type(error).__name__}: {error}); "
            "check model.name and the connection, or name a local config file"
        ) from error


def _fit_vocabulary(fields: dict[str, Any], name: str, vocab_size: int) -> None:
    if fields.setdefault("vocab_size", vocab_size) < vocab_size:
        raise ValueError(
            f"model {name!r} has a vocabulary of {fields['vocab_size']} but the data's tokenizer "
            f"has {vocab_size} tokens{' with the mask token' if is_masked(fields) else ''}; "
            "override vocab_size or prepare with a smaller tokenizer"
        )


# Names that transformers configs use for one thing.
_SYNONYMS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "inner width": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "inner_dim"),
}


def _field(fields: Mapping[str, Any], what: str) -> int:
    for name in _SYNONYMS[what]:
        if fields.get(name) is not None:
            return int(fields[name])
    raise ValueError(
        f"config of model_type {fields['model_type']!r} says nothing of its {what} (looked for "
        f"{', '.join(_SYNONYMS[what])}); give it through model.overrides"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDimensions:
    """What sizes of activations follow from.

    Attributes:
        gated: whether the MLP multiplies two projections of its input.
        largest_module: parameters of the module with most of its own.
    """

    layers: int
    width: int
    heads: int
    inner_width: int
    gated: bool
    largest_module: int


def model_dimensions(fields: Mapping[str, Any]) -> ModelDimensions:
    """The dimensions of a model from its config: exact for the short names, close for others."""
    gpt2 = fields["model_type"] == "gpt2"
    width = _field(fields, "width")
    inner = 4 * width if gpt2 and not fields.get("n_inner") else _field(fields, "inner width")
    return ModelDimensions(
        layers=_field(fields, "layers"),
        width=width,
        heads=_field(fields, "heads"),
        inner_width=inner,
        gated=fields["model_type"] not in ("gpt2", "bert"),
        largest_module=width * max(fields["vocab_size"], inner),
    )


_SHAPE_KEYS = (
    "model_type", "vocab_size", "num_key_value_heads", "head_dim", "n_positions",
    "tie_word_embeddings", *(name for names in _SYNONYMS.values() for name in names),
)  # fmt: skip


def shape_differences(
    model: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Fields by which the tensors of two models differ: name, value in `model` and in `other`.

    Positions that are computed (`max_position_embeddings` of most models) may differ.
    """
    return [
        (key, model[key], other[key])
        for key in _SHAPE_KEYS
        if None not in (model.get(key), other.get(key)) and model[key] != other[key]
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Counts of one model.

    Attributes:
        parameters: all trainable parameters, tied ones once.
        matrix_parameters: those that multiply every token (no position or input embeddings).
        flops_per_token: training FLOPs a token, forward and backward.
    """

    parameters: int
    matrix_parameters: int
    flops_per_token: float


def model_size(fields: Mapping[str, Any], sequence_length: int) -> ModelSize:
    """Count a model from its config: exact for the short names, close for their relatives."""
    head_matrix = 0  # between the last block and the output embeddings
    if fields["model_type"] == "gpt2":
        layers, width = fields["n_layer"], fields["n_embd"]
        inner = fields.get("n_inner") or 4 * width
        block_matrices = 4 * width**2 + 2 * width * inner
        block_vectors = 9 * width + inner
        positions = fields["n_positions"] * width
        final_norm = 2 * width
    elif fields["model_type"] == "bert":
        layers, width = _field(fields, "layers"), _field(fields, "width")
        inner = _field(fields, "inner width")
        block_matrices = 4 * width**2 + 2 * width * inner
        block_vectors = 9 * width + inner
        positions = (fields["max_position_embeddings"] + fields.get("type_vocab_size", 2)) * width
        head_matrix = width**2
        # Norms of the embeddings and of the head, and the head's biases.
        final_norm = 5 * width + fields["vocab_size"]
    else:
        layers, width = _field(fields, "layers"), _field(fields, "width")
        heads = _field(fields, "heads")
        kv_heads = fields.get("num_key_value_heads") or heads
        head_width = fields.get("head_dim") or width // heads
        attention = 2 * width * head_width * (heads + kv_heads)
        block_matrices = attention + 3 * width * _field(fields, "inner width")
        block_vectors, positions, final_norm = 2 * width, 0, width
        if is_masked(fields):  # no norm before the first attention; two more, and a head
            head_matrix, final_norm = width**2, 2 * width + fields["vocab_size"]
    embeddings = fields["vocab_size"] * width
    matrices = layers * block_matrices + head_matrix + embeddings
    tied = fields.get("tie_word_embeddings", True)
    total = matrices + layers * block_vectors + positions + final_norm + (0 if tied else embeddings)
    flops = 6.0 * matrices + 12.0 * layers * width * sequence_length
    return ModelSize(parameters=total, matrix_parameters=matrices, flops_per_token=flops)
