"""Figures of the report: matplotlib figures drawn from a summary, and their form as inline SVG.

Every function takes the dict of `summary.summarise` and returns a `Figure`, or None when the stage
that it shows has not run. `to_svg` makes text for a page: ink and colours become CSS variables, so
that one drawing is legible on light and on dark paper. A domain, and a mixture, has one colour
and one marker in all figures.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
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

from .scaling_law import PowerLaw
from .token_count import round_token_count

Summary = Mapping[str, Any]

INK, GRID = "#3a3f47", "#d4d7dc"
# After Okabe and Ito (2008), darkened for light paper and lightened for dark: (light, dark).
DOMAIN_COLOURS = (
    ("#0072b2", "#56b4e9"), ("#d55e00", "#ff9248"), ("#00916a", "#2fd6a3"),
    ("#b04a8f", "#f09fcd"), ("#a87b00", "#f0c34a"), ("#4b3fb5", "#a79cf5"),
    ("#8a4b2a", "#d6a27e"), ("#2f8fa8", "#8fe0f2"), ("#6b7a12", "#c3d65c"),
    ("#882255", "#e083a9"),
)  # fmt: skip
MIXTURE_COLOURS = (
    ("#c2185b", "#ff79a8"), ("#5f6a78", "#aab4c0"), ("#007a6e", "#4fd6c6"),
    ("#8b6508", "#e8c468"), ("#5e35b1", "#b8a2ec"), ("#9c4221", "#f0a181"),
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LINE_STYLES = ("-", "--", ":", "-.")
_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlesize": 10,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "lines.linewidth": 1.7, "lines.markersize": 5.5,
}  # fmt: skip
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
_WIDTH = 5.4  # inches; pages show it wider on a screen and narrower on a phone


def colour_variables(theme: str) -> dict[str, str]:
    """Values of the CSS variables of `to_svg` for the theme `light` or `dark`."""
    column = ("light", "dark").index(theme)
    variables = {f"--domain{i}": pair[column] for i, pair in enumerate(DOMAIN_COLOURS)}
    variables |= {f"--mixture{i}": pair[column] for i, pair in enumerate(MIXTURE_COLOURS)}
    return variables | {"--grid": (GRID, "#3d434c")[column]}


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element, reproducible to the byte.

    Args:
        figure: drawn by this module.
        name: prefix of all ids, so that several figures can share a page.
        description: what the figure shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#', rf'href="#{name}-', svg)
    svg = re.sub(r"url\(#", rf"url(#{name}-", svg)
    for variable, colour in colour_variables("light").items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    svg = svg.replace(INK, "currentColor")
    width, height = figure.get_size_inches() * 72
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'role="img" aria-label="{escape(description)}" viewBox="0 0 {width:g} {height:g}">'
    )
    return head + svg[svg.index(">") + 1 :]


def domain_colour(summary: Summary, name: str) -> str:
    return DOMAIN_COLOURS[summary["domains"].index(name) % len(DOMAIN_COLOURS)][0]


def domain_variable(summary: Summary, name: str) -> str:
    """The CSS variable with the domain's colour."""
    return f"--domain{summary['domains'].index(name) % len(DOMAIN_COLOURS)}"


def mixture_variable(summary: Summary, name: str) -> str:
    """The CSS variable with the mixture's colour."""
    names = [mixture["name"] for mixture in summary["mixtures"]]
    return f"--mixture{names.index(name) % len(MIXTURE_COLOURS)}"


def _domain_marker(summary: Summary, name: str) -> str:
    return _MARKERS[summary["domains"].index(name) % len(_MARKERS)]


def _mixture_colour(index: int) -> str:
    return MIXTURE_COLOURS[index % len(MIXTURE_COLOURS)][0]


def target_weights(summary: Summary) -> Figure | None:
    """Bars: the weights chosen for the target; marks: the mixtures that it is compared with."""
    if summary["projection"] is None:
        return None
    domains = summary["domains"]
    weights = summary["projection"]["weights"]
    others = [(i, m) for i, m in enumerate(summary["mixtures"]) if m["name"] != "autoscale"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.36 * len(domains) + 0.2 * bool(others)))
        axes = figure.subplots()
        rows = np.arange(len(domains))
        axes.barh(
            rows, [weights[name] for name in domains], height=0.62, alpha=0.6,
            color=[domain_colour(summary, name) for name in domains],
        )  # fmt: skip
        markers = cycle(("D", "|", "x", "+", "^"))
        handles = []
        for (index, mixture), marker in zip(others, markers, strict=False):
            style: dict[str, Any] = {
                "marker": marker, "color": _mixture_colour(index), "linestyle": "none",
                "markersize": 11 if marker == "|" else 5.5,
                "markeredgewidth": 2.0 if marker in "|x+" else 1.0,
                "markeredgecolor": _mixture_colour(index), "markerfacecolor": "none",
            }  # fmt: skip
            axes.plot([mixture["weights"][name] for name in domains], rows, **style)
            handles.append(Line2D([], [], label=mixture["name"], **style))
        top = max(max(m["weights"].values()) for _, m in [*others, (0, {"weights": weights})])
        for row, name in zip(rows, domains, strict=True):
            place = max([weights[name], *(m["weights"][name] for _, m in others)])
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


def fitted_curves(summary: Summary) -> dict[str, Figure]:
    """One small figure a domain: the fitted law of every probe budget with its points."""
    if summary["fit"] is None:
        return {}
    limits = _shared_limits(summary)
    return {name: _fitted_curve(summary, name, limits) for name in summary["domains"]}


def _fitted_curve(summary: Summary, name: str, limits: tuple[float, float]) -> Figure:
    colour, marker = domain_colour(summary, name), _domain_marker(summary, name)
    budgets = summary["fit"]["budgets"]
    factors = sorted({p["factor"] for b in budgets for p in b["points"] if p["domain"] == name})
    low, high = min(factors, default=1 / 3), max(factors, default=3.0)
    x = np.geomspace(min(low, 1) / 1.25, max(high, 1) * 1.25, 60)
    with matplotlib.rc_context(_STYLE):
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
                linestyle="-" if last else _LINE_STYLES[1 + index % 3],
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


def projection_path(summary: Summary) -> Figure | None:
    """Weights against token budget: the optima, the paper's path, and the mixture chosen."""
    projection = summary["projection"]
    if projection is None or summary["fit"] is None:
        return None
    optima = [(b["token_budget"], b["solution"]["weights"]) for b in summary["fit"]["budgets"]]
    target, path = projection["token_budget"], projection["path"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.5), layout="constrained")
        axes = figure.subplots()
        for name in summary["domains"]:
            colour, marker = domain_colour(summary, name), _domain_marker(summary, name)
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
    index_of = {mixture["name"]: index for index, mixture in enumerate(summary["mixtures"])}
    names = list(curves)
    against = next((name for name in names if name != "autoscale"), None)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 4.4 if against else 3.0), layout="constrained")
        panels = figure.subplots(
            2 if against else 1,
            sharex=True,
            squeeze=False,
            height_ratios=[3, 2] if against else None,
        )[:, 0]
        upper: Axes = panels[0]
        for name in names:
            curve, colour = curves[name], _mixture_colour(index_of[name])
            style: dict[str, Any] = {
                "color": colour, "linestyle": _LINE_STYLES[index_of[name] % 4],
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
                color=_mixture_colour(index_of[against]),
                linewidth=1.6,
                linestyle=_LINE_STYLES[index_of[against] % 4],
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
