"""Which probe runs one token budget needs, and how many sequences of each domain they draw.

One-at-a-time design, direct data optimisation as published (Kang et al., arXiv 2407.20177,
section 3.2): the reference mixture, and every domain once with its data times r and once divided by
r while the other domains' data stay unchanged, 2K + 1 runs. The alternative keeps the total and
lets the others give way. Dirichlet and optimal designs change all domains at once, at one total:
the reference mixture and mixtures of `designs.py` around it.

Runs draw whole sequences and train in whole batches, so the counts here are integers and factors
and weights only nearly those asked for. Fits use the tokens realised.

All runs of a design share the seed of initialisation and order (common random numbers), so that
noise that they share cancels in their differences; runs under further seeds measure it.
"""

# K domains, P mixtures

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .designs import CONCENTRATION, dirichlet_mixtures, optimal_mixtures
from .mixture import Mixture, largest_remainder

Counts = NDArray[np.int64]
DesignKind = Literal["one_at_a_time", "dirichlet", "optimal"]

NUM_CANDIDATES = 1000  # of an optimal design; a constant, so that more runs keep the earlier ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """How the runs of a budget are laid out.

    Attributes:
        kind: `one_at_a_time`, `dirichlet` or `optimal`.
        seed: of initialisation and order of all runs, and of the mixtures drawn.
        reference_seeds: how many seeds the reference runs with (seed, seed + 1, ...); two or more
            measure the noise between seeds.
        replicates: how many seeds every other run has, the same ones.
        factors: r > 1, distinct; one at a time only.
        fixed_budget: keep the total instead of the other domains; one at a time only.
        num_mixtures: mixtures beside the reference; not one at a time.
        concentration: least and greatest, see `dirichlet_mixtures`; not one at a time.
    """

    kind: DesignKind
    seed: int = 0
    reference_seeds: int = 1
    replicates: int = 1
    factors: tuple[float, ...] = (3.0,)
    fixed_budget: bool = False
    num_mixtures: int = 0
    concentration: tuple[float, float] = CONCENTRATION


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRun:
    """One probe run.

    Attributes:
        label: "reference", "arxiv-up3", "arxiv-down3", "mix-007", under further seeds
            "reference-seed1"; unique in a design.
        domain: the domain that is scaled; None where none is or all are.
        factor: its sequences in multiples of the reference run's, as realised; 1 in a reference
            run, None in a run that changes all domains.
        seed: of initialisation and order.
        sequences: sequences drawn from each domain, in domain order.
    """

    label: str
    domain: str | None
    factor: float | None
    seed: int
    sequences: tuple[int, ...]

    @property
    def is_reference(self) -> bool:
        return self.domain is None and self.factor is not None


def design_probes(
    reference: Mixture,
    design: Design,
    *,
    num_sequences: int,
    sequences_per_batch: int,
    max_sequences: ArrayLike | None = None,
) -> tuple[ProbeRun, ...]:
    """The probe runs of one token budget, reference runs first.

    The reference run draws `num_sequences`, rounded to whole batches, by largest remainder.

    One at a time the runs follow domain by domain, down before up. As published (`fixed_budget`
    false) a scaled run differs from the reference in the scaled domain's count alone, which is the
    one nearest to the factor that fills whole batches, between 1 and the reference count (down) or
    above that (up). With `fixed_budget` the total stays, the scaled count is the nearest integer,
    and the others share the rest in their reference proportions.

    Mixtures that change all domains have the reference run's total. They differ between budgets:
    a mixture met at two budgets would tell less.

    Args:
        reference: the mixture probed around; every weight positive.
        design: which runs.
        num_sequences: token budget over sequence length.
        sequences_per_batch: global batch in sequences.
        max_sequences: most sequences of each domain that a drawn mixture may need, shape
            (num_domains,); by default any. A run one at a time is what its factor makes it.

    Raises:
        ValueError: a factor, the budget or the reference mixture cannot be probed; the message
            says which would do.
    """
    _check_design(reference, design)
    base_K = _reference_counts(reference, num_sequences, sequences_per_batch)
    first = ProbeRun(
        label="reference",
        domain=None,
        factor=1.0,
        seed=design.seed,
        sequences=tuple(base_K.tolist()),
    )
    if design.kind != "one_at_a_time":
        upper_K = None if max_sequences is None else np.asarray(max_sequences) / base_K.sum()
        runs = _mixture_runs(reference, design, base_K, upper_K)
        _check_distinct([first, *runs], "lower probe.runs")
    else:
        if not design.fixed_budget:
            _check_batches(reference, base_K, num_sequences, sequences_per_batch)
        runs = list(_scaled_runs(reference.domains, design, base_K, sequences_per_batch))
        _check_distinct(runs, "take factors further apart")
    references = _under_seeds(first, design.reference_seeds)
    return (*references, *(again for run in runs for again in _under_seeds(run, design.replicates)))


def _under_seeds(run: ProbeRun, num_seeds: int) -> list[ProbeRun]:
    """The run under its seed and the ones that follow."""
    others = range(1, num_seeds)
    return [run, *(replace(run, label=f"{run.label}-seed{k}", seed=run.seed + k) for k in others)]


def _mixture_runs(
    reference: Mixture, design: Design, base_K: Counts, upper_K: ArrayLike | None
) -> list[ProbeRun]:
    """Runs of mixtures around the reference, at its total."""
    total = int(base_K.sum())
    optimal = design.kind == "optimal"
    weights_PK = dirichlet_mixtures(
        reference,
        NUM_CANDIDATES if optimal else design.num_mixtures,
        stream=(design.seed, total),
        concentration=design.concentration,
        upper=upper_K,
    )
    if optimal:
        known = base_K[None] / total
        weights_PK = optimal_mixtures(weights_PK, design.num_mixtures, known=known)
    return [
        ProbeRun(
            label=f"mix-{p:03d}",
            domain=None,
            factor=None,
            seed=design.seed,
            sequences=tuple(largest_remainder(weights_K, total).tolist()),
        )
        for p, weights_K in enumerate(weights_PK)
    ]


def _scaled_runs(
    domains: Sequence[str], design: Design, base_K: Counts, sequences_per_batch: int
) -> Iterator[ProbeRun]:
    """Every domain scaled down and up by every factor."""
    for i, domain in enumerate(domains):
        for factor in design.factors:
            for direction, scale in (("down", 1 / factor), ("up", factor)):
                if design.fixed_budget:
                    counts_K = _scale_at_fixed_total(domains, base_K, i, scale)
                else:
                    counts_K = _scale_one(base_K, i, scale, sequences_per_batch)
                yield ProbeRun(
                    label=f"{domain}-{direction}{factor:g}",
                    domain=domain,
                    factor=float(counts_K[i] / base_K[i]),
                    seed=design.seed,
                    sequences=tuple(counts_K.tolist()),
                )


def _check_design(reference: Mixture, design: Design) -> None:
    if design.reference_seeds < 1:
        raise ValueError(
            f"the reference runs with {design.reference_seeds} seeds; expected at least 1"
        )
    if design.replicates < 1:
        raise ValueError(f"every run has {design.replicates} replicates; expected at least 1")
    if design.kind != "one_at_a_time":
        if design.num_mixtures < 1:
            raise ValueError(
                f"a {design.kind} design of {design.num_mixtures} mixtures; expected at least 1"
            )
        return
    _check_factors(design.factors)
    for domain, weight in reference.to_dict().items():
        if weight == 0:
            raise ValueError(
                f"domain {domain!r} has weight 0 in the reference mixture and cannot be scaled; "
                "give it a positive reference weight or leave the domain out"
            )


def _check_factors(factors: Sequence[float]) -> None:
    if not factors:
        raise ValueError("probe.factors is empty; expected at least one factor above 1, e.g. [3]")
    for factor in factors:
        if not (np.isfinite(factor) and factor > 1):
            raise ValueError(
                f"probe factor {factor:g} is not above 1; each factor r already makes a run with "
                "r times and one with 1/r of a domain's tokens"
            )
    if len(set(factors)) < len(factors):
        raise ValueError(f"probe.factors {list(factors)} repeats a factor; name each once")


def _reference_counts(reference: Mixture, num_sequences: int, sequences_per_batch: int) -> Counts:
    """Sequences of the reference run, whole batches in total, shape (num_domains,)."""
    if sequences_per_batch < 1:
        raise ValueError(f"a batch of {sequences_per_batch} sequences; expected at least 1")
    if num_sequences < sequences_per_batch:
        raise ValueError(
            f"token budget of {num_sequences} sequences is smaller than one batch of "
            f"{sequences_per_batch}; raise the budget or lower the batch"
        )
    num_batches = (2 * num_sequences + sequences_per_batch) // (2 * sequences_per_batch)
    return largest_remainder(reference.as_array(), num_batches * sequences_per_batch)


def _scale_one(base_K: Counts, i: int, scale: float, sequences_per_batch: int) -> Counts:
    """Domain i scaled by a whole number of batches, the others unchanged."""
    base = int(base_K[i])
    num_batches = round(abs(scale - 1) * base / sequences_per_batch)
    if scale < 1:
        most = (base - 1) // sequences_per_batch
        change = -min(max(num_batches, 1), most) * sequences_per_batch
    else:
        change = max(num_batches, 1) * sequences_per_batch
    counts_K = base_K.copy()
    counts_K[i] += change
    assert counts_K[i] >= 1 and change != 0
    return counts_K


def _check_batches(
    reference: Mixture, base_K: Counts, num_sequences: int, sequences_per_batch: int
) -> None:
    """Every domain must be able to lose a whole batch and keep a sequence."""
    i = int(base_K.argmin())
    if base_K[i] > sequences_per_batch:
        return

    def smallest(budget: int, batch: int) -> int:
        return int(_reference_counts(reference, budget, batch).min())

    num_batches = int(1 / min(reference.weights))  # one batch of the domain: just too few
    while smallest(num_batches * sequences_per_batch, sequences_per_batch) <= sequences_per_batch:
        num_batches += 1
    batch = max(int(base_K[i]) - 1, 0)
    while batch and smallest(num_sequences, batch) <= batch:
        batch -= 1
    lower = f" or lower the batch to {batch} sequences" if batch else ""
    raise ValueError(
        f"token budget of {num_sequences} sequences is too small for domain "
        f"{reference.domains[i]!r}: it has {base_K[i]} of them, and a run with fewer must leave "
        f"out a whole batch of {sequences_per_batch} and keep at least one; raise the budget to "
        f"{num_batches * sequences_per_batch} sequences{lower}"
    )


def _scale_at_fixed_total(domains: Sequence[str], base_K: Counts, i: int, scale: float) -> Counts:
    """Domain i scaled, the others sharing what is left of the total in proportion."""
    total, base = int(base_K.sum()), int(base_K[i])
    if scale * base >= total:
        raise ValueError(
            f"domain {domains[i]!r} is {base / total:.3g} of the reference mixture and cannot have "
            f"{scale:g} times that at a fixed budget; use factors below {total / base:.3g} or set "
            "probe.fixed_budget = false"
        )
    count = round(base * scale)
    others_K = base_K.copy()
    others_K[i] = 0
    counts_K = largest_remainder(others_K, total - count)
    counts_K[i] = count
    if count == base or counts_K.min() < 1:
        poorest = i if count == base else int(counts_K.argmin())
        raise ValueError(
            f"token budget of {total} sequences is too small for domain {domains[poorest]!r}: "
            f"scaling {domains[i]!r} by {scale:.3g} leaves it {counts_K[poorest]} of "
            f"{base_K[poorest]}; raise the budget or lower the batch"
        )
    return counts_K


def _check_distinct(runs: Sequence[ProbeRun], remedy: str) -> None:
    """Two runs that round to one count would be the same run, trained once and counted twice."""
    first: dict[tuple[int, ...], str] = {}
    for run in runs:
        label = first.setdefault(run.sequences, run.label)
        if label != run.label:
            raise ValueError(
                f"probe runs {label!r} and {run.label!r} draw the same sequences; raise the token "
                f"budget, lower the batch or {remedy}"
            )
