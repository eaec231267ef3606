"""Which code made a result: commit and library versions."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__

_LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "scipy")


@cache
def library_versions() -> dict[str, str]:
    """Versions of autoscale, Python and what changes losses."""
    versions = {"autoscale": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def commit() -> str | None:
    """Commit of the checkout that the package runs from, with `+changes` when it is modified."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments],
            check=True, capture_output=True, text=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its repository


@cache
def source_digest() -> str:
    """Digest of the package's source files: tells apart what one commit with changes does not."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
