"""Artifacts on disk: JSON with a kind and a schema version, written whole or not at all."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space within the quota",
    errno.EROFS: "make the disk writable",
    errno.EACCES: "give this user the right to write there",
}


@contextlib.contextmanager
def naming_what_is_written(path: Path) -> Iterator[None]:
    """Errors of the system say what could not be written and what helps.

    Raises:
        OSError: what is done in here raised one.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "mend that")
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; {remedy} and start again"
        ) from error


def write_text(path: Path, text: str) -> Path:
    """Write through a temporary name and `os.replace`, so that readers never see half a file.

    Raises:
        OSError: it cannot be written; what stood at `path` before still does.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> Path:
    """The same with bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming_what_is_written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    return path


def write_json(path: Path, kind: str, payload: Mapping[str, Any]) -> Path:
    """Write one artifact; NaN and infinity are refused, since JSON has no word for them."""
    document = {"kind": kind, "schema_version": SCHEMA_VERSION, **payload}
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read one artifact.

    Raises:
        ValueError: the file is missing, is no JSON, is of another kind, or of another schema
            version than this version of autoscale reads.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected the {kind} written by an earlier step")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); write it again") from error
    found = document.get("kind") if isinstance(document, dict) else None
    if found != kind:
        raise ValueError(f"{path} is of kind {found!r}; expected {kind!r}")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} ({kind}) has schema version {version!r}; this version of autoscale reads "
            f"{SCHEMA_VERSION}: use the version that wrote it, or write it again"
        )
    return dict(document)
