"""The memory of a rank, as `plan` shows it."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from .memory import format_bytes
from .tables import new_table
from .token_count import round_token_count


def memory_lines(memory: Mapping[str, Any]) -> list[RenderableType]:
    """A table by stage, model and number of ranks, and what a device has."""
    table = new_table(title="Memory of a rank, estimated")
    table.add_column("run", no_wrap=True)
    terms = list(dict.fromkeys(name for row in memory["rows"] for name in row["device"]))
    for heading in ("ranks", "micro-batch", "device", "host"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("of the device")
    for row in memory["rows"]:
        table.add_row(
            f"{row['stage']} {round_token_count(row['parameters'])}",
            str(row["ranks"]),
            str(row["micro_batch_size"]),
            Text(format_bytes(row["device_bytes"]), style="" if row["fits"] else "bold red"),
            format_bytes(row["host_bytes"]),
            ", ".join(
                f"{name} {format_bytes(row['device'][name])}"
                for name in terms
                if name in row["device"]
            ),
        )
    known = memory["device_bytes"]
    said = (
        "What a device has is not known here; give limits.device_memory_gib."
        if known is None
        else f"A device has {format_bytes(known)}; red rows do not fit."
    )
    return [table, Text(said, style="dim")]
