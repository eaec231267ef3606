"""Results of finished runs in one file: they outlive their folders, and are never repeated.

One line of JSON a run, sorted by its identity; `.gz` is compressed, with the same bytes for the
same runs. Models, logs and checkpoints stay behind.
"""

import gzip
import json
from pathlib import Path
from typing import Any

from .records import write_bytes
from .runs import RunStore


def keep_results(store: RunStore, path: Path) -> int:
    """Add all finished runs of a store to the file; returns how many it then holds."""
    known = _read(path)
    for result in sorted(store.root.glob("*/result.json")):
        content = json.loads(result.read_text(encoding="utf-8"))
        known[_identity(content)] = content
    lines = [json.dumps(known[identity], separators=(",", ":")) for identity in sorted(known)]
    data = "".join(line + "\n" for line in lines).encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(known)


def restore_results(path: Path, store: RunStore) -> int:
    """Put runs of the file that the store lacks into it; returns how many.

    Raises:
        ValueError: the file holds something else.
    """
    restored = 0
    for identity, content in _read(path).items():
        if not list(store.root.glob(f"*-{identity}/result.json")):
            folder = store.root / content["run_id"]
            text = json.dumps(content, indent=1) + "\n"
            write_bytes(folder / "result.json", text.encode())
            restored += 1
    return restored


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The runs of the file by identity; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        runs = [json.loads(line) for line in text.splitlines()]
        return {_identity(run): run for run in runs}
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise ValueError(
            f"bench.records {path} holds no results of runs ({error}); name another file, or "
            "restore this one"
        ) from error


def _identity(content: dict[str, Any]) -> str:
    if content["kind"] != "result":
        raise KeyError(f"kind is {content['kind']!r}")
    return str(content["run_id"]).rpartition("-")[2]
