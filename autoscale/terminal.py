"""Tables on the terminal: the plan, the state of the runs, and what the experiment found.

Everything fits in 100 columns. Mixtures are columns or rows as it suits, domains are always rows,
since there can be dozens of them.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .decision_tables import joint_parts
from .progress import format_seconds
from .tables import new_table, notes, stacked
from .token_count import format_token_count, round_token_count
from .wording import interval, signed

MAX_MIXTURES = 6  # columns of weights
_STATUS_STYLE = {"finished": "green", "failed": "bold red", "interrupted": "yellow"}
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
                _status(row["status"]),
            )
        runs.add_section()
    basis = Text(f"Rate of a device: {plan['cost_basis']}.", style="dim")
    parts: list[RenderableType] = [Text(heading, style="bold"), runs, _totals_table(plan), basis]
    return stacked([*parts, *plan_lines(plan["foresight"])])


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


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """Counts by stage, every run that is not finished, and which artifacts exist."""
    parts: list[RenderableType] = [_status_counts(status["runs"])]
    open_runs = [row for row in status["runs"] if row["status"] not in ("finished", "waiting")]
    if open_runs:
        table = new_table()
        table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=52)
        table.add_column("status", no_wrap=True)
        table.add_column("tokens", justify="right", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for row in open_runs:
            seen = f"{round_token_count(row['tokens'])} of {round_token_count(row['total_tokens'])}"
            table.add_row(row["label"], _status(row["status"]), seen, row["reason"] or "")
        parts.append(table)
    written = [name for name, there in status["artifacts"].items() if there]
    absent = [name for name, there in status["artifacts"].items() if not there]
    line = f"Written: {', '.join(written) or 'nothing yet'}."
    parts.append(Text(line + (f" Not yet: {', '.join(absent)}." if absent else "")))
    if status["problems"]:
        parts.append(notes([("!", problem) for problem in status["problems"]]))
    return stacked(parts)


def _status_counts(rows: Sequence[Mapping[str, Any]]) -> Table:
    states = ("finished", "interrupted", "failed", "waiting")
    table = new_table()
    table.add_column("stage")
    for heading in (*states, "tokens"):
        table.add_column(heading, justify="right")
    for stage, of_stage in groupby(rows, key=lambda row: row["stage"]):
        listed = list(of_stage)
        counts = [sum(row["status"] == state for row in listed) for state in states]
        seen, total = (sum(row[key] for row in listed) for key in ("tokens", "total_tokens"))
        cells = [
            Text(str(n), style=_STATUS_STYLE.get(s, "") if n else "dim")
            for n, s in zip(counts, states, strict=True)
        ]
        share = f"{round_token_count(seen)} of {round_token_count(total)} ({seen / total:.0%})"
        table.add_row(stage, *cells, share)
    return table


def _status(status: str) -> Text:
    return Text(status, style=_STATUS_STYLE.get(status, "dim"))
