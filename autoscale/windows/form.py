"""What every form of windows offers to those who draw and read them.

A window is one sample: a row of `sequence_length + 1` tokens, of which all but the last are fed to
the model and all but the first are its labels. A form says which runs of tokens of which files
fill the row of a window (`Pieces`); it reads no tokens.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..pieces import Pieces
from ..shard_formats.token_file import TokenFile

Packing = Literal["contiguous", "whole_documents", "best_fit"]


class Windows(Protocol):
    """The windows of one domain or, concatenated, of several, numbered from 0.

    Attributes:
        resets: whether every piece of a row stands for itself: attention and positions begin anew
            at its first token, which is no label, and what no piece covers is padding. Otherwise
            the pieces of a row follow each other like one text, and fill it.
        files: the files that the pieces name by index.
        sequence_length: T; a row has T + 1 tokens.
        num_tokens: labels of all windows together.
    """

    resets: ClassVar[bool]
    files: tuple[TokenFile, ...]
    sequence_length: int
    num_tokens: int

    def __len__(self) -> int: ...

    def pieces(
        self, windows: NDArray[np.int64], *, rows: NDArray[np.int64], first_file: int = 0
    ) -> Pieces:
        """What fills the rows of some windows.

        Args:
            windows: numbers of windows, in any order, shape (B,).
            rows: where each of them goes, ascending, shape (B,).
            first_file: number of the first of `files` in the caller's table.
        """
        ...

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The windows of all parts, numbered through."""
        ...


def check_windows(windows: NDArray[np.int64], count: int) -> None:
    """Raise ValueError for the number of a window that is not there."""
    if windows.size and not (0 <= windows.min() and windows.max() < count):
        outside = windows[(windows < 0) | (windows >= count)][0]
        raise ValueError(f"window {outside} is outside the {count} windows; ask for one of them")
