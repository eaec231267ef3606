"""Whether what is trained on is also validated with: keys of both, compared.

By documents: blake2b of each document's token ids, without the end-of-text tokens at its ends.
By windows of W tokens, where documents are not known: with odd B and all arithmetic modulo 2^64,

    key(i) = sum_j mix(token[i + j]) B^j,  0 <= j < W

from prefix sums at every offset i at once. Validation gives the windows at i = 0, W, 2 W, ..., and
training all of them, so any common run of 2 W - 1 tokens is found wherever it begins. Windows of
one token over and over are padding, and left out.
"""

import hashlib
from functools import lru_cache
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

WINDOW: Final = 512
LEAST_WINDOW: Final = 32
"""Shorter runs of tokens recur by chance."""
_SEEN_BITS: Final = 20
_SEEN_SHIFT: Final = np.uint64(64 - _SEEN_BITS)
_BASE: Final = 0x9E3779B97F4A7C15
_INVERSE: Final = pow(_BASE, -1, 2**64)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)


class HeldOut:
    """Keys of everything that is validated with.

    Args:
        by_documents: whether keys are of documents, or of windows.
        shortest: tokens of the shortest validation shard; windows are no longer, if they can.
    """

    def __init__(self, *, by_documents: bool, shortest: int) -> None:
        self.by_documents = by_documents
        self.window = min(WINDOW, max(shortest, LEAST_WINDOW))
        self._lock = Lock()
        self._parts: list[tuple[str, NDArray[np.uint64]]] = []
        self._keys = np.empty(0, dtype=np.uint64)
        self._owner = np.empty(0, dtype=np.int64)
        self._seen = np.zeros(1 << _SEEN_BITS, dtype=np.bool_)

    def add(self, domain: str, keys: NDArray[np.uint64]) -> None:
        """More keys of a domain; from any thread."""
        with self._lock:
            self._parts.append((domain, keys))

    def close(self) -> None:
        """All keys are there: make them ready to be looked up."""
        self._parts.sort(key=lambda part: part[0])
        if self._parts:
            keys = np.concatenate([keys for _, keys in self._parts])
            owner = np.repeat(np.arange(len(self._parts)), [k.size for _, k in self._parts])
            self._keys, first = np.unique(keys, return_index=True)
            self._owner = owner[first]
            self._seen[self._keys >> _SEEN_SHIFT] = True

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], str]:
        """Places in `keys` of what is held out, and the domain of the first of them."""
        places = np.flatnonzero(self._seen[keys >> _SEEN_SHIFT])  # few are left to search for
        near = np.searchsorted(self._keys, keys[places])
        places, near = places[near < self._keys.size], near[near < self._keys.size]
        found = self._keys[near] == keys[places]
        places, near = places[found], near[found]
        return places, self._parts[self._owner[near[0]]][0] if places.size else ""


def document_keys(
    tokens: NDArray[np.integer], starts: NDArray[np.int64], end_of_text_id: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys of documents that hold more than end-of-text tokens, and their places in `starts`.

    Args:
        tokens: of all of them, one after the other.
        starts: where each begins, and the end; shape (documents + 1,).
    """
    begins, ends = starts[:-1].copy(), starts[1:].copy()
    closing = np.append(tokens == end_of_text_id, False)  # one more: where empty documents look
    while (closed := (begins < ends) & closing[ends - 1]).any():
        ends -= closed
    while (opened := (begins < ends) & closing[begins]).any():
        begins += opened
    places = np.flatnonzero(begins < ends)
    content = tokens.astype("<u4").view(np.uint8).data
    digests = [
        hashlib.blake2b(content[4 * begin : 4 * end], digest_size=8).digest()
        for begin, end in zip(begins[places].tolist(), ends[places].tolist(), strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint64), places


def window_keys(tokens: NDArray[np.integer], window: int) -> NDArray[np.uint64]:
    """Key of the window at every offset, shape (num_tokens - window + 1,)."""
    if tokens.size < window:
        return np.empty(0, dtype=np.uint64)
    powers, inverses = _powers(tokens.size)
    mixed = tokens.astype(np.uint64)
    mixed += np.uint64(1)
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(31)
    mixed *= powers
    sums = np.zeros(tokens.size + 1, dtype=np.uint64)
    np.cumsum(mixed, out=sums[1:])
    keys: NDArray[np.uint64] = sums[window:] - sums[:-window]
    keys *= inverses[: keys.size]
    keys ^= keys >> np.uint64(32)
    keys *= _MIX
    return keys


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """B^1, B^2, ... and their inverses, each of shape (count,)."""
    powers = np.full(count, _BASE, dtype=np.uint64)
    inverses = np.full(count, _INVERSE, dtype=np.uint64)
    return np.multiply.accumulate(powers), np.multiply.accumulate(inverses)


def varied_windows(tokens: NDArray[np.integer], window: int) -> NDArray[np.bool_]:
    """Whether the window at every offset holds more than one token over and over."""
    if tokens.size < window:
        return np.empty(0, dtype=np.bool_)
    changes = np.concatenate([[0], np.cumsum(tokens[1:] != tokens[:-1])])
    varied: NDArray[np.bool_] = changes[window - 1 :] > changes[: tokens.size - window + 1]
    return varied
