"""The DeepSpeed engine of a run: model, optimiser, and the settings that belong to the run."""

from typing import Any

import deepspeed
import torch

from .attention import require_resets
from .execution import Execution
from .model import build_model, parameter_groups
from .runs import RunSpec


def build_engine(spec: RunSpec, execution: Execution, *, micro_batch_size: int) -> Any:
    """A DeepSpeed engine over the ranks of the default process group; all of them call.

    Args:
        micro_batch_size: sequences that a rank holds at a time; accumulation follows from it.
    """
    model = build_model(
        spec.model, seed=spec.seed, activation_checkpointing=execution.activation_checkpointing
    )
    if spec.packing != "contiguous":
        require_resets(model, spec.sequence_length)
    optimisation = spec.optimisation
    # A client optimiser: DeepSpeed's own AdamW compiles C++ at every first start on CPU.
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimisation["weight_decay"]),
        lr=optimisation["lr"],
        betas=tuple(optimisation["betas"]),
        eps=optimisation["eps"],
        fused=True,
    )
    settings = {
        **execution.deepspeed,
        "train_batch_size": spec.sequences_per_batch,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_clipping": optimisation["grad_clip"],
        "bf16": {"enabled": optimisation["precision"] == "bf16"},
        "steps_per_print": 2**31,
    }
    if optimisation["precision"] == "bf16":
        # Sums in bf16 would make the loss depend on the micro-batch and the number of ranks.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine
