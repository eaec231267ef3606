"""The real engine over several ranks, for tests: a few steps, and the memory that they took.

The ranks are forked from a server that has imported the training stack once, as those of a job are.
"""

import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops import __compatible_ops__

from autoscale.engine import _Partition, build_engine, weights_on_first_rank
from autoscale.evaluation import sum_losses
from autoscale.execution import Execution
from autoscale.language_model import sum_masked_losses
from autoscale.masking import Masking
from autoscale.model import build_model
from autoscale.model_shape import is_masked, model_size, resolve_model
from autoscale.runs import RunSpec
from tests.conftest import environment

SMALL = {"model": "gpt2-nano", "vocab_size": 101, "sequence_length": 16, "micro_batch_size": 2}
MIB = 2**20
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def train(folder: Path, ranks: int, **task) -> dict:
    """Steps with an engine over `ranks` processes, on random tokens, two micro-batches a step.

    Args:
        task: changes to `SMALL`; deepspeed, precision, packing, activation_checkpointing and
            start_from as the experiment has them; steps; save_to, a folder for the trained model.

    Returns:
        Losses of the steps, digests of the weights before and after them, and the most memory of
        each rank during them, MiB beyond what it had before.
    """
    return _run(folder, ranks, _train, SMALL | task)


def build(folder: Path, ranks: int, **task) -> dict:
    """The most memory of each rank while a model is built, MiB beyond what it had before."""
    return _run(folder, ranks, _build, SMALL | task)


def _run(folder: Path, ranks: int, work, task: dict) -> dict:
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.engine_steps"])
    processes = [
        context.Process(target=_rank, args=(str(folder), rank, ranks, work, task))
        for rank in range(ranks)
    ]
    with patch.dict(os.environ, environment(), clear=True):  # of the server, too
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=400)
        process.kill()
        process.join()
    log = "".join(path.read_text() for path in sorted(folder.glob("log*")))
    assert [process.exitcode for process in processes] == [0] * ranks, log
    return json.loads((folder / "answer.json").read_text())


def _rank(folder: str, rank: int, world_size: int, work, task: dict) -> None:
    log = os.open(f"{folder}/log{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    # The allocator maps, and counts, each tensor of at least so many bytes by itself.
    assert ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 65536)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    answer = work(task)
    of_ranks = [None] * world_size
    dist.all_gather_object(of_ranks, answer.pop("mib"))
    if rank == 0:
        content = answer | {"mib": of_ranks}
        (Path(folder) / "answer.json").write_text(json.dumps(content))
    dist.barrier()
    dist.destroy_process_group()


def _fields(task: dict) -> dict:
    return resolve_model(
        task["model"],
        task.get("overrides", {}),
        vocab_size=task["vocab_size"],
        end_of_text_id=0,
        sequence_length=task["sequence_length"],
    )


def _train(task: dict) -> dict:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    length, micro_batch = task["sequence_length"], task["micro_batch_size"]
    batch = 2 * micro_batch
    spec = RunSpec(
        label="steps",
        domains=("a",),
        sequences=(batch * 8,),
        sequence_length=length,
        seed=3,
        model=_fields(task),
        optimisation={
            "sequences_per_batch": batch, "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8,
            "weight_decay": 0.1, "grad_clip": 1.0, "precision": task.get("precision", "fp32"),
        },
        evaluation={},
        data="",
        packing=task.get("packing", "contiguous"),
    )  # fmt: skip
    known = {name: task.get(name) for name in Execution.__dataclass_fields__}
    execution = Execution(**known | {"micro_batch_size": micro_batch})
    before = _mapped_now()
    engine = build_engine(spec, execution, micro_batch_size=micro_batch)
    answer = {"weights": _digest(engine), "losses": []}
    generator = torch.Generator().manual_seed(1)
    for _ in range(task.get("steps", 3)):
        rows = torch.randint(0, task["vocab_size"], (batch, length + 1), generator=generator)
        parts = rows[rank::world_size].split(micro_batch)
        total = torch.zeros(())
        for part in parts:
            loss = _mean_loss(engine, part, spec)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / len(parts)
        dist.all_reduce(total)
        answer["losses"].append(float(total) / world_size)
    answer["mib"] = _mapped_at_most() - before
    answer["trained_weights"] = _digest(engine)
    if "save_to" in task:
        weights = weights_on_first_rank(engine)
        assert bool(weights) == (rank == 0)
        if rank == 0:
            engine.module.save_pretrained(task["save_to"], state_dict=weights)
    return answer


def _mean_loss(engine, rows: torch.Tensor, spec: RunSpec) -> torch.Tensor:
    if not is_masked(spec.model):
        return sum_losses(engine, rows).mean() / spec.sequence_length
    masking = Masking(
        mask_token_id=spec.model["mask_token_id"],
        vocab_size=spec.model["mask_token_id"],
        sequence_length=spec.sequence_length,
    )
    masks = torch.from_numpy(masking.validation(rows[:, 0].numpy()))  # by something of the row
    return sum_masked_losses(engine, rows, masks).mean() / masking.num_chosen


def _build(task: dict) -> dict:
    fields = _fields(task)
    full = model_size(fields, task["sequence_length"]).parameters * 4 / MIB
    settings = {
        **(task["deepspeed"] or {}),
        "train_batch_size": dist.get_world_size(),
        "bf16": {"enabled": False},
    }
    give_away = _Partition(settings, None) if task["deepspeed"] else None
    # What the first use of either way leaves behind is not the model's.
    small = fields | {"n_embd": 32, "n_layer": 1, "n_head": 1, "n_inner": 64, "vocab_size": 8}
    build_model(small, seed=1, activation_checkpointing=False, give_away=give_away)
    before = _mapped_now()
    model = build_model(
        fields,
        seed=1,
        activation_checkpointing=False,
        start_from=task.get("start_from"),
        give_away=give_away,
    )
    answer = {"mib": _mapped_at_most() - before, "full_mib": full}
    if "save_to" in task:
        model.save_pretrained(task["save_to"])
    return answer


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        .split()
    )  # fmt: skip


def _mapped_now() -> float:
    """What the allocator has mapped for tensors, MiB.

    Not what is resident: that also counts what libraries load at their first use, and pages that
    the system has merged or keeps, which differ between machines by as much as these models take.
    """
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    return mallinfo().hblkhd / MIB


def _mapped_at_most() -> float:
    """The most that the allocator has had mapped so far, MiB; glibc only prints it."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        ctypes.CDLL(None).malloc_stats()
        os.dup2(stderr, 2)
        os.close(stderr)
        file.seek(0)
        [line] = (line for line in file.read().decode().splitlines() if "max mmap bytes" in line)
    return int(line.split("=")[1]) / MIB


def _digest(engine) -> str:
    """Of all weights, gathered one parameter at a time."""
    digest = hashlib.sha256()
    for parameter in engine.module.parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
