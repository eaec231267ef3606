"""Which tokens of a row a masked language model has to predict, and what it sees in their place.

As Devlin et al. 2018 (arXiv 1810.04805, section 3.1): of T tokens round(0.15 T) are chosen, at
least one. In place of a chosen token the model sees

    the mask token     with probability 0.8
    a random token     0.1, all tokens of the tokenizer alike
    the token itself   0.1

Every row has equally many chosen tokens, so that the mean over rows is the mean over the chosen
tokens of a batch, whatever the ranks and micro-batches. Ends of texts are tokens like any other.

A row is masked by a key. In training it follows from (seed, domain name, epoch, window): a window
is masked anew in every epoch, alike on any number of ranks, after a resume, and in every mixture
that draws it. In validation it follows from the window alone: all runs predict the same tokens.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .permutation import derive_key, derive_subkeys
from .sampler import Located

# B rows, T sequence length, M chosen tokens of a row

KEPT: Final = -1
"""In place of a token id: the model sees the token itself."""

_SHARE_CHOSEN: Final = 0.15
_SHARE_MASKED: Final = 0.8
_SHARE_RANDOM: Final = 0.1


def num_chosen(sequence_length: int) -> int:
    """M, tokens that are predicted in a row of T."""
    return max(1, round(_SHARE_CHOSEN * sequence_length))


class Masking:
    """Masks of the rows of one run.

    Args:
        mask_token_id: of the mask token.
        vocab_size: of the tokenizer; random tokens are drawn from all of it.
        sequence_length: T.
        domains: names, in the order in which rows are located.
        seed: of the run.
    """

    def __init__(
        self,
        *,
        mask_token_id: int,
        vocab_size: int,
        sequence_length: int,
        domains: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.mask_token_id, self.vocab_size = mask_token_id, vocab_size
        self.sequence_length = sequence_length
        self._keys_K = np.array([derive_key("masks", seed, name) for name in domains], np.uint64)
        self._validation_key = np.array([derive_key("validation masks", 0)])

    @property
    def num_chosen(self) -> int:
        """M, tokens that are predicted in a row."""
        return num_chosen(self.sequence_length)

    def training(self, located: Located) -> NDArray[np.int64]:
        """Masks of training rows, as `draw` gives them.

        Args:
            located: domain, epoch and window of each row, shape (B,).
        """
        keys_B = derive_subkeys(self._keys_K[located.domain], located.epoch)
        return self.draw(derive_subkeys(keys_B, located.window))

    def validation(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Masks of validation rows, by the number of their window in its set, shape (B,)."""
        return self.draw(derive_subkeys(self._validation_key, windows))

    def draw(self, keys_B: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Masks by key, shape (B, 2, M): places in the row, rising; ids seen there, or `KEPT`."""
        length, chosen = self.sequence_length, self.num_chosen
        numbers = derive_subkeys(keys_B[:, None], np.arange(length + 2 * chosen))
        order_BT, kind_BM, token_BM = np.split(numbers, [length, length + chosen], axis=1)
        # The places of the M smallest of T random numbers.
        places_BM = np.sort(np.argpartition(order_BT, chosen - 1, axis=1)[:, :chosen], axis=1)
        share_BM = (kind_BM >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
        other_BM = (token_BM % np.uint64(self.vocab_size)).astype(np.int64)
        other_BM[share_BM >= _SHARE_MASKED + _SHARE_RANDOM] = KEPT
        other_BM[share_BM < _SHARE_MASKED] = self.mask_token_id
        return np.stack([places_BM, other_BM], axis=1)
