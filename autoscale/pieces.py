"""What rows of a batch are made of: runs of tokens, copied from files.

A row is filled by one piece (a plain window) or by several (packed documents, or a window over
documents that do not lie side by side). Whatever chooses the windows says so as `Pieces`; whatever
reads files copies them. Neither needs to know the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Runs of tokens with their places in a batch: int64 arrays of shape (num_pieces,).

    Attributes:
        row: of the batch; never goes down.
        column: of the row, where the first token goes.
        file: index into the table of files.
        start: index of the first token in its file.
        length: number of tokens.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return self.row.size

    @classmethod
    def concatenate(cls, parts: Sequence["Pieces"]) -> Self:
        """All pieces of all parts, sorted by row; within a row they keep their order."""
        joined = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
        }
        order = np.argsort(joined["row"], kind="stable")
        return cls(**{name: values[order] for name, values in joined.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTable:
    """The files that pieces are copied from: arrays of shape (num_files,).

    Attributes:
        address: of the first token in memory, uint64; 0 for a file that is not mapped.
        num_tokens: tokens in the file, int64.
        itemsize: bytes of a token, int64.
    """

    address: NDArray[np.uint64]
    num_tokens: NDArray[np.int64]
    itemsize: NDArray[np.int64]
