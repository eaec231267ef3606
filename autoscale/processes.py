"""Processes of this machine: what the kernel says of one, and ending with its starter."""

import ctypes
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux


def end_with_whoever_started_this() -> None:
    """Let the kernel kill this process when its parent ends, even while it is stopped."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stat_fields(pid: int) -> list[str] | None:
    """Fields of `/proc/<pid>/stat` from the state on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before may hold anything
