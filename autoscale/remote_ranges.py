"""Ranges of bytes of files behind URLs, all those of one storage asked for at once.

With `block_bytes` whole aligned blocks are read and some are kept: for streams that ask for
windows near each other (`locality`), which then read each block once.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .locations import file_system
from .shard_formats.token_file import TokenFile, known_size

KEPT_BYTES: Final = 256 << 20
"""Blocks are kept up to this size in all, the last used ones."""

Range = tuple[int, int, int]
"""Number of a file, first byte, and the byte after the last."""


class RemoteRanges:
    """Reads files behind URLs; safe in threads.

    Args:
        files: by their numbers.
        block_bytes: size of the blocks; 0 reads just what is asked.

    Raises:
        ValueError: a file is missing, or not as long as it was.
    """

    def __init__(self, files: Mapping[int, TokenFile], *, block_bytes: int) -> None:
        self._files = files
        self._block_bytes = block_bytes
        self._places = {number: file_system(file.location) for number, file in files.items()}
        for file in files.values():
            if known_size(file.location) != file.file_bytes:
                raise ValueError(file.unreadable(0))
        self._blocks: OrderedDict[Range, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range.

        Raises:
            ValueError: a file has no such bytes (any more).
        """
        if not self._block_bytes:
            return self._fetch(ranges)
        needed = [self._blocks_of(each) for each in ranges]
        wanted = list(dict.fromkeys(block for blocks in needed for block in blocks))
        with self._lock:
            found = {block: self._blocks[block] for block in wanted if block in self._blocks}
        missing = [block for block in wanted if block not in found]
        found.update(zip(missing, self._fetch(missing), strict=True))
        self._keep(found)
        read = []
        for (_, begin, end), blocks in zip(ranges, needed, strict=True):
            skipped = blocks[0][1] if blocks else begin
            data = b"".join(found[block] for block in blocks)
            read.append(data[begin - skipped : end - skipped])
        return read

    def _blocks_of(self, wanted: Range) -> list[Range]:
        """The blocks that a range lies in; the last block of a file may be shorter."""
        number, begin, end = wanted
        size, most = self._block_bytes, self._files[number].file_bytes
        return [
            (number, first, min(first + size, most))
            for first in range(begin // size * size, end, size)
        ]

    def _keep(self, blocks: Mapping[Range, bytes]) -> None:
        with self._lock:
            for block, data in blocks.items():
                if block not in self._blocks:
                    self._blocks[block] = data
                    self._kept_bytes += len(data)
                self._blocks.move_to_end(block)
            while self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= len(self._blocks.popitem(last=False)[1])

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """Ask each storage once for all its ranges."""
        by_storage: dict[int, list[int]] = {}
        for index, (number, _, _) in enumerate(ranges):
            by_storage.setdefault(id(self._places[number][0]), []).append(index)
        answers: list[bytes] = [b""] * len(ranges)
        for indices in by_storage.values():
            asked = [ranges[index] for index in indices]
            storage = self._places[asked[0][0]][0]
            fetched = storage.cat_ranges(
                [self._places[number][1] for number, _, _ in asked],
                [begin for _, begin, _ in asked],
                [end for _, _, end in asked],
                on_error="return",
            )
            for index, answer in zip(indices, fetched, strict=True):
                answers[index] = self._checked(answer, ranges[index])
        return answers

    def _checked(self, answer: Any, wanted: Range) -> bytes:
        """What storage answered, if it is what was asked for."""
        number, begin, end = wanted
        file = self._files[number]
        if isinstance(answer, Exception) or len(answer) != end - begin:
            self._places[number][0].invalidate_cache()  # the size is to be looked up anew
            cause = answer if isinstance(answer, Exception) else None
            raise ValueError(file.unreadable(begin if cause else begin + len(answer))) from cause
        return bytes(answer)
