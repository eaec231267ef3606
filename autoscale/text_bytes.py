"""The bytes of text behind tokens that somebody else made, counted by decoding them.

Losses in bits per byte need them, for validation shards only. Special tokens are no text. What the
tokenizer itself changed (spaces it strips, letters it folds) is counted as it comes back.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .documents import Progress
from .manifest import Manifest, Shard
from .tokenizer import TOKENIZER_FILE

DOCUMENTS_AT_ONCE = 256
MOST_TOKENS_OF_PIECE = 1 << 16
"""Longer documents are decoded in pieces; a letter cut in two counts a few bytes more."""


def with_text_bytes(manifest: Manifest, report: Progress) -> Manifest:
    """The manifest with the bytes of every validation shard's text."""
    folder = manifest.tokenizer_folder
    assert folder is not None
    backend = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    total = sum(
        manifest.token_bytes(shard) for domain in manifest.domains for shard in domain.validation
    )
    done = 0
    domains = []
    for domain in manifest.domains:
        counted = []
        for shard in domain.validation:
            report("count bytes of validation text", done, total)
            counted.append(replace(shard, text_bytes=_count(manifest, shard, backend)))
            done += manifest.token_bytes(shard)
        domains.append(replace(domain, validation=tuple(counted)))
    report("count bytes of validation text", total, total)
    return replace(manifest, domains=tuple(domains))


def _count(manifest: Manifest, shard: Shard, backend: Tokenizer) -> int:
    file = manifest.open_file(shard)
    starts = file.document_starts()
    tokens = file.tokens()
    if starts is None:
        starts = np.array([0, tokens.size])
    total = 0
    for batch in _batches(tokens, starts):
        texts = backend.decode_batch([piece.tolist() for piece in batch], skip_special_tokens=True)
        total += sum(len(text.encode("utf-8", "replace")) for text in texts)
    return total


def _batches(
    tokens: NDArray[np.integer], starts: NDArray[np.int64]
) -> Iterator[list[NDArray[np.integer]]]:
    """Documents, or pieces of long ones, some at a time."""
    batch: list[NDArray[np.integer]] = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for place in range(begin, end, MOST_TOKENS_OF_PIECE):
            batch.append(tokens[place : min(place + MOST_TOKENS_OF_PIECE, end)])
            if len(batch) == DOCUMENTS_AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch
