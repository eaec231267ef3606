"""Checkpoints of a run in progress, so that `latest` never names one that is not whole.

DeepSpeed writes `latest` before other ranks are done; a kill in between leaves a checkpoint that
rank 0 loads and another rank cannot. Here every rank finishes first, then rank 0 replaces `latest`
atomically and removes what is older. DeepSpeed loads checkpoints with pickle: they are code, so
only load those that your own jobs wrote.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .records import write_text

logger = logging.getLogger(__name__)


def save_checkpoint(engine: Any, folder: Path, step: int, progress: dict[str, Any]) -> None:
    """Save model, optimiser and `progress` (JSON) after `step` completed steps; all ranks call."""
    tag = f"step-{step}"
    engine.save_checkpoint(
        str(folder), tag=tag, client_state={"progress": json.dumps(progress)}, save_latest=False
    )
    dist.barrier()
    if dist.get_rank() == 0:
        latest = {
            "tag": tag,
            "step": step,
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
        }
        write_text(folder / "latest.json", json.dumps(latest) + "\n")
        for old in folder.glob("step-*"):
            if old.name != tag:
                shutil.rmtree(old)


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint and return its progress; None when there is none.

    Raises:
        ValueError: another number of ranks wrote it, or another ZeRO stage.
    """
    path = folder / "latest.json"
    if not path.is_file():
        return None
    latest = json.loads(path.read_text(encoding="utf-8"))
    if latest["world_size"] != dist.get_world_size():
        raise ValueError(
            f"checkpoint {folder / latest['tag']} was written by {latest['world_size']} ranks but "
            f"this run has {dist.get_world_size()}; resume with as many, or start the run again "
            "with --no-resume"
        )
    stage = engine.zero_optimization_stage()
    if latest["zero_stage"] != stage:
        raise ValueError(
            f"checkpoint {folder / latest['tag']} was written under ZeRO stage "
            f"{latest['zero_stage']} but trainer.deepspeed now has stage {stage}; resume with the "
            "same, or start the run again with --no-resume"
        )
    _, client_state = engine.load_checkpoint(str(folder), tag=latest["tag"])
    logger.info("resumed from %s after step %d", folder, latest["step"])
    return dict(json.loads(client_state["progress"]))
