"""The log of a run: `metrics.jsonl` and TensorBoard scalars, written by its first rank."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from .records import naming_what_is_written, write_text


def _step_of(line: str) -> float:
    """The step of a record; infinite for the half of a line that a kill may leave."""
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return math.inf


class RunLog:
    """Records of a run from `first_step` on; what an earlier attempt wrote after it is dropped."""

    def __init__(self, folder: Path, first_step: int, tokens_per_batch: int) -> None:
        path = folder / "metrics.jsonl"
        kept = []
        if first_step and path.is_file():
            # What came after the checkpoint is trained again, and would stand here twice.
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= first_step]
        write_text(path, "".join(line + "\n" for line in kept))
        self._folder = folder
        with naming_what_is_written(folder):
            self._file = path.open("a", encoding="utf-8")
            # Steps are tokens, so that runs with other batches stand on one axis.
            purge = first_step * tokens_per_batch + 1
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, kind: str, step: int, tokens: int, scalars: Mapping[str, float]) -> None:
        record = {"kind": kind, "step": step, "tokens": tokens, **scalars}
        with naming_what_is_written(self._folder):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.add_scalar(name, value, tokens)

    def close(self) -> None:
        with naming_what_is_written(self._folder):
            self._file.close()
            self._board.close()
