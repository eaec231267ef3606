"""Train one run: one DeepSpeed engine, one loop over the mixture stream, one result.

`train_run` is called by every rank of the run, in a process of its own (`worker.py`). It resumes
from the newest checkpoint, evaluates all validation sets on the same windows at the same token
counts in every run, and returns the losses with the tokens really drawn.
"""

import logging
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from .checkpoint import CheckpointWriter, load_checkpoint
from .data import RunStream, validation_windows
from .delivery import Delivery
from .diloco import OuterOptimizer, RankGroups
from .engine import build_engine, weights_on_first_rank
from .evaluation import Evaluator
from .execution import Execution, Progress, RunHooks, micro_batch_size
from .hardware import device_name, peak_flops
from .language_model import masking_of
from .manifest import Manifest
from .model_shape import model_size
from .non_finite import NonFiniteLosses
from .online import training_step
from .prefetch import DeviceBatch, Prefetcher
from .provenance import commit, library_versions
from .run_log import RunLog
from .runs import Evaluation, RunResult, RunSpec
from .sampler import MixtureOrder
from .schedule import evaluation_steps, learning_rate
from .tokenizer import add_mask_token
from .votes import Votes

logger = logging.getLogger(__name__)

LOG_POINTS = 100
"""Training-loss records over a run; each costs one reduction over the ranks."""


class DivergedError(RuntimeError):
    """The training loss is no finite number any more."""


class UnsoundRankError(RuntimeError):
    """The training loss was no finite number on a few ranks before it was on the others."""


class StoppedError(RuntimeError):
    """The run was told to stop, and saved what it has."""


def train_run(spec: RunSpec, execution: Execution, hooks: RunHooks) -> RunResult:
    """Train `spec` over the ranks of the default process group.

    Raises:
        DivergedError: the loss became infinite or NaN.
        UnsoundRankError: it did so on at most half of the ranks first.
        StoppedError: `hooks.stop_reason` gave one on some rank; the run can be resumed.
        ValueError: the ranks do not divide the batch, or a checkpoint of another world size.
    """
    return _Run(spec, execution, hooks).train()


class _Run:
    """State of one run; it lives as long as `train_run`."""

    def __init__(self, spec: RunSpec, execution: Execution, hooks: RunHooks) -> None:
        self.spec, self.execution, self.hooks = spec, execution, hooks
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.folder = Path(execution.folder)
        self.device = torch.device(get_accelerator().current_device_name())
        self.micro_batch_size = micro_batch_size(
            spec.sequences_per_batch, self.world_size, execution.micro_batch_size
        )
        manifest = Manifest.load(execution.manifest)
        self.stream = RunStream(spec, manifest, rank=self.rank, world_size=self.world_size)
        self.masking = masking_of(spec, manifest)
        self.evaluator = Evaluator(
            validation_windows(
                manifest,
                spec.evaluation["domains"],
                sequence_length=spec.sequence_length,
                limit=spec.evaluation["sequences_per_domain"],
                packing=spec.packing,
                masking=self.masking,
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
        groups = RankGroups(spec.diloco["groups"]) if spec.diloco else None
        self.engine = build_engine(
            spec, execution, micro_batch_size=self.micro_batch_size, groups=groups
        )
        self.step = training_step(
            self.engine,
            spec,
            execution,
            self.stream,
            micro_batch_size=self.micro_batch_size,
            masking=self.masking,
        )
        self.outer: OuterOptimizer | None = None
        self.place = {}  # of this rank's weights in a checkpoint
        if groups is not None:
            self.outer = OuterOptimizer(self.engine, groups, spec.diloco, num_steps=spec.num_steps)
            self.place = {"group": groups.index, "groups": groups.num_groups}
        self.checkpoints = CheckpointWriter(
            self.engine,
            self.folder / "checkpoints",
            keep_last=execution.keep_last,
            staging=execution.staging,
            **self.place,
        )
        self.votes = Votes(2)
        self.non_finite = NonFiniteLosses(self.device)
        self.earlier_delivery = Delivery.nothing(len(spec.domains))
        self.evaluations: list[Evaluation] = []
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.earlier_seconds = 0.0
        self.log: RunLog | None = None

    def train(self) -> RunResult:
        first_step = self._resume()
        if self.rank == 0:
            self.log = RunLog(self.folder, first_step, self.spec.tokens_per_batch)
        steps = range(first_step, self.spec.num_steps)
        depth = 0 if self.device.type == "cpu" else 2  # cores that train have no time to spare
        with Prefetcher(self.stream, steps, self.device, depth) as batches:
            try:
                self._train(batches, first_step)
            except DivergedError:
                self.checkpoints.finish()  # all ranks are here; its thread must not outlive them
                raise
        self.votes.close()
        self.checkpoints.finish()
        self._log_checkpoints()
        result = self._result()
        self._export()
        if self.log is not None:
            self.log.close()
        return result

    def _train(self, batches: Iterable[DeviceBatch], first_step: int) -> None:
        spec = self.spec
        evaluate_after = set(evaluation_steps(spec.num_steps, spec.evaluation["points"]))
        log_every = max(1, spec.num_steps // LOG_POINTS)
        loss_sum, loss_steps = torch.zeros((), device=self.device), 0
        self.clock = self.saved_at = time.perf_counter()
        self.saved_step = first_step
        interval_start, interval_step = self.clock, first_step
        for batch in batches:
            rate = self._set_learning_rate(batch.step)
            step_loss = self.step(batch)
            loss_sum += step_loss
            loss_steps += 1
            done = batch.step + 1
            self.non_finite.see(step_loss, done)
            if self.outer is not None:
                self.outer.after_step(done)
            self.step.after_step(done)
            if done % log_every == 0 or done == spec.num_steps:
                loss = self._mean_over_ranks(loss_sum / loss_steps, batch.step)
                now = time.perf_counter()
                speed = (done - interval_step) * spec.tokens_per_batch / (now - interval_start)
                self._log_training(done, loss, rate, speed)
                loss_sum.zero_()
                loss_steps, interval_start, interval_step = 0, now, done
            if done in evaluate_after:
                self._evaluate(done)
            stop, save = self.votes.cast([self.hooks.stop_reason() is not None, self._save_is_due])
            if done == spec.num_steps:
                continue
            save &= done != self.saved_step + 1  # cast before that save, which answered it
            every = self.execution.save_every
            if stop or save or (every is not None and done % every == 0):
                if loss_steps:  # a diverged model is not worth keeping
                    self._mean_over_ranks(loss_sum / loss_steps, batch.step)
                self._save(done)
            self._log_checkpoints()
            if stop:
                raise StoppedError(self._stopped(done))
            self.hooks.alive(done)

    @property
    def _save_is_due(self) -> bool:
        seconds = self.execution.save_seconds
        return seconds is not None and time.perf_counter() - self.saved_at > seconds

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
            raise self._not_finite(f"training loss is {mean}", step + 1)
        return mean

    def _not_finite(self, what: str, done: int) -> DivergedError | UnsoundRankError:
        """What to raise; all ranks call.

        A run that diverges does so on all ranks at once, or nearly. A rank that has it alone more
        likely has bad hardware or reads bad data, and the run may well go on from its checkpoint.
        """
        remedy = (
            f"lower trainer.lr ({self.spec.optimisation['lr']}) or lengthen trainer.warmup_fraction"
        )
        after = (
            f"after step {done} of {self.spec.num_steps} "
            f"({done * self.spec.tokens_per_batch} tokens)"
        )
        first = self.non_finite.first_seen()
        if first is None or 2 * len(first.ranks) > self.world_size:
            return DivergedError(f"{what} {after}; {remedy}")
        return UnsoundRankError(
            f"{what} {after}: it was no finite number at step {first.step} on "
            f"{', '.join(first.ranks)} first, of {self.world_size} ranks; check that hardware. "
            "Start again to go on from the last checkpoint; should it come again at this step, "
            f"{remedy}"
        )

    def _log_training(self, done: int, loss: float, rate: float, speed: float) -> None:
        tokens = done * self.spec.tokens_per_batch
        self.hooks.progress(Progress(tokens=tokens, total_tokens=self.spec.total_tokens, loss=loss))
        if self.log is None:
            return
        scalars = {"train_loss": loss, "lr": rate, "tokens_per_second": speed}
        scalars["device_seconds"] = self._seconds() * self.world_size  # for `limits` and `status`
        mfu = self._mfu(speed)
        if mfu is not None:
            scalars["mfu"] = mfu
        if self.outer is not None:
            scalars |= self.outer.bytes_sent(done)
        scalars |= self.step.scalars()
        position = done * self.spec.sequences_per_batch
        drawn, epochs = self.stream.order.drawn(position), self.stream.order.epochs(position)
        for name, count, epoch in zip(self.spec.domains, drawn, epochs, strict=True):
            scalars[f"weight/{name}"] = float(count) / max(1, int(drawn.sum()))
            scalars[f"epochs/{name}"] = float(epoch)
        self.log.write("training", done, tokens, scalars)

    def _evaluate(self, done: int) -> None:
        tokens = done * self.spec.tokens_per_batch
        with self.outer.global_parameters() if self.outer else nullcontext():
            losses = self.evaluator.losses(self.engine, lambda: self.hooks.alive(done))
        for loss in losses.values():
            if not math.isfinite(loss):
                raise self._not_finite(f"validation loss is {loss}", done)
        mean = sum(losses[name] for name in self.spec.domains) / len(self.spec.domains)
        self.evaluations.append(Evaluation(tokens=tokens, losses=losses, mean_loss=mean))
        if self.log is not None:
            scalars = {f"validation_loss/{name}": loss for name, loss in losses.items()}
            self.log.write("evaluation", done, tokens, scalars | {"validation_loss": mean})

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.clock

    def _save(self, done: int) -> None:
        progress = {
            "seconds": self._seconds(),
            "started_at": self.started_at,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "order": self.stream.order.state(),
            "delivery": self._delivery().to_dict(),
            "online": self.step.state(),
        }
        self.checkpoints.save(
            done, progress, extra=None if self.outer is None else self.outer.state()
        )
        self.saved_at, self.saved_step = time.perf_counter(), done

    def _log_checkpoints(self) -> None:
        for outcome in self.checkpoints.outcomes():
            if self.log is not None and outcome.problem is None:
                scalars = {
                    "blocked_seconds": outcome.blocked_seconds,
                    "write_seconds": outcome.write_seconds,
                    "bytes": outcome.bytes,
                }
                tokens = outcome.step * self.spec.tokens_per_batch
                self.log.write("checkpoint", outcome.step, tokens, scalars)

    def _stopped(self, done: int) -> str:
        """Wait until the last checkpoint is published; how far the run came."""
        problem = self.checkpoints.finish()
        self._log_checkpoints()
        saved = "saved" if problem is None else f"not saved ({problem})"
        logger.info("stops (%s)", self.hooks.stop_reason() or "another rank was told to")
        return f"stopped after step {done} of {self.spec.num_steps}, {saved}"

    def _delivery(self) -> Delivery:
        """What all ranks were given since the first step of the run; all ranks call."""
        sums = torch.from_numpy(self.stream.delivery.to_array()).to(self.device)
        dist.all_reduce(sums)
        return self.earlier_delivery.plus(Delivery.from_array(sums.cpu().numpy()))

    def _resume(self) -> int:
        """Steps already done; 0 for a fresh start."""
        restored = load_checkpoint(self.engine, self.folder / "checkpoints", **self.place)
        if restored is None:
            return 0
        progress = restored.progress
        if self.spec.online:
            self.step.restore(progress["online"])
        if MixtureOrder.from_state(progress["order"]).digest() != self.stream.order.digest():
            raise ValueError(
                f"{self.folder}: the checkpoint was trained on another sample order; the data or "
                "the code changed underneath it. Start the run again with --no-resume"
            )
        self.evaluations = [Evaluation(**item) for item in progress["evaluations"]]
        self.earlier_seconds, self.started_at = progress["seconds"], progress["started_at"]
        self.earlier_delivery = Delivery.from_dict(progress["delivery"])
        if self.outer is not None:
            self.outer.restore(restored.extra(self.rank))
        return restored.step

    def _mfu(self, tokens_per_second: float) -> float | None:
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * self.world_size)

    def _result(self) -> RunResult:
        spec, seconds = self.spec, self._seconds()
        given = self._delivery()
        epochs = given.windows / np.maximum(self.stream.order.num_windows, 1)
        speed = spec.total_tokens / seconds
        return RunResult(
            spec=spec,
            tokens=dict(zip(spec.domains, given.labels.tolist(), strict=True)),
            epochs=dict(zip(spec.domains, epochs.tolist(), strict=True)),
            evaluations=tuple(self.evaluations),
            seconds=seconds,
            tokens_per_second=speed,
            mfu=self._mfu(speed),
            flops=self.step.work * self.flops_per_token * spec.total_tokens,
            world_size=self.world_size,
            device=device_name(self.device),
            versions=library_versions(),
            commit=commit(),
            started_at=self.started_at,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            windows=dict(zip(spec.domains, given.windows.tolist(), strict=True)),
            checksum=given.checksum_text,
            online=self.step.outcome(given.labels),
        )

    def _export(self) -> None:
        """Write the model for `from_pretrained`; under ZeRO-3 the first rank gathers it."""
        if self.execution.export is None:
            return
        weights = weights_on_first_rank(self.engine)
        if self.rank == 0:
            self.engine.module.save_pretrained(self.execution.export, state_dict=weights)
            Manifest.load(self.execution.manifest).copy_tokenizer(Path(self.execution.export))
            if self.masking is not None:
                add_mask_token(Path(self.execution.export), self.masking.mask_token_id)
        dist.barrier()
