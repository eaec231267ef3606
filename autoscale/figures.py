"""Figures of the report: matplotlib figures drawn from a summary.

Every function takes the dict of `summary.summarise` and returns a `Figure`, or None when the stage
that it shows has not run.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    NullFormatter,
    NullLocator,
)

from .figure_style import (
    INK,
    LINE_STYLES,
    STYLE,
    domain_colour,
    domain_marker,
    mixture_colour,
    mixture_index,
)
from .token_count import round_token_count

Summary = Mapping[str, Any]

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
_WIDTH = 5.4  # inches; pages show it wider on a screen and narrower on a phone


def target_weights(summary: Summary) -> Figure | None:
    """Bars: the weights chosen for the target; marks: the mixtures that it is compared with.

    With a joint law, lines are the intervals of the weights.
    """
    chosen = summary["decision"] or summary["projection"]
    if chosen is None:
        return None
    domains, weights = summary["domains"], chosen["weights"]
    low, high = (chosen.get(key) or weights for key in ("low", "high"))
    others = list(enumerate(summary["baselines"], start=1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.36 * len(domains) + 0.2 * bool(others)))
        axes = figure.subplots()
        rows = np.arange(len(domains))
        axes.barh(
            rows, [weights[name] for name in domains], height=0.62, alpha=0.6,
            color=[domain_colour(summary, name) for name in domains],
        )  # fmt: skip
        if chosen.get("low") is not None:
            axes.hlines(
                rows, [low[name] for name in domains], [high[name] for name in domains],
                color=INK, linewidth=1.6,
            )  # fmt: skip
        markers = cycle(("D", "|", "x", "+", "^"))
        handles = []
        for (index, mixture), marker in zip(others, markers, strict=False):
            style: dict[str, Any] = {
                "marker": marker, "color": mixture_colour(index), "linestyle": "none",
                "markersize": 11 if marker == "|" else 5.5,
                "markeredgewidth": 2.0 if marker in "|x+" else 1.0,
                "markeredgecolor": mixture_colour(index), "markerfacecolor": "none",
            }  # fmt: skip
            axes.plot([mixture["weights"][name] for name in domains], rows, **style)
            handles.append(Line2D([], [], label=mixture["name"], **style))
        top = max(max(found.values()) for found in (high, *(m["weights"] for _, m in others)))
        for row, name in zip(rows, domains, strict=True):
            place = max([high[name], *(m["weights"][name] for _, m in others)])
            axes.text(
                place + 0.04 * top, float(row), f"{weights[name]:.1%}", va="center", fontsize=9
            )
        axes.set_yticks(rows, domains)
        axes.invert_yaxis()
        axes.set_xlim(0, top * 1.16)
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if handles:
            figure.legend(
                handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9
            )
        figure.set_layout_engine("constrained")
    return figure


def projection_path(summary: Summary) -> Figure | None:
    """Weights against token budget: the optima, the paper's path, and the mixture chosen.

    None for a joint law with one probe budget, which shows no path.
    """
    projection, fit = summary["projection"], summary["fit"]
    if projection is None or fit is None:
        return None
    if len(fit["budgets"]) < 2 and not summary["experiment"]["published"]:
        return None
    optima = [(b["token_budget"], b["solution"]["weights"]) for b in fit["budgets"]]
    target, path = projection["token_budget"], projection["path"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.5), layout="constrained")
        axes = figure.subplots()
        for name in summary["domains"]:
            colour, marker = domain_colour(summary, name), domain_marker(summary, name)
            chosen = projection["weights"][name]
            axes.plot(
                [tokens for tokens, _ in optima], [weights[name] for _, weights in optima],
                marker=marker, color=colour, linewidth=1.7,
            )  # fmt: skip
            last_tokens, last_weights = optima[-1]
            axes.plot(
                [last_tokens, target],
                [last_weights[name], chosen],
                color=colour,
                linestyle="--",
                linewidth=1.2,
            )
            axes.plot(target, chosen, marker, color=colour, markersize=9)
            if path is not None:
                axes.plot(
                    path["token_budgets"],
                    path["weights"][name],
                    color=colour,
                    linestyle=":",
                    linewidth=1.3,
                )
        budgets = sorted({*(tokens for tokens, _ in optima), target})
        _token_axis(axes, budgets, label="token budget")
        axes.set_xlim(budgets[0] / 1.15, budgets[-1] * 1.15)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.set_ylabel("weight")
        _end_labels(
            axes,
            [
                (name, projection["weights"][name], domain_colour(summary, name))
                for name in summary["domains"]
            ],
        )
        styles = [
            ("-", "o", "optimum at a probe budget"),
            ("--", "o", f"chosen ({projection['projection']})"),
        ]
        if path is not None:
            styles.append((":", "", "the paper's path, no bounds"))
        handles = [
            Line2D([], [], color=INK, linestyle=s, marker=m, label=label) for s, m, label in styles
        ]
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=len(handles),
            fontsize=8,
            columnspacing=1.2,
        )
    return figure


def loss_curves(summary: Summary) -> Figure | None:
    """Loss against tokens of every mixture, and below it the distance to the first baseline."""
    targets = summary["targets"]
    curves = (
        {}
        if targets is None
        else {m["name"]: m["curve"] for m in summary["mixtures"] if m.get("curve")}
    )
    if not curves:
        return None
    names = list(curves)
    index_of = {name: mixture_index(summary, name) for name in names}
    against = next((name for name in names if name != "autoscale"), None)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 4.4 if against else 3.0), layout="constrained")
        panels = figure.subplots(
            2 if against else 1,
            sharex=True,
            squeeze=False,
            height_ratios=[3, 2] if against else None,
        )[:, 0]
        upper: Axes = panels[0]
        for name in names:
            curve, colour = curves[name], mixture_colour(index_of[name])
            style: dict[str, Any] = {
                "color": colour, "linestyle": LINE_STYLES[index_of[name] % 4],
                "linewidth": 2.2 if name == "autoscale" else 1.6,
            }  # fmt: skip
            upper.plot(curve["tokens"], curve["mean"], label=name, **style)
            upper.fill_between(
                curve["tokens"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0
            )
            if against is not None and name != against:
                _difference(panels[1], curve, curves[against], style)
        upper.set_ylabel("mean validation loss, nats")
        upper.legend(fontsize=9)
        if against is not None:
            lower: Axes = panels[1]
            lower.axhline(
                0,
                color=mixture_colour(index_of[against]),
                linewidth=1.6,
                linestyle=LINE_STYLES[index_of[against] % 4],
            )
            noise = targets["seed_noise"]["difference"]
            if noise is not None:
                lower.axhspan(-2 * noise, 2 * noise, color=INK, alpha=0.10, linewidth=0)
            lower.set_ylabel(f"minus {against}")
        tokens = curves[names[0]]["tokens"]
        _token_axis(panels[-1], _sparse(tokens), label="tokens seen")
    return figure


def _difference(
    axes: Axes, curve: Mapping[str, Any], other: Mapping[str, Any], style: Mapping[str, Any]
) -> None:
    if curve["tokens"] == other["tokens"]:
        axes.plot(
            curve["tokens"],
            np.subtract(curve["mean"], other["mean"]),
            marker="o",
            markersize=3,
            **style,
        )


def _sparse(tokens: Sequence[int]) -> list[int]:
    """Ticks at most of the points that are a factor of 1.4 apart, the last one included."""
    kept: list[int] = []
    for count in sorted(tokens, reverse=True):
        if not kept or kept[-1] / count > 1.4:
            kept.append(count)
    return kept


def _token_axis(axes: Axes, ticks: Sequence[int], *, label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: round_token_count(value)))
    axes.set_xlabel(label)


def _end_labels(axes: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Names at the right edge, moved apart where they would overlap."""
    bottom, top = axes.get_ylim()
    gap = 0.065 * (top - bottom)
    place = bottom - gap
    for name, value, colour in sorted(labels, key=lambda item: item[1]):
        place = max(value, place + gap)
        axes.annotate(
            name, (1.0, place), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", color=colour, va="center", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip
