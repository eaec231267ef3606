"""A benchmark as a page, as Markdown and as the same numbers in JSON."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..config import ExperimentConfig
from ..figure_style import colour_variables, to_svg
from ..progress import format_seconds
from ..records import write_json, write_text
from ..stages import artifact
from ..token_count import format_token_count, round_token_count
from .figures import differences, objective_curves
from .summary import summarise_bench

Row = Mapping[str, Any]


def report_bench(config: ExperimentConfig) -> Path:
    """Write bench.json, bench.md and bench.html into the experiment's folder.

    Returns:
        The path of bench.html.
    """
    summary = summarise_bench(config)
    path = write_json(artifact(config, "bench"), "bench", summary)
    write_text(path.with_suffix(".md"), render(summary, "bench.md.j2"))
    return write_text(path.with_suffix(".html"), render(summary, "bench.html.j2"))


def render(summary: Mapping[str, Any], template: str) -> str:
    """A summary by one of the two templates."""
    environment = Environment(
        loader=PackageLoader("autoscale"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value, digits=1: f"{value:.{digits}%}",
        "tokens": format_token_count,
        "about": round_token_count,
        "seconds": format_seconds,
        "share": share,
        "signed": lambda value, digits=4: f"{value:+.{digits}f}",
        "ranked": ranked,
        "perplexity": math.exp,
    }
    figures = {}
    if template.endswith(".html.j2"):
        for number, section in enumerate(summary["objectives"]):
            figures[section["name"]] = [
                Markup(to_svg(draw(section), f"{draw.__name__}{number}", about))
                for draw, about in (
                    (differences, "Final objective of every method less that of uniform"),
                    (objective_curves, "Objective against tokens of every method"),
                )
            ]
    return environment.get_template(template).render(
        s=summary,
        figures=figures,
        light=colour_variables("light"),
        dark=colour_variables("dark"),
    )


def share(estimate: Row | None) -> str:
    """An estimate as a percentage with its interval, such as `8.1% (2.0% to 14.2%)`."""
    if estimate is None:
        return "-"
    mean, low, high = (
        None if estimate[key] is None else f"{round(estimate[key], 3) + 0:.1%}"
        for key in ("mean", "low", "high")
    )
    return str(mean) if low is None else f"{mean} ({low} to {high})"


def ranked(section: Row) -> list[Row]:
    """The rows of an objective, best final mean first; those without runs last."""
    return sorted(
        section["rows"],
        key=lambda row: row["standing"]["final"]["mean"] if row["standing"] else float("inf"),
    )
