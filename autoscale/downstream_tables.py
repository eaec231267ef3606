"""Tables on the terminal of what an exported model does beyond its training."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from .downstream import TaskScore, TextScore
from .tables import new_table, notes, stacked
from .wording import listed


def task_table(scores: Sequence[TaskScore], left_out: Sequence[str] = ()) -> RenderableType:
    """Every metric of every task beside what guessing gives."""
    table = new_table(title="Zero-shot tasks")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for column in ("examples", "value", "standard error", "chance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for score in scores:
        numbers = [f"{value:.4f}" for value in (score.value, score.stderr, score.chance)]
        remark = "near chance" if score.is_near_chance else ""
        cells = (score.name, score.metric, f"{score.examples:,}", *numbers, remark)
        table.add_row(*cells, style="dim" if score.is_near_chance else "")
    return stacked([table, notes(_doubts(scores, left_out))])


def text_table(scores: Sequence[TextScore]) -> RenderableType:
    """The loss on every set of texts."""
    table = new_table(title="Texts out of the domains")
    table.add_column("set", no_wrap=True)
    for column in ("documents", "tokens", "nats a token", "bits a byte"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        table.add_row(
            score.name,
            f"{score.documents:,}",
            f"{score.tokens:,}",
            f"{score.nats_per_token:.4f} ± {score.nats_stderr:.4f}",
            f"{score.bits_per_byte:.4f} ± {score.bits_stderr:.4f}",
        )
    return stacked([table, Text("± one standard error over documents.")])


def _doubts(scores: Sequence[TaskScore], left_out: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    if near := [f"{score.name} ({score.metric})" for score in scores if score.is_near_chance]:
        found.append(f"Within two standard errors of chance: {listed(near)}.")
    if cut := {score.name: score.cut for score in scores if score.cut}:
        parts = [f"{name} {count:,}" for name, count in cut.items()]
        found.append(
            f"Longer than the model's positions, their beginnings cut off: {listed(parts)}."
        )
    if left_out:
        found.append(f"No file in the folder for {listed(left_out)}.")
    return [("!", text) for text in found]
