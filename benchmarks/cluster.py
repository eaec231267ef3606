"""Figures of campaigns and long runs: probe throughput, checkpoints, restarts, faults.

    python benchmarks/cluster.py [--only throughput,overhead,checkpoints,restarts,faults]

Each section is measured by itself and kept in `cluster.json`; `cluster.md` is written from that.
Sections that are not asked for stay as they were, each with its own date.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from cluster_jobs import Setting
from cluster_recovery import (
    checkpoint_lines,
    fault_lines,
    measure_checkpoints,
    measure_faults,
    measure_restarts,
    restart_lines,
)
from cluster_throughput import (
    measure_overhead,
    measure_throughput,
    overhead_lines,
    throughput_lines,
)
from result_sections import write_sections

from autoscale.provenance import commit

Measure = Callable[[Setting], dict[str, Any]]
Lines = Callable[[dict[str, Any]], Iterator[str]]
SECTIONS: dict[str, tuple[str, Measure, Lines]] = {
    "throughput": ("Probe throughput", measure_throughput, throughput_lines),
    "overhead": ("Seconds around the training", measure_overhead, overhead_lines),
    "checkpoints": ("Cost of checkpoints", measure_checkpoints, checkpoint_lines),
    "restarts": ("Restart after a kill", measure_restarts, restart_lines),
    "faults": ("Faults survived", measure_faults, fault_lines),
}
TITLE = """# Clusters: figures of campaigns and restarts

Written by `python benchmarks/cluster.py`; the numbers behind it are in `cluster.json`.
"""


def main() -> None:
    """Measure the sections asked for; write both files after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "autoscale_cluster"
    )
    parser.add_argument("--rounds", type=int, default=4, help="of all arms in turn")
    parser.add_argument("--steps", type=int, default=150, help="of runs whose speed is measured")
    parser.add_argument("--kills", type=int, default=6, help="restarts that are timed")
    parser.add_argument("--faults", type=int, default=40, help="kills of the fault suite")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := [name for name in asked if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        folder=arguments.folder.absolute(),
        rounds=arguments.rounds,
        steps=arguments.steps,
        kills=arguments.kills,
        faults=arguments.faults,
    )
    kept = arguments.output.with_suffix(".json")
    measured = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in asked:
        start, load = time.perf_counter(), os.getloadavg()[0]
        data = SECTIONS[name][1](setting)
        took = time.perf_counter() - start
        head = f"{_circumstances()}, load {load:.1f} before, {took:.0f} s."
        measured[name] = {"circumstances": head, "data": data}
        kept.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        _write(arguments.output, measured)


def _write(path: Path, measured: dict[str, Any]) -> None:
    content = {}
    for name, (title, _, lines) in SECTIONS.items():
        if name in measured:
            text = [measured[name]["circumstances"], "", *lines(measured[name]["data"])]
            content[title] = "\n".join(text) + "\n"
    write_sections(path, TITLE, content, list(content))


def _circumstances() -> str:
    code, _, changes = (commit() or "unknown").partition("+")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed"))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{date.today()}, commit {code[:7]}{' with changes' * bool(changes)}, Python "
        f"{platform.python_version()}, {libraries}, {names[0] if names else platform.machine()}, "
        f"{os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
