from itertools import product

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from autoscale.memory import (
    GIB,
    MemoryEstimate,
    activation_bytes,
    estimate_memory,
    format_bytes,
    require_memory,
)
from autoscale.model_shape import model_dimensions, model_size, resolve_model

STATES = {"parameters", "gradients", "float32 gradients", "optimiser", "gathered module"}
MODELS = ["gpt2-nano", "gpt2-large", "llama-1b", "llama-7b", "bert-base"]
RANKS = [1, 2, 8, 64]
PAIRS = list(product(MODELS, RANKS))


def model(name, length=1024):
    return resolve_model(name, {}, vocab_size=50257, end_of_text_id=0, sequence_length=length)


def estimate(name, *, stage=2, ranks=1, offload=(), precision="bf16", **zero):
    zero |= {"stage": stage} | {f"offload_{what}": {"device": "cpu"} for what in offload}
    return estimate_memory(
        model(name),
        {"zero_optimization": zero},
        ranks=ranks,
        micro_batch_size=4,
        sequence_length=1024,
        precision=precision,
        activation_checkpointing=False,
    )


def states(found):
    return sum(size for name, size in found.device.items() if name in STATES)


@pytest.mark.parametrize("name, ranks", PAIRS)
@pytest.mark.parametrize("offload", [(), ("optimizer",)])
def test_zero_2_is_estimated_as_deepspeed_does(name, ranks, offload):
    found = estimate(name, stage=2, ranks=ranks, offload=offload)
    host, device = estimate_zero2_model_states_mem_needs(
        model_size(model(name), 1024).parameters,
        num_gpus_per_node=ranks,
        cpu_offload=bool(offload),
    )
    assert states(found) == pytest.approx(device, abs=1)
    assert found.host_bytes == pytest.approx(host / ranks, abs=1)


@pytest.mark.parametrize("name, ranks", PAIRS)
@pytest.mark.parametrize("offload", [(), ("optimizer",), ("optimizer", "param")])
def test_zero_3_is_estimated_as_deepspeed_does(name, ranks, offload):
    found = estimate(name, stage=3, ranks=ranks, offload=offload)
    host, device, _ = estimate_zero3_model_states_mem_needs(
        model_size(model(name), 1024).parameters,
        model_dimensions(model(name)).largest_module,
        num_gpus_per_node=ranks,
        cpu_offload="optimizer" in offload,
        cpu_offload_params="param" in offload,
    )
    assert states(found) == pytest.approx(device, abs=1)
    assert found.host_bytes == pytest.approx(host / ranks, abs=1)


@pytest.mark.parametrize("name", MODELS)
def test_higher_stages_and_more_ranks_take_less(name):
    for ranks in (2, 8):
        zero1, zero2, zero3 = (states(estimate(name, stage=s, ranks=ranks)) for s in (1, 2, 3))
        assert zero1 > zero2 > zero3 - 4 * model_dimensions(model(name)).largest_module
    for stage in (1, 2, 3):
        of_ranks = [states(estimate(name, stage=stage, ranks=ranks)) for ranks in RANKS]
        assert of_ranks == sorted(of_ranks, reverse=True)


def test_the_smallest_estimate_of_the_paper():
    """Korthikanti et al., section 4.1: s b h (34 + 5 a s / h); ours without their masks."""
    fields = model("gpt2-large") | {"attn_implementation": "eager"}
    length, micro_batch, width, heads, layers = 1024, 4, 1280, 20, 36
    tokens = micro_batch * length
    theirs = layers * tokens * width * (34 + 5 * heads * length / width)
    masks = layers * tokens * (2 * width + heads * length)  # a byte each
    found = activation_bytes(
        fields, sequence_length=length, micro_batch_size=micro_batch, word=2, recomputed=False
    )
    assert found == pytest.approx(theirs - masks)


def test_a_masked_model_keeps_the_float32_logits_of_the_chosen_tokens_alone():
    """Of 1024 tokens 154 are chosen; 50_257 tokens and the mask token, 4 sequences."""
    for precision, expected in (("bf16", 4 * 1024 + 16 * 154), ("fp32", 8 * 1024 + 12 * 154)):
        logits = estimate("bert-base", precision=precision).device["logits"]
        assert logits == 4 * 50_258 * expected
        assert logits < estimate("gpt2-large", precision=precision).device["logits"]


def test_recomputing_keeps_the_input_of_each_layer():
    arguments = {"sequence_length": 1024, "micro_batch_size": 4, "word": 2}
    fields = model("gpt2-large")
    kept = activation_bytes(fields, recomputed=False, **arguments)
    recomputed = activation_bytes(fields, recomputed=True, **arguments)
    assert recomputed == pytest.approx(kept / 36 + 36 * 2 * 1024 * 4 * 1280)


def test_a_run_that_does_not_fit_is_refused_with_its_terms():
    found = estimate("llama-7b", stage=1, ranks=1)
    with pytest.raises(
        ValueError, match=r"a train run needs about \d+ GiB on each device with 1"
    ) as e:
        require_memory(found, 80 * GIB, "a train run")
    assert "optimiser 77 GiB" in str(e.value) and "which has 80 GiB" in str(e.value)
    require_memory(found, 1000 * GIB, "a train run")
    require_memory(estimate("llama-7b", stage=3, ranks=64), 80 * GIB, "a train run")


def test_sizes_are_readable():
    assert [format_bytes(size) for size in (1, 3 * 2**20, 1.5 * GIB, 2000 * GIB)] == [
        "1 MiB", "3 MiB", "1.5 GiB", "2000 GiB"
    ]  # fmt: skip
    found = MemoryEstimate(ranks=2, micro_batch_size=1, device={"a": 2.0, "b": 3.0}, host={"c": 1})
    assert (found.device_bytes, found.host_bytes) == (5.0, 1)
