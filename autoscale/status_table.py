"""`autoscale status` on the terminal: the campaign as a table, once or again and again."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .claims import HEARTBEAT_SECONDS
from .plan_tables import limits_line
from .progress import format_amount, format_seconds
from .run_folder import STATES
from .status import StatusReader
from .tables import STATUS_STYLE, new_table, notes, stacked, status_text
from .token_count import round_token_count

RUNS_SHOWN = 20
"""Of each kind; the JSON document has all."""
_SILENT = 3 * HEARTBEAT_SECONDS  # so long without a sign of life is worth a word


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """Counts by stage, the runs in progress, those that ended without a result, what is left."""
    parts: list[RenderableType] = [_counts(status["stages"])]
    running = [row for row in status["runs"] if row["state"] == "running"]
    ended = [row for row in status["runs"] if row["state"] in ("failed", "interrupted")]
    if running:
        parts.append(_running_table(running))
    if ended:
        parts.append(_ended_table(ended))
    parts += [Text(""), *map(Text, _lines(status))]
    if status["problems"]:
        parts.append(notes([("!", problem) for problem in status["problems"]]))
    return stacked(parts)


def watch(reader: StatusReader, console: Console, seconds: float) -> None:
    """Show the table every `seconds` until all runs are done, or the user has seen enough."""
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            _redraw(reader, console, seconds)
        else:
            _print_blocks(reader, console, seconds)
    except KeyboardInterrupt:
        pass  # how a user leaves


def _redraw(reader: StatusReader, console: Console, seconds: float) -> None:
    found = reader.read()
    with Live(_dated(found), console=console, auto_refresh=False) as live:
        while not found["done"]:
            time.sleep(seconds)
            found = reader.read()
            live.update(_dated(found), refresh=True)


def _print_blocks(reader: StatusReader, console: Console, seconds: float) -> None:
    while True:
        found = reader.read()
        console.print(_dated(found))
        if found["done"]:
            return
        time.sleep(seconds)


def _dated(status: Mapping[str, Any]) -> RenderableType:
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return stacked([Text(f"{status['name']}, {now}", style="bold"), status_table(status)])


def _counts(stages: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table()
    table.add_column("stage")
    for heading in (*STATES, "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in stages:
        cells = [_count(stage[state], state) for state in STATES]
        seen, total = stage["tokens"], stage["total_tokens"]
        share = f" ({seen / total:.0%})" if total else ""
        table.add_row(stage["stage"], *cells, f"{_of(seen, total)}{share}")
    return table


def _count(number: int, state: str) -> Text:
    return Text(str(number), style=STATUS_STYLE.get(state, "") if number else "dim")


def _running_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table()
    table.add_column("running", overflow="ellipsis", no_wrap=True, max_width=38)
    table.add_column("where", overflow="fold", max_width=26)
    for heading in ("step", "tokens", "loss", "tokens/s", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows[:RUNS_SHOWN]:
        rate, left = row["tokens_per_second"], row["seconds_left"]
        table.add_row(
            row["label"],
            _where(row["owner"]),
            f"{row['step']}/{row['num_steps']}",
            f"{round_token_count(row['tokens'])}/{round_token_count(row['total_tokens'])}",
            "" if row["loss"] is None else f"{row['loss']:.3f}",
            "" if rate is None else round_token_count(rate),
            "" if left is None else format_seconds(left),
        )
    _say_more(table, len(rows))
    return table


def _where(owner: Mapping[str, Any]) -> Text:
    """The process, and a word when it gave no sign of life for long, or when none can be seen."""
    text = Text(f"{owner['host']}:{owner['pid']}")
    silent = owner["silent_seconds"]
    if silent is not None and silent > _SILENT:
        text.append(f"\nsilent for {format_seconds(silent)}", style="red")
    elif silent is None and not owner["is_here"]:
        text.append("\nlast sign of life unknown", style="dim")
    return text


def _ended_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table()
    table.add_column("ended without a result", overflow="ellipsis", no_wrap=True, max_width=38)
    table.add_column("state", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for row in rows[:RUNS_SHOWN]:
        why = row["reason"] or _saved(row)
        seen = _of(row["tokens"], row["total_tokens"])
        table.add_row(row["label"], status_text(row["state"]), seen, why)
    _say_more(table, len(rows))
    return table


def _saved(row: Mapping[str, Any]) -> str:
    if row["saved_step"] is None:
        return "nothing saved: it will start anew"
    return f"saved at step {row['saved_step']} of {row['num_steps']}"


def _say_more(table: Table, number: int) -> None:
    if number > RUNS_SHOWN:
        table.add_row(Text(f"and {number - RUNS_SHOWN} more (--json lists them)", style="dim"))


def _lines(status: Mapping[str, Any]) -> list[str]:
    """Speed and end, spending, disk and artifacts, a sentence or two each."""
    campaign, disk = status["campaign"], status["disk"]
    left = f"{round_token_count(campaign['tokens_left'])} tokens left"
    if not campaign["tokens_left"]:
        lines = ["Nothing is left to train."]
    elif campaign["seconds_left"] is None:
        rate = campaign["tokens_per_second"]
        cause = "nothing is running" if not campaign["running"] else "no rate is known yet"
        now = "" if rate is None else f"{round_token_count(rate)} tokens/s now; "
        lines = [f"{now}{left}; the end is unknown: {cause}."]
    else:
        end = datetime.fromisoformat(campaign["estimated_end"]).strftime("%a %Y-%m-%d %H:%M")
        rate = round_token_count(campaign["tokens_per_second"])
        seconds = format_seconds(campaign["seconds_left"])
        lines = [f"{rate} tokens/s now; {left}, about {seconds} at this rate: until {end}."]
    lines.append(limits_line(campaign))
    used = f"On disk: {format_amount(disk['bytes'], 'bytes')}"
    lines.append(f"{used}, {format_amount(disk['checkpoint_bytes'], 'bytes')} in checkpoints.")
    if status["other_runs"]:
        lines[-1] += f" {status['other_runs']} runs there are no part of the experiment as it is."
    written = [name for name, there in status["artifacts"].items() if there]
    absent = [name for name, there in status["artifacts"].items() if not there]
    line = f"Written: {', '.join(written) or 'nothing yet'}."
    lines.append(line + (f" Not yet: {', '.join(absent)}." if absent else ""))
    return lines


def _of(seen: int, total: int) -> str:
    return f"{round_token_count(seen)} of {round_token_count(total)}"
