"""Local files: mapped into memory for the compiled kernel, or read piece by piece.

A map needs no open descriptor, so that thousands of shards do not meet the limit on open files
(Python's `mmap` keeps one for each). Descriptors for reading are few, and reused.
"""

import ctypes
import mmap
import os
import weakref
from functools import lru_cache
from typing import Final

from .locations import named_errors
from .shard_formats.token_file import TokenFile

MOST_DESCRIPTORS: Final = 128
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class FileMapping:
    """A file in memory, until the mapping is dropped.

    Attributes:
        address: of the file's first token.

    Raises:
        ValueError: the file is missing, not as long as it was, or cannot be mapped.
    """

    def __init__(self, file: TokenFile) -> None:
        descriptor = Descriptor(file.location)
        if os.fstat(descriptor.number).st_size != file.file_bytes:
            raise ValueError(file.unreadable(0))
        begin = _libc.mmap(
            None, file.file_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor.number, 0
        )
        if begin == _FAILED:
            raise ValueError(
                f"{file.location} cannot be mapped ({os.strerror(ctypes.get_errno())}); raise the "
                "limit on maps (vm.max_map_count) or on memory (ulimit -v), or join small shards"
            )
        self.address: int = begin + file.offset
        # Not at exit: the kernel may still be copying in another thread.
        weakref.finalize(self, _libc.munmap, begin, file.file_bytes).atexit = False


class Descriptor:
    """A file opened for reading, closed when nobody uses it any more.

    Raises:
        ValueError: the file cannot be opened.
    """

    def __init__(self, location: str) -> None:
        with named_errors(location):
            self.number = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)


class FileReader:
    """Reads of local files through a few open descriptors; safe in threads."""

    def __init__(self) -> None:
        # A descriptor that falls out of the cache is closed once no thread reads from it.
        self._descriptor = lru_cache(MOST_DESCRIPTORS)(Descriptor)

    def read(self, file: TokenFile, begin: int, end: int) -> bytes:
        """The bytes of a file from `begin` to `end`.

        Raises:
            ValueError: the file has no such bytes (any more).
        """
        try:
            data = os.pread(self._descriptor(file.location).number, end - begin, begin)
        except (OSError, ValueError) as error:
            raise ValueError(file.unreadable(begin)) from error
        if len(data) != end - begin:
            raise ValueError(file.unreadable(begin + len(data)))
        return data
