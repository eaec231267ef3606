"""The runs that a mixture law is fitted to or predicts: what each was trained on, and its losses.

Shapes: P runs, K domains, J validation sets. Rows are matched to each other by content (weights,
tokens, parameters, seed), never by position; domains and sets by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Metric = Literal["nats", "bits_per_byte"]

SAME_WEIGHT = 1e-9
SAME_LOSS = 1e-6
"""Relative difference of losses below which two rows are copies of one run."""
SAME_AMOUNT = 0.01
"""Relative difference of token or parameter counts, or of a weight, that no fit can use."""
FEWEST_RUNS = 3
_ARRAY_FIELDS = ("weights", "tokens", "parameters", "losses")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReplicateNoise:
    """Run-to-run noise: how losses differ between runs that differ by their seed alone.

    Attributes:
        standard_deviation: by validation set, in the table's metric, shape (num_sets,).
        degrees_of_freedom: replicates less groups of replicates, at least 1.
    """

    standard_deviation: Array
    degrees_of_freedom: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunTable:
    """Runs with their mixtures, budgets, sizes and final losses; arrays are read-only copies.

    Attributes:
        runs: distinct names of the P runs.
        domains: distinct names of the K >= 2 training domains.
        sets: distinct names of the J validation sets; the one named like a domain is its own.
        weights: fractions of the tokens, shape (P, K), rows on the simplex. Sums that are off by
            rounding (see `rounding_tolerance`) are normalised away.
        tokens: tokens of each run, all domains together, shape (P,); None where they are not
            known: then all runs count as one budget.
        parameters: model parameters, shape (P,), or None: then all count as one size.
        seeds: shape (P,), or None.
        losses: shape (P, J), in `metric`, positive; (P, 0) in a table to predict.
        metric: `nats` a token, or `bits_per_byte`.

    Raises:
        ValueError: naming run and column: wrong shapes, repeated names, weights off the simplex,
            losses or counts that are not positive numbers, or two runs equal in weights, tokens,
            parameters and seed whose losses differ.
    """

    runs: tuple[str, ...]
    domains: tuple[str, ...]
    sets: tuple[str, ...]
    weights: Array
    tokens: Array | None = None
    parameters: Array | None = None
    seeds: tuple[int, ...] | None = None
    losses: Array
    metric: Metric = "nats"

    def __post_init__(self) -> None:
        for field, what in (("runs", "run"), ("domains", "domain"), ("sets", "validation set")):
            names = tuple(getattr(self, field))
            object.__setattr__(self, field, names)
            _require_distinct(names, what)
        _require_size(self.runs, 1, "run")
        _require_size(self.domains, 2, "domain")
        if self.seeds is not None:
            object.__setattr__(self, "seeds", tuple(map(int, self.seeds)))
        arrays = [f for f in _ARRAY_FIELDS if getattr(self, f) is not None]
        for field in arrays:
            object.__setattr__(self, field, np.array(getattr(self, field), dtype=np.float64))
        self._check_shapes()
        object.__setattr__(self, "weights", _on_simplex(self.weights, self.runs, self.domains))
        self._check_numbers()
        self._check_copies()
        for field in arrays:
            getattr(self, field).setflags(write=False)

    @property
    def num_runs(self) -> int:
        return len(self.runs)

    @property
    def num_domains(self) -> int:
        return len(self.domains)

    @property
    def num_sets(self) -> int:
        return len(self.sets)

    @property
    def has_budgets(self) -> bool:
        """Whether token budgets differ enough to fit their effect."""
        return _differ(self.tokens)

    @property
    def has_sizes(self) -> bool:
        """Whether model sizes differ enough to fit their effect."""
        return _differ(self.parameters)

    def select(self, rows: ArrayLike) -> Self:
        """Some runs, by index or boolean mask; each at most once (a bootstrap weighs rows)."""
        index = np.arange(self.num_runs)[np.asarray(rows)]
        return replace(
            self,
            runs=tuple(self.runs[i] for i in index),
            weights=self.weights[index],
            tokens=None if self.tokens is None else self.tokens[index],
            parameters=None if self.parameters is None else self.parameters[index],
            seeds=None if self.seeds is None else tuple(self.seeds[i] for i in index),
            losses=self.losses[index],
        )

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """All runs of tables that agree in domains, sets, metric and which columns they have.

        Raises:
            ValueError: they do not, or a run's name repeats.
        """
        first = tables[0]
        for table in tables[1:]:
            for field in ("domains", "sets", "metric"):
                here, there = getattr(first, field), getattr(table, field)
                if here != there:
                    raise ValueError(
                        f"tables differ in {field}: {_listed(here)} and {_listed(there)}; "
                        "expected the same in the same order"
                    )
            for field in ("tokens", "parameters", "seeds"):
                if (getattr(first, field) is None) != (getattr(table, field) is None):
                    raise ValueError(
                        f"one table has {field} and another has not; give all of them {field}"
                    )
        return replace(
            first,
            runs=tuple(name for table in tables for name in table.runs),
            weights=np.concatenate([table.weights for table in tables]),
            tokens=_joined([table.tokens for table in tables]),
            parameters=_joined([table.parameters for table in tables]),
            seeds=None
            if first.seeds is None
            else tuple(seed for table in tables for seed in table.seeds or ()),
            losses=np.concatenate([table.losses for table in tables]),
        )

    def mixture_groups(self) -> NDArray[np.int64]:
        """Numbers of shape (P,), from 0 in order of appearance: rows of one mixture share one."""
        # Equal mixtures have equal projections on any direction, so sorting by one brings them
        # together. Rounding would part values on either side of a rounding boundary.
        direction_K = np.random.default_rng(0).uniform(1, 2, self.num_domains)
        order = np.argsort(self.weights @ direction_K, kind="stable")
        steps = np.abs(np.diff(self.weights[order], axis=0)).max(axis=1) > SAME_WEIGHT
        groups_P = np.empty(self.num_runs, dtype=np.int64)
        groups_P[order] = np.concatenate([[0], np.cumsum(steps)])
        return _by_appearance(groups_P)

    def cells(self) -> NDArray[np.int64]:
        """Numbers of shape (P,): runs of one mixture, budget and size share one."""
        keys = [self.mixture_groups().astype(np.float64)]
        keys += [counts for counts in (self.tokens, self.parameters) if counts is not None]
        _, inverse = np.unique(np.column_stack(keys), axis=0, return_inverse=True)
        return _by_appearance(inverse.reshape(-1))

    def never_varied(self) -> tuple[str, ...]:
        """Domains with one weight in all runs: what they do to losses is the law's prior only."""
        spread_K = np.ptp(self.weights, axis=0)
        fixed_K = spread_K <= SAME_AMOUNT * self.weights.mean(axis=0)
        return tuple(name for name, fixed in zip(self.domains, fixed_K, strict=True) if fixed)

    def replicate_noise(self) -> ReplicateNoise | None:
        """Noise from runs alike in weights, tokens and parameters; None where there are none.

        Runs of one cell count once a seed, or, without seeds, once a row of losses: copies of a
        row say nothing about noise. The variance is pooled over the cells.
        """
        if not self.sets:
            return None
        marks: NDArray[Any] = self.losses if self.seeds is None else np.array(self.seeds)
        cells = self.cells()
        keys = np.column_stack([cells, marks])
        _, kept = np.unique(keys, axis=0, return_index=True)
        losses, cells = self.losses[kept], cells[kept]
        sizes = np.bincount(cells)
        degrees = int(np.sum(sizes - 1))
        if degrees == 0:
            return None
        means = np.zeros((len(sizes), self.num_sets))
        np.add.at(means, cells, losses)
        residuals = losses - (means / sizes[:, None])[cells]
        return ReplicateNoise(
            standard_deviation=np.sqrt(np.sum(residuals**2, axis=0) / degrees),
            degrees_of_freedom=degrees,
        )

    def check_for_fit(self) -> None:
        """Raise ValueError where no law at all can be fitted to these runs."""
        if not self.sets:
            raise ValueError("the runs have no losses; a fit needs at least one loss/<set> column")
        if self.num_runs < FEWEST_RUNS:
            raise ValueError(
                f"a fit needs at least {FEWEST_RUNS} runs; found {self.num_runs}: "
                f"{_listed(self.runs)}"
            )
        if self.mixture_groups().max() == 0:
            raise ValueError(
                f"all {self.num_runs} runs have the same mixture, so nothing tells what another "
                "would do; add runs with other weights"
            )
        for j, name in enumerate(self.sets):
            column_P = self.losses[:, j]
            if np.ptp(column_P) <= SAME_LOSS * column_P.mean():
                raise ValueError(
                    f"loss/{name} is {column_P[0]:.6g} in all {self.num_runs} runs: there is "
                    "nothing to fit. Leave the column out, or check where it comes from"
                )

    def _check_shapes(self) -> None:
        num_runs = self.num_runs
        wanted: dict[str, tuple[int, ...]]
        wanted = {"weights": (num_runs, self.num_domains), "losses": (num_runs, self.num_sets)}
        for field in ("tokens", "parameters", "seeds"):
            if getattr(self, field) is not None:
                wanted[field] = (num_runs,)
        for field, shape in wanted.items():
            found = np.shape(getattr(self, field))
            if found != shape:
                raise ValueError(
                    f"{field} of {num_runs} runs, {self.num_domains} domains and {self.num_sets} "
                    f"validation sets have shape {found}; expected {shape}"
                )

    def _check_numbers(self) -> None:
        for field in ("tokens", "parameters"):
            counts_P = getattr(self, field)
            if counts_P is not None:
                for p in np.flatnonzero(~(np.isfinite(counts_P) & (counts_P > 0)))[:1]:
                    raise ValueError(
                        f"run {self.runs[p]!r} has {field} {counts_P[p]:g}; "
                        "expected a positive number"
                    )
        wrong = np.argwhere(~(np.isfinite(self.losses) & (self.losses > 0)))
        for p, j in wrong[:1]:
            raise ValueError(
                f"run {self.runs[p]!r} has loss/{self.sets[j]} {self.losses[p, j]:g}; expected a "
                f"positive number ({self.metric}). Leave out runs that diverged or did not finish"
            )

    def _check_copies(self) -> None:
        """Two rows of one mixture, budget, size and seed must give one loss."""
        if self.seeds is None or not self.sets:
            return
        keys = np.column_stack([self.cells(), np.asarray(self.seeds)])
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        twin_P = first[inverse.reshape(-1)]
        apart = np.abs(self.losses - self.losses[twin_P]) > SAME_LOSS * self.losses
        for p, j in np.argwhere(apart)[:1]:
            alike = [f for f in ("weights", "tokens", "parameters") if getattr(self, f) is not None]
            raise ValueError(
                f"runs {self.runs[twin_P[p]]!r} and {self.runs[p]!r} contradict each other: same "
                f"{', '.join(alike)} and seed {self.seeds[p]}, but loss/{self.sets[j]} "
                f"{self.losses[twin_P[p], j]:.6g} and {self.losses[p, j]:.6g}; remove the wrong "
                "one, or give a replicate its own seed"
            )


def rounding_tolerance(num_domains: int) -> float:
    """How far a sum of published weights may be off: each rounded to three decimals, 0.01 at most.

    RegMix's 17 weights, for one, are printed with three decimals and sum to 0.996 to 1.003.
    """
    return min(0.0005 * num_domains, 0.01) + 1e-9


def _on_simplex(weights: Array, runs: Sequence[str], domains: Sequence[str]) -> Array:
    weights = np.where(np.abs(weights) < SAME_WEIGHT, 0.0, weights)  # -1e-17 of a difference
    for p, k in np.argwhere(~(np.isfinite(weights) & (weights >= 0)))[:1]:
        raise ValueError(
            f"run {runs[p]!r} has weight/{domains[k]} {weights[p, k]:g}; "
            "expected a number of at least 0"
        )
    totals_P = weights.sum(axis=1)
    for p in np.flatnonzero(np.abs(totals_P - 1) > rounding_tolerance(len(domains)))[:1]:
        raise ValueError(
            f"weights of run {runs[p]!r} sum to {totals_P[p]:.6g}; expected 1, within "
            f"{rounding_tolerance(len(domains)):.2g} for rounding. A domain may be missing, or the "
            "weights may be percentages or token counts (name those columns tokens/<domain>)"
        )
    return np.asarray(weights / totals_P[:, None])


def _require_distinct(names: Sequence[str], what: str) -> None:
    if len(set(names)) == len(names):
        return
    seen: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if name in seen:
            raise ValueError(
                f"{what} {name!r} is named twice, as number {seen[name]} and {position}; "
                "expected distinct names: rename one, or remove it if it is a copy"
            )
        seen[name] = position


def _require_size(names: Sequence[str], fewest: int, what: str) -> None:
    if len(names) < fewest:
        found = _listed(names) or "none"
        raise ValueError(f"a run table needs at least {fewest} {what}(s); found {found}")


def _differ(counts: Array | None) -> bool:
    return counts is not None and bool(counts.max() > (1 + SAME_AMOUNT) * counts.min())


def _joined(columns: Sequence[Array | None]) -> Array | None:
    known = [column for column in columns if column is not None]
    return np.concatenate(known) if known else None


def _by_appearance(labels_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same partition, numbered from 0 in order of first appearance."""
    _, first, inverse = np.unique(labels_P, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse])


def _listed(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)
