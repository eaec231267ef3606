"""Train one run: one DeepSpeed engine, one loop over the mixture stream, one result.

`train_run` is called by every rank of the run, in a process of its own (`worker.py`). It resumes
from the newest checkpoint, evaluates all validation sets on the same windows at the same token
counts in every run, and returns the losses with the tokens really drawn.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import load_checkpoint, save_checkpoint
from .data import BatchStream, validation_windows
from .evaluation import Evaluator, sum_losses
from .execution import Execution, Progress, micro_batch_size
from .hardware import device_name, peak_flops
from .manifest import Manifest
from .model import build_model, parameter_groups
from .model_shape import model_size
from .provenance import commit, library_versions
from .runs import Evaluation, RunResult, RunSpec
from .sampler import MixtureOrder
from .schedule import checkpoint_steps, evaluation_steps, learning_rate

logger = logging.getLogger(__name__)

LOG_POINTS = 100
"""Training-loss records over a run; each costs one reduction over the ranks."""


class DivergedError(RuntimeError):
    """The training loss is no finite number any more."""


def train_run(
    spec: RunSpec, execution: Execution, *, on_progress: Callable[[Progress], None]
) -> RunResult:
    """Train `spec` over the ranks of the default process group.

    Raises:
        DivergedError: the loss became infinite or NaN.
        ValueError: the ranks do not divide the batch, or a checkpoint of another world size.
    """
    return _Run(spec, execution, on_progress).train()


class _Run:
    """State of one run; it lives as long as `train_run`."""

    def __init__(
        self, spec: RunSpec, execution: Execution, on_progress: Callable[[Progress], None]
    ) -> None:
        self.spec, self.execution, self.on_progress = spec, execution, on_progress
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.folder = Path(execution.folder)
        self.device = torch.device(get_accelerator().current_device_name())
        self.micro_batch_size = micro_batch_size(
            spec.sequences_per_batch, self.world_size, execution.micro_batch_size
        )
        manifest = Manifest.load(execution.manifest)
        self.stream = BatchStream(spec, manifest, rank=self.rank, world_size=self.world_size)
        self.evaluator = Evaluator(
            validation_windows(
                manifest,
                spec.evaluation["domains"],
                sequence_length=spec.sequence_length,
                limit=spec.evaluation["sequences_per_domain"],
            ),
            micro_batch_size=self.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
        )
        self.flops_per_token = model_size(spec.model, spec.sequence_length).flops_per_token
        self.peak_flops = peak_flops(
            self.device, spec.optimisation["precision"], execution.peak_tflops
        )
        self.engine = self._build_engine()
        self.evaluations: list[Evaluation] = []
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.earlier_seconds = 0.0
        self.log: _RunLog | None = None

    def _build_engine(self) -> Any:
        model = build_model(
            self.spec.model,
            seed=self.spec.seed,
            activation_checkpointing=self.execution.activation_checkpointing,
        )
        optimisation = self.spec.optimisation
        # A client optimiser: DeepSpeed's own AdamW compiles C++ at every first start on CPU.
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optimisation["weight_decay"]),
            lr=optimisation["lr"],
            betas=tuple(optimisation["betas"]),
            eps=optimisation["eps"],
            fused=True,
        )
        settings = {
            **self.execution.deepspeed,
            "train_batch_size": self.spec.sequences_per_batch,
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_clipping": optimisation["grad_clip"],
            "bf16": {"enabled": optimisation["precision"] == "bf16"},
            "steps_per_print": 2**31,
        }
        if optimisation["precision"] == "bf16":
            # Sums in bf16 would make the loss depend on the micro-batch and the number of ranks.
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        return engine

    def train(self) -> RunResult:
        spec = self.spec
        first_step = self._resume()
        if self.rank == 0:
            self.log = _RunLog(self.folder, first_step, spec.tokens_per_batch)
        evaluate_after = set(evaluation_steps(spec.num_steps, spec.evaluation["points"]))
        save_after = set(checkpoint_steps(spec.num_steps, self.execution.checkpoints))
        log_every = max(1, spec.num_steps // LOG_POINTS)
        loss_sum, loss_steps = torch.zeros((), device=self.device), 0
        self.clock = time.perf_counter()
        interval_start, interval_step = self.clock, first_step
        for step in range(first_step, spec.num_steps):
            rate = self._set_learning_rate(step)
            loss_sum += self._train_step(step)
            loss_steps += 1
            done = step + 1
            if done % log_every == 0 or done == spec.num_steps:
                loss = self._mean_over_ranks(loss_sum / loss_steps, step)
                now = time.perf_counter()
                speed = (done - interval_step) * spec.tokens_per_batch / (now - interval_start)
                self._log_training(done, loss, rate, speed)
                loss_sum.zero_()
                loss_steps, interval_start, interval_step = 0, now, done
            if done in evaluate_after:
                self._evaluate(done)
            if done in save_after:
                self._save(done)
        result = self._result()
        self._export()
        if self.log is not None:
            self.log.close()
        return result

    def _train_step(self, step: int) -> torch.Tensor:
        """One optimiser step; the mean loss of this rank's sequences, nats a token."""
        tokens = torch.from_numpy(self.stream.batch(step))
        total = torch.zeros((), device=self.device)
        parts = tokens.split(self.micro_batch_size)
        for part in parts:
            loss = sum_losses(self.engine, part.to(self.device)).mean() / self.spec.sequence_length
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        return total / len(parts)

    def _set_learning_rate(self, step: int) -> float:
        keys = ("lr", "min_lr_ratio", "schedule", "warmup_fraction", "decay_fraction")
        rate = learning_rate(
            step, self.spec.num_steps, **{key: self.spec.optimisation[key] for key in keys}
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _mean_over_ranks(self, loss: torch.Tensor, step: int) -> float:
        dist.all_reduce(loss)
        mean = float(loss) / self.world_size
        if not math.isfinite(mean):
            raise DivergedError(
                f"training loss is {mean} after step {step + 1} of {self.spec.num_steps} "
                f"({(step + 1) * self.spec.tokens_per_batch} tokens); lower trainer.lr "
                f"({self.spec.optimisation['lr']}) or lengthen trainer.warmup_fraction"
            )
        return mean

    def _log_training(self, done: int, loss: float, rate: float, speed: float) -> None:
        tokens = done * self.spec.tokens_per_batch
        self.on_progress(Progress(tokens=tokens, total_tokens=self.spec.total_tokens, loss=loss))
        if self.log is None:
            return
        scalars = {"train_loss": loss, "lr": rate, "tokens_per_second": speed}
        mfu = self._mfu(speed)
        if mfu is not None:
            scalars["mfu"] = mfu
        position = done * self.spec.sequences_per_batch
        drawn, epochs = self.stream.order.drawn(position), self.stream.order.epochs(position)
        for name, count, epoch in zip(self.spec.domains, drawn, epochs, strict=True):
            scalars[f"weight/{name}"] = float(count) / max(1, int(drawn.sum()))
            scalars[f"epochs/{name}"] = float(epoch)
        self.log.write("training", done, tokens, scalars)

    def _evaluate(self, done: int) -> None:
        tokens = done * self.spec.tokens_per_batch
        losses = self.evaluator.losses(self.engine)
        mean = sum(losses.values()) / len(losses)
        if not math.isfinite(mean):
            raise DivergedError(f"validation loss is {mean} at {tokens} tokens; lower trainer.lr")
        self.evaluations.append(Evaluation(tokens=tokens, losses=losses, mean_loss=mean))
        if self.log is not None:
            scalars = {f"validation_loss/{name}": loss for name, loss in losses.items()}
            self.log.write("evaluation", done, tokens, scalars | {"validation_loss": mean})

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.clock

    def _save(self, done: int) -> None:
        progress = {
            "step": done,
            "seconds": self._seconds(),
            "started_at": self.started_at,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "order": self.stream.order.state(),
        }
        save_checkpoint(self.engine, self.folder / "checkpoints", done, progress)

    def _resume(self) -> int:
        """Steps already done; 0 for a fresh start."""
        progress = load_checkpoint(self.engine, self.folder / "checkpoints")
        if progress is None:
            return 0
        if MixtureOrder.from_state(progress["order"]).digest() != self.stream.order.digest():
            raise ValueError(
                f"{self.folder}: the checkpoint was trained on another sample order; the data or "
                "the code changed underneath it. Start the run again with --no-resume"
            )
        self.evaluations = [Evaluation(**item) for item in progress["evaluations"]]
        self.earlier_seconds, self.started_at = progress["seconds"], progress["started_at"]
        return int(progress["step"])

    def _mfu(self, tokens_per_second: float) -> float | None:
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * self.world_size)

    def _result(self) -> RunResult:
        spec, seconds = self.spec, self._seconds()
        position = spec.num_steps * spec.sequences_per_batch
        drawn, epochs = self.stream.order.drawn(position), self.stream.order.epochs(position)
        speed = spec.total_tokens / seconds
        return RunResult(
            spec=spec,
            tokens={
                name: int(count) * spec.sequence_length
                for name, count in zip(spec.domains, drawn, strict=True)
            },
            epochs=dict(zip(spec.domains, map(float, epochs), strict=True)),
            evaluations=tuple(self.evaluations),
            seconds=seconds,
            tokens_per_second=speed,
            mfu=self._mfu(speed),
            flops=self.flops_per_token * spec.total_tokens,
            world_size=self.world_size,
            device=device_name(self.device),
            versions=library_versions(),
            commit=commit(),
            started_at=self.started_at,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _export(self) -> None:
        """Write the model for `from_pretrained`; under ZeRO-3 all ranks gather it first."""
        if self.execution.export is None:
            return
        model = self.engine.module
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            if self.rank == 0:
                model.save_pretrained(self.execution.export, safe_serialization=True)
                Manifest.load(self.execution.manifest).copy_tokenizer(Path(self.execution.export))
        dist.barrier()


def _step_of(line: str) -> float:
    """The step of a record; infinite for the half of a line that a kill may leave."""
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return math.inf


class _RunLog:
    """`metrics.jsonl` and TensorBoard scalars, written by the first rank of the run."""

    def __init__(self, folder: Path, first_step: int, tokens_per_batch: int) -> None:
        path = folder / "metrics.jsonl"
        kept = []
        if first_step and path.is_file():
            # What came after the checkpoint is trained again, and would stand here twice.
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= first_step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        # Steps are tokens, so that runs with other batches stand on one axis.
        purge = first_step * tokens_per_batch + 1
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, kind: str, step: int, tokens: int, scalars: Mapping[str, float]) -> None:
        record = {"kind": kind, "step": step, "tokens": tokens, **scalars}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, tokens)

    def close(self) -> None:
        self._file.close()
        self._board.close()
