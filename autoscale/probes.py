"""Which probe runs one token budget needs, and how many sequences of each domain they draw.

Direct data optimisation as published (Kang et al., arXiv 2407.20177, section 3.2): the reference
mixture, and every domain once with its data times r and once divided by r while the other domains'
data stay unchanged, 2K + 1 runs. The alternative keeps the total and lets the others give way.

Runs draw whole sequences and train in whole batches, so the counts here are integers and the
factors only nearly r. Fits use the tokens realised, never r.
"""

# K domains

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mixture import Mixture, largest_remainder

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRun:
    """One probe run.

    Attributes:
        label: "reference", "reference-seed1", "arxiv-up3", "arxiv-down3"; unique in a design.
        domain: the domain that is scaled; None in a reference run.
        factor: its sequences in multiples of the reference run's, as realised; 1 in a reference
            run.
        seed: of initialisation and order; all runs but the extra reference runs share one.
        sequences: sequences drawn from each domain, in domain order.
    """

    label: str
    domain: str | None
    factor: float
    seed: int
    sequences: tuple[int, ...]


def design_probes(
    reference: Mixture,
    *,
    num_sequences: int,
    sequences_per_batch: int,
    factors: Sequence[float],
    fixed_budget: bool,
    seed: int,
    reference_seeds: int,
) -> tuple[ProbeRun, ...]:
    """The probe runs of one token budget: reference runs first, then down and up by domain.

    The reference run draws `num_sequences`, rounded to whole batches, by largest remainder. As
    published (`fixed_budget` false) a scaled run differs from it in the scaled domain's count
    alone, which is the one nearest to the factor that fills whole batches, between 1 and the
    reference count (down) or above that (up). With `fixed_budget` the total stays, the scaled
    count is the nearest integer, and the others share the rest in their reference proportions.

    Args:
        reference: the mixture probed around; every weight positive.
        num_sequences: token budget over sequence length.
        sequences_per_batch: global batch in sequences.
        factors: r > 1, distinct.
        fixed_budget: keep the total instead of the other domains.
        seed: shared by the reference and all scaled runs.
        reference_seeds: how many seeds the reference runs with (seed, seed + 1, ...); two or more
            measure the noise between seeds.

    Raises:
        ValueError: a factor, the budget or the reference mixture cannot be probed; the message
            says which would do.
    """
    _check_arguments(reference, factors, reference_seeds)
    base_K = _reference_counts(reference, num_sequences, sequences_per_batch)
    runs = [
        ProbeRun(
            label="reference" if k == 0 else f"reference-seed{k}",
            domain=None,
            factor=1.0,
            seed=seed + k,
            sequences=tuple(base_K.tolist()),
        )
        for k in range(reference_seeds)
    ]
    if not fixed_budget:
        _check_batches(reference, base_K, num_sequences, sequences_per_batch)
    for i, domain in enumerate(reference.domains):
        for factor in factors:
            for direction, scale in (("down", 1 / factor), ("up", factor)):
                if fixed_budget:
                    counts_K = _scale_at_fixed_total(reference.domains, base_K, i, scale)
                else:
                    counts_K = _scale_one(base_K, i, scale, sequences_per_batch)
                runs.append(
                    ProbeRun(
                        label=f"{domain}-{direction}{factor:g}",
                        domain=domain,
                        factor=float(counts_K[i] / base_K[i]),
                        seed=seed,
                        sequences=tuple(counts_K.tolist()),
                    )
                )
    _check_distinct(runs[reference_seeds:])
    return tuple(runs)


def _check_arguments(reference: Mixture, factors: Sequence[float], reference_seeds: int) -> None:
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
    if reference_seeds < 1:
        raise ValueError(f"the reference runs with {reference_seeds} seeds; expected at least 1")
    for domain, weight in reference.to_dict().items():
        if weight == 0:
            raise ValueError(
                f"domain {domain!r} has weight 0 in the reference mixture and cannot be scaled; "
                "give it a positive reference weight or leave the domain out"
            )


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


def _check_distinct(runs: Sequence[ProbeRun]) -> None:
    """Two factors that round to one count would train the same run twice."""
    first: dict[tuple[int, ...], str] = {}
    for run in runs:
        label = first.setdefault(run.sequences, run.label)
        if label != run.label:
            raise ValueError(
                f"probe runs {label!r} and {run.label!r} draw the same sequences; raise the token "
                "budget, lower the batch or take factors further apart"
            )
