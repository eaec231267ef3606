"""Tables on the terminal: what runs drew, and what the experiment found.

Everything fits in 100 columns. Mixtures are columns or rows as it suits, domains are always rows,
since there can be dozens of them.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .audit import Audit
from .decision_tables import joint_parts
from .tables import new_table, notes, stacked
from .token_count import format_token_count, round_token_count
from .wording import interval, signed

MAX_MIXTURES = 6  # columns of weights
_VERDICT_STYLE = {"better": "green", "worse": "red", "not distinguishable": "yellow"}


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """What the experiment found: weights beside probe effects, and mixtures against each other."""
    parts: list[RenderableType] = [Text(f"AutoScale experiment {summary['name']}", style="bold")]
    if not summary["experiment"]["published"]:
        parts += joint_parts(summary)
    elif summary["mixtures"] or summary["fit"]:
        parts.append(_domain_table(summary))
    if summary["targets"] is not None:
        parts += [_mixture_table(summary), _noise_line(summary)]
    marked = [("!", warning["text"]) for warning in summary["warnings"]]
    marked += [("?", f"{entry['why']}: {entry['command']}") for entry in summary["missing"]]
    if marked:
        parts.append(notes(marked))
    return stacked(parts)


def _domain_table(summary: Mapping[str, Any]) -> Table:
    """Domains as rows: weights of each mixture, and what scaling the domain did at each budget."""
    table = new_table(title=f"Weights at {_target(summary)} tokens, and effects of the probe runs")
    table.add_column("domain", no_wrap=True)
    mixtures = summary["mixtures"][:MAX_MIXTURES]
    for mixture in mixtures:
        style = "bold" if mixture["name"] == "autoscale" else ""
        table.add_column(mixture["name"], justify="right", style=style)
    budgets = summary["fit"]["budgets"][-2:] if summary["fit"] else []
    columns = [(b, direction) for b in budgets for direction in ("down", "up")]
    for budget, direction in columns:
        where = format_token_count(budget["token_budget"])
        table.add_column(f"{where}\n{direction}", justify="right")
    for name in summary["domains"]:
        row: list[str | Text] = [name]
        row += [f"{mixture['weights'][name]:.3f}" for mixture in mixtures]
        row += [_effect(budget, name, direction) for budget, direction in columns]
        table.add_row(*row)
    if columns:
        noise = [_noise(b["difference_noise"] and 2 * b["difference_noise"]) for b, _ in columns]
        table.add_section()
        table.add_row("noise (2 sd)", *([""] * len(mixtures)), *noise, style="dim")
    return table


def _effect(budget: Mapping[str, Any], domain: str, direction: str) -> Text:
    """The change of the objective; what the noise could make alone is dim."""
    found = [e for e in budget["effects"] if (e["domain"], e["direction"]) == (domain, direction)]
    if not found:
        return Text("")
    style = "dim" if found[0]["distinguishable"] is False else ""
    return Text(signed(found[0]["effect"], 3), style=style)


def _noise(value: float | None) -> str:
    return "unknown" if value is None else f"±{value:.3f}"


def _mixture_table(summary: Mapping[str, Any]) -> Table:
    table = new_table(
        title=f"Target runs of {_target(summary)} tokens: AutoScale against each baseline"
    )
    table.add_column("mixture", overflow="fold")
    columns = ("mean loss", "perplexity", "difference", "90% interval", "tokens\nsaved")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("AutoScale is", no_wrap=True)
    comparisons = {c["baseline"]: c for c in summary["targets"]["comparisons"]}
    for mixture in summary["mixtures"]:
        row: list[str | Text] = [mixture["name"], "-", "-"]
        if "final_mean_loss" in mixture:
            row[1:] = [f"{mixture['final_mean_loss']:.4f}", f"{mixture['perplexity']:.2f}"]
        row += _comparison_cells(comparisons.get(mixture["name"]))
        table.add_row(*row, style="bold" if mixture["name"] == "autoscale" else "")
    return table


def _comparison_cells(comparison: Mapping[str, Any] | None) -> list[str | Text]:
    if comparison is None:
        return [""] * 4
    if comparison["same_runs"]:
        return ["", "", "", Text("the same mixture", style="dim")]
    found = "unknown"
    if comparison["low"] is not None:
        found = interval(comparison["low"], comparison["high"])
    verdict = Text(comparison["verdict"], style=_VERDICT_STYLE[comparison["verdict"]])
    return [signed(comparison["difference"]), found, saved_text(comparison), verdict]


def saved_text(comparison: Mapping[str, Any]) -> str:
    """Tokens saved, or that the baseline's loss was not reached under every seed."""
    if comparison["tokens_saved"] is not None:
        return signed(100 * comparison["tokens_saved"], 1) + "%"
    total = len(comparison["by_seed"])
    if comparison["num_reached"] == 0:
        return "not reached"
    return f"reached {comparison['num_reached']}/{total}"


def _noise_line(summary: Mapping[str, Any]) -> Text:
    noise = summary["targets"]["seed_noise"]
    if noise["sd"] is None:
        return Text("Noise between seeds: unknown, no run was repeated under another seed.")
    return Text(
        f"Noise between seeds: {noise['sd']:.4f} nats (standard deviation of one run, from the "
        f"{noise['source']}), {noise['difference']:.4f} for the difference of two."
    )


def _target(summary: Mapping[str, Any]) -> str:
    return format_token_count(summary["experiment"]["target_budget"])


def audit_table(audit: Audit) -> RenderableType:
    """What a run drew of each domain, as recounted."""
    table = new_table(title=f"Drawn by {audit.run_id}, step {audit.steps} of {audit.num_steps}")
    table.add_column("domain", no_wrap=True)
    for heading in (
        "windows", "tokens", "epochs", "draws of\na window", "documents\ntouched",
        "most drawn\ndocument",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for domain in audit.domains:
        documents, most = "unknown", "unknown"
        if domain.documents is not None:
            documents = f"{domain.documents_touched} of {domain.documents}"
            most = f"{domain.most_drawn_document:.2f} times"
        table.add_row(
            domain.name,
            str(domain.windows),
            round_token_count(domain.tokens),
            f"{domain.epochs:.3f}",
            f"{domain.fewest_draws} to {domain.most_draws}",
            documents,
            most,
        )
    said = "The record agrees." if not audit.problems else "The record differs."
    if audit.checksum is not None:
        said += f" Checksum of all rows, read again: {audit.checksum}."
    return stacked([table, Text(said)])
