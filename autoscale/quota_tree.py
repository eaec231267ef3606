"""The domain schedule of a stage: spread integer quotas evenly, by arithmetic alone.

The domains are the leaves of a binary tree; draw number c descends from the root. At a node that
holds t draws, of which a go left, the first c draws send

    left(c) = floor((c a + floor(t / 2)) / t)

to the left: a Beatty word, as even as integers allow, monotone in c and exact at c = t. Draw c goes
left where left(c + 1) > left(c), as number left(c) of that child, else right as number
c - left(c). So a leaf is reached with the rank of the draw among those of its domain, and no two
draws share domain and rank. The tree is Huffman's: the expected number of steps is least.

How even: left(c) errs by at most 1/2, of which a domain keeps the share that it has of the draws
below that child. The draws at the ancestors of a leaf of Huffman's tree grow at least like
Fibonacci numbers, so that the errors of a domain sum to at most

    (1 + 1/1 + 1/2 + 1/3 + 1/5 + 1/8 + ...) / 2 < 1.68 draws

from the straight line to its quota, at every prefix and for all quotas. (That line itself ends up
to one draw from weight x samples, because quotas are whole numbers.)

Quotients are guessed in float64, which is within one for less than 2**50 draws, and corrected by
their integer remainders: the schedule is exact, and the same on every platform.
"""

import heapq
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_DRAWS: Final = 2**50
"""Longest stage that the arithmetic covers."""


class QuotaTree:
    """The schedule of one stage.

    Args:
        quotas: draws of each domain, at least 0, with a sum from 1 to 2**50.
    """

    def __init__(self, quotas: Sequence[int]) -> None:
        # Ties are broken by the lowest domain below a node: the tree is a function of the quotas.
        heap = [(int(quota), domain, ~domain) for domain, quota in enumerate(quotas) if quota]
        heapq.heapify(heap)
        # Inner nodes are numbered from 0; a child that is the leaf of domain d is written ~d.
        left_quota: list[int] = []
        total: list[int] = []
        children: list[tuple[int, int]] = []
        while len(heap) > 1:
            (left, left_domain, left_node) = heapq.heappop(heap)
            (right, right_domain, right_node) = heapq.heappop(heap)
            left_quota.append(left)
            total.append(left + right)
            children.append((left_node, right_node))
            heapq.heappush(heap, (left + right, min(left_domain, right_domain), len(children) - 1))
        self._num_domains = len(quotas)
        self._root = heap[0][2]
        self._left_quota = np.array(left_quota, dtype=np.int64)
        self._total = np.array(total, dtype=np.int64)
        self._children = np.array(children, dtype=np.int64).reshape(-1)
        self._left_share = self._left_quota / self._total

    def locate(self, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Domain and rank of each draw number, both of shape (n,)."""
        domain, rank = np.empty_like(draws), np.empty_like(draws)
        if self._root < 0:
            domain[:] = ~self._root
            rank[:] = draws
            return domain, rank
        rest, remaining = np.arange(draws.size), draws
        node = np.full(draws.shape, self._root, dtype=np.int64)
        while rest.size:
            goes_right, remaining = self._descend(node, remaining)
            node = self._children[2 * node + goes_right]
            at_leaf, above = np.flatnonzero(node < 0), np.flatnonzero(node >= 0)
            reached = rest[at_leaf]
            domain[reached] = ~node[at_leaf]
            rank[reached] = remaining[at_leaf]
            rest, node, remaining = rest[above], node[above], remaining[above]
        return domain, rank

    def _descend(
        self, node: NDArray[np.int64], draws: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether draw `draws` of each node goes right, and its number among those of the child."""
        left_quota, total = self._left_quota[node], self._total[node]
        left = (draws * self._left_share[node] + 0.5).astype(np.int64)  # right to within one
        # Both products may wrap round 2**64; their difference is small and therefore exact.
        rest = (
            draws.view(np.uint64) * left_quota.view(np.uint64)
            + (total >> 1).view(np.uint64)
            - left.view(np.uint64) * total.view(np.uint64)
        ).view(np.int64)
        too_small, too_large = rest >= total, rest < 0
        left += too_small
        left -= too_large
        rest += total * too_large
        rest -= total * too_small
        goes_right = rest + left_quota < total  # the next draw leaves left(c) as it is
        return goes_right, np.where(goes_right, draws - left, left)

    def counts(self, draws: int) -> NDArray[np.int64]:
        """Draws of each domain among the first `draws`, shape (num_domains,)."""
        counts = np.zeros(self._num_domains, dtype=np.int64)
        pending = [(self._root, draws)]
        while pending:
            node, count = pending.pop()
            if node < 0:
                counts[~node] = count
                continue
            total = int(self._total[node])
            left = (count * int(self._left_quota[node]) + total // 2) // total
            left_node, right_node = self._children[2 * node : 2 * node + 2].tolist()
            pending += [(left_node, left), (right_node, count - left)]
        return counts
