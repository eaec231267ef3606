"""The DeepSpeed engine of a run: model, optimiser, and the settings that belong to the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from .attention import require_resets
from .diloco import RankGroups
from .execution import Execution
from .memory import fitting_zero_settings
from .model import build_model, parameter_groups
from .model_shape import model_size
from .runs import RunSpec


def build_engine(
    spec: RunSpec, execution: Execution, *, micro_batch_size: int, groups: RankGroups | None = None
) -> Any:
    """A DeepSpeed engine over the ranks of the default process group; all of them call.

    Under ZeRO-3 each parameter is shared out as soon as it has its weights: no rank ever holds the
    whole model.

    Args:
        micro_batch_size: sequences that a rank holds at a time; accumulation follows from it.
        groups: of ranks that train apart, each on its share of every batch; None for one.
    """
    settings = _settings(spec, execution, micro_batch_size, groups.num_groups if groups else 1)
    partitioned = settings.get("zero_optimization", {}).get("stage") == 3
    model = build_model(
        spec.model,
        seed=spec.seed,
        activation_checkpointing=execution.activation_checkpointing,
        start_from=execution.start_from,
        give_away=_Partition(settings, groups) if partitioned else None,
    )
    packed = spec.packing != "contiguous"
    if packed and not partitioned:
        require_resets(model, spec.sequence_length)
    # A client optimiser: DeepSpeed's own AdamW compiles C++ at every first start on CPU.
    optimisation = spec.optimisation
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimisation["weight_decay"]),
        lr=optimisation["lr"],
        betas=tuple(optimisation["betas"]),
        eps=optimisation["eps"],
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, mpu=groups)
    if packed and partitioned:  # the model runs only inside the engine
        require_resets(engine, spec.sequence_length)
    return engine


def _settings(
    spec: RunSpec, execution: Execution, micro_batch_size: int, num_groups: int
) -> dict[str, Any]:
    """The DeepSpeed file with what the experiment owns."""
    optimisation = spec.optimisation
    settings = {
        **execution.deepspeed,
        "zero_optimization": fitting_zero_settings(
            execution.deepspeed.get("zero_optimization", {}),
            model_size(spec.model, spec.sequence_length).parameters,
        ),
        "train_batch_size": spec.sequences_per_batch // num_groups,  # of what DeepSpeed sees
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_clipping": optimisation["grad_clip"],
        "bf16": {"enabled": optimisation["precision"] == "bf16"},
        "steps_per_print": 2**31,
    }
    if optimisation["precision"] == "bf16":
        # Sums in bf16 would make the loss depend on the micro-batch and the number of ranks.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


class _Partition:
    """Shares parameters out over the ranks, in the precision that they are trained in."""

    def __init__(self, settings: Mapping[str, Any], groups: RankGroups | None) -> None:
        self._settings, self._groups = dict(settings), groups
        self._dtype = torch.bfloat16 if settings["bf16"]["enabled"] else torch.float32

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        if not parameters:
            return
        piece = nn.Module()
        for index, parameter in enumerate(parameters):
            parameter.data = parameter.data.to(self._dtype)
            piece.register_parameter(f"parameter{index}", parameter)
        deepspeed.zero.Init(
            module=piece,
            config_dict_or_path=self._settings,
            dtype=self._dtype,
            data_parallel_group=self._groups and self._groups.inside,
            mpu=self._groups,
        )


def weights_on_first_rank(engine: Any) -> dict[str, torch.Tensor]:
    """All weights by name on the host of rank 0, empty on the others; all ranks call.

    Under ZeRO-3 the other ranks never hold more than one parameter.
    """
    model, is_first = engine.module, dist.get_rank() == 0
    weights = dict(model.state_dict()) if is_first else {}
    gathered: dict[int, torch.Tensor] = {}  # tied parameters stay one tensor
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not hasattr(parameter, "ds_id"):
            continue
        if id(parameter) not in gathered:
            with deepspeed.zero.GatheredParameters([parameter]):
                gathered[id(parameter)] = (
                    parameter.detach().to("cpu", copy=True) if is_first else parameter
                )
        if is_first:
            weights[name] = gathered[id(parameter)]
    return weights
