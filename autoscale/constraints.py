"""What a mixture must satisfy: bounds of each domain's weight, epoch caps, bounds of groups.

    lower_i <= w_i <= upper_i,   group lower <= sum of its w_i <= group upper,   sum_i w_i = 1

Contradictions are found before anything is solved and reported with the constraints in conflict,
their numbers and a remedy that works.
"""

# K domains, R inequalities

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from .mixture import require_same_names
from .polytope import least_value, minimal_conflict
from .token_count import round_token_count

Array = NDArray[np.float64]

SUM_TOLERANCE = 1e-9  # bounds whose sum misses 1 by less are taken to mean 1, e.g. minimum = 1/7
TINY = 1e-300  # weights below are 0: their inverse is not finite
NUM_BISECTIONS = 200  # more than float64 can tell apart
NUM_NAMED = 12  # constraints that a message lists before it counts the rest


class InfeasibleError(ValueError):
    """No mixture satisfies the constraints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Domains whose weights sum to something between two bounds.

    Attributes:
        name: for messages.
        domains: distinct names; a domain may be in several groups.
        lower: least sum of their weights.
        upper: greatest sum.

    Raises:
        ValueError: no or repeated domains, or bounds outside 0 to 1 or in the wrong order.
    """

    name: str
    domains: tuple[str, ...]
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.domains if self.domains.count(name) > 1})
        if repeated or not self.domains:
            found = f"repeats {', '.join(map(repr, repeated))}" if repeated else "has no domains"
            raise ValueError(f"group {self.name!r} {found}; list each of its domains once")
        if not 0 <= self.lower <= self.upper <= 1:
            raise ValueError(
                f"group {self.name!r} has minimum {self.lower:g} and maximum {self.upper:g}; "
                "expected 0 <= minimum <= maximum <= 1"
            )


class Rows(NamedTuple):
    """Inequalities `A w <= b`, the bounds of domains first, and what each says."""

    A: csr_array  # (R, K)
    b: Array  # (R,)
    widths: Array  # (R,) upper less lower bound
    labels: tuple[tuple[str, str, float], ...]  # ("group 'web'", "minimum" or "maximum", 0.4)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Constraints:
    """Bounds of all domains, and of groups of them.

    Attributes:
        domains: names, in the order of the arrays.
        lower: minimum weights, shape (num_domains,).
        upper: maximum weights, shape (num_domains,).
        groups: may overlap.

    Raises:
        ValueError: a group names an unknown domain, or two groups share a name.
    """

    domains: tuple[str, ...]
    lower: Array
    upper: Array
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        for field in ("lower", "upper"):
            object.__setattr__(self, field, np.array(getattr(self, field), dtype=np.float64))
        names = [group.name for group in self.groups]
        for group in self.groups:
            if names.count(group.name) > 1:
                raise ValueError(f"two groups are called {group.name!r}; give each its own name")
            known = dict.fromkeys((*group.domains, *self.domains))
            require_same_names(known, self.domains, what=f"group {group.name!r}")

    def check(self) -> None:
        """Raise InfeasibleError, naming a minimal set of constraints in conflict, if any are."""
        check_bounds(self.domains, self.lower, self.upper)
        if not self.groups:
            return
        rows = self.rows()
        conflict = minimal_conflict(rows.A, rows.b)
        if conflict:
            raise InfeasibleError(_describe_conflict(rows, conflict))

    def rows(self) -> Rows:
        """All inequalities but those that no mixture violates."""
        num_domains = len(self.domains)
        names = [f"domain {name!r}" for name in self.domains]
        bounds: list[tuple[str, tuple[int, ...], float, float]]
        bounds = [(name, (i,), self.lower[i], self.upper[i]) for i, name in enumerate(names)]
        column = {name: i for i, name in enumerate(self.domains)}
        for group in self.groups:
            members = tuple(column[name] for name in group.domains)
            bounds.append((f"group {group.name!r}", members, group.lower, group.upper))
        labels, limits, widths, columns, signs = [], [], [], [], []
        for name, members, lower, upper in bounds:
            for kind, sign, bound in (("minimum", -1.0, lower), ("maximum", 1.0, upper)):
                free = bound <= 0 if kind == "minimum" else bound >= 1
                if not free or (kind == "minimum" and len(members) == 1):
                    labels.append((name, kind, float(bound)))
                    limits.append(sign * bound)
                    widths.append(min(upper, 1.0) - lower)
                    columns.append(members)
                    signs.append(sign)
        counts = [len(members) for members in columns]
        entries = (np.repeat(signs, counts), np.concatenate(columns))
        starts = np.concatenate([[0], np.cumsum(counts)])
        matrix = csr_array((*entries, starts), shape=(len(labels), num_domains))
        return Rows(matrix, np.array(limits), np.array(widths), tuple(labels))


def _describe_conflict(rows: Rows, conflict: Sequence[int]) -> str:
    """What a minimal conflict says, and how far its last constraint, a group's, must give way."""
    *others, last = conflict
    name, kind, _ = rows.labels[last]
    sign = 1.0 if kind == "maximum" else -1.0
    gradient_K = rows.A[[last]].toarray()[0]
    reached = least_value(gradient_K, rows.A[others], rows.b[others])
    bound = sign * reached
    safe = round_up(bound) if kind == "maximum" else _round_down(bound)
    labels = [rows.labels[i] for i in reversed(conflict)]
    said = [f"{kind} {value:g} of {name}" for name, kind, value in labels if value > 0]
    listed = ", ".join(said[:NUM_NAMED])
    more = f" and {len(said) - NUM_NAMED} more" if len(said) > NUM_NAMED else ""
    extreme, change = ("at least", "raise") if kind == "maximum" else ("at most", "lower")
    return (
        f"no mixture has {listed}{more}: the others leave {name} {extreme} {bound:.6g}; "
        f"{change} its {kind} to {safe:g}" + (" or give way in one of the others" if others else "")
    )


def project_onto_bounds(
    weights: ArrayLike, *, domains: Sequence[str], lower: ArrayLike, upper: ArrayLike
) -> Array:
    """The mixture within bounds that is nearest to `weights` in Kullback-Leibler divergence.

    Nearest in `sum_i v_i log(v_i / w_i)` is `v_i = clip(c w_i, lower_i, upper_i)`: domains that no
    bound holds keep their proportions. The one scalar c is solved exactly. Weights of 0 rise only
    to their minimum, or, once all others rest on their maximum, share what is left equally.

    Args:
        weights: non-negative, of any positive sum, shape (num_domains,).
        domains: names, for messages.
        lower: minimum weights, shape (num_domains,).
        upper: maximum weights, shape (num_domains,).

    Returns:
        Weights that sum to 1, shape (num_domains,); those given, normalised, where these satisfy
        the bounds.

    Raises:
        InfeasibleError: the bounds contradict each other.
    """
    lower_K, upper_K = check_bounds(domains, lower, upper)
    given_K = np.asarray(weights, dtype=np.float64)
    given_K = given_K / given_K.sum()
    if ((given_K >= lower_K) & (given_K <= upper_K)).all():
        return np.asarray(given_K)
    positive = given_K > TINY
    if np.where(positive, upper_K, lower_K).sum() < 1:
        lower_K = np.where(positive, upper_K, lower_K)
        given_K = np.where(positive, given_K, 1.0)
        positive = np.ones_like(positive)
    given_K = np.where(positive, given_K, 0.0)
    never = np.full_like(given_K, np.inf)
    starts = np.divide(lower_K, given_K, out=never.copy(), where=positive)  # leaves the minimum
    stops = np.divide(upper_K, given_K, out=never.copy(), where=positive)  # meets the maximum
    scales = np.unique(np.concatenate([[0.0], starts[positive], stops[positive]]))
    low, high = 0, len(scales) - 1
    while high - low > 1:  # the sum rises with the scale: find the piece in which it passes 1
        middle = (low + high) // 2
        passed = np.clip(scales[middle] * given_K, lower_K, upper_K).sum() > 1
        low, high = (low, middle) if passed else (middle, high)
    free = (starts <= scales[low]) & (stops > scales[low])
    fixed_K = np.where(stops <= scales[low], upper_K, lower_K)
    if not free.any():
        return np.asarray(fixed_K)
    scale = (1 - fixed_K[~free].sum()) / given_K[free].sum()
    return np.asarray(np.clip(np.where(free, scale * given_K, fixed_K), lower_K, upper_K))


def weight_bounds(
    domains: Sequence[str],
    *,
    minimum: ArrayLike,
    maximum: ArrayLike,
    available_tokens: ArrayLike,
    token_budget: int,
    max_epochs: float | None,
) -> tuple[Array, Array]:
    """Lower and upper weights at one token budget, the maximum capped by the tokens that exist.

        upper_i = min(maximum_i, max_epochs * available_i / token_budget)

    Args:
        domains: names, for messages.
        minimum: lowest weights, shape (num_domains,) or a scalar for all.
        maximum: highest weights, shape (num_domains,) or a scalar for all.
        available_tokens: training tokens that each domain has, shape (num_domains,).
        token_budget: tokens of the run.
        max_epochs: how often a run may pass over a domain's tokens; None for no limit.

    Returns:
        Lower and upper weights, each of shape (num_domains,).

    Raises:
        InfeasibleError: no mixture satisfies the bounds; the message names the domains, the
            constraint and the smallest remedy.
    """
    shape = (len(domains),)
    lower_K = np.broadcast_to(np.asarray(minimum, dtype=np.float64), shape).copy()
    maximum_K = np.broadcast_to(np.asarray(maximum, dtype=np.float64), shape).copy()
    check_bounds(domains, lower_K, maximum_K)
    if max_epochs is None:
        return lower_K, np.minimum(maximum_K, 1.0)
    available_K = np.broadcast_to(np.asarray(available_tokens, dtype=np.float64), shape)
    per_epoch_K = available_K / token_budget
    upper_K = np.minimum(np.minimum(maximum_K, 1.0), max_epochs * per_epoch_K)
    budget = round_token_count(token_budget)
    for i in np.flatnonzero(lower_K > upper_K).tolist():
        remedy = "lower the minimum or prepare more text"
        if per_epoch_K[i] > 0:
            epochs = round_up(float(lower_K[i] / per_epoch_K[i]))
            remedy = f"raise max_epochs to {epochs:g} or lower the minimum"
        raise InfeasibleError(
            f"domain {domains[i]!r} has {round_token_count(available_K[i])} tokens but its minimum "
            f"weight {lower_K[i]:g} at {budget} needs "
            f"{round_token_count(lower_K[i] * token_budget)}, and max_epochs is {max_epochs:g}; "
            f"{remedy}"
        )
    if upper_K.sum() < 1 - SUM_TOLERANCE:
        supply = ", ".join(
            f"{name} {round_token_count(weight * token_budget)}"
            for name, weight in zip(domains, upper_K, strict=True)
        )
        raise InfeasibleError(
            f"with max_epochs {max_epochs:g} and the maximum weights the domains supply at most "
            f"{round_token_count(upper_K.sum() * token_budget)} of the {budget} tokens ({supply}); "
            f"{_supply_remedy(maximum_K, per_epoch_K)}, lower the token budget or prepare more text"
        )
    return lower_K, upper_K


def _supply_remedy(maximum_K: Array, per_epoch_K: Array) -> str:
    """The smallest max_epochs at which the capped maximum weights sum to 1, as an instruction."""

    def enough(epochs: float) -> bool:
        return bool(np.minimum(maximum_K, epochs * per_epoch_K).sum() >= 1 - SUM_TOLERANCE)

    has_tokens = per_epoch_K > 0
    high = float((maximum_K[has_tokens] / per_epoch_K[has_tokens]).max(initial=0.0))
    if not enough(high):
        return "raise the maximum weights of the domains that have tokens"
    low = 0.0
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return f"raise max_epochs to {round_up(high):g}"


def round_up(value: float) -> float:
    """To three significant digits, never down, so that a remedy taken literally works."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.ceil(value / unit * (1 - 1e-9)) * unit)


def _round_down(value: float) -> float:
    """To three significant digits, never up; 0 for rounding errors around it."""
    if value < SUM_TOLERANCE:
        return 0.0
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.floor(value / unit * (1 + 1e-9)) * unit)


def check_bounds(domains: Sequence[str], lower: ArrayLike, upper: ArrayLike) -> tuple[Array, Array]:
    """The bounds as arrays of shape (num_domains,), or InfeasibleError saying what contradicts."""
    lower_K, upper_K = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    for kind, bound_K in (("minimum", lower_K), ("maximum", upper_K)):
        if bound_K.shape != (len(domains),):
            raise InfeasibleError(
                f"{kind} weights have shape {bound_K.shape}; expected one for each of the "
                f"{len(domains)} domains"
            )
        for i in np.flatnonzero(~(np.isfinite(bound_K) & (bound_K >= 0))).tolist():
            raise InfeasibleError(
                f"{kind} weight of domain {domains[i]!r} is {bound_K[i]:g}; expected a finite "
                "number of at least 0"
            )
    for i in np.flatnonzero(lower_K > upper_K).tolist():
        raise InfeasibleError(
            f"domain {domains[i]!r} has minimum weight {lower_K[i]:g} above its maximum weight "
            f"{upper_K[i]:g}; lower the minimum or raise the maximum"
        )
    for total, kind, how, bound_K in (
        (lower_K.sum() - 1, "minimum", "lower some of them: ", lower_K),
        (1 - upper_K.sum(), "maximum", "raise some of them: ", upper_K),
    ):
        if total > SUM_TOLERANCE:
            relation = "above" if kind == "minimum" else "below"
            raise InfeasibleError(
                f"the {kind} weights sum to {bound_K.sum():.6g}, {relation} 1; {how}"
                + ", ".join(f"{n} {w:g}" for n, w in zip(domains, bound_K, strict=True) if w > 0)
            )
    return lower_K, upper_K
