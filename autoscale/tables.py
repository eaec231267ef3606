"""The look that all tables on the terminal share: no lines, and nothing wider than 100 columns."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

STATUS_STYLE = {
    "finished": "green",
    "running": "cyan",
    "failed": "bold red",
    "interrupted": "yellow",
}


def new_table(title: str | None = None) -> Table:
    """An empty table."""
    return Table(
        title=title,
        title_justify="left",
        title_style="",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="bold dim",
    )


def status_text(status: str) -> Text:
    """The state of a run, in its colour."""
    return Text(status, style=STATUS_STYLE.get(status, "dim"))


def notes(marked: Sequence[tuple[str, str]]) -> Table:
    """Sentences, each with a hanging mark."""
    table = Table.grid(padding=(0, 1))
    for mark, text in marked:
        table.add_row(Text(mark, style="yellow"), Text(text))
    return table


def stacked(parts: Sequence[RenderableType]) -> RenderableType:
    """Parts under each other, a blank line above every table."""
    spaced = [Padding(part, (1, 0, 0, 0)) if isinstance(part, Table) else part for part in parts]
    return Group(*spaced)
