"""Which side a document is on: by a keyed hash of its text, as `autoscale prepare` splits.

The same text is on the same side for ever and in every domain, whatever is added or removed.
"""

from dataclasses import dataclass

import numpy as np

from autoscale.selection import MASK, hash_text, keyed_hashes


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A fraction of the texts is held out.

    Attributes:
        fraction: of the documents of a domain, on average.
        seed: which ones.
    """

    fraction: float
    seed: int

    def holds_out(self, text: str) -> bool:
        """Whether a text is for validation."""
        hashes = np.array([hash_text(text.encode("utf-8"))], dtype=np.uint64)
        threshold = min(int(self.fraction * 2.0**64), MASK)
        return int(keyed_hashes(hashes, self.seed)[0]) < threshold
