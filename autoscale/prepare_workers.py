"""Processes that read and tokenize for `prepare`: results come back in the order of the calls.

Processes are spawned, so nothing of the parent (threads, MPI, CUDA) is inherited, and they end by
themselves when the parent is killed. With one worker everything happens in the calling process.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from .selection import hash_text
from .text import TextSource, read_texts
from .tokenizer import EncodedTexts, TextTokenizer, tokenizer_threads

POLL_SECONDS = 0.2
DOCUMENTS_PER_ADVANCE = 100
Result = TypeVar("Result")

_shared_count: Any = None
"""In a worker process: the counter that it shares with the parent."""


class PrepareWorkers:
    """A pool of processes, or this process when `num_workers` is 1; 0 means one a core."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers or _num_cores()
        self._pool: ProcessPoolExecutor | None = None
        self._count: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def scan(
        self, groups: Sequence[Sequence[tuple[TextSource, str]]], on_bytes: Callable[[int], None]
    ) -> Iterator[list["ScannedSource"]]:
        """Scan groups of (source, text field); `on_bytes` hears how many bytes are read so far."""
        if self.num_workers == 1:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                on_bytes(done)

            for group in groups:
                yield [scan_source(source, field, advance) for source, field in group]
            return
        self._start()
        yield from self._in_order(
            _scan_in_worker, ((group,) for group in groups), lambda: on_bytes(self._count.value)
        )

    def encode(self, folder: Path, batches: Iterable[Sequence[str]]) -> Iterator[EncodedTexts]:
        """Token ids of every batch of texts, by the tokenizer in `folder`."""
        if self.num_workers == 1:
            tokenizer = TextTokenizer.open(folder)
            for texts in batches:
                with tokenizer_threads(enabled=False):
                    encoded = tokenizer.encode(texts)
                yield encoded
            return
        self._start()
        yield from self._in_order(
            _encode_in_worker, ((str(folder), texts) for texts in batches), lambda: None
        )

    def _start(self) -> None:
        if self._pool is None:
            context = get_context("spawn")
            self._count = context.Value("q", 0)
            self._pool = ProcessPoolExecutor(
                self.num_workers,
                mp_context=context,
                initializer=_enter_worker,
                initargs=(self._count,),
            )

    def _in_order(
        self,
        function: Callable[..., Result],
        calls: Iterable[tuple[Any, ...]],
        on_wait: Callable[[], None],
    ) -> Iterator[Result]:
        """Results in the order of `calls`, with two calls a worker under way."""
        assert self._pool is not None
        waiting: deque[Future[Result]] = deque()
        try:
            for call in calls:
                waiting.append(self._pool.submit(function, *call))
                if len(waiting) > 2 * self.num_workers:
                    yield _await(waiting.popleft(), on_wait)
            while waiting:
                yield _await(waiting.popleft(), on_wait)
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {self.num_workers} processes of prepare died; often memory ran out (lower "
                "prepare.num_workers), or a script calls prepare outside of "
                "`if __name__ == '__main__':`. Run prepare again: finished shards are kept"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


class ScannedSource:
    """Hash and size of every document of one source, in reading order."""

    def __init__(self, hashes: list[int], text_bytes: list[int]) -> None:
        self.hashes: NDArray[np.uint64] = np.array(hashes, dtype=np.uint64)
        self.text_bytes: NDArray[np.int64] = np.array(text_bytes, dtype=np.int64)


def scan_source(
    source: TextSource, text_field: str, advance: Callable[[int], None]
) -> ScannedSource:
    """Read one source to its end; a document of white space alone counts as empty.

    Raises:
        ValueError: it cannot be read, or it holds no document.
    """
    hashes: list[int] = []
    text_bytes: list[int] = []
    reported = 0
    for text, position in read_texts(source, text_field):
        encoded = b"" if text.isspace() else text.encode("utf-8")
        hashes.append(hash_text(encoded))
        text_bytes.append(len(encoded))
        if len(hashes) % DOCUMENTS_PER_ADVANCE == 0:
            advance(position - reported)
            reported = position
    advance(source.size - reported)
    if not any(text_bytes):
        raise ValueError(
            f"{source.location} holds no document with text ({len(hashes)} read); remove it from "
            "the domain or write it again"
        )
    return ScannedSource(hashes, text_bytes)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _await(future: Future[Result], on_wait: Callable[[], None]) -> Result:
    while True:
        try:
            return future.result(timeout=POLL_SECONDS)
        except TimeoutError:
            if future.done():
                return future.result()
            on_wait()


def _enter_worker(shared_count: Any) -> None:
    global _shared_count
    _shared_count = shared_count
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _scan_in_worker(group: Sequence[tuple[TextSource, str]]) -> list[ScannedSource]:
    def advance(count: int) -> None:
        with _shared_count.get_lock():
            _shared_count.value += count

    return [scan_source(source, field, advance) for source, field in group]


def _encode_in_worker(folder: str, texts: Sequence[str]) -> EncodedTexts:
    return _open_tokenizer(folder).encode(texts)


@lru_cache(maxsize=1)
def _open_tokenizer(folder: str) -> TextTokenizer:
    return TextTokenizer.open(Path(folder))
