"""The watch of a job: its ranks end together, with the first cause, when one of them is lost.

Every rank holds a connection of its own to rank 0, served by a thread, so that a main thread that
waits for other ranks does not hold it up. A rank is lost when

- its connection ends without a farewell: the process is gone, which its host says at once;
- its host leaves data unacknowledged for `CUT_OFF_AFTER` seconds: the host or its network is down;
- it is silent for `HUNG_AFTER` seconds, by the observer's own clock: the process is stopped.

Rank 0 watches all ranks and tells the others what it found; they watch rank 0. A rank that fails by
itself tells the others why before it leaves (`fail`). Then each has `GRACE` seconds to end in good
order, raising what `cause` says; one that waits in vain for a lost rank is ended by its thread.
"""

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from .claims import Owner

CUT_OFF_AFTER: Final = 20.0
HUNG_AFTER: Final = 60.0  # a long call that holds Python's lock must not look like a dead process
_BEATS: Final = 30  # in the time after which silence counts
GRACE: Final = 3.0
LAST_GRACE: Final = 10.0
_CONNECT_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Where rank 0 awaits the others, and a word that only they know."""

    host: str
    port: int
    word: str


@dataclass(slots=True)
class _Peer:
    """A rank at the other end of a connection."""

    rank: int
    owner: Owner
    connection: socket.socket
    heard: float = field(default_factory=time.monotonic)
    unread: bytes = b""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.owner})"

    def tell(self, **message: object) -> None:
        with contextlib.suppress(OSError):  # a lost peer is found when it is read from
            self.connection.send(json.dumps(message).encode() + b"\n")


class Welcome:
    """Rank 0 before the others have come: its address goes to them by another way."""

    def __init__(self, host: str) -> None:
        # All interfaces: the name of the host may stand for one that the others do not use.
        self._listener = socket.create_server(("", 0), backlog=4096)
        port = int(self._listener.getsockname()[1])
        self.meeting = Meeting(host=host, port=port, word=secrets.token_hex(16))

    def receive(self, world_size: int) -> list[_Peer]:
        """Ranks 1 to `world_size - 1`, in any order.

        Raises:
            TimeoutError: one of them did not come.
        """
        peers: dict[int, _Peer] = {}
        end = time.monotonic() + _CONNECT_SECONDS
        with self._listener:
            while len(peers) < world_size - 1:
                self._listener.settimeout(max(0.01, end - time.monotonic()))
                try:
                    connection, _ = self._listener.accept()
                    peer = _introduced(connection, self.meeting.word)
                except TimeoutError as error:
                    missing = sorted(set(range(1, world_size)) - set(peers))
                    raise TimeoutError(
                        f"rank {missing[0]} did not connect to rank 0 at port "
                        f"{self.meeting.port} within {_CONNECT_SECONDS:g} s; do firewalls allow "
                        "connections between the hosts?"
                    ) from error
                if peer is not None:
                    peers[peer.rank] = peer
        return list(peers.values())


def _introduced(connection: socket.socket, word: str) -> _Peer | None:
    """The rank behind a new connection; None when it is nobody of this job."""
    connection.settimeout(5.0)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        hello = json.loads(_first_line(connection))
        if secrets.compare_digest(str(hello["word"]), word):
            _introduce(connection, word, rank=0)
            return _Peer(int(hello["rank"]), Owner(**hello["owner"]), _prepared(connection))
    connection.close()
    return None


def _introduce(connection: socket.socket, word: str, rank: int) -> None:
    hello = {"word": word, "rank": rank, "owner": asdict(Owner.current())}
    connection.sendall(json.dumps(hello).encode() + b"\n")


def join(meeting: Meeting, rank: int) -> list[_Peer]:
    """What ranks but 0 watch: rank 0.

    Raises:
        OSError: it cannot be reached.
    """
    connection = socket.create_connection((meeting.host, meeting.port), timeout=_CONNECT_SECONDS)
    _introduce(connection, meeting.word, rank)
    hello = json.loads(_first_line(connection))
    return [_Peer(0, Owner(**hello["owner"]), _prepared(connection))]


def _first_line(connection: socket.socket) -> bytes:
    """The first line, and nothing of what follows it, which is for the watch."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("a rank left while the job was starting")
        line += byte
    return line


def _prepared(connection: socket.socket) -> socket.socket:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel gives a connection up whose other end acknowledges nothing; beats see to it that
    # there always is something to acknowledge.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(CUT_OFF_AFTER * 1000))
    return connection


class JobWatch:
    """This rank's part of the watch, until `leave` or `fail`.

    Args:
        peers: the ranks that it watches.
        hung_after: seconds of silence after which a process counts as stopped.
        grace: seconds that this process has to end by itself.

    Attributes:
        root_is_lost: rank 0 tells the user why the job ends; without it every rank does.
    """

    def __init__(
        self,
        rank: int,
        peers: list[_Peer],
        *,
        hung_after: float = HUNG_AFTER,
        grace: float = GRACE,
    ) -> None:
        self._rank, self._hung_after, self._grace = rank, hung_after, grace
        self._owner = Owner.current()
        self._peers = {peer.rank: peer for peer in peers}
        self._selector = selectors.DefaultSelector()
        for peer in peers:
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._cause: str | None = None
        self._known, self._left, self._heeded = (threading.Event() for _ in range(3))
        self.root_is_lost = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="job-watch")
        if peers:
            self._thread.start()

    def cause(self, seconds: float = 0.0) -> str | None:
        """Why the job ends; None when there is no reason, or none came up within `seconds`.

        Who gets one ends this process in good order and soon.
        """
        if not self._known.wait(seconds):
            return None
        self._heeded.set()
        return self._cause

    def fail(self, message: str) -> str:
        """Tell the other ranks why this one leaves, which ends the job; what they are told."""
        self._leave()
        cause = f"rank {self._rank} ({self._owner}) failed: {message}"
        for peer in list(self._peers.values()):
            peer.tell(cause=cause)
        return cause

    def leave(self) -> None:
        """Bid farewell: this rank has done its part, and the others may go on without it."""
        self._leave()
        for peer in list(self._peers.values()):
            peer.tell(farewell=True)

    def _leave(self) -> None:
        self._left.set()
        self._heeded.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        next_beat = 0.0
        while not self._left.is_set() and self._peers and not self._known.is_set():
            for key, _ in self._selector.select(_LOOK_SECONDS):
                self._read(key.data)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._hung_after / _BEATS
                for peer in self._peers.values():
                    peer.tell(beat=True)
            for peer in list(self._peers.values()):
                if now - peer.heard > self._hung_after:
                    self._lose(
                        peer,
                        f"gave no sign of life for {self._hung_after:g} s: it hangs",
                        hung=True,
                    )
        if self._known.is_set() and not self._left.is_set():
            self._end()

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(65536)
        except BlockingIOError:
            return
        except (TimeoutError, OSError) as error:
            if isinstance(error, ConnectionResetError | BrokenPipeError):
                data = b""
            else:  # the kernel gave it up: no answer, or no way to the host
                self._lose(
                    peer, f"cannot be reached any more ({error}): its host or the network is down"
                )
                return
        if not data:
            self._lose(peer, "is gone: it was killed, or crashed")
            return
        peer.heard = time.monotonic()
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "cause" in message:
                self._found(message["cause"], message.get("hung"))
            elif "farewell" in message:
                self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        del self._peers[peer.rank]

    def _lose(self, peer: _Peer, what: str, *, hung: bool = False) -> None:
        self.root_is_lost = self.root_is_lost or peer.rank == 0
        self._drop(peer)
        self._found(f"{peer} {what}", asdict(peer.owner) if hung else None)

    def _found(self, cause: str, hung: dict[str, Any] | None) -> None:
        """The first cause counts; those after it follow from it."""
        if self._known.is_set():
            return
        self._cause = cause
        if self._rank == 0:
            for peer in self._peers.values():
                peer.tell(cause=cause, hung=hung)
        if hung is not None:
            _kill(Owner(**hung))
        self._known.set()

    def _end(self) -> None:
        """End this process, unless its main thread does so in time."""
        if self._heeded.wait(self._grace):
            if self._left.wait(LAST_GRACE):
                return
        elif self._rank == 0 or self.root_is_lost:
            tell_end(self._rank, str(self._cause))
        sys.stdout.flush()
        os._exit(1)


def _kill(owner: Owner) -> None:
    """End a stopped process of this machine, and all that it started: none can end by itself."""
    if not owner.is_here or owner.is_gone():
        return
    for pid in [owner.pid, *_descendants(owner.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            for child in map(int, path.read_text(encoding="ascii").split()):
                found += [child, *_descendants(child)]
    return found


def tell_end(rank: int, cause: str) -> None:
    """The one message of a job that ends because of one of its ranks."""
    prefix = "error" if rank == 0 else f"rank {rank}: error"
    sys.stderr.write(
        f"{prefix}: {cause}; the job ends. Finished runs are kept, start it again to go on\n"
    )
    sys.stderr.flush()
