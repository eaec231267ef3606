"""Figures of what a law says of the probe runs: its curves, or its predictions beside the runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .figure_style import INK, LINE_STYLES, STYLE, domain_colour, domain_marker, mixture_colour
from .scaling_law import PowerLaw
from .token_count import format_token_count

Summary = Mapping[str, Any]


def fitted_curves(summary: Summary) -> dict[str, Figure]:
    """One small figure a domain: the fitted law of every probe budget with its points."""
    if summary["fit"] is None or not summary["experiment"]["published"]:
        return {}
    limits = _shared_limits(summary)
    return {name: _fitted_curve(summary, name, limits) for name in summary["domains"]}


def _fitted_curve(summary: Summary, name: str, limits: tuple[float, float]) -> Figure:
    colour, marker = domain_colour(summary, name), domain_marker(summary, name)
    budgets = summary["fit"]["budgets"]
    factors = sorted({p["factor"] for b in budgets for p in b["points"] if p["domain"] == name})
    low, high = min(factors, default=1 / 3), max(factors, default=3.0)
    x = np.geomspace(min(low, 1) / 1.25, max(high, 1) * 1.25, 60)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.75, 2.15))
        axes = figure.subplots(
            gridspec_kw={"left": 0.21, "right": 0.98, "bottom": 0.12, "top": 0.89}
        )
        axes.axhline(0, color=INK, linewidth=0.7)
        for index, budget in enumerate(budgets):
            last = index == len(budgets) - 1
            law = PowerLaw.from_dict(next(r for r in budget["laws"] if r["domain"] == name))
            base = budget["base_objective"]
            axes.plot(
                x, base * (law(x) - law(1.0)), color=colour, linewidth=1.8 if last else 1.2,
                linestyle="-" if last else LINE_STYLES[1 + index % 3],
            )  # fmt: skip
            own = [p for p in budget["points"] if p["domain"] in (name, None)]
            axes.plot(
                [p["factor"] if p["domain"] else 1.0 for p in own],
                [p["objective"] - base for p in own],
                marker, color=colour, markerfacecolor=colour if last else "none",
            )  # fmt: skip
            noise = budget["difference_noise"]
            if last and noise is not None:
                axes.axhspan(-2 * noise, 2 * noise, color=INK, alpha=0.10, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlim(x[0], x[-1])
        ticks = sorted({low, 1.0, high})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"\N{MULTIPLICATION SIGN}{value:.2g}")
        )
        axes.set_ylim(*limits)
        axes.set_title(name, color=colour, fontweight="bold", loc="left")
        axes.tick_params(labelsize=8.5)
    return figure


def _shared_limits(summary: Summary) -> tuple[float, float]:
    """One y range for all domains, so that effects compare by eye."""
    values = [0.0]
    for budget in summary["fit"]["budgets"]:
        values += [p["objective"] - budget["base_objective"] for p in budget["points"]]
        if budget["difference_noise"] is not None:
            values += [-2 * budget["difference_noise"], 2 * budget["difference_noise"]]
    margin = 0.08 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


class _Runs(NamedTuple):
    """Probe runs of one kind with the law's values."""

    predicted: list[float]
    observed: list[float]
    style: dict[str, Any]
    label: str

    @property
    def residuals(self) -> list[float]:
        return [y - x for x, y in zip(self.predicted, self.observed, strict=True)]


def objective_agreement(summary: Summary) -> Figure | None:
    """The objective of the probe runs against what the law says of them."""
    groups = _groups(summary, None, mixture_colour(0))
    if not groups:
        return None
    noise = summary["fit"]["budgets"][-1]["seed_noise"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        axes = figure.subplots()
        _agreement(axes, groups, noise)
        unit = summary["experiment"]["unit"]
        axes.set_xlabel(f"objective by the law, {unit}")
        axes.set_ylabel(f"of the run, {unit}")
        handles = [Line2D([], [], label=runs.label, **runs.style) for runs in groups]
        axes.legend(handles=handles, loc="upper left", fontsize=9)
    return figure


def set_residuals(summary: Summary) -> dict[str, Figure]:
    """One small figure a validation set: losses of the runs less the law's, against the law's."""
    if not _groups(summary, None, INK):
        return {}
    rows = summary["fit"]["sets"]
    groups = [_groups(summary, row["name"], domain_colour(summary, row["name"])) for row in rows]
    values = [abs(value) for of_set in groups for runs in of_set for value in runs.residuals]
    values += [2 * row["seed_noise"] for row in rows if row["seed_noise"] is not None]
    reach = 1.15 * max(values) or 0.01
    with matplotlib.rc_context(STYLE):
        return {
            row["name"]: _residual_figure(summary, row, of_set, reach)
            for row, of_set in zip(rows, groups, strict=True)
        }


def _residual_figure(
    summary: Summary, row: Mapping[str, Any], groups: Sequence[_Runs], reach: float
) -> Figure:
    figure = Figure(figsize=(2.75, 2.15))
    axes = figure.subplots(gridspec_kw={"left": 0.23, "right": 0.98, "bottom": 0.12, "top": 0.89})
    axes.axhline(0, color=INK, linewidth=0.7)
    noise = row["seed_noise"]
    if noise is not None:
        axes.axhspan(-2 * noise, 2 * noise, color=INK, alpha=0.10, linewidth=0)
    for runs in groups:
        axes.plot(runs.predicted, runs.residuals, **runs.style)
    axes.set_ylim(-reach, reach)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    colour = domain_colour(summary, row["name"])
    axes.set_title(row["name"], color=colour, fontweight="bold", loc="left")
    axes.tick_params(labelsize=8.5)
    return figure


def _groups(summary: Summary, of_set: str | None, colour: str) -> list[_Runs]:
    """Runs of the budgets that the law knows, the largest first and filled, references apart."""
    if summary["experiment"]["published"] or summary["fit"] is None:
        return []
    value = _value_of(of_set)
    groups = []
    for index, budget in enumerate(reversed(summary["fit"]["budgets"])):
        known = [point for point in budget["points"] if point["predicted"] is not None]
        where = format_token_count(budget["token_budget"])
        for is_reference, what, marker in ((False, "mixtures", "o"), (True, "reference", "D")):
            points = [point for point in known if point["is_reference"] is is_reference]
            ink = INK if is_reference else colour
            style = {
                "marker": marker, "linestyle": "none", "color": ink,
                "markerfacecolor": "none" if index else ink,
            }  # fmt: skip
            runs = _Runs(
                predicted=[value(point["predicted"]) for point in points],
                observed=[value(point) for point in points],
                style=style,
                label=f"{what} at {where}",
            )
            groups += [runs] if points else []
    return groups


def _value_of(of_set: str | None) -> Callable[[Mapping[str, Any]], float]:
    """What is drawn of a run: the objective, or the loss of one set."""
    if of_set is None:
        return lambda run: float(run["objective"])
    return lambda run: float(run["losses"][of_set])


def _agreement(axes: Axes, groups: Sequence[_Runs], noise: float | None) -> None:
    """Observed against predicted values, the line where they agree, and the noise about it."""
    values = [value for runs in groups for value in (*runs.predicted, *runs.observed)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    ends = np.array([min(values) - margin, max(values) + margin])
    axes.plot(ends, ends, color=INK, linewidth=0.8)
    if noise is not None:
        axes.fill_between(
            ends, ends - 2 * noise, ends + 2 * noise, color=INK, alpha=0.10, linewidth=0
        )
    for runs in groups:
        axes.plot(runs.predicted, runs.observed, **runs.style)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
