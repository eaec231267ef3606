"""Figures of a benchmark, drawn from one objective of its summary."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..figure_style import INK, STYLE, mixture_colour
from ..token_count import round_token_count

Section = Mapping[str, Any]

_WIDTH = 5.8
_NUM_DRAWN = 6  # curves that can be told apart


def _finished(section: Section) -> list[Mapping[str, Any]]:
    """Rows with results, best first."""
    rows = [row for row in section["rows"] if row["standing"] is not None]
    return sorted(rows, key=lambda row: row["standing"]["final"]["mean"])


def differences(section: Section) -> Figure:
    """Each method's final objective less uniform's, with its interval; left is better."""
    rows = [row for row in _finished(section) if row["method"] != "uniform"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.9 + 0.3 * len(rows)))
        axes = figure.subplots()
        for place, row in enumerate(rows):
            found = row["standing"]["difference"]
            colour = mixture_colour(0 if row["method"] == "joint" else 1)
            if found["low"] is not None:
                axes.hlines(place, found["low"], found["high"], color=colour, linewidth=2)
            axes.plot(found["mean"], place, "o", color=colour, markersize=5)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(f"final objective less uniform's, {section['unit']}")
        axes.grid(visible=True, axis="x", alpha=0.3)
        figure.set_layout_engine("constrained")
    return figure


def objective_curves(section: Section) -> Figure:
    """Objective against tokens, mean and range of the seeds: uniform and the best methods."""
    rows = _finished(section)
    searched = [row for row in rows if row["method"].startswith("search-")][:1]
    methods = [row for row in rows if not row["method"].startswith(("search-", "uniform"))]
    uniform = [row for row in rows if row["method"] == "uniform"]
    drawn = [*uniform, *searched, *methods][:_NUM_DRAWN]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4))
        axes = figure.subplots()
        for index, row in enumerate(drawn):
            tokens = np.array(row["curves"][0]["tokens"])
            values = np.array([curve["objectives"] for curve in row["curves"]])
            later = tokens >= tokens[-1] / 4  # the differences are small beside the first fall
            colour = mixture_colour(index)
            axes.plot(tokens[later], values.mean(axis=0)[later], color=colour, label=row["method"])
            axes.fill_between(
                tokens[later], values.min(axis=0)[later], values.max(axis=0)[later],
                color=colour, alpha=0.15, linewidth=0,
            )  # fmt: skip
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: round_token_count(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("tokens")
        axes.set_ylabel(f"objective, {section['unit']}")
        axes.legend(frameon=False)
        figure.set_layout_engine("constrained")
    return figure
