"""Memory that a rank of a run needs on its device and on its host, before anything is started.

    parameters, gradients, optimiser   DeepSpeed's estimators of ZeRO-2 and ZeRO-3
    activations                        Korthikanti et al. 2022 (arXiv 2205.05198), equation 1
    logits, buckets                    counted from the code that makes them

DeepSpeed's (`estimate_zero2_model_states_mem_needs`, `estimate_zero3_...`, 0.19) cannot be imported
without torch; here are their terms, and a test compares the sums. They are for 16-bit parameters
with float32 copies. What they leave out is derived in the same way: float32 training (4 bytes where
they have 2), ZeRO-0 (everything whole, AdamW on the parameters themselves) and ZeRO-1 (gradients
whole). Host memory holds 1.5 times what is put there, their allowance for buffers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .masking import num_chosen
from .model_shape import is_masked, model_dimensions, model_size

# P parameters, N ranks, L parameters of the largest module

GIB = 2**30
_HOST_ALLOWANCE = 1.5
_DEFAULT_BUCKET = 500_000_000  # elements, for reducing, where the file does not say
_DEFAULT_PREFETCH = 50_000_000
_DEFAULT_LIVE = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one rank, by what they hold.

    Attributes:
        ranks: that share the run.
        micro_batch_size: sequences that a rank holds at a time.
        device: on the GPU; on a CPU, in the memory of the host like the rest.
        host: in the memory of the host.
    """

    ranks: int
    micro_batch_size: int
    device: Mapping[str, float]
    host: Mapping[str, float]

    @property
    def device_bytes(self) -> float:
        return sum(self.device.values())

    @property
    def host_bytes(self) -> float:
        return sum(self.host.values())


def estimate_memory(
    model: Mapping[str, Any],
    deepspeed: Mapping[str, Any],
    *,
    ranks: int,
    micro_batch_size: int,
    sequence_length: int,
    precision: str,
    activation_checkpointing: bool,
) -> MemoryEstimate:
    """The memory of a rank of a run.

    Args:
        model: the transformers config.
        deepspeed: settings of the DeepSpeed file.
        precision: `bf16` or `fp32`.
    """
    word = 2 if precision == "bf16" else 4
    zero = deepspeed.get("zero_optimization", {})
    parameters = model_size(model, sequence_length).parameters
    largest = model_dimensions(model).largest_module
    states = _states(zero, parameters, largest, ranks=ranks, word=word)
    working = {
        "activations": activation_bytes(
            model,
            sequence_length=sequence_length,
            micro_batch_size=micro_batch_size,
            word=word,
            recomputed=activation_checkpointing,
        ),
        "logits": micro_batch_size * _logit_bytes(model, sequence_length, word),
        "buckets": _bucket_bytes(zero, parameters, ranks=ranks, word=word),
    }
    host = {name: _HOST_ALLOWANCE * size for name, size in states.host.items()}
    return MemoryEstimate(
        ranks=ranks,
        micro_batch_size=micro_batch_size,
        device=_nonzero({**states.device, **working}),
        host=_nonzero(host),
    )


def _logit_bytes(model: Mapping[str, Any], sequence_length: int, word: int) -> float:
    """Logits of a sequence: as the model gives them, in float32, log-softmax, and gradient.

    Of a masked language model all logits and their gradient are there as the model gives them, and
    those of the chosen tokens again for the loss.
    """
    each = word % 4 + 12
    if not is_masked(model):
        return float(sequence_length * model["vocab_size"] * each)
    values = 2 * word * sequence_length + (each + word % 4) * num_chosen(sequence_length)
    return float(values * model["vocab_size"])


def _nonzero(terms: Mapping[str, float]) -> dict[str, float]:
    return {name: size for name, size in terms.items() if size}


@dataclass(frozen=True, kw_only=True, slots=True)
class _States:
    """Bytes of parameters, gradients and optimiser."""

    device: Mapping[str, float]
    host: Mapping[str, float]


def _states(
    zero: Mapping[str, Any], parameters: int, largest: int, *, ranks: int, word: int
) -> _States:
    stage = zero.get("stage", 0)
    of_one = parameters / ranks
    # Before it is sent to the device, the model lies on the host in float32: whole, or by module.
    initial = 4 * (largest if stage == 3 else parameters)
    if stage == 0:
        whole = {"parameters": 4 * parameters, "gradients": 4 * parameters}
        return _States(device=whole | {"optimiser": 8 * parameters}, host={"start": initial})
    copies = {"optimiser": 12 * of_one, "float32 gradients": 4 * of_one}
    if stage == 3:
        own = {"parameters": word * of_one}
        resident = {"gathered module": 4 * largest}
    else:
        own = {}
        resident = {"parameters": word * parameters}
    if not _offloads(zero, "offload_optimizer"):
        gradients = {1: word * parameters, 2: word * of_one, 3: 0}[stage]
        device = {**resident, **own, "gradients": gradients, **copies}
        return _States(device=device, host={"start": initial})
    if stage == 1:
        resident["gradients"] = word * parameters
    if stage == 3 and _offloads(zero, "offload_param"):
        return _States(device=resident, host=copies | own)
    beside = {} if stage == 3 else {"start": max(0, initial - sum(copies.values()))}
    return _States(device=resident | own, host=copies | beside)


def _offloads(zero: Mapping[str, Any], what: str) -> bool:
    return bool((zero.get(what) or {}).get("device", "none") != "none")


def fitting_zero_settings(zero: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """A file's `zero_optimization` with no bucket for gradients larger than all of them.

    DeepSpeed takes the memory of its buckets whole, 2 GB each by default, however small the model.
    """
    if zero.get("stage", 0) == 0:
        return dict(zero)
    bucket = min(parameters, int(zero.get("reduce_bucket_size", _DEFAULT_BUCKET)))
    return {**zero, "reduce_bucket_size": bucket}


def _bucket_bytes(zero: Mapping[str, Any], parameters: int, *, ranks: int, word: int) -> float:
    """Buffers for communication.

    ZeRO-3 keeps gathered parameters between their uses, up to `stage3_max_live_parameters`.
    """
    stage = zero.get("stage", 0)
    if stage == 0:
        return 0.0
    reduced = 0.0
    if zero.get("contiguous_gradients", True):
        buffers = 2 if stage < 3 and zero.get("overlap_comm") else 1
        in_bucket = 4 if stage == 1 else word  # ZeRO-1 sums gradients in float32
        reduced = (
            in_bucket * buffers * fitting_zero_settings(zero, parameters)["reduce_bucket_size"]
        )
    gathered = 0
    if stage == 3 and ranks > 1:
        prefetched = zero.get("stage3_prefetch_bucket_size", _DEFAULT_PREFETCH)
        live = zero.get("stage3_max_live_parameters", _DEFAULT_LIVE)
        gathered = min(parameters, prefetched + live)
    return float(reduced + word * gathered)


def activation_bytes(
    model: Mapping[str, Any],
    *,
    sequence_length: int,
    micro_batch_size: int,
    word: int,
    recomputed: bool,
) -> float:
    """Activations kept for the backward pass, bytes.

    Equation 1 of Korthikanti et al. gives a layer s b h (34 + 5 a s / h) bytes at 2 bytes a value:
    11 around attention, 19 in an MLP four times as wide, 4 in the norms. Here there is no dropout
    (-2), an MLP has its own width, and one with a gate has two values more of it; fused attention
    keeps no scores, where the other keeps 2 values (they count a dropout mask besides). Recomputing
    keeps each layer's input, and one layer's activations while it is differentiated.
    """
    shape = model_dimensions(model)
    inner = shape.inner_width / shape.width
    around_attention, norms = 5.0, 2.0
    mlp = 1.0 + (4.0 if shape.gated else 2.0) * inner
    of_layer = (around_attention + norms + mlp) * shape.width
    if model.get("attn_implementation") == "eager":
        of_layer += 2 * shape.heads * sequence_length
    tokens = micro_batch_size * sequence_length
    if recomputed:
        return word * tokens * (shape.layers * shape.width + of_layer)
    return word * tokens * shape.layers * of_layer


def format_bytes(size: float) -> str:
    """As GiB or MiB, three digits."""
    if size < GIB:
        return f"{math.ceil(size / 2**20)} MiB"
    return f"{size / GIB:.3g} GiB" if size < 1000 * GIB else f"{size / GIB:.0f} GiB"


def require_memory(estimate: MemoryEstimate, device_bytes: float, what: str) -> None:
    """Refuse a run that its devices cannot hold.

    Args:
        device_bytes: memory of one device.
        what: the run, for the message.
    """
    if estimate.device_bytes <= device_bytes:
        return
    terms = sorted(estimate.device.items(), key=lambda term: -term[1])
    shown = ", ".join(f"{name} {format_bytes(size)}" for name, size in terms)
    ranks = "1 rank" if estimate.ranks == 1 else f"{estimate.ranks} ranks"
    raise ValueError(
        f"{what} needs about {format_bytes(estimate.device_bytes)} on each device with {ranks} "
        f"({shown}), which has {format_bytes(device_bytes)}; use more ranks, a higher ZeRO stage "
        "or offload (trainer.deepspeed), trainer.activation_checkpointing or a smaller "
        "trainer.micro_batch_size (limits.device_memory_gib says what a device has)"
    )
