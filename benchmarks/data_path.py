"""Figures of the data path beside other loaders, as dated Markdown.

    python benchmarks/data_path.py --peers ../peers [--only throughput,gather]

Makes an environment for each peer under the folder of peers (from PyPI), and the tokens under
`--folder`; both stay for the next run. Sections that are not asked for stay in the file as they
were, each with its own date.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: one thread for all

from data_path_deviation import deviation
from data_path_environments import make_environments, versions
from data_path_gather import gather
from data_path_permutation import permutation
from data_path_setup import setup
from data_path_step import step
from data_path_throughput import Setting, resume, throughput
from data_path_workload import make_workload
from result_sections import read_sections, write_sections

from autoscale.provenance import commit

SECTIONS: dict[str, tuple[str, Callable[[Setting], Iterator[str]]]] = {
    "throughput": ("Throughput in process", throughput),
    "gather": ("Against a bare C gather", gather),
    "resume": ("Set-up and resume", resume),
    "setup": ("Set-up and memory by number of samples", setup),
    "step": ("Share of a training step", step),
    "deviation": ("Deviation from the weights", lambda setting: deviation()),
    "permutation": ("Permutations", lambda setting: permutation()),
}
WITH_PEERS = ("throughput", "resume", "setup")
TITLE = """# Data path: figures beside other loaders

Written by `python benchmarks/data_path.py --peers ../peers`. Each loader in its best documented
configuration without worker processes (`data_path_peers/` says which). Goals were set before.
"""


def main() -> None:
    """Run the sections asked for and write the file after every line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="folder of their environments")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "autoscale_data_path"
    )
    parser.add_argument("--tokens", type=int, default=420_000_000, help="of all domains")
    parser.add_argument("--rounds", type=int, default=24, help="pairs of rounds")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument("--starts", type=int, default=5, help="fresh processes for set-up")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := [name for name in asked if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
    make_environments(arguments.peers)
    setting = Setting(
        peers=arguments.peers.absolute(),
        workload=make_workload(arguments.folder.absolute(), arguments.tokens),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        starts=arguments.starts,
    )
    titles = [title for title, _ in SECTIONS.values()]
    content = read_sections(arguments.output)
    peers = versions(arguments.peers)
    for name in asked:
        title, section = SECTIONS[name]
        start = time.perf_counter()
        circumstances = _circumstances(peers if name in WITH_PEERS else "")
        lines: list[str] = []
        for line in section(setting):
            print(line, flush=True)
            lines.append(line)
            took = time.perf_counter() - start
            head = f"{circumstances}, load {os.getloadavg()[0]:.1f}, {took:.0f} s."
            content[title] = "\n".join([head, "", *lines]) + "\n"
            order = [*titles, *(each for each in content if each not in titles)]  # then the remarks
            write_sections(arguments.output, TITLE, content, order)


def _circumstances(peers: str) -> str:
    code, _, changes = (commit() or "unknown").partition("+")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch"))
    beside = f", {peers}" if peers else ""
    return (
        f"{date.today()}, commit {code[:7]}{' with changes' * bool(changes)}, Python "
        f"{platform.python_version()}, {libraries}{beside}, {_processor()}, {os.cpu_count()} cores"
    )


def _processor() -> str:
    """Name of the processor; on Linux what `/proc/cpuinfo` says."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
