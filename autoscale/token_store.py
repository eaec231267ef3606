"""Copy runs of tokens from many files into the rows of a batch.

Local files are memory-mapped and copied by the compiled kernel; without it, each run is read with
`pread`. Files behind a URL are read by ranges. In every case a file that was cut or lost since it
was opened is one ValueError that names file, byte and sizes, and never a bus error.

A map shows zeros where the end of a cut file lies inside a memory page. So the sizes of local
files are looked up again while they are read, each second some of them, and all by `check`.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import kernel
from .file_mapping import FileMapping, FileReader
from .locations import is_url
from .pieces import FileTable, Pieces
from .remote_ranges import RemoteRanges
from .shard_formats.token_file import TokenFile

CHECK_EVERY_SECONDS: Final = 1.0
CHECK_FOR_SECONDS: Final = 0.01


class TokenStore:
    """The opened files of a stream; may be used by threads, and sent to other processes.

    Args:
        files: in the order in which pieces name them.
        read_block_bytes: files behind URLs only: read whole blocks of this size and keep some, for
            streams that ask for windows near each other (`locality`); 0 reads just what is asked.

    Attributes:
        table: the files as the kernel needs them.

    Raises:
        ValueError: a file is missing, or not as long as it was.
    """

    def __init__(self, files: Sequence[TokenFile], *, read_block_bytes: int = 0) -> None:
        self.files = tuple(files)
        self._read_block_bytes = read_block_bytes
        self._local = [file for file in self.files if not is_url(file.location)]
        mapped = kernel.compiled is not None and len(self._local) == len(self.files)
        self._mappings = [FileMapping(file) for file in self.files] if mapped else []
        self.table = FileTable(
            address=np.array(
                [mapping.address for mapping in self._mappings] or [0] * len(self.files),
                dtype=np.uint64,
            ),
            num_tokens=np.array([file.num_tokens for file in self.files], dtype=np.int64),
            itemsize=np.array([file.itemsize for file in self.files], dtype=np.int64),
        )
        self._reader = FileReader()
        self._of_parent: RemoteRanges | None = None
        self._connect()
        if not mapped:
            self.check()
        self._next_check = time.monotonic() + CHECK_EVERY_SECONDS
        self._last_checked = 0

    def copy(
        self, pieces: Pieces, first: int, last: int, out: NDArray[Any], first_row: int
    ) -> None:
        """Copy the tokens of `pieces[first:last]`, widened without a sign.

        Args:
            out: the batch, shape (rows, columns), C-contiguous, uint16, uint32, int32 or int64.
            first_row: the row in `pieces` that is row 0 of `out`.

        Raises:
            ValueError: a file has changed, a piece lies outside its file, or has no place in `out`.
        """
        compiled = kernel.compiled
        if compiled is not None and self._mappings:
            # Without the detour through `kernel.copy_pieces`: this is done for every batch.
            failed = compiled.copy_pieces(self.table, pieces, first, last, out, first_row)
            if failed >= 0:
                raise ValueError(self._why(pieces, failed))
        else:
            self._copy_by_reads(pieces, first, last, out, first_row)
        if time.monotonic() >= self._next_check:
            self._check_some()

    def check(self) -> None:
        """Look whether all local files still have their sizes: what was read so far is good then.

        Raises:
            ValueError: a file was cut or removed.
        """
        for file in self._local:
            _check_size(file)

    def _check_some(self) -> None:
        """As `check`, for as many files as a hundredth of the time allows; next time the others."""
        began = time.monotonic()
        for _ in self._local:
            self._last_checked = (self._last_checked + 1) % len(self._local)
            _check_size(self._local[self._last_checked])
            if time.monotonic() - began > CHECK_FOR_SECONDS:
                break
        self._next_check = time.monotonic() + CHECK_EVERY_SECONDS

    def _copy_by_reads(
        self, pieces: Pieces, first: int, last: int, out: NDArray[Any], first_row: int
    ) -> None:
        """As `copy`, without maps."""
        if os.getpid() != self._process:  # connections to storage do not survive a fork
            self._of_parent = self._ranges  # closing them here would break those of the parent
            self._connect()
        remote: list[tuple[NDArray[Any], int, int, int]] = []
        for index in range(first, last):
            number, begin, end = self._span(pieces, index)
            place = _place(pieces, index, out, first_row)
            if is_url(self.files[number].location):
                remote.append((place, number, begin, end))
            else:
                data = self._reader.read(self.files[number], begin, end)
                place[...] = np.frombuffer(data, dtype=self._dtype(number))
        ranges = [(number, begin, end) for _, number, begin, end in remote]
        for (place, number, _, _), data in zip(remote, self._ranges.read(ranges), strict=True):
            place[...] = np.frombuffer(data, dtype=self._dtype(number))

    def _connect(self) -> None:
        self._process = os.getpid()
        remote = {n: file for n, file in enumerate(self.files) if is_url(file.location)}
        self._ranges = RemoteRanges(remote, block_bytes=self._read_block_bytes)

    def _dtype(self, number: int) -> np.dtype[Any]:
        return np.dtype(f"<u{self.files[number].itemsize}")

    def _span(self, pieces: Pieces, index: int) -> tuple[int, int, int]:
        """Number of the file, first byte of a piece, and the byte after its last."""
        number, start = int(pieces.file[index]), int(pieces.start[index])
        length = int(pieces.length[index])
        file = self.files[number]
        if start < 0 or length < 0 or start + length > file.num_tokens:
            raise ValueError(
                f"tokens {start} to {start + length} were asked of {file.location}, which has "
                f"{file.num_tokens}; the window does not belong to this file"
            )
        begin = file.offset + start * file.itemsize
        return number, begin, begin + length * file.itemsize

    def _why(self, pieces: Pieces, index: int) -> str:
        """What is wrong with a piece that the kernel could not copy."""
        number, begin, _ = self._span(pieces, index)
        return self.files[number].unreadable(begin)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(TokenStore, read_block_bytes=self._read_block_bytes), (self.files,)


def _check_size(file: TokenFile) -> None:
    try:
        found = os.stat(file.location).st_size
    except OSError as error:
        raise ValueError(file.unreadable(0)) from error
    if found != file.file_bytes:
        raise ValueError(file.unreadable(min(found, file.file_bytes)))


def _place(pieces: Pieces, index: int, out: NDArray[Any], first_row: int) -> NDArray[Any]:
    """Where a piece goes, as a view."""
    row, column = int(pieces.row[index]) - first_row, int(pieces.column[index])
    length = int(pieces.length[index])
    if not (0 <= row < out.shape[0] and 0 <= column <= out.shape[1] - length):
        raise ValueError(
            f"piece {index} has row {row}, column {column}, length {length}; expected a place in a "
            f"batch of {list(out.shape)}"
        )
    view: NDArray[Any] = out[row, column : column + length]
    return view
