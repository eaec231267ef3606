"""Counts of what became of documents, by domain: every task writes its own, the report adds them.

    {"<domain>": {"<fate>": [documents, text bytes]}}

A task's counts are written when it has seen all its documents, so that a task that is run again
replaces them.
"""

import json
import os
from pathlib import Path
from typing import Self

Counts = dict[str, dict[str, list[int]]]

READ = "read"
COUNTS = "counts"
"""Folder of the counts of tasks."""
TRAIN = "train"
VALIDATION = "validation"


class Ledger:
    """Documents and bytes by domain and fate."""

    def __init__(self) -> None:
        self.counts: Counts = {}

    def add(self, domain: str, fate: str, text_bytes: int, documents: int = 1) -> None:
        """Count documents of one fate."""
        total = self.counts.setdefault(domain, {}).setdefault(fate, [0, 0])
        total[0] += documents
        total[1] += text_bytes

    def merge(self, other: Counts) -> None:
        """Add the counts of another ledger."""
        for domain, fates in other.items():
            for fate, (documents, text_bytes) in fates.items():
                self.add(domain, fate, text_bytes, documents)

    def save(self, path: Path) -> None:
        """Write the counts, whole or not at all."""
        write_whole(path, json.dumps(self.counts, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load_all(cls, folder: Path, tasks: int) -> Self:
        """Sum of the counts of all tasks."""
        ledger = cls()
        for task in range(tasks):
            ledger.merge(json.loads((folder / f"{task:05d}.json").read_text(encoding="utf-8")))
        return ledger


def write_whole(path: Path, text: str) -> None:
    """Write a small file through a temporary name, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
