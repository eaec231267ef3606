"""Training in child processes: each run has its own processes and its own process group.

A rank of the job starts one child for every run that it takes part in. A fresh child gives every
run its own world (checkpoint barriers span just its ranks), frees all that DeepSpeed leaks when it
ends, and keeps a crash from taking the campaign along. On CPU the children are forked from a server
that has imported the training stack once; with GPUs they are spawned, since CUDA does not fork.
"""

import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from .execution import Execution, Progress, RunHooks
from .processes import end_with_whoever_started_this, stat_fields
from .records import naming_what_is_written
from .runs import RunFailure, RunSpec
from .stop_request import SIGNALS

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)
# Before its first step a run imports, meets its ranks, and loads or converts a checkpoint.
START_TIMEOUT = 1800.0
_ALIVE_SECONDS = 1.0
_SHOW_STACKS = signal.SIGUSR2
_STACKS_SECONDS = 1.0
# The training stack, and what DeepSpeed imports only when it makes an engine: two seconds of every
# short run. A name that is gone in another version is skipped.
PRELOADED = [
    "autoscale.fork_server",
    "autoscale.trainer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One rank's part in one run; `master` is `host:port` of the run's first rank."""

    spec: RunSpec
    execution: Execution
    rank: int
    world_size: int
    local_rank: int
    master: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildError:
    """Why a child ended without finishing its part.

    Attributes:
        follows: it most likely follows from what happened to another rank of the run.
    """

    message: str
    user_mistake: bool
    follows: bool = False


class StopSlot:
    """Why a child shall stop, once its parent has said so."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reason: str | None = None

    def read(self) -> str | None:
        if self._reason is None and self._connection.poll():
            self._reason = str(self._connection.recv())
        return self._reason


class Worker:
    """Starts the children of this rank of the job, one at a time."""

    def __init__(self, *, fork: bool) -> None:
        self._context: Any = multiprocessing.get_context("forkserver" if fork else "spawn")
        if fork:
            self._context.set_forkserver_preload(PRELOADED)

    def start(self, assignment: Assignment) -> "Child":
        own_end, child_end = self._context.Pipe(duplex=True)
        process = self._context.Process(
            target=_train_in_child, args=(assignment, child_end), name=assignment.spec.run_id
        )
        with _deaf_to_signals():
            process.start()
        child_end.close()
        return Child(process, own_end, assignment)


@contextlib.contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """What starts in here never sees a signal to stop: its job rank tells it (`ask_to_stop`).

    Such signals reach whole process groups, and would end a child before it saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # its start lets some through again
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A running child, its progress and how it ended.

    A child that gives no sign of life for as long as its `execution.step_timeout` says is taken for
    hung, and ended. Its silence is measured by the parent's clock.

    Attributes:
        progress: the newest, of the first rank.
        error: why it has no result; None while it runs, when it has one, and when it was stopped.
        stopped: it saved and stopped as asked; its words.
    """

    def __init__(self, process: Any, connection: Connection, assignment: Assignment) -> None:
        self._process, self._connection = process, connection
        self._assignment = assignment
        self._heard, self._steps = time.monotonic(), -1
        self.progress: Progress | None = None
        self.error: ChildError | None = None
        self.stopped: str | None = None

    def ask_to_stop(self, reason: str) -> None:
        """Let the run save after its next step and end; all its ranks do when one was asked."""
        with contextlib.suppress(OSError):  # it is ending by itself
            self._connection.send(reason)

    def poll(self, seconds: float) -> bool:
        """Wait up to `seconds` for news; True once the child has ended."""
        ready = wait([self._connection, self._process.sentinel], timeout=seconds)
        if self._connection in ready:
            self._receive()
        if self._process.sentinel not in ready:
            if time.monotonic() - self._heard < self._patience:
                return False
            self._give_up()
        self._process.join()
        self._receive()
        self._connection.close()
        if self.error is None and self._process.exitcode != 0:
            code = self._process.exitcode
            cause = f"signal {-code}" if code < 0 else f"exit status {code}"
            self.error = ChildError(message=f"process ended with {cause}", user_mistake=False)
        return True

    def stop(self) -> None:
        """End the child at once, when its parent has to leave early."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    @property
    def _patience(self) -> float:
        timeout = self._assignment.execution.step_timeout
        return timeout if self._steps >= 0 else max(timeout, START_TIMEOUT)

    def _give_up(self) -> None:
        """End the child, which hangs, after it has written where it does so."""
        pid, rank = self._process.pid, self._assignment.rank
        log = Path(self._assignment.execution.folder) / f"log-rank{rank}.txt"
        if _is_stopped(pid):
            where, stacks = "its process is stopped", b""
        else:
            size = log.stat().st_size if log.is_file() else 0
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _SHOW_STACKS)
            self._process.join(_STACKS_SECONDS)
            stacks = log.read_bytes()[size:] if log.is_file() else b""
            where = f"stacks in {log}" if stacks else "it cannot show where"
        waits = b"torch/distributed" in stacks
        after = f"after step {self._steps}" if self._steps > 0 else "since its start"
        self.error = ChildError(
            message=f"rank {rank} on {socket.gethostname()} made no step for {self._patience:g} s "
            f"{after}; {where}",
            user_mistake=False,
            follows=waits,
        )
        self._process.kill()

    def _receive(self) -> None:
        try:
            while self._connection.poll():
                message = self._connection.recv()
                self._heard = time.monotonic()
                if isinstance(message, int):
                    self._steps = message
                elif isinstance(message, Progress):
                    self.progress = message
                elif isinstance(message, str):
                    self.stopped = message
                else:
                    self.error = message
        except (EOFError, OSError):
            pass  # the child closed its end; its exit status says the rest


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal, so that it hangs through no fault of its own."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] in "Tt"


class _LifeSigns:
    """Tells the parent how many steps are done, at most once a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._next = connection, 0.0

    def give(self, steps: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _ALIVE_SECONDS
            self._connection.send(steps)


def _train_in_child(assignment: Assignment, connection: Connection) -> None:
    """Body of a child: train, and leave `result.json` or `failed.json` on the first rank."""
    _end_with_parent()
    folder = Path(assignment.execution.folder)
    try:
        _log_to(folder / f"log-rank{assignment.rank}.txt")
    except OSError as error:
        _fail(connection, assignment, error)
    # The parent must stay free of the training stack.
    from .trainer import DivergedError, StoppedError, train_run

    def report(progress: Progress) -> None:
        if assignment.rank == 0:
            connection.send(progress)

    try:
        _join_process_group(assignment)
        hooks = RunHooks(
            progress=report,
            alive=_LifeSigns(connection).give,
            stop_reason=StopSlot(connection).read,
        )
        result = train_run(assignment.spec, assignment.execution, hooks)
        if assignment.rank == 0:
            result.save(folder)
            if not assignment.execution.keep_checkpoints:  # the run will never be resumed again
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    except StoppedError as error:
        connection.send(str(error))
    except DivergedError as error:
        if assignment.rank == 0:
            RunFailure(reason="diverged", message=str(error)).save(folder)
    except Exception as error:
        logging.getLogger(__name__).exception("run %s failed", assignment.spec.run_id)
        _fail(connection, assignment, error)
    connection.close()
    _leave_process_group()


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _fail(connection: Connection, assignment: Assignment, error: Exception) -> NoReturn:
    """Tell the parent why, and end at once: an orderly end would wait for lost ranks."""
    # Only our own refusals are plain ValueErrors; decoding errors are subclasses of it.
    user_mistake = type(error) is ValueError
    name = type(error).__name__
    text = f"run {assignment.spec.label}: {error}" if user_mistake else f"{name}: {error}"
    follows = "gloo" in text or "DistBackendError" in text
    connection.send(ChildError(message=text, user_mistake=user_mistake, follows=follows))
    connection.close()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _end_with_parent() -> None:
    """A child must not outlive its job rank, however that one ended."""
    # Whoever started it ends with the job rank; a child that is stopped can notice nothing itself.
    end_with_whoever_started_this()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _log_to(path: Path) -> None:
    """Send all output of this process to a file of the run; the terminal belongs to rank 0."""
    with naming_what_is_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(
        level=logging.INFO, force=True, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    warnings.simplefilter("default")
    faulthandler.register(_SHOW_STACKS, file=2)


def _join_process_group(assignment: Assignment) -> None:
    """Connect the ranks of this run and tell DeepSpeed about them."""
    import torch
    import torch.distributed as dist

    host, port = assignment.master.rsplit(":", 1)
    on_gpu = os.environ.get("DS_ACCELERATOR") != "cpu"
    device = _device_index(assignment.local_rank, torch.cuda.device_count()) if on_gpu else 0
    os.environ.update(
        RANK=str(assignment.rank),
        WORLD_SIZE=str(assignment.world_size),
        LOCAL_RANK=str(device if on_gpu else assignment.local_rank),
        MASTER_ADDR=host,
        MASTER_PORT=port,
    )
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        # Otherwise each start compiles a C++ extension for over a minute, and leaks shared memory.
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    rank, world_size = assignment.rank, assignment.world_size
    # A store of this run's own: by the environment, the launcher's would be taken (torchrun).
    store: dist.Store = dist.HashStore()
    if world_size > 1:
        store = dist.TCPStore(host, int(port), world_size, rank == 0, timeout=RENDEZVOUS_TIMEOUT)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=RENDEZVOUS_TIMEOUT
    )
    import deepspeed

    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _device_index(local_rank: int, visible: int) -> int:
    """The GPU of a rank: its own, or the only one where the launcher shows each rank just that."""
    if local_rank < visible:
        return local_rank
    if visible == 1:
        return 0
    raise ValueError(
        f"local rank {local_rank} has no GPU: {visible} are visible; start at most as many ranks "
        "a host, or set DS_ACCELERATOR=cpu"
    )


def encode_progress(label: str, progress: Progress | None) -> str:
    """Progress of a run for the job's store."""
    return json.dumps({"label": label, "progress": progress and asdict(progress)})


def decode_progress(text: str) -> tuple[str, Progress | None]:
    content = json.loads(text)
    progress = content["progress"]
    return content["label"], Progress(**progress) if progress else None
