"""Runs as jobs leave them in their folders while they train, by the writers that jobs use."""

import json
from dataclasses import asdict
from pathlib import Path

from autoscale.checkpoint_files import CheckpointRecord, MarkedFile
from autoscale.claims import Claim, ClaimRecord, Claims, Owner
from autoscale.planning import Experiment
from autoscale.run_log import RunLog
from autoscale.runs import RunSpec


def log_steps(
    experiment: Experiment, spec: RunSpec, steps: int, *, speed: float = 10_000.0
) -> Path:
    """Start a run, and log that it trained `steps` at `speed` tokens a second on two ranks."""
    folder = experiment.store.start(spec)
    log = RunLog(folder, 0, spec.tokens_per_batch)
    for step in range(10, steps + 1, 10):
        tokens = step * spec.tokens_per_batch
        scalars = {
            "train_loss": 5.0 - step / 100,
            "lr": 1e-3,
            "tokens_per_second": speed,
            "device_seconds": 2 * tokens / speed,
        }
        log.write("training", step, tokens, scalars)
    log.write("evaluation", steps, tokens, {"validation_loss": 4.5})
    log.close()
    return folder


def claim(folder: Path) -> Claim:
    """This process trains the run, and beats too seldom to be seen."""
    held = Claims(heartbeat=3600).take(folder)
    assert held is not None
    return held


def claim_from_elsewhere(folder: Path, *, beats: int = 0) -> None:
    """A process of another machine, of which nothing is here but its claim, trains the run."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = Owner(host="node7", machine="another boot", pid=4711, started=5)
    record = ClaimRecord(generation=1, owner=owner, beats=beats)
    (folder / "claim-000001.json").write_text(json.dumps(asdict(record)))


def save_at(folder: Path, step: int) -> None:
    """A checkpoint of 1000 bytes."""
    with MarkedFile(folder / "checkpoints" / f"step-{step}" / "weights.pt") as file:
        file.write(bytes(1000))
        files = {"weights.pt": file.mark}
    CheckpointRecord(
        step=step, world_size=1, zero_stage=1, groups=1, progress={"step": step}, files=files
    ).save(folder / "checkpoints")
