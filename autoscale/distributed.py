"""The processes of a job: who they are, what rank 0 tells them, and how errors reach all of them.

A launcher (deepspeed, torchrun, srun, mpirun, or none) starts one process a device. These *job
ranks* only coordinate, over gloo on CPU; training happens in child processes (`worker.py`), whose
own process groups span just the ranks of one run. Errors travel with the messages: when rank 0
fails, every rank raises the same error instead of waiting for a broadcast that never comes.
"""

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

# A rank may wait for another's training run: as long as a job lasts. A rank that dies closes its
# connections, which ends the wait at once.
JOB_TIMEOUT = timedelta(days=60)

_SLURM_NAMES = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",  # of this srun, where SLURM_NTASKS is of the whole job
}


class RemoteError(RuntimeError):
    """A rank failed with something that is not the user's mistake; every rank gets its message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """This process among those of the job.

    Attributes:
        store: key-value store on rank 0 for the work queue and progress.
        address: this host as the other ranks reach it.
    """

    rank: int
    world_size: int
    local_rank: int
    store: dist.Store
    address: str

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def from_root(self, compute: Callable[[], Any]) -> Any:
        """Run `compute` on rank 0 only and give its JSON value to every rank.

        Raises:
            ValueError, RemoteError: on every rank, when `compute` raised on rank 0.
        """
        message = [_attempt(compute) if self.is_root else ""]
        dist.broadcast_object_list(message, src=0)
        return _unpack(message[0], origin=0)

    def on_all(self, compute: Callable[[], Any]) -> list[Any]:
        """Run `compute` on every rank; all get all JSON values, or raise the first error."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, _attempt(compute))
        return [_unpack(text, origin=rank) for rank, text in enumerate(gathered)]

    def require_agreement(self, what: str, value: str) -> None:
        """Stop every rank when one holds another value than rank 0, e.g. of a fingerprint."""
        values = self.on_all(lambda: value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"rank {rank} has {what} {other} but rank 0 has {values[0]}; all ranks must "
                    "see the same files and code"
                )


def _attempt(compute: Callable[[], Any]) -> str:
    """The value as JSON, or the error, never an exception: other ranks are waiting."""
    try:
        return json.dumps({"value": compute()})
    except Exception as error:
        if not isinstance(error, ValueError):
            logger.exception("failed on rank %s", os.environ.get("RANK", "0"))
        user_mistake = isinstance(error, ValueError)
        text = str(error) if user_mistake else f"{type(error).__name__}: {error}"
        return json.dumps({"error": text, "user_mistake": user_mistake})


def _unpack(text: str, *, origin: int) -> Any:
    message = json.loads(text)
    if "error" not in message:
        return message["value"]
    if message["user_mistake"]:
        raise ValueError(message["error"])
    raise RemoteError(f"rank {origin} failed: {message['error']}")


def start_job() -> Job:
    """Find out rank and world size from the launcher and connect the ranks.

    Raises:
        ValueError: the launcher's variables are incomplete.
    """
    _use_cpu_without_gpu()
    _read_launcher()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=JOB_TIMEOUT)
    master = os.environ["MASTER_ADDR"]
    address = _address_towards(master, int(os.environ["MASTER_PORT"]))
    server = None
    if rank == 0:
        server = dist.TCPStore(
            address, 0, is_master=True, timeout=JOB_TIMEOUT, wait_for_workers=False
        )
    where = [(address, server.port) if server is not None else None]
    dist.broadcast_object_list(where, src=0)
    assert where[0] is not None
    host, port = where[0]
    store = server or dist.TCPStore(host, port, is_master=False, timeout=JOB_TIMEOUT)
    return Job(
        rank=rank,
        world_size=world_size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        store=store,
        address=address,
    )


def stop_job() -> None:
    """Leave together: a rank that exits early can abort the others under mpirun."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _use_cpu_without_gpu() -> None:
    """DeepSpeed looks at this variable in the children; one thread a rank is fastest on CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _read_launcher() -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from whatever started us."""
    environment = os.environ
    if "RANK" in environment:
        missing = [
            name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environment
        ]
        if missing:
            raise ValueError(f"RANK is set but {', '.join(missing)} is not; use a launcher")
        environment.setdefault("LOCAL_RANK", "0")
    elif "OMPI_COMM_WORLD_SIZE" in environment:
        _read_mpi()
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        for name, slurm_name in _SLURM_NAMES.items():
            environment[name] = environment[slurm_name]
        if "MASTER_ADDR" not in environment:
            raise ValueError(
                "MASTER_ADDR is not set under srun; export it as launch/slurm.sbatch does"
            )
        environment.setdefault("MASTER_PORT", "29500")
    elif "PMI_SIZE" in environment:  # after Slurm, which sets it too with some plugins
        _read_mpi()
    else:
        environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        environment["MASTER_PORT"] = str(free_port())


def _read_mpi() -> None:
    """Under mpirun the ranks find one another through MPI, once; everything after is gloo."""
    from mpi4py import MPI  # needs libmpi, which only mpirun users have

    world = MPI.COMM_WORLD
    hosts = world.allgather(socket.gethostname())
    rank = world.Get_rank()
    one_host = len(set(hosts)) == 1
    own = ("127.0.0.1" if one_host else socket.gethostbyname(hosts[rank]), free_port())
    master = world.bcast(own, root=0)
    num_ranks = world.Get_size()
    # A rank that fails would otherwise wait at exit for all the others to finalise.
    MPI.Finalize()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(hosts[:rank].count(hosts[rank])),
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR=master[0],
        MASTER_PORT=str(master[1]),
    )


def free_port() -> int:
    """A port that is free at this moment on this host."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _address_towards(master: str, port: int) -> str:
    """How other hosts reach this one: the interface towards `master`, or its name on its host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, port))
        address = str(probe.getsockname()[0])
    return master if address.startswith("127.") else address
