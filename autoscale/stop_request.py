"""A request to stop the job: one reason, known to all ranks, whoever was told first.

A job is told to stop by SIGTERM, by SIGUSR1 (Slurm's warning), by SIGINT (Ctrl-C; a second one ends
it at once), by the end of its Slurm job coming near, or by a spent budget. The signal may reach
one rank only, so the request is posted where all ranks look. What follows is for others to do: the
campaign lets its runs save and takes no further one, and the job ends with status 75, which says
"start the same command again to go on" (EX_TEMPFAIL of sysexits.h).

Signals arrive through a pipe that a thread reads: the main thread of a rank may sit for minutes in
a call that waits for another rank, where no Python handler would run.
"""

import json
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from types import FrameType
from typing import Final, Protocol

logger = logging.getLogger(__name__)

STOPPED: Final = 75
"""Exit status of a job that was told to stop and saved what it had."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why a job stops, and the exit status that it ends with."""

    reason: str
    status: int = STOPPED


class StopRequested(BaseException):
    """The job was told to stop; all ranks raise it. It is no error, and not to be caught as one.

    Attributes:
        stop: why.
        saved: the runs that were in progress, with what was saved of each.
    """

    def __init__(self, stop: Stop, saved: Sequence[str] = ()) -> None:
        super().__init__(stop.reason)
        self.stop, self.saved = stop, tuple(saved)


class Board(Protocol):
    """Where a request is posted for all ranks of the job; the first one stays."""

    def post(self, text: str) -> None: ...

    def read(self) -> str | None: ...


class StopRequest:
    """The request as this process knows it."""

    def __init__(self) -> None:
        self._stop: Stop | None = None
        self._told = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._end: _JobEnd | None = None
        self._listens = self._interruptible = self._interrupted = False
        self._bell, self._rope = socket.socketpair()
        self._rope.setblocking(False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stop-request")

    @property
    def stop(self) -> Stop | None:
        """Why to stop; None while there is no reason."""
        return self._stop

    def wait(self, seconds: float) -> None:
        """Sleep, until there is a reason to stop."""
        self._told.wait(seconds)

    def listen(self) -> None:
        """Take signals as requests from now on; call it in the main thread.

        Until `connect` a signal ends the process at once: nothing is there to be saved.
        """
        signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            # What starts programs in the background may have them ignore Ctrl-C.
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
                signal.siginterrupt(number, False)
        self._listens = True
        self._thread.start()

    def connect(self, board: Board) -> None:
        """Share requests with the other ranks from now on."""
        self._board = board
        if not self._thread.is_alive():
            self._thread.start()

    def stop_before(self, ask: Callable[[], float | None], seconds: float) -> None:
        """Request a stop `seconds` before the job is ended.

        Args:
            ask: gives the end of the job in seconds since 1970, None when it has none; asked again
                when the time has come, since limits of jobs are changed.

        Raises:
            ValueError: no time is left to train in.
        """
        end = ask()
        if end is None:
            return
        left = end - time.time()
        if left <= seconds:
            raise ValueError(
                f"the Slurm job ends in {left / 60:.1f} minutes, which leaves no time to train: "
                f"limits.stop_before_end_minutes is {seconds / 60:g}; ask for more with --time, "
                "or lower it"
            )
        self._end = _JobEnd(end=end, lead=seconds, ask=ask)

    def request(self, stop: Stop) -> None:
        """Stop the job; the first request of all ranks counts."""
        if self._stop is not None:
            return
        if self._board is not None:
            # Posted before anything is done about it, so that whoever looks later finds it.
            self._board.post(json.dumps(asdict(stop)))
            stop = self._posted() or stop
        self._accept(stop)

    def agreed(self) -> Stop | None:
        """The request of all ranks, read anew; whatever a rank has acted on is in it."""
        posted = self._posted()
        if posted is not None:
            self._accept(posted)
        return self._stop

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a request end what the main thread does in here, as Ctrl-C would.

        Raises:
            StopRequested: anywhere inside, and at the start when there is a request already.
        """
        self._interruptible = True
        try:
            if self._stop is not None:
                raise StopRequested(self._stop)
            yield
        finally:
            self._interruptible = False

    def close(self) -> None:
        """End the thread; signals that come later have no effect, not even while Python exits."""
        if self._listens:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _posted(self) -> Stop | None:
        text = None if self._board is None else self._board.read()
        return None if text is None else Stop(**json.loads(text))

    def _accept(self, stop: Stop) -> None:
        with self._lock:
            if self._stop is not None:
                return
            self._stop = stop
        logger.info("stopping (%s): runs in progress save after their next step", stop.reason)
        self._told.set()
        if self._listens and self._interruptible:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGUSR1)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, sooner or later; the thread has heard of the signal by itself."""
        if self._interruptible and self._stop is not None:
            raise StopRequested(self._stop)

    def _watch(self) -> None:
        while not self._closed.is_set():
            ready, _, _ = select.select([self._bell], [], [], _LOOK_SECONDS)
            with suppress(RuntimeError):  # rank 0 is gone: its loss ends the job, not this thread
                for number in self._bell.recv(64) if ready else b"":
                    self._heard(number)
                if self._stop is None:
                    self._look()

    def _heard(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if number == signal.SIGINT:
            if self._interrupted:
                os._exit(128 + number)
            self._interrupted = True
        name = signal.Signals(number).name
        if self._board is None:
            _leave_early(name)
        self.request(Stop(reason=name))

    def _look(self) -> None:
        self.agreed()
        if self._end is not None and self._end.is_near():
            at = datetime.fromtimestamp(self._end.end).strftime("%H:%M")
            self.request(Stop(reason=f"the Slurm job ends at {at}"))


@dataclass(slots=True)
class _JobEnd:
    """When the job is ended, and how long before it has to stop; seconds."""

    end: float
    lead: float
    ask: Callable[[], float | None]

    def is_near(self) -> bool:
        if time.time() < self.end - self.lead:
            return False
        asked, self.end = self.end, self.ask() or self.end
        return self.end <= asked


def _leave_early(name: str) -> None:
    rank = os.environ.get("RANK", "0")
    text = f"stopped by {name} while the job started; start the same command again\n"
    os.write(2, (text if rank == "0" else f"rank {rank}: {text}").encode())
    os._exit(STOPPED)


_of_this_process: StopRequest | None = None


def listen() -> StopRequest:
    """The request of this process; takes signals from the first call on."""
    global _of_this_process
    if _of_this_process is None:
        _of_this_process = StopRequest()
        _of_this_process.listen()
    return _of_this_process
