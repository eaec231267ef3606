"""Lists of documents to drop, by rank: what a stage decided, for the stages after it.

<folder>/<rank>.npy    rows (place in the file, code of the reason), by place, int64
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from .ledger import Ledger


def write_drop_list(folder: Path, rank: int, rows: Mapping[int, int]) -> None:
    """Write the places to drop of one rank, each with the code of its reason."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = np.array(sorted(rows.items()), dtype=np.int64).reshape(-1, 2)
    np.save(folder / f"{rank:06d}.npy", listed)


class DropListed(PipelineStep):
    """Drops the documents that the list of their rank names; a rank without a list keeps all.

    Args:
        folder: of the lists.
        reasons: fate of a dropped document, by code.
        ledger: counts what is dropped; None counts nothing.
    """

    type = "🔻 - FILTER"
    name = "listed documents"

    def __init__(self, folder: Path, reasons: Sequence[str], ledger: Ledger | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.reasons = tuple(reasons)
        self.ledger = ledger

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = self.folder / f"{rank:06d}.npy"
        dropped = dict(np.load(path).tolist()) if path.is_file() else {}
        for document in data:
            code = dropped.get(document.metadata["place"])
            if code is None:
                yield document
            elif self.ledger is not None:
                size = len(document.text.encode("utf-8"))
                self.ledger.add(document.metadata["domain"], self.reasons[code], size)
