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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .job_watch import JobWatch, Meeting, Welcome, join
from .shared_errors import RemoteError, SharedMistake
from .stop_request import StopRequested

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A rank may wait for another's training run: as long as a job lasts. A rank that dies closes its
# connections, which ends the wait at once.
JOB_TIMEOUT = timedelta(days=60)
# What breaks a connection is known within moments, unless just the connection broke.
_CAUSE_SECONDS = 3.0

_SLURM_NAMES = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",  # of this srun, where SLURM_NTASKS is of the whole job
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """This process among those of the job.

    Attributes:
        store: key-value store on rank 0 for the work queue and progress.
        address: this host as the other ranks reach it.
        watch: tells when another rank is lost.
    """

    rank: int
    world_size: int
    local_rank: int
    store: dist.Store
    address: str
    watch: JobWatch

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def from_root(self, compute: Callable[[], Any]) -> Any:
        """Run `compute` on rank 0 only and give its JSON value to every rank.

        Raises:
            SharedMistake, RemoteError: on every rank, when `compute` raised on rank 0.
        """
        message = [_attempt(compute) if self.is_root else ""]
        with self.waiting():
            dist.broadcast_object_list(message, src=0)
        return _values(message)[0]

    def on_all(self, compute: Callable[[], Any]) -> list[Any]:
        """Run `compute` on every rank; all get all JSON values, or raise the first error.

        Raises:
            SharedMistake, RemoteError: on every rank, when `compute` raised on some.
        """
        gathered: list[Any] = [None] * self.world_size
        text = _attempt(compute)
        with self.waiting():
            dist.all_gather_object(gathered, text)
        return _values(gathered)

    def require_all(self) -> None:
        """Raise RemoteError once a rank is lost, or has failed: call it where a rank waits."""
        cause = self.watch.cause()
        if cause is not None:
            raise RemoteError(cause, root_is_lost=self.watch.root_is_lost)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Waits for other ranks: when a connection breaks, raises the first cause of it."""
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            cause = self.watch.cause(_CAUSE_SECONDS) or f"a connection between ranks broke: {error}"
            raise RemoteError(cause, root_is_lost=self.watch.root_is_lost) from None

    def on_each(self, compute: Callable[[], T]) -> T:
        """Run `compute` on every rank and return this rank's value; raises as `on_all` does."""
        values: list[T] = []
        self.on_all(lambda: values.append(compute()))
        return values[0]

    def require_agreement(self, values: Mapping[str, str]) -> None:
        """Stop every rank when one holds other values than most, e.g. of a fingerprint.

        Args:
            values: of this rank, by what they are.

        Raises:
            SharedMistake: on every rank, naming the ranks that differ and their hosts.
        """
        held = self.on_all(lambda: [socket.gethostname(), dict(values)])
        for what in values:
            found = [rank_values[what] for _, rank_values in held]
            usual = max(found, key=found.count)  # the first of equally many, such as rank 0's
            differ = [rank for rank, value in enumerate(found) if value != usual]
            if differ:
                first, other = differ[0], found.index(usual)
                more = f" (and {len(differ) - 1} more ranks differ)" if len(differ) > 1 else ""
                raise SharedMistake(
                    f"rank {first} on {held[first][0]} has {what} {found[first]} but rank {other} "
                    f"on {held[other][0]} has {usual}{more}; all ranks must see the same files "
                    "and code"
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
        return json.dumps(
            {"error": text, "user_mistake": user_mistake, "host": socket.gethostname()}
        )


def _values(texts: Sequence[str]) -> list[Any]:
    """The values of ranks 0, 1, ...; raises the error of the first rank that has one."""
    messages = [json.loads(text) for text in texts]
    for rank, message in enumerate(messages):
        if "error" not in message:
            continue
        where = f"rank {rank} on {message['host']}"
        if not message["user_mistake"]:
            raise RemoteError(f"{where} failed: {message['error']}")
        # What is wrong for all is no matter of one rank or host.
        everywhere = all(other.get("error") == message["error"] for other in messages)
        raise SharedMistake(message["error"] if everywhere else f"{where}: {message['error']}")
    return [message["value"] for message in messages]


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


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
    server = welcome = None
    if rank == 0:
        welcome = Welcome(address)
        server = dist.TCPStore(
            address, 0, is_master=True, timeout=JOB_TIMEOUT, wait_for_workers=False
        )
    where: list[Any] = [server and welcome and (server.port, asdict(welcome.meeting))]
    dist.broadcast_object_list(where, src=0)
    port, meeting = where[0]
    store = server or dist.TCPStore(meeting["host"], port, is_master=False, timeout=JOB_TIMEOUT)
    peers = welcome.receive(world_size) if welcome else join(Meeting(**meeting), rank)
    return Job(
        rank=rank,
        world_size=world_size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        store=store,
        address=address,
        watch=JobWatch(rank, peers),
    )


def stop_job(job: Job) -> None:
    """Leave together: a rank that exits early can abort the others under mpirun."""
    with job.waiting():
        dist.barrier()
    job.watch.leave()
    dist.destroy_process_group()


@contextmanager
def running_job() -> Iterator[Job]:
    """The ranks of this job, from their start until they leave together, done or not.

    Raises:
        RemoteError: also for what breaks here because another rank is lost.
    """
    job = start_job()
    try:
        with job.waiting():
            yield job
    except (SharedMistake, RemoteError, StopRequested):
        job.watch.leave()  # the other ranks know it too
        raise
    except ValueError as error:
        job.watch.fail(str(error))
        raise
    except Exception as error:
        logger.exception("failed on rank %d", job.rank)
        raise RemoteError(job.watch.fail(f"{type(error).__name__}: {error}")) from None
    stop_job(job)


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
