"""Contiguous windows: a text of many documents, cut at regular distances.

    window i of a text = tokens[i T : i T + T + 1],   T the sequence length

Windows share one token with the next, so that every token but the first of the text is predicted
exactly once. A text is one file; or, for a share of a domain, all the documents that were chosen,
one after the other, though they do not lie side by side in their files.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..pieces import Pieces
from ..shard_formats.token_file import TokenFile
from .documents import Documents
from .form import check_windows
from .ranges import begins_of, expand

# B windows asked for, R runs of tokens, S texts


class ContiguousWindows:
    """Windows over texts, each of which is a sequence of runs of tokens.

    Tokens are counted through all texts: run r holds the tokens `[begin_R[r], begin_R[r + 1])`.

    Args:
        files: what the runs lie in.
        sequence_length: T.
        run_file, run_start, run_length: where the runs lie, in tokens, shape (R,).
        text_runs: number of runs of each text, at least 1, shape (S,).
    """

    resets: ClassVar[bool] = False

    def __init__(
        self,
        files: Sequence[TokenFile],
        *,
        sequence_length: int,
        run_file: NDArray[np.int64],
        run_start: NDArray[np.int64],
        run_length: NDArray[np.int64],
        text_runs: NDArray[np.int64],
    ) -> None:
        self.files = tuple(files)
        self.sequence_length = sequence_length
        self._run_file, self._run_start = run_file, run_start
        self._text_runs = text_runs
        self._run_begin = begins_of(run_length)
        text_begin = self._run_begin[begins_of(text_runs)]
        self._text_begin = text_begin[:-1]
        windows = np.maximum(np.diff(text_begin) - 1, 0) // sequence_length
        self._window_begin = begins_of(windows)
        self.num_tokens = len(self) * sequence_length

    @classmethod
    def of_files(cls, files: Sequence[TokenFile], *, sequence_length: int) -> Self:
        """Every file is a text: no window lies across two of them."""
        return cls(
            files,
            sequence_length=sequence_length,
            run_file=np.arange(len(files)),
            run_start=np.zeros(len(files), dtype=np.int64),
            run_length=np.array([file.num_tokens for file in files], dtype=np.int64),
            text_runs=np.ones(len(files), dtype=np.int64),
        )

    @classmethod
    def of_documents(
        cls, files: Sequence[TokenFile], documents: Documents, *, sequence_length: int
    ) -> Self:
        """The documents are one text, in their order; neighbours in a file are one run."""
        ends = documents.start + documents.length
        joined = (documents.file[1:] == documents.file[:-1]) & (documents.start[1:] == ends[:-1])
        first = np.flatnonzero(np.concatenate([[True], ~joined])[: len(documents)])
        return cls(
            files,
            sequence_length=sequence_length,
            run_file=documents.file[first],
            run_start=documents.start[first],
            run_length=np.add.reduceat(documents.length, first),
            text_runs=np.array([first.size]),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The windows of all parts, numbered through."""
        first_file = np.cumsum([0] + [len(part.files) for part in parts])
        return cls(
            [file for part in parts for file in part.files],
            sequence_length=parts[0].sequence_length,
            run_file=np.concatenate(
                [part._run_file + first for part, first in zip(parts, first_file, strict=False)]
            ),
            run_start=np.concatenate([part._run_start for part in parts]),
            run_length=np.concatenate([np.diff(part._run_begin) for part in parts]),
            text_runs=np.concatenate([part._text_runs for part in parts]),
        )

    def __len__(self) -> int:
        return int(self._window_begin[-1])

    def pieces(
        self, windows: NDArray[np.int64], *, rows: NDArray[np.int64], first_file: int = 0
    ) -> Pieces:
        """What fills the rows of some windows, as `Windows.pieces` says."""
        check_windows(windows, len(self))
        text_B = np.searchsorted(self._window_begin, windows, side="right") - 1
        token_B = (windows - self._window_begin[text_B]) * self.sequence_length
        length = self.sequence_length + 1
        if self._run_file.size == self._text_begin.size:  # each text is one run
            return Pieces(
                row=rows,
                column=np.zeros_like(rows),
                file=self._run_file[text_B] + first_file,
                start=self._run_start[text_B] + token_B,
                length=np.full_like(rows, length),
            )
        token_B += self._text_begin[text_B]
        first_B = np.searchsorted(self._run_begin, token_B, side="right") - 1
        last_B = np.searchsorted(self._run_begin, token_B + length, side="left") - 1
        window, run = expand(first_B, last_B - first_B + 1)
        token = token_B[window]
        begin = np.maximum(self._run_begin[run], token)
        end = np.minimum(self._run_begin[run + 1], token + length)
        return Pieces(
            row=rows[window],
            column=begin - token,
            file=self._run_file[run] + first_file,
            start=self._run_start[run] + begin - self._run_begin[run],
            length=end - begin,
        )
