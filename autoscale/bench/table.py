"""A benchmark on the terminal: a table for every objective."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from ..tables import new_table, stacked
from .report import ranked, share


def bench_table(summary: Mapping[str, Any]) -> RenderableType:
    """Final objective, difference from uniform, and what it saves, best first."""
    return stacked([_of_objective(section, summary) for section in summary["objectives"]])


def _of_objective(section: Mapping[str, Any], summary: Mapping[str, Any]) -> RenderableType:
    level = f"{summary['confidence']:.0%}"
    table = new_table(f"{section['name']}, {section['unit']}")
    table.add_column("method", no_wrap=True)
    for name in ("final", f"less uniform ({level})", "", f"tokens saved ({level})", "probes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ranked(section):
        standing = row["standing"]
        if standing is None:
            table.add_row(row["method"], "no result")
            continue
        found = standing["difference"]
        between = "" if found["low"] is None else f" ({found['low']:+.4f} to {found['high']:+.4f})"
        table.add_row(
            row["method"],
            f"{standing['final']['mean']:.4f}",
            f"{found['mean']:+.4f}{between}",
            "" if row["method"] == "uniform" else found["verdict"],
            share(standing["annealed"]),
            str(row["probe_runs"]),
        )
    return table
