"""How the figures of the report look: colours, markers, and the form of inline SVG.

`to_svg` makes text for a page: ink and colours become CSS variables, so that one drawing is legible
on light and on dark paper. A domain, with its validation set, and a mixture has one colour and one
marker in all figures; so has a validation set without a domain.
"""

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

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
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINE_STYLES = ("-", "--", ":", "-.")
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlesize": 10,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "lines.linewidth": 1.7, "lines.markersize": 5.5,
}  # fmt: skip


def colour_variables(theme: str) -> dict[str, str]:
    """Values of the CSS variables of `to_svg` for the theme `light` or `dark`."""
    column = ("light", "dark").index(theme)
    variables = {f"--domain{i}": pair[column] for i, pair in enumerate(DOMAIN_COLOURS)}
    variables |= {f"--mixture{i}": pair[column] for i, pair in enumerate(MIXTURE_COLOURS)}
    return variables | {"--grid": (GRID, "#3d434c")[column]}


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element, reproducible to the byte.

    Args:
        figure: drawn in `STYLE`.
        name: prefix of all ids, so that several figures can share a page.
        description: what the figure shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
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
    return DOMAIN_COLOURS[summary["sets"].index(name) % len(DOMAIN_COLOURS)][0]


def domain_variable(summary: Summary, name: str) -> str:
    """The CSS variable with the domain's colour."""
    return f"--domain{summary['sets'].index(name) % len(DOMAIN_COLOURS)}"


def mixture_variable(summary: Summary, name: str) -> str:
    """The CSS variable with the mixture's colour."""
    return f"--mixture{mixture_index(summary, name) % len(MIXTURE_COLOURS)}"


def mixture_index(summary: Summary, name: str) -> int:
    """Place of a mixture among all that are shown, the AutoScale mixture first."""
    return ["autoscale", *(row["name"] for row in summary["baselines"])].index(name)


def domain_marker(summary: Summary, name: str) -> str:
    return MARKERS[summary["sets"].index(name) % len(MARKERS)]


def mixture_colour(index: int) -> str:
    return MIXTURE_COLOURS[index % len(MIXTURE_COLOURS)][0]
