"""Resume a run with another number of ranks, or another ZeRO stage.

ZeRO 1 to 3 cut the optimiser's state by rank. DeepSpeed loads such pieces only as they were cut;
through its Universal Checkpoint, one file a parameter and state, they can be cut anew. ZeRO 0 has
nothing to cut and is loaded by any number of ranks. The order of samples and the size of a batch
do not depend on the ranks (`batch_order`), so the run goes on with the same batches.
"""

import contextlib
import logging
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal

from .checkpoint_files import CheckpointRecord

logger = logging.getLogger(__name__)

_MODEL_FILES = {
    True: "zero_pp_rank_0_mp_rank_00_model_states.pt",
    False: "mp_rank_00_model_states.pt",
}
"""DeepSpeed's name of the first rank's model file, by whether the stage cuts parameters."""


def require_carried(engine: Any, checkpoint: Path, record: CheckpointRecord, groups: int) -> None:
    """Refuse a change since the checkpoint that cannot be carried over exactly.

    Raises:
        ValueError: other groups, another number of ranks in groups, or a change from or to ZeRO 0.
    """
    stage, world_size = int(engine.zero_optimization_stage()), dist.get_world_size()
    remedy = "or start the run again with --no-resume"
    if record.groups != groups:
        raise ValueError(
            f"checkpoint {checkpoint} was written by {record.groups} DiLoCo groups but this run "
            f"has {groups}; resume with as many, {remedy}"
        )
    if groups > 1 and record.world_size != world_size:
        raise ValueError(
            f"checkpoint {checkpoint} was written by {record.world_size} ranks in {groups} DiLoCo "
            f"groups but this run has {world_size} ranks; resume with as many, {remedy}"
        )
    if record.zero_stage != stage and (groups > 1 or 0 in (record.zero_stage, stage)):
        raise ValueError(
            f"checkpoint {checkpoint} was written under ZeRO stage {record.zero_stage} but "
            f"trainer.deepspeed now has stage {stage}, and only stages 1, 2 and 3 of plain data "
            f"parallelism change into each other; resume with stage {record.zero_stage}, {remedy}"
        )


@contextlib.contextmanager
def loadable_folder(engine: Any, folder: Path, record: CheckpointRecord) -> Iterator[Path]:
    """The folder that the engine can load the checkpoint from, while the context lasts.

    That of the checkpoint itself where nothing changed, else a universal one beside it, which the
    first rank makes and removes.

    Raises:
        ValueError: it could not be made.
    """
    stage, world_size = int(engine.zero_optimization_stage()), dist.get_world_size()
    source = folder / record.name
    written = f"{source}, written by {_ranks(record.world_size)} under ZeRO {record.zero_stage}"
    changed = record.zero_stage != stage or record.world_size != world_size
    if not changed or stage == 0:
        yield source
        now = f"; this run has {_ranks(world_size)}" if changed else ""
        logger.info("resumed from %s%s", written, now)
        return
    temporary = folder / ".universal"
    begin = time.perf_counter()
    problem = [_convert(source, temporary / record.name, engine) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(problem)
    try:
        if problem[0] is not None:
            raise ValueError(
                f"checkpoint {written}, could not be made universal for {_ranks(world_size)} "
                f"under ZeRO {stage}: {problem[0]}; resume as it was written"
            )
        engine._config.load_universal_checkpoint = True
        yield temporary / record.name
        dist.barrier()
    finally:
        engine._config.load_universal_checkpoint = False
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    logger.info(
        "resumed from %s; now %s under ZeRO %d, through a universal checkpoint in %.1f s",
        written, _ranks(world_size), stage, time.perf_counter() - begin,
    )  # fmt: skip


def _convert(source: Path, target: Path, engine: Any) -> str | None:
    """Write a universal checkpoint that the engine can load; what went wrong, or None."""
    try:
        shutil.rmtree(target.parent, ignore_errors=True)  # of a job that was killed
        target.mkdir(parents=True)
        # One worker: processes forked beside a device's context do not live.
        settings = Namespace(
            input_folder=str(source), output_folder=str(target), num_extract_workers=1,
            num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
        )  # fmt: skip
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            ds_to_universal.main(settings)
        _fit_to_stage(target, engine)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _fit_to_stage(target: Path, engine: Any) -> None:
    """Give the universal checkpoint the form that the engine's ZeRO stage reads.

    DeepSpeed's converter writes flat parameters and one step count for stage 3, and shaped
    parameters with a step count each for stages 1 and 2; every stage reads its own form only.
    """
    cuts_parameters = int(engine.zero_optimization_stage()) == 3
    own, other = (target / _MODEL_FILES[cuts] for cuts in (cuts_parameters, not cuts_parameters))
    if own.exists():
        return
    other.rename(own)
    zero = target / "zero"
    common = _load(zero / "optimizer_state.pt")
    if cuts_parameters:
        step = _load(next(iter(sorted(zero.glob("*/step.pt")))))
        state = {"state": {0: {"step": step}}, "param_groups": common["param_groups"]}
        common["optimizer_state_dict"] = state
    else:
        step = common["optimizer_state_dict"]["state"][0]["step"]
        for name, parameter in engine.module.named_parameters():
            for path in [zero / name / f"{key}.pt" for key in ("fp32", "exp_avg", "exp_avg_sq")]:
                torch.save({"param": _load(path).view(parameter.shape)}, path)
            torch.save(step, zero / name / "step.pt")
        common["ds_version"] = deepspeed.__version__
    torch.save(common, zero / "optimizer_state.pt")


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"
