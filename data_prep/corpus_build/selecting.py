"""D4 selection as stages: embed the training documents, then choose within every domain.

    <folder>/embeddings/<rank>.npz     embeddings (documents, size), and the documents' places
    <folder>/dropped/<rank>.npy        what is not selected

Held-out documents are neither embedded nor dropped: what a model is validated on stays as it was.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from d4 import Kept, SentenceEncoder, select
from datatrove.pipeline.base import PipelineStep

from .dropping import write_drop_list
from .splitting import Split

REASONS = ("kept", "semantic_duplicate", "prototypical")
DROPPED = "dropped"


class EmbedTraining(PipelineStep):
    """Writes the embeddings of the training documents of a rank."""

    type = "🧭 - SELECT"
    name = "embeddings"

    def __init__(self, folder: Path, encoder: Path, split: Split) -> None:
        super().__init__()
        self.folder = folder / "embeddings"
        self.encoder = encoder
        self.split = split

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        places: list[int] = []

        def texts() -> Any:
            for document in data:
                if not self.split.holds_out(document.text):
                    places.append(document.metadata["place"])
                    yield document.text

        embeddings = SentenceEncoder(self.encoder).embed(texts())
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            self.folder / f"{rank:05d}.npz",
            embeddings=embeddings,
            places=np.array(places, dtype=np.int64),
        )


class SelectDocuments(PipelineStep):
    """Selects within one domain, over all its tasks; rank d does domain d.

    Args:
        folder: with the embeddings.
        tasks: ranks of a domain.
        ratios: R_dedup and R_proto.
        clusters: of k-means, or None for the default.
        seed: of k-means.
    """

    type = "🧭 - SELECT"
    name = "D4"

    def __init__(
        self,
        folder: Path,
        tasks: int,
        ratios: Sequence[float],
        clusters: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.tasks = tasks
        self.ratios = (ratios[0], ratios[1])
        self.clusters = clusters
        self.seed = seed

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        ranks = range(rank * self.tasks, (rank + 1) * self.tasks)
        files = [np.load(self.folder / "embeddings" / f"{each:05d}.npz") for each in ranks]
        embeddings = np.concatenate([file["embeddings"] for file in files])
        fates = select(embeddings, self.ratios, clusters=self.clusters, seed=self.seed)
        begin = 0
        for each, file in zip(ranks, files, strict=True):
            places = file["places"].tolist()
            chosen = fates[begin : begin + len(places)].tolist()
            begin += len(places)
            rows = {
                place: fate for place, fate in zip(places, chosen, strict=True) if fate != Kept.KEPT
            }
            write_drop_list(self.folder / DROPPED, each, rows)
