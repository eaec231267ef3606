"""The shape of a schedule's tree: which domains are drawn from together.

`quota_tree` sends the draws of a node to its two children in the ratio of their shares; here the
nodes are paired, from the leaves to the root. With quotas alone the two lightest are paired each
time: Huffman's tree, in which the expected number of steps is least.

With shares the schedule is to follow the shares all along and still end at the quotas. What a
node's quota lacks of its share of all draws is its *debt*, the sum over its domains; the last draws
of the stage make up for it. Rounding at a node errs by up to 1/2, of which a domain keeps the part
that it has of the node's share: its *error* sums to 1/2 share x (1 / share of each node above it,
the root left out). Both should stay small, so that

-   A domain that expects less than one draw is spread by its quota, 0 or 1, since a debt may be
    larger than all that such domains draw. What they leave or take is shared among the other
    domains whose own rounding goes that way: none is moved further than its own rounding does.
-   While more than 32 nodes are left, the lightest is paired with the lightest of at most 3/4
    common debt, among the next few of at most twice the weight, else with that of the least.
-   The last 32 are paired so that the largest error of a domain grows least. Common debts above
    1/2 count as errors, too.
"""

import heapq
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_SHARES: Final = 2**49  # what shares are scaled to: room for rounding up below 2**50
_FEW: Final = 32  # nodes that are paired with care
_NEIGHBOURS: Final = 6  # in weight, that a partner is looked for among, if few nodes are left
_PARTNERS: Final = 16  # among which a partner is looked for, if many are
_DEBT_OF_MANY: Final = 0.75  # draws of common debt at which no further partner is looked for
_DEBT_OF_FEW: Final = 0.5  # draws of common debt that count for nothing


@dataclass(kw_only=True, slots=True)
class TreeShape:
    """Inner nodes are numbered from 0; a child that is the leaf of domain d is written ~d.

    Attributes:
        root: number of the root, or the only leaf.
        splits: quota of the left child, quota, share of the left child and share of each node.
        children: left and right of node 0, of node 1, ...
    """

    root: int = 0
    splits: list[tuple[int, int, int, int]] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    @classmethod
    def of_quotas(cls, quotas: Sequence[int]) -> "TreeShape":
        """Huffman's tree; ties go to the lowest domain below a node."""
        shape = cls()
        heap = _leaves(quotas, quotas)
        while len(heap) > 1:
            left = heapq.heappop(heap)
            heapq.heappush(heap, shape._join(left, heapq.heappop(heap)))
        shape.root = heap[0].number
        return shape

    @classmethod
    def of_shares(cls, quotas: Sequence[int], shares: Sequence[int]) -> "TreeShape":
        """The tree that keeps every prefix near the shares; see the module's docstring."""
        shape = cls()
        heap = _leaves(quotas, _followed(quotas, shares))
        while len(heap) > _FEW:
            left = heapq.heappop(heap)
            heapq.heappush(heap, shape._join(left, _pop_partner(heap, left)))
        nodes = sorted(heap)
        costs: dict[tuple[int, int], float] = {}
        while len(nodes) > 1:
            left, right = _cheapest_pair(nodes, costs)
            nodes.remove(left)
            nodes.remove(right)
            insort(nodes, shape._join(left, right))
        shape.root = nodes[0].number
        return shape

    def _join(self, left: "_Node", right: "_Node") -> "_Node":
        node = left.above(right, number=len(self.splits))
        self.splits.append((left.quota, node.quota, left.share, node.share))
        self.children += [left.number, right.number]
        return node


class _Node(NamedTuple):
    """A subtree; the lightest is least, ties go to the lowest domain below."""

    share: int
    lowest_domain: int
    number: int
    quota: int
    debt: float
    errors: tuple[tuple[float, int], ...]
    """(error so far, share) of the domains below that may come to have the largest error."""

    def above(self, other: "_Node", *, number: int) -> "_Node":
        """The node with these two children."""
        return _Node(
            share=self.share + other.share,
            lowest_domain=min(self.lowest_domain, other.lowest_domain),
            number=number,
            quota=self.quota + other.quota,
            debt=self.debt + other.debt,
            errors=_worst([*self.errors_above(), *other.errors_above()]),
        )

    def errors_above(self) -> list[tuple[float, int]]:
        """The errors with that of this node, as a child of another."""
        return [(error + 0.5 * share / self.share, share) for error, share in self.errors]


def _worst(errors: list[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Those that no other one exceeds in both error and share."""
    worst: list[tuple[float, int]] = []
    for error, share in sorted(errors, key=lambda pair: -pair[1]):
        if not worst or error > worst[-1][0]:
            worst.append((error, share))
    return tuple(worst)


def _leaves(quotas: Sequence[int], followed: Sequence[int]) -> list[_Node]:
    """The heap of all domains that are drawn."""
    draws, all_shares = sum(quotas), sum(followed)
    heap = [
        _Node(share, domain, ~domain, quota, quota - share * draws / all_shares, ((0.0, share),))
        for domain, (share, quota) in enumerate(zip(followed, quotas, strict=True))
        if share
    ]
    heapq.heapify(heap)
    return heap


def _pop_partner(heap: list[_Node], node: _Node) -> _Node:
    """Take the partner of the lightest node, itself taken before, from the heap."""
    candidates = [heapq.heappop(heap)]
    while (
        abs(node.debt + candidates[-1].debt) > _DEBT_OF_MANY
        and len(candidates) < _PARTNERS
        and heap
        and heap[0].share <= 2 * candidates[0].share
    ):
        candidates.append(heapq.heappop(heap))
    partner = min(candidates, key=lambda other: (abs(node.debt + other.debt), other))
    for other in candidates:
        if other is not partner:
            heapq.heappush(heap, other)
    return partner


def _cheapest_pair(nodes: list[_Node], costs: dict[tuple[int, int], float]) -> tuple[_Node, _Node]:
    """The pair of neighbours in weight with the least cost; `costs` keeps those known by number."""
    best: tuple[float, int, int, int] | None = None
    for place, left in enumerate(nodes):
        for behind, right in enumerate(nodes[place + 1 : place + 1 + _NEIGHBOURS], place + 1):
            pair = (left.number, right.number)
            if pair not in costs:
                costs[pair] = _cost(left, right)
            found = (costs[pair], left.share + right.share, place, behind)
            if best is None or found < best:
                best = found
    assert best is not None, nodes
    return nodes[best[2]], nodes[best[3]]


def _cost(left: _Node, right: _Node) -> float:
    """The pair's debt, and the largest error below it if the nodes above double in share each time.

    Rounding at the pair and above then adds share / share of the pair x (1 + 1/2 + ...) / 2.
    """
    share = left.share + right.share
    error = max(e + s / share for e, s in [*left.errors_above(), *right.errors_above()])
    return error + max(0.0, abs(left.debt + right.debt) - _DEBT_OF_FEW)


def _followed(quotas: Sequence[int], shares: Sequence[int]) -> list[int]:
    """The shares that the schedule follows, with a sum up to 2**50.

    Counted in draws they are `share x samples`, but the quota for a domain that expects less than
    one; what these have too much is taken from the others whose quota was rounded down, in
    proportion to that rounding (and the other way round).
    """
    draws, unit = sum(quotas), sum(shares)  # numbers below count draws in parts of 1 / unit
    expected = [share * draws for share in shares]
    debts = [quota * unit - number for quota, number in zip(quotas, expected, strict=True)]
    rare = [number < unit for number in expected]
    owed = -sum(debt for debt, is_rare in zip(debts, rare, strict=True) if is_rare)
    same_way = sum(
        debt for debt, is_rare in zip(debts, rare, strict=True) if not is_rare and debt * owed > 0
    )
    followed = []
    for quota, number, debt, is_rare in zip(quotas, expected, debts, rare, strict=True):
        if is_rare:
            number = quota * unit
        elif debt * owed > 0:
            number += debt * owed // same_way
        followed.append(max(number * _SHARES // (draws * unit), min(quota, 1)))
    return followed
