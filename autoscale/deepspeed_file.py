"""DeepSpeed files say how memory is spent; what is computed belongs to the experiment."""

import json
from pathlib import Path
from typing import Any

OWNED_BY_EXPERIMENT = {
    "train_batch_size": "trainer.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "trainer.micro_batch_size",
    "gradient_accumulation_steps": "trainer.global_batch_tokens and trainer.micro_batch_size",
    "gradient_clipping": "trainer.grad_clip",
    "optimizer": "trainer.lr, trainer.betas, trainer.eps and trainer.weight_decay",
    "scheduler": "trainer.schedule",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "seed": "seed",
    "data_efficiency": "the mixture sampler",
    "curriculum_learning": "the mixture sampler",
}


ALLOWED = (
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio",
    "activation_checkpointing", "comms_logger", "flops_profiler", "memory_breakdown",
    "wall_clock_breakdown",
)  # fmt: skip
"""How memory is spent and what is logged; everything else may change what is computed."""


def load_deepspeed_file(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed file and refuse keys that the experiment owns.

    Raises:
        ValueError: missing file, no JSON object, or an owned key, naming the experiment's own.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"trainer.deepspeed: {path} does not exist; see ds_configs/")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"trainer.deepspeed: {path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"trainer.deepspeed: {path} holds no JSON object")
    for key, owner in OWNED_BY_EXPERIMENT.items():
        if key in settings:
            raise ValueError(
                f"trainer.deepspeed: {path} sets {key!r}, which the experiment owns; remove it "
                f"there and set {owner}"
            )
    for key in settings:
        if key not in ALLOWED:
            raise ValueError(
                f"trainer.deepspeed: {path} sets {key!r}, which may change what is computed and is "
                f"no part of a run's identity; allowed are {', '.join(ALLOWED)}"
            )
    for key, value in settings.get("zero_optimization", {}).items():
        if key.startswith("zero_quantized") and value:
            raise ValueError(
                f"trainer.deepspeed: {path} sets zero_optimization.{key}, which rounds what is "
                "computed; remove it"
            )
    return settings
