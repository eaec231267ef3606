"""Whether the runs of an experiment fit the devices: estimates by model, stage and ranks."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, Literal

from .execution import micro_batch_size
from .memory import GIB, MemoryEstimate, estimate_memory, require_memory
from .model_shape import model_size
from .planning import Experiment
from .token_count import round_token_count

Stage = Literal["probe", "train"]
RANKS_SHOWN = (1, 8, 64)
"""Where a run takes all ranks of a job, whose number is not known before it starts."""


def planned_memory(experiment: Experiment) -> dict[str, Any]:
    """For plan.json: the memory of a device and a row for every model, stage and number of ranks.

    Raises:
        ValueError: a run fits with none of the numbers of ranks.
    """
    device_bytes = device_memory(experiment)
    rows = []
    for stage, what, model, batch in _models(experiment):
        given = _ranks_per_run(experiment, stage)
        choices = RANKS_SHOWN if given == "all" else (int(given),)
        estimates = [
            _estimate(experiment, model, batch, ranks) for ranks in choices if batch % ranks == 0
        ]
        fits = [device_bytes is None or each.device_bytes <= device_bytes for each in estimates]
        if estimates and not any(fits) and device_bytes is not None:
            require_memory(estimates[-1], device_bytes, what)
        for estimate, fitting in zip(estimates, fits, strict=True):
            rows.append(
                {
                    "stage": stage,
                    "parameters": model_size(model, _length(experiment)).parameters,
                    "ranks": estimate.ranks,
                    "micro_batch_size": estimate.micro_batch_size,
                    "device": dict(estimate.device),
                    "host": dict(estimate.host),
                    "device_bytes": estimate.device_bytes,
                    "host_bytes": estimate.host_bytes,
                    "fits": fitting,
                }
            )
    return {"device_bytes": device_bytes, "rows": rows}


def require_fitting_devices(experiment: Experiment, stage: Stage, ranks: int) -> None:
    """Refuse a stage whose runs do not fit the devices of this job.

    Args:
        ranks: of a run.
    """
    device_bytes = device_memory(experiment)
    if device_bytes is None:
        return
    for of_stage, what, model, batch in _models(experiment):
        if of_stage == stage:
            require_memory(_estimate(experiment, model, batch, ranks), device_bytes, what)


def device_memory(experiment: Experiment) -> float | None:
    """Bytes of one device: as given, or of the smallest GPU that is seen; None for neither."""
    given = experiment.config.limits.device_memory_gib
    if given is not None:
        return given * GIB
    program = shutil.which("nvidia-smi")
    if os.environ.get("DS_ACCELERATOR") == "cpu" or program is None:
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    found = [int(line) for line in done.stdout.split() if line.isdigit()]
    return min(found) * 2.0**20 if done.returncode == 0 and found else None


def _models(experiment: Experiment) -> Iterator[tuple[Stage, str, dict[str, Any], int]]:
    """Each model that a stage trains: what to call it, its config, sequences a batch."""
    config = experiment.config
    models = [*experiment.probe_models, experiment.model]
    seen: list[tuple[Any, ...]] = []
    for (where, batch), model in zip(experiment.batches(), models, strict=True):
        stage: Stage = "train" if where.startswith("train") else "probe"
        if (stage, model, batch) in seen:
            continue
        seen.append((stage, model, batch))
        parameters = model_size(model, config.data.sequence_length).parameters
        what = f"a {stage} run of a model of {round_token_count(parameters)} parameters"
        yield stage, what, model, batch


def _estimate(
    experiment: Experiment, model: dict[str, Any], batch: int, ranks: int
) -> MemoryEstimate:
    trainer = experiment.config.trainer
    return estimate_memory(
        model,
        experiment.deepspeed,
        ranks=ranks,
        micro_batch_size=micro_batch_size(batch, ranks, trainer.micro_batch_size),
        sequence_length=_length(experiment),
        precision=trainer.precision,
        activation_checkpointing=trainer.activation_checkpointing,
    )


def _length(experiment: Experiment) -> int:
    return experiment.config.data.sequence_length


def _ranks_per_run(experiment: Experiment, stage: Stage) -> int | Literal["all"]:
    config = experiment.config
    return config.probe.ranks_per_run if stage == "probe" else config.train.ranks_per_run
