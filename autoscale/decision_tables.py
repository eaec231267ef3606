"""Tables on the terminal for a joint law: the decision, its weights and gains, the law chosen."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .law_choice import DEFAULT_LAW
from .tables import new_table
from .token_count import format_token_count
from .wording import interval, probability, signed

MAX_BASELINES = 5  # columns of weights beside the mixture's
_SURE_STYLE = {True: "bold green", False: "bold yellow", None: "bold"}


def joint_parts(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Everything that a joint law has found so far, the decision first."""
    parts: list[RenderableType] = []
    decision = summary["decision"]
    if decision is not None:
        parts += [_sentence(decision), _weights_table(summary, decision)]
    if decision is not None and decision["gains"]:
        parts.append(_gains_table(summary, decision))
    if summary["fit"] is not None:
        parts += [_candidates_table(summary), *_reasons(summary)]
    return parts


def _sentence(decision: Mapping[str, Any]) -> Text:
    text = Text(decision["sentence"], style=_SURE_STYLE[decision["sure"]])
    return (
        text.append(f" {decision['note']}", style="not bold default") if decision["note"] else text
    )


def _weights_table(summary: Mapping[str, Any], decision: Mapping[str, Any]) -> Table:
    """Domains as rows: the weight with its interval, beside the other mixtures'."""
    table = new_table(title=f"Weights at {format_token_count(decision['token_budget'])} tokens")
    table.add_column("domain", no_wrap=True)
    table.add_column("autoscale", justify="right", style="bold", no_wrap=True)
    if decision["low"] is not None:
        table.add_column("90% interval", justify="right", no_wrap=True)
    held = {name: "least" for name in decision["at_lower"] or ()}
    held |= {name: "greatest" for name in decision["at_upper"] or ()}
    if held:
        table.add_column("allowed", no_wrap=True)
    baselines = summary["baselines"][:MAX_BASELINES]
    for baseline in baselines:
        table.add_column(baseline["name"], justify="right")
    for name in summary["domains"]:
        row = [name, f"{decision['weights'][name]:.3f}"]
        if decision["low"] is not None:
            row.append(f"{decision['low'][name]:.3f} to {decision['high'][name]:.3f}")
        if held:
            row.append(held.get(name, ""))
        row += [f"{baseline['weights'][name]:.3f}" for baseline in baselines]
        table.add_row(*row)
    return table


def _gains_table(summary: Mapping[str, Any], decision: Mapping[str, Any]) -> Table:
    """Gains by the law, and what the target runs measured where they did."""
    where = format_token_count(decision["gain_tokens"])
    measured = any(row["measured"] for row in decision["gains"])
    title = f"Gain in {summary['experiment']['unit']}, expected at {where} tokens"
    if measured:
        title += f" and measured at {format_token_count(decision['token_budget'])}"
    table = new_table(title=title)
    table.add_column("over", overflow="fold")
    headings = ["expected", "90% interval", "probability"]
    headings += ["measured", "90% interval"] if measured else []
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in decision["gains"]:
        cells = [" = ".join(row["names"]), signed(row["expected"])]
        cells += [interval(row["low"], row["high"]), probability(row["probability"])]
        found = row["measured"]
        if found:
            known = found["low"] is not None
            cells.append(signed(found["mean"]))
            cells.append(interval(found["low"], found["high"]) if known else "unknown")
        table.add_row(*cells)
    return table


def _candidates_table(summary: Mapping[str, Any]) -> Table:
    """Laws by their errors on runs that they were not fitted to."""
    unit = "bits per byte" if summary["fit"]["metric"] == "bits_per_byte" else "nats"
    table = new_table(title="Mean errors on runs left out of the fit")
    table.add_column("law", no_wrap=True)
    table.add_column(f"objective\n{summary['experiment']['unit']}", justify="right")
    table.add_column(f"a set\n{unit}", justify="right")
    table.add_column(f"standard errors\nbelow {DEFAULT_LAW}", justify="right")
    table.add_column("")
    for candidate in summary["fit"]["candidates"]:
        table.add_row(
            candidate["name"],
            f"{candidate['objective_error']:.4f}",
            f"{candidate['mean_set_error']:.4f}",
            signed(candidate["advantage"], 1),
            "chosen" if candidate["chosen"] else "",
            style="bold" if candidate["chosen"] else "",
        )
    return table


def _reasons(summary: Mapping[str, Any]) -> list[RenderableType]:
    fit, decision = summary["fit"], summary["decision"]
    projection = summary["projection"]
    reason = projection["reason"] if projection else fit["projection_reason"]
    sentences = [fit["reason"], *fit["edges"], reason]
    if decision["certificate"] is not None:
        sentences.append(decision["certificate"])
    return [Padding(Text(" ".join(sentences)), (1, 0, 0, 0))]
