"""The plan on the terminal: its runs, what they cost, and what they draw from."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .memory_table import memory_lines
from .progress import format_seconds
from .tables import new_table, stacked, status_text
from .token_count import format_token_count, round_token_count
from .wording import listed


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """The runs of plan.json with their size, and what each stage costs."""
    model = plan["model"]
    heading = (
        f"Experiment {plan['name']}: {len(plan['domains'])} domains, a model of "
        f"{round_token_count(model['parameters'])} parameters"
    )
    runs = new_table()
    runs.add_column("run", overflow="ellipsis", no_wrap=True, max_width=52)
    for column in ("tokens", "FLOPs"):
        runs.add_column(column, justify="right", no_wrap=True)
    runs.add_column("most repeated", no_wrap=True)
    runs.add_column("status", no_wrap=True)
    for _, stage in groupby(plan["runs"], key=lambda row: row["stage"]):
        for row in stage:
            runs.add_row(
                row["label"],
                round_token_count(row["tokens"]),
                f"{row['flops']:.2e}",
                _most_repeated(row["max_epochs"]),
                status_text(row["status"]),
            )
        runs.add_section()
    basis = Text(f"Rate of a device: {plan['cost_basis']}.", style="dim")
    parts: list[RenderableType] = [Text(heading, style="bold"), runs, _totals_table(plan), basis]
    parts.append(Text(limits_line(plan["limits"])))
    parts += memory_lines(plan["memory"])
    return stacked([*parts, *_data_lines(plan), *plan_lines(plan["foresight"])])


def limits_line(ledger: Mapping[str, Any]) -> str:
    """What is spent of what may be, and what is to come."""
    most_hours, most_tokens = ledger["max_gpu_hours"], ledger["max_tokens"]
    left = ledger["left_device_hours"]
    hours = f"{ledger['device_hours']:.3g}" + ("" if most_hours is None else f" of {most_hours:g}")
    tokens = round_token_count(ledger["tokens"])
    tokens += "" if most_tokens is None else f" of {format_token_count(most_tokens)}"
    return (
        f"Limits: {hours} device hours, {'unknown' if left is None else f'about {left:.3g}'} to "
        f"come; {tokens} tokens, {round_token_count(ledger['tokens_left'])} to come."
    )


def _data_lines(plan: Mapping[str, Any]) -> list[RenderableType]:
    """What differs from plain windows of all the data: packing, matched probes, later stages."""
    parts: list[RenderableType] = []
    further = plan["sets"][len(plan["domains"]) :]
    if further:
        parts.append(Text(f"Measured on {listed(further)} as well, which no run is trained on."))
    if plan["packing"] is not None:
        unused = plan["packing"]["unused"]
        most = max(unused, key=lambda name: unused[name])
        parts.append(
            Text(
                f"Packing {plan['packing']['mode']}: at most {unused[most]:.1%} of the positions "
                f"({most}) predict nothing: padding, and the ends of documents."
            )
        )
    if plan["matched_probes"] is not None:
        parts.append(_matched_table(plan))
    if plan["train_stages"]:
        table = new_table(title="Later stages")
        table.add_column("domain", no_wrap=True)
        for stage in plan["train_stages"]:
            heading = f"from step {stage['step']}\n{round_token_count(stage['tokens'])} tokens"
            table.add_column(heading, justify="right")
        for name in plan["domains"]:
            cells = [f"{stage['weights'][name]:.3f}" for stage in plan["train_stages"]]
            table.add_row(name, *cells)
        parts.append(table)
    return parts


def _matched_table(plan: Mapping[str, Any]) -> Table:
    """What probe runs of each budget draw from, so that they repeat like the target run."""
    table = new_table(title="Tokens that probe runs draw from")
    table.add_column("domain", no_wrap=True)
    for row in plan["matched_probes"]:
        heading = f"{format_token_count(row['token_budget'])}\n{row['share']:.2%} of all"
        table.add_column(heading, justify="right")
    table.add_column("all", justify="right")
    for name in plan["domains"]:
        kept = [round_token_count(row["tokens"][name]) for row in plan["matched_probes"]]
        table.add_row(name, *kept, round_token_count(plan["available_tokens"][name]))
    return table


def plan_lines(foresight: Mapping[str, Any] | None) -> list[RenderableType]:
    """What the probes are expected to tell: a table by number of mixtures, and a sentence."""
    if foresight is None:
        return []
    budget = format_token_count(foresight["token_budget"])
    table = new_table(title=f"What probes at {budget} are expected to tell, in {foresight['unit']}")
    for heading in ("mixtures", "runs", "tokens", "gain known to", "regret", "gain told"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in foresight["rows"]:
        table.add_row(
            str(row["mixtures"]),
            str(row["runs"]),
            round_token_count(row["tokens"]),
            f"±{row['half_width']:.4f}",
            f"{row['regret']:.4f}",
            f"{row['probability']:.0%}",
            style="bold" if row["mixtures"] == foresight["planned"] else "",
        )
    said = f"Simulated with {foresight['basis']}; noise: {foresight['noise_basis']}."
    tables: list[RenderableType] = [table] if foresight["rows"] else []
    return [*tables, Text(foresight["sentence"]), Text(said, style="dim")]


def _most_repeated(most: Mapping[str, Any] | None) -> str:
    return "" if most is None else f"{most['domain']} {most['epochs']:.2f} epochs"


def _totals_table(plan: Mapping[str, Any]) -> Table:
    totals = new_table()
    totals.add_column("stage")
    for column in ("runs", "tokens", "FLOPs", "runs left", "tokens left", "device time left"):
        totals.add_column(column, justify="right", no_wrap=True)
    for stage, total in plan["totals"].items():
        hours = total["device_hours"]
        totals.add_row(
            stage,
            str(total["runs"]),
            round_token_count(total["tokens"]),
            f"{total['flops']:.2e}",
            str(total["left_runs"]),
            round_token_count(total["left_tokens"]),
            "unknown" if hours is None else format_seconds(hours * 3600),
        )
    return totals
