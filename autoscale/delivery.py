"""What a run was given: windows and labels of each domain, and a checksum of all rows.

    checksum = sum over the rows of crc32(tokens of the row), mod 2**64

over the tokens as little-endian integers of the stream's wire dtype. A sum does not depend on the
order of the rows, nor on the ranks that they went to, so a run and a recount of it (`audit.py`)
must agree to the last bit. It finds mistakes, such as shards that were changed; it is no proof
against somebody who wants to deceive. A row of 1024 tokens costs under a microsecond.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .mixture_stream import TokenBatch

_MODULUS = 1 << 64
_HALF = 1 << 32

# B rows, T sequence length, K domains


@dataclass(slots=True, eq=False)
class Delivery:
    """Running counts of one rank, or the sum over ranks.

    Attributes:
        windows: rows of each domain, shape (K,).
        labels: tokens to predict in them, which padding is none of, shape (K,).
        checksum: of all rows, from 0 to 2**64 - 1.
    """

    windows: NDArray[np.int64]
    labels: NDArray[np.int64]
    checksum: int

    @classmethod
    def nothing(cls, num_domains: int) -> Self:
        counts = np.zeros(num_domains, dtype=np.int64)
        return cls(windows=counts, labels=counts.copy(), checksum=0)

    def add(self, batch: TokenBatch) -> None:
        """Count a batch whose tokens are in the wire dtype."""
        domain_B, num_domains = batch.located.domain, self.windows.size
        self.windows += np.bincount(domain_B, minlength=num_domains)
        labels_B = count_labels(batch.tokens, batch.positions)
        self.labels += np.bincount(domain_B, labels_B, num_domains).astype(np.int64)
        self.checksum = (self.checksum + rows_checksum(batch.tokens)) % _MODULUS

    def plus(self, other: "Delivery") -> "Delivery":
        return Delivery(
            windows=self.windows + other.windows,
            labels=self.labels + other.labels,
            checksum=(self.checksum + other.checksum) % _MODULUS,
        )

    def to_array(self) -> NDArray[np.int64]:
        """Integers that ranks may add up, shape (2 K + 2,); none overflows."""
        halves = [self.checksum // _HALF, self.checksum % _HALF]
        return np.concatenate([self.windows, self.labels, np.array(halves, dtype=np.int64)])

    @classmethod
    def from_array(cls, sums: NDArray[np.int64]) -> Self:
        windows, labels = np.split(np.asarray(sums[:-2], dtype=np.int64), 2)
        high, low = map(int, sums[-2:])
        return cls(windows=windows, labels=labels, checksum=(high * _HALF + low) % _MODULUS)

    @property
    def checksum_text(self) -> str:
        """Sixteen hexadecimal digits."""
        return f"{self.checksum:016x}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "windows": self.windows.tolist(),
            "labels": self.labels.tolist(),
            "checksum": self.checksum_text,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(
            windows=np.array(content["windows"], dtype=np.int64),
            labels=np.array(content["labels"], dtype=np.int64),
            checksum=int(content["checksum"], 16),
        )


def count_labels(
    tokens_BT: NDArray[Any], positions_BT: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Tokens to predict in each row, shape (B,)."""
    if positions_BT is None:
        return np.full(len(tokens_BT), tokens_BT.shape[1] - 1, dtype=np.int64)
    return np.asarray(np.count_nonzero(positions_BT[:, 1:] > 0, axis=1), dtype=np.int64)


def rows_checksum(tokens_BT: NDArray[Any]) -> int:
    """Sum of the checksums of some rows, mod 2**64."""
    if sys.byteorder == "big":
        tokens_BT = tokens_BT.byteswap()
    return sum(map(crc32, np.ascontiguousarray(tokens_BT))) % _MODULUS
