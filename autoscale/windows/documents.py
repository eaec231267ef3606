"""The documents of a domain: where they lie, a share of them, and which of them windows hold.

**A share by key.** Every document has a key, a hash of the domain's name and the document's number
in the domain; the seed of a run does not enter. A share takes the documents in the order of their
keys, as few as hold that share of the tokens. So a smaller share lies inside a larger one, and the
tokens are met to within one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..permutation import derive_key, derive_subkeys
from ..shard_formats.token_file import TokenFile
from .form import Windows
from .ranges import begins_of, expand


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """Documents in the order of their files: int64 arrays of shape (num_documents,).

    Attributes:
        file: index of the file.
        start: first token in the file.
        length: tokens, at least 1.
    """

    file: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return self.file.size

    @classmethod
    def of_files(cls, files: Sequence[TokenFile]) -> "Documents":
        """All documents of some files; empty ones are passed over.

        Raises:
            ValueError: a file does not say where its documents begin.
        """
        starts = [_document_starts(file) for file in files]
        lengths = [np.diff(begins) for begins in starts]
        file = np.repeat(np.arange(len(files)), [length.size for length in lengths])
        start = np.concatenate([begins[:-1] for begins in starts])
        length = np.concatenate(lengths)
        there = length > 0
        return cls(file=file[there], start=start[there], length=length[there])

    def share(self, name: str, share: float) -> "Documents":
        """The documents that make up a share of the domain, in their old order.

        Args:
            name: of the domain.
            share: of the domain's tokens, above 0 and at most 1.

        Raises:
            ValueError: the share is none.
        """
        if not 0 < share <= 1:
            raise ValueError(
                f"share of domain {name!r} is {share}; expected a number above 0 and at most 1"
            )
        if share == 1 or not len(self):
            return self
        key = np.array([derive_key("documents", 0, name)])
        by_key = np.argsort(derive_subkeys(key, np.arange(len(self))), kind="stable")
        tokens = np.cumsum(self.length[by_key])
        count = int(np.searchsorted(tokens, share * int(tokens[-1]))) + 1
        kept = np.sort(by_key[:count])
        return Documents(file=self.file[kept], start=self.start[kept], length=self.length[kept])


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentSpans:
    """The labels of windows by document: int64 arrays of shape (num_spans,).

    Attributes:
        window: index into the windows that were asked for.
        document: number of the document, counted through the files.
        tokens: labels of this window in that document.
    """

    window: NDArray[np.int64]
    document: NDArray[np.int64]
    tokens: NDArray[np.int64]


def documents_of(windows: Windows, numbers: NDArray[np.int64]) -> DocumentSpans:
    """Which documents the labels of some windows lie in, and how many of them in each.

    Args:
        windows: those of a domain.
        numbers: of the windows asked for, shape (B,).

    Raises:
        ValueError: a file does not say where its documents begin.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    pieces = windows.pieces(numbers, rows=np.arange(numbers.size))
    file_begin, starts = _index(windows.files)
    # The first token of a row is nowhere a label, nor is that of a piece that stands for itself.
    begins_anew = (pieces.column == 0) | windows.resets
    begin = file_begin[pieces.file] + pieces.start + begins_anew
    end = file_begin[pieces.file] + pieces.start + pieces.length
    first = np.searchsorted(starts, begin, side="right") - 1
    last = np.searchsorted(starts, end, side="left") - 1
    piece, document = expand(first, np.maximum(last - first + 1, 0))
    tokens = np.minimum(end[piece], starts[document + 1]) - np.maximum(
        begin[piece], starts[document]
    )
    there = tokens > 0  # an empty document has no labels
    return DocumentSpans(
        window=pieces.row[piece][there], document=document[there], tokens=tokens[there]
    )


@lru_cache(maxsize=1)  # questions about the same windows come in batches
def _index(files: tuple[TokenFile, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens counted through all files: where the files begin, and where the documents begin.

    Returns:
        Shape (num_files + 1,), and shape (num_documents + 1,) with the end of the last document.
    """
    file_begin = begins_of(np.array([file.num_tokens for file in files], dtype=np.int64))
    starts = [
        _document_starts(file)[:-1] + begin for file, begin in zip(files, file_begin, strict=False)
    ]
    return file_begin, np.concatenate([*starts, file_begin[-1:]])


def _document_starts(file: TokenFile) -> NDArray[np.int64]:
    """Where the documents of a file begin, and its end, in tokens, shape (documents + 1,)."""
    starts = file.document_starts()
    if starts is None:
        raise ValueError(
            f"{file.location} does not say where its documents begin, which a share of them and "
            "packing by document need: name the end-of-text token when its manifest is written, "
            "or draw contiguous windows"
        )
    return starts
