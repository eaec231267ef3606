"""The whole experiment as one page and as the same numbers in JSON: report.html and report.json.

The page is one file that needs no network, and shows what is there: an experiment that is half
done gives a report that says which command makes the rest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import figures, law_figures
from .config import ExperimentConfig
from .figure_style import colour_variables, domain_variable, mixture_variable, to_svg
from .law_choice import DEFAULT_LAW
from .progress import format_seconds
from .records import write_json, write_text
from .stages import artifact
from .summary import summarise
from .terminal import saved_text
from .token_count import format_token_count, round_token_count
from .wording import interval, probability, signed


def report(config: ExperimentConfig) -> Path:
    """Write report.json and report.html into the experiment's folder.

    Returns:
        The path of report.html.
    """
    summary = summarise(config)
    path = write_json(artifact(config, "report"), "report", summary)
    return write_text(path.with_suffix(".html"), render(summary))


def render(summary: Mapping[str, Any]) -> str:
    """The page of a summary."""
    environment = Environment(
        loader=PackageLoader("autoscale"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": lambda value, digits=1: f"{value:.{digits}%}",
        "tokens": format_token_count,
        "about": round_token_count,
        "signed": signed,
        "interval": interval,
        "probability": probability,
        "seconds": format_seconds,
        "flops": lambda value: f"{value:.2e}",
        "saved": saved_text,
    }
    template = environment.get_template("report.html.j2")
    return template.render(
        s=summary,
        figure=_drawings(summary),
        default_law=DEFAULT_LAW,
        curves=_small_drawings(summary),
        experiment_toml=to_toml(summary["config"]),
        light=colour_variables("light"),
        dark=colour_variables("dark"),
        domain_variable=lambda name: domain_variable(summary, name),
        mixture_variable=lambda name: mixture_variable(summary, name),
        comparison_of={
            entry["baseline"]: entry
            for entry in (summary["targets"] or {"comparisons": []})["comparisons"]
        },
    )


def _drawings(summary: Mapping[str, Any]) -> dict[str, Markup | None]:
    """The large figures as SVG, None where their stage has not run."""
    drawn = {
        "agreement": (
            law_figures.objective_agreement(summary),
            "The objective of the probe runs against what the law says of them",
        ),
        "weights": (figures.target_weights(summary), "Weights of the domains at the target budget"),
        "path": (figures.projection_path(summary), "Weights of the domains against token budget"),
        "loss": (figures.loss_curves(summary), "Validation loss against tokens of every mixture"),
    }
    return {
        name: None if figure is None else Markup(to_svg(figure, name, description))
        for name, (figure, description) in drawn.items()
    }


def _small_drawings(summary: Mapping[str, Any]) -> dict[str, Markup]:
    """One small figure a domain or validation set."""
    drawn = {
        "Fitted law of": law_figures.fitted_curves(summary),
        "Losses of the probe runs less those of the law of": law_figures.set_residuals(summary),
    }
    return {
        name: Markup(to_svg(figure, f"curve{index}", f"{what} {name}"))
        for what, figures_of in drawn.items()
        for index, (name, figure) in enumerate(figures_of.items())
    }


def to_toml(config: Mapping[str, Any]) -> str:
    """A config's JSON as an experiment file, nothing left to defaults."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_toml(value)}" for key, value in plain.items() if value is not None]
    for name, section in config.items():
        if isinstance(section, Mapping):
            lines += ["", f"[{name}]"]
            lines += [f"{k} = {_toml(v)}" for k, v in section.items() if v is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """One TOML value, tables and lists on one line."""
    if isinstance(value, Mapping):
        inside = (f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
        return "{ " + ", ".join(inside) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
