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
    return settings
