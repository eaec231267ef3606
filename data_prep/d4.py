"""D4: semantic de-duplication, then diversification, on embeddings (Tirumala et al., 2308.12284).

Documents are embedded by any sentence encoder that transformers loads from a folder: the mean of
the last hidden states over the text's tokens, scaled to length 1. Then, with ratios kept R_dedup
and R_proto:

    1  spherical k-means; within a cluster, from the farthest from its centre to the nearest, each
       document's score is its largest cosine with those before it; the R_dedup n documents with
       the lowest scores stay                                     (SemDeDup, 2303.09540)
    2  spherical k-means of those that stay; the R_proto R_dedup n documents that are farthest from
       their centre stay: the most prototypical ones go first     (SSL prototypes, 2206.14486)

Equal embeddings, seed and settings give equal selections. Whether a selection helps is an empirical
matter, of the encoder above all: nothing here claims that it does.

    python data_prep/d4.py --input X.jsonl --output Y.jsonl --encoder FOLDER --select 0.8,0.5
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 1024
"""Rows of a block of similarities: 4 kB a document of the cluster."""
MOST_CLUSTERS = 11_000
"""As many as the paper uses."""
Embeddings = NDArray[np.float32]


class Kept(IntEnum):
    """What becomes of a document."""

    KEPT = 0
    SEMANTIC_DUPLICATE = 1
    PROTOTYPICAL = 2


class SentenceEncoder:
    """An encoder from a local folder, with its tokenizer.

    Args:
        folder: what `transformers.AutoModel` loads.
        max_tokens: of a text that are looked at.
        batch_size: texts at once.
        device: torch's name of a device; "cuda" where there is one by default.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int = 512,
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        import torch  # only where texts are embedded: the selection itself is numpy
        from transformers import AutoModel, AutoTokenizer

        self._torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModel.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"encoder {folder}: transformers cannot load it ({error}); expected a folder with "
                "an encoder and its tokenizer"
            ) from error
        self._model.eval().to(self.device)
        self.size = int(self._model.config.hidden_size)

    def embed(self, texts: Iterable[str]) -> Embeddings:
        """Embeddings of length 1, shape (texts, size)."""
        texts = iter(texts)
        parts = [np.empty((0, self.size), dtype=np.float32)]
        while batch := list(islice(texts, self.batch_size)):
            parts.append(self._embed_batch(batch))
        return np.concatenate(parts)

    def _embed_batch(self, texts: Sequence[str]) -> Embeddings:
        torch = self._torch
        encoded = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        with torch.inference_mode():
            hidden = self._model(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
            ).last_hidden_state.float()
        mask = encoded["attention_mask"][:, :, None].float()
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())


def select(
    embeddings: Embeddings, ratios: tuple[float, float], *, clusters: int | None = None, seed: int
) -> NDArray[np.int8]:
    """What becomes of every document.

    Args:
        embeddings: of length 1, shape (documents, size).
        ratios: R_dedup and R_proto, the fractions that the two steps keep.
        clusters: of k-means; by default the square root of the documents, at most `MOST_CLUSTERS`.
        seed: of k-means.

    Returns:
        `Kept` of every document, shape (documents,).

    Raises:
        ValueError: a ratio is not in (0, 1].
    """
    check_ratios(ratios)
    fates = np.full(len(embeddings), Kept.KEPT, dtype=np.int8)
    if len(embeddings) == 0:
        return fates
    scores = duplicate_scores(embeddings, *_cluster(embeddings, clusters, seed))
    stay = _lowest(scores, ratios[0])
    fates[~stay] = Kept.SEMANTIC_DUPLICATE
    unique = np.flatnonzero(stay)
    _, nearness = _cluster(embeddings[unique], clusters, seed)
    fates[unique[~_lowest(nearness, ratios[1])]] = Kept.PROTOTYPICAL
    return fates


def check_ratios(ratios: Sequence[float]) -> None:
    """Refuse anything but two fractions."""
    if len(ratios) != 2 or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(
            f"--select {','.join(map(str, ratios))}: expected two fractions to keep in (0, 1], for "
            "semantic de-duplication and for diversification, e.g. 0.8,0.5"
        )


def duplicate_scores(
    embeddings: Embeddings, labels: NDArray[np.int64], nearness: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Largest cosine of each document with those of its cluster that lie farther out.

    Args:
        embeddings: of length 1, shape (documents, size).
        labels: cluster of each, shape (documents,).
        nearness: cosine with its centre, shape (documents,).

    Returns:
        Shape (documents,); -1 for the farthest of a cluster.
    """
    scores = np.full(len(embeddings), -1, dtype=np.float32)
    by_cluster = np.lexsort((np.arange(len(labels)), nearness, labels))
    starts = np.flatnonzero(np.diff(labels[by_cluster], prepend=-1))
    for members in np.split(by_cluster, starts[1:]):
        vectors = embeddings[members]
        for begin in range(0, len(members), ROWS):
            block = vectors[begin : begin + ROWS]
            cosines = block @ vectors[: begin + len(block)].T
            later = np.arange(cosines.shape[1]) >= begin + np.arange(len(block))[:, None]
            cosines[later] = -1
            scores[members[begin : begin + ROWS]] = cosines.max(axis=1)
    return scores


def _cluster(
    embeddings: Embeddings, clusters: int | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Spherical k-means: cluster of each document, and the cosine with its centre."""
    from sklearn.cluster import MiniBatchKMeans

    count = clusters or round(len(embeddings) ** 0.5)
    count = max(1, min(count, MOST_CLUSTERS, len(embeddings)))
    fitted = MiniBatchKMeans(
        count, random_state=seed, n_init=3, batch_size=max(1024, 4 * count)
    ).fit(embeddings)
    centres = fitted.cluster_centers_.astype(np.float32)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    labels = np.empty(len(embeddings), dtype=np.int64)
    nearness = np.empty(len(embeddings), dtype=np.float32)
    for begin in range(0, len(embeddings), ROWS):
        cosines = embeddings[begin : begin + ROWS] @ centres.T
        labels[begin : begin + ROWS] = cosines.argmax(axis=1)
        nearness[begin : begin + ROWS] = cosines.max(axis=1)
    return labels, nearness


def _lowest(scores: NDArray[np.float32], ratio: float) -> NDArray[np.bool_]:
    """The fraction of documents with the lowest scores, at least one; earlier ones first."""
    stay = np.zeros(len(scores), dtype=bool)
    stay[np.argsort(scores, kind="stable")[: max(1, round(ratio * len(scores)))]] = True
    return stay


def parse_ratios(text: str) -> tuple[float, float]:
    """Two fractions from "0.8,0.5"."""
    try:
        ratios = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--select {text}: expected two fractions, e.g. 0.8,0.5") from error
    check_ratios(ratios)
    return ratios[0], ratios[1]


def _read(path: Path, text_field: str) -> Iterator[tuple[str, str]]:
    """Line and text of every record."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            record = json.loads(line)
            if not isinstance(record.get(text_field), str):
                raise ValueError(
                    f"{path}, line {number}: no text in {text_field!r}; give its field with "
                    "--text-field"
                )
            yield line, record[text_field]


def main(command: list[str] | None = None) -> int:
    """Select from one file of JSON lines; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="the lines that stay, in order")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a sentence encoder")
    parser.add_argument("--select", required=True, metavar="R_DEDUP,R_PROTO")
    parser.add_argument("--clusters", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-field", default="text")
    arguments = parser.parse_args(command)
    try:
        ratios = parse_ratios(arguments.select)
        encoder = SentenceEncoder(arguments.encoder)
        vectors = encoder.embed(text for _, text in _read(arguments.input, arguments.text_field))
        fates = select(vectors, ratios, clusters=arguments.clusters, seed=arguments.seed)
        with arguments.output.open("w", encoding="utf-8") as output:
            rows = _read(arguments.input, arguments.text_field)
            for (line, _), fate in zip(rows, fates.tolist(), strict=True):
                if fate == Kept.KEPT:
                    output.write(line)
    except (OSError, ValueError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    for kept in Kept:
        print(f"{kept.name.lower():<20}{np.count_nonzero(fates == kept):>12}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
