"""How far the domains' counts stray from weight times draws, over all prefixes of a stage."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from data_path_bare import chain, greedy
from numpy.typing import NDArray

from autoscale.sampler import MixtureOrder
from autoscale.stage_quotas import Stage

GOAL: Final = 1.5
_LENGTHS: Final = (1_000_000, 999_983)
_DOMAINS: Final = (7, 22, 100, 1000)
_DIRICHLET_DRAWS: Final = 5
_SEED: Final = 20261121


def deviation() -> Iterator[str]:
    yield (
        "Largest |count - weight x draws| of any domain over all prefixes, the larger of stages of "
        f"{' and '.join(f'{length:_}' for length in _LENGTHS)} draws; Dirichlet: the largest of "
        f"{_DIRICHLET_DRAWS} drawn mixtures; geometric: ratio 0.5 and 0.9. Goal for ours: at most "
        f"{GOAL}. Greedy: Megatron's rule; chain: domains peeled off one by one, heaviest first. "
        "Quotas: whether the counts at the end of the stage are the rounded quotas."
    )
    yield ""
    yield "| domains | weights | ours | goal met | quotas exact | greedy | chain |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    met = cells = 0
    for num_domains in _DOMAINS:
        for name, mixtures in _mixtures(num_domains):
            ours, rivals, exact = 0.0, np.zeros(2), True
            for weights in mixtures:
                for length in _LENGTHS:
                    worst, kept = _of_ours(weights, length)
                    ours, exact = max(ours, worst), exact and kept
                    rivals = np.maximum(rivals, _of_rivals(weights, length))
            cells, met = cells + 1, met + (ours <= GOAL)
            yield (
                f"| {num_domains} | {name} | {ours:.2f} | {_yes(ours <= GOAL)} | {_yes(exact)} | "
                f"{rivals[0]:.2f} | {rivals[1]:.2f} |"
            )
    yield ""
    yield f"Goal met in {met} of {cells} cells."


def _mixtures(num_domains: int) -> Iterator[tuple[str, list[NDArray[np.float64]]]]:
    generator = np.random.default_rng([_SEED, num_domains])
    ranks = np.arange(num_domains)
    yield (
        "Dirichlet(.1)",
        list(generator.dirichlet(np.full(num_domains, 0.1), size=_DIRICHLET_DRAWS)),
    )
    yield "Zipf", [_normalised(1 / (ranks + 1.0))]
    yield "geometric", [_normalised(ratio ** ranks.astype(float)) for ratio in (0.5, 0.9)]
    yield "equal", [_normalised(np.ones(num_domains))]


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / values.sum()


def _of_ours(weights: NDArray[np.float64], length: int) -> tuple[float, bool]:
    """The deviation, and whether the stage ends at its quotas."""
    stage = Stage.of_weights(weights.tolist(), length)
    order = MixtureOrder(
        domains=[f"domain-{number}" for number in range(weights.size)],
        num_windows=[1000] * weights.size,
        seed=0,
        stages=[stage],
    )
    domain = order.locate(np.arange(length)).domain
    exact = np.array_equal(np.bincount(domain, minlength=weights.size), stage.quotas)
    exact &= bool(np.all(np.abs(np.array(stage.quotas) - weights * length) < 1))
    return largest_deviation(domain, weights), exact


def _of_rivals(weights: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    heaviest_first = np.sort(weights)[::-1]
    quotas = np.array(Stage.of_weights(heaviest_first.tolist(), length).quotas, dtype=np.int64)
    return np.array(
        [
            largest_deviation(greedy(weights, length), weights),
            largest_deviation(chain(quotas, length), heaviest_first),
        ]
    )


def largest_deviation(domain: NDArray[np.integer], weights: NDArray[np.float64]) -> float:
    """Over all prefixes and domains; looked for only where a domain's line is furthest.

    A domain's count is furthest above its line right after a draw of it, and furthest below right
    before one, or at the end.

    Args:
        domain: of each draw, shape (n,).
        weights: of the domains, shape (K,).
    """
    drawn = np.argsort(domain, kind="stable")  # positions of the draws, domain by domain
    counts = np.bincount(domain, minlength=weights.size)
    rank = np.arange(domain.size) - np.repeat(np.cumsum(counts) - counts, counts)
    line = np.repeat(weights, counts)
    above = np.max(rank + 1 - line * (drawn + 1), initial=0.0)
    below = np.max(line * drawn - rank, initial=0.0)
    end = np.max(np.abs(counts - weights * domain.size))
    return float(max(above, below, end))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
