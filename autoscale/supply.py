"""What the domains of an experiment hold for its runs: windows, and the labels in them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest
from .mixture import Mixture
from .windows.form import Packing, Windows
from .windows.opening import Split, open_windows


@dataclass(frozen=True, kw_only=True, slots=True)
class Supply:
    """What a run can draw from each domain in one epoch.

    Attributes:
        windows: number of windows, shape (num_domains,).
        tokens: labels in them, which padding is none of, shape (num_domains,).
    """

    windows: NDArray[np.int64]
    tokens: NDArray[np.int64]

    def mixture_of_windows(self, mixture: Mixture) -> Mixture:
        """The mixture of windows whose tokens make up `mixture`: padding takes room."""
        tokens_per_window_K = self.tokens / self.windows
        if (tokens_per_window_K == tokens_per_window_K[0]).all():
            return mixture
        return Mixture.from_array(mixture.domains, mixture.as_array() / tokens_per_window_K)


class Supplies:
    """The supply of every share of the domains, counted when it is first asked for.

    Args:
        manifest: the data.
        domains: that runs train on.
        sets: that they are measured on.
        sequence_length: tokens a window.
        packing: how documents fill the windows.

    Raises:
        ValueError: a domain has no windows of this form to train on, or a set none to measure on.
    """

    def __init__(
        self,
        manifest: Manifest,
        domains: tuple[str, ...],
        *,
        sets: tuple[str, ...],
        sequence_length: int,
        packing: Packing,
    ) -> None:
        self._manifest, self._domains = manifest, domains
        self._sequence_length, self._packing = sequence_length, packing
        self._known: dict[float, Supply] = {}
        self.of_share(1.0)
        for name in sets:
            self._open(name, "validation")

    def of_share(self, share: float) -> Supply:
        """The supply in a share of every domain's documents."""
        if share not in self._known:
            opened = [self._open(name, "train", share) for name in self._domains]
            self._known[share] = Supply(
                windows=np.array([len(windows) for windows in opened], dtype=np.int64),
                tokens=np.array([windows.num_tokens for windows in opened], dtype=np.int64),
            )
        return self._known[share]

    def _open(self, name: str, split: Split, share: float = 1.0) -> Windows:
        return open_windows(
            self._manifest,
            name,
            split,
            sequence_length=self._sequence_length,
            packing=self._packing,
            share=share,
        )
