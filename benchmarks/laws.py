"""Figures of the mixture laws on public tables and in simulation, as dated Markdown.

    python benchmarks/laws.py ../shared/tables [--only regmix,speed] [--output benchmarks/laws.md]

Sections that are not asked for stay in the file as they were, each with its own date.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the figures are of one core

from law_measure import SEED
from law_official import official
from law_regmix import coverage, regmix
from law_simulation import simulation
from law_speed import speed
from law_t61 import t61
from result_sections import read_sections, write_sections

from autoscale.provenance import commit

Section = Callable[[Path], Iterator[str]]

SECTIONS: dict[str, tuple[str, Section]] = {
    "regmix": ("RegMix: ranks of held-out mixtures", regmix),
    "t61": ("T61: held-out mixtures, sizes and tokens", t61),
    "official": ("The official 15 runs", official),
    "coverage": ("Coverage of intervals", coverage),
    "speed": ("Speed", speed),
    "simulation": ("Simulation: regret of decisions", simulation),
}
TITLE = """# Mixture laws: figures on public tables and in simulation

Written by `python benchmarks/laws.py ../shared/tables`. Goals were set before the laws were made.
RegMix and T61 were looked at meanwhile (priors, forms, what `auto` may choose), so that their
figures are of development; subsets and draws are of seeds that were not. Losses are in nats a
token. Not shown: models above 1.2B parameters, bits per byte, tables of other makers, and a target
run on a mixture chosen here.
"""
PACKAGES = ("numpy", "scipy", "lightgbm")


def main() -> None:
    """Run the sections asked for and write the file after every line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, help="folder with regmix/, t61/ and autoscale/")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := [name for name in asked if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
    titles = [title for title, _ in SECTIONS.values()]
    content = read_sections(arguments.output)
    for name in asked:
        title, section = SECTIONS[name]
        start = time.process_time()
        lines: list[str] = []
        for line in section(arguments.tables):
            print(line, flush=True)
            lines.append(line)
            took = time.process_time() - start
            content[title] = (
                "\n".join([f"{_circumstances()}, {took:.0f} s of processor time.", *lines]) + "\n"
            )
            write_sections(arguments.output, TITLE, content, titles)


def _circumstances() -> str:
    code, _, changes = (commit() or "unknown").partition("+")
    libraries = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{date.today()}, commit {code[:7]}{' with changes' * bool(changes)}, seed {SEED}, Python "
        f"{platform.python_version()}, {libraries}, {os.cpu_count()} cores ({platform.machine()}), "
        "one thread"
    )


if __name__ == "__main__":
    main()
