"""A result file in sections, each measured by itself; those not asked for stay as they were."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def read_sections(path: Path) -> dict[str, str]:
    """Text of the sections in the file, by title."""
    if not path.exists():
        return {}
    blocks = path.read_text(encoding="utf-8").split("\n## ")[1:]
    return {title: text.strip() + "\n" for title, _, text in (b.partition("\n") for b in blocks)}


def write_sections(
    path: Path, heading: str, content: Mapping[str, str], order: Sequence[str]
) -> None:
    """Write the sections whose titles are in `order`, below the file's heading."""
    blocks = [f"## {title}\n\n{content[title]}" for title in order if title in content]
    path.write_text("\n".join([heading, *blocks]), encoding="utf-8")
