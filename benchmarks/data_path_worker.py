"""Processes that serve a loader each, in the loader's own environment, one question at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from data_path_environments import python_of

SCRIPTS: Final = Path(__file__).parent / "data_path_peers"


@dataclass(frozen=True, kw_only=True)
class LoaderKind:
    """How to start a loader.

    Attributes:
        title: in tables.
        environment: of the peer, or None for this one.
        script: in `data_path_peers/`.
        variables: of the process's environment.
        goal: how many times faster ours should be, or None.
    """

    title: str
    environment: str | None
    script: str
    variables: Mapping[str, str] = field(default_factory=dict)
    goal: float | None = None


class LoaderProcess:
    """A running loader; a context manager, at whose end it stops.

    Args:
        kind: of the loader.
        peers: folder of the environments.
        workload: folder of the tokens; the process's messages go to a file there.
    """

    def __init__(self, kind: LoaderKind, *, peers: Path, workload: Path) -> None:
        self.kind = kind
        python = "" if kind.environment is None else str(python_of(peers, kind.environment))
        self._log = workload / f"{kind.script}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python or sys.executable, str(SCRIPTS / kind.script), str(workload)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=workload,
                env={**os.environ, "OMP_NUM_THREADS": "1", **kind.variables},
            )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            RuntimeError: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            tail = self._log.read_text(errors="replace").strip().splitlines()[-15:]
            raise RuntimeError(f"{self.kind.title} ended at {command!r}:\n" + "\n".join(tail))
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # a peer's threads may keep it alive
            self._process.kill()
            self._process.wait()
