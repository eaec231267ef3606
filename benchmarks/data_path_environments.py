"""Environments of their own for the loaders that the data path is measured against.

Each peer is installed from PyPI into a virtual environment under one folder, with the versions that
stand here; some of them pin older numpy or torch than the project has. An environment that already
holds these versions is left as it is.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

REQUIREMENTS: Final[dict[str, tuple[str, ...]]] = {
    "grain": ("grain==0.2.18",),
    "litdata": ("litdata==0.2.76", "torch==2.13.0"),
    "megatron": ("megatron-core==0.16.1", "torch==2.13.0", "pybind11", "numpy"),
    "streaming": ("mosaicml-streaming==0.13.0", "torch==2.15.0", "torchvision==0.29.2"),
}
"""What is installed for each peer; the first package is the peer."""

_STAMP: Final = "installed_for_benchmark"


def make_environments(folder: Path) -> None:
    """Create or complete the environment of every peer under `folder`."""
    for name, requirements in REQUIREMENTS.items():
        stamp = folder / name / _STAMP
        wanted = "\n".join(requirements)
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            continue
        print(f"installing {', '.join(requirements)} into {folder / name}", file=sys.stderr)
        if not python_of(folder, name).exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        command = [str(python_of(folder, name)), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(command, check=True)
        stamp.write_text(wanted, encoding="utf-8")


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / name / "bin" / "python"


def versions(folder: Path) -> str:
    """Versions of the peers, of their numpy and torch, and nothing else."""
    lines = []
    for name, requirements in REQUIREMENTS.items():
        packages = [requirements[0].partition("==")[0], "numpy", "torch"]
        script = (
            "from importlib.metadata import version, PackageNotFoundError\n"
            f"for package in {packages}:\n"
            "    try: print(package, version(package))\n"
            "    except PackageNotFoundError: pass\n"
        )
        command = [str(python_of(folder, name)), "-c", script]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        first, *others = found.splitlines()
        lines.append(f"{first} ({', '.join(others)})")
    return ", ".join(lines)
