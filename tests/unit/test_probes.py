"""The probe designs: whole batches, others unchanged, fixed totals, labels and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.mixture import Mixture, largest_remainder
from autoscale.probes import Design, ProbeRun, design_probes

SIZES = {"num_sequences", "sequences_per_batch", "max_sequences"}


def design(reference: Mixture, **changes) -> tuple[ProbeRun, ...]:
    sizes = {"num_sequences": 7000, "sequences_per_batch": 8}
    sizes |= {key: value for key, value in changes.items() if key in SIZES}
    settings = {"kind": "one_at_a_time", "seed": 11}
    settings |= {key: value for key, value in changes.items() if key not in SIZES}
    return design_probes(reference, Design(**settings), **sizes)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_domains=st.integers(1, 9),
    batch=st.integers(1, 40),
    factor=st.floats(1.3, 9),
)
def test_published_design(seed: int, num_domains: int, batch: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(num_domains)]
    reference = Mixture.from_array(names, rng.uniform(0.3, 1, num_domains))
    num_sequences = int(rng.integers(200, 2000)) * num_domains
    runs = design(
        reference,
        num_sequences=num_sequences,
        sequences_per_batch=batch,
        factors=[factor],
        seed=seed,
    )
    assert len(runs) == 2 * num_domains + 1
    base = np.array(runs[0].sequences)
    assert runs[0].domain is None and abs(base.sum() - num_sequences) <= batch / 2
    assert (base == largest_remainder(reference.as_array(), int(base.sum()))).all()
    for run in runs:
        assert sum(run.sequences) % batch == 0 and min(run.sequences) >= 1 and run.seed == seed
    for run in runs[1:]:
        i = names.index(run.domain or "")
        counts = np.array(run.sequences)
        assert (np.delete(counts, i) == np.delete(base, i)).all()
        assert run.factor == counts[i] / base[i]
        wanted = base[i] * factor if "-up" in run.label else base[i] / factor
        assert run.factor > 1 if "-up" in run.label else run.factor < 1
        inside = batch < wanted < base[i] - batch or wanted > base[i] + batch
        assert abs(counts[i] - wanted) <= batch / 2 or not inside


def test_labels_seeds_and_order() -> None:
    runs = design(Mixture.uniform(["arxiv", "books"]), factors=[3, 1.5], reference_seeds=2)
    assert [run.label for run in runs] == [
        "reference",
        "reference-seed1",
        *(f"{name}-{way}" for name in ("arxiv", "books") for way in WAYS),
    ]
    assert [run.seed for run in runs] == [11, 12] + [11] * 8
    assert runs[0].sequences == runs[1].sequences and runs[1].factor == 1
    assert [run.is_reference for run in runs] == [True, True] + [False] * 8


WAYS = ("down3", "up3", "down1.5", "up1.5")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), num_domains=st.integers(3, 9), factor=st.floats(1.2, 2.5))
def test_fixed_budget_keeps_the_total(seed: int, num_domains: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(num_domains)]
    reference = Mixture.from_array(names, rng.uniform(0.8, 1, num_domains))
    runs = design(reference, fixed_budget=True, factors=[factor])
    base = np.array(runs[0].sequences)
    for run in runs[1:]:
        counts, i = np.array(run.sequences), names.index(run.domain or "")
        assert counts.sum() == base.sum() and counts.min() >= 1
        scale = factor if "-up" in run.label else 1 / factor
        assert abs(counts[i] - base[i] * scale) <= 0.5
        others = np.delete(base, i) * (base.sum() - counts[i]) / (base.sum() - base[i])
        assert np.abs(np.delete(counts, i) - others).max() < 1


def test_small_budget_names_what_would_work() -> None:
    reference = Mixture.from_mapping({"big": 0.8, "small": 0.2})
    arguments = {"num_sequences": 64, "sequences_per_batch": 16}
    with pytest.raises(
        ValueError,
        match=r"token budget of 64 sequences is too small for domain 'small': it has 13 of them.*"
        r"raise the budget to 96 sequences or lower the batch to 11 sequences",
    ):
        design(reference, **arguments)
    assert design(reference, **(arguments | {"num_sequences": 96}))
    assert design(reference, **(arguments | {"sequences_per_batch": 11}))
    with pytest.raises(ValueError, match="token budget of 10 sequences is smaller than one batch"):
        design(reference, num_sequences=10, sequences_per_batch=16)


def test_errors() -> None:
    uniform = Mixture.uniform(["a", "b"])
    with pytest.raises(ValueError, match="domain 'b' has weight 0 in the reference mixture and"):
        design(Mixture.from_mapping({"a": 1.0, "b": 0.0}))
    with pytest.raises(ValueError, match="probe factor 1 is not above 1"):
        design(uniform, factors=[1])
    with pytest.raises(ValueError, match=r"probe.factors is empty"):
        design(uniform, factors=[])
    with pytest.raises(ValueError, match="repeats a factor"):
        design(uniform, factors=[3, 3])
    with pytest.raises(ValueError, match=r"'a-down3' and 'a-down3.1' draw the same sequences"):
        design(uniform, factors=[3, 3.1], num_sequences=64)
    with pytest.raises(
        ValueError,
        match=r"domain 'a' is 0.5 of the reference mixture and cannot have 3 times that at a fixed "
        r"budget; use factors below 2 or set probe.fixed_budget = false",
    ):
        design(uniform, fixed_budget=True)
    with pytest.raises(ValueError, match="too small for domain 'c': scaling 'a' by 2 leaves it 0"):
        design(
            Mixture.from_mapping({"a": 0.4, "b": 0.5, "c": 0.1}),
            fixed_budget=True,
            factors=[2],
            num_sequences=10,
            sequences_per_batch=2,
        )
    with pytest.raises(ValueError, match="reference runs with 0 seeds"):
        design(uniform, reference_seeds=0)
    with pytest.raises(ValueError, match="every run has 0 replicates"):
        design(uniform, replicates=0)
    with pytest.raises(ValueError, match="a batch of 0 sequences"):
        design(uniform, sequences_per_batch=0)


KINDS = ("dirichlet", "optimal")
FOUR = Mixture.from_mapping({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})


def test_replicates_repeat_every_run_under_the_seeds_of_the_reference() -> None:
    runs = design(Mixture.uniform(["a", "b"]), reference_seeds=3, replicates=2)
    assert [run.seed for run in runs] == [11, 12, 13] + [11, 12] * 4
    assert [run.label for run in runs][3:7] == ["a-down3", "a-down3-seed1", "a-up3", "a-up3-seed1"]
    for run, again in zip(runs[3::2], runs[4::2], strict=True):
        assert (run.sequences, run.domain, run.factor) == (
            again.sequences,
            again.domain,
            again.factor,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_share_the_total_and_the_seed_of_the_reference(kind: str) -> None:
    runs = design(FOUR, kind=kind, num_mixtures=9, reference_seeds=2)
    assert [run.label for run in runs][:4] == ["reference", "reference-seed1", "mix-000", "mix-001"]
    assert len(runs) == 11
    assert [run.is_reference for run in runs] == [True, True] + [False] * 9
    for run in runs[2:]:
        assert sum(run.sequences) == sum(runs[0].sequences) and min(run.sequences) >= 0
        assert run.seed == 11 and run.domain is None and run.factor is None
    assert runs[0].sequences == (2800, 2100, 1400, 700)


@pytest.mark.parametrize("kind", KINDS)
def test_more_mixtures_keep_those_that_were_there(kind: str) -> None:
    few = design(FOUR, kind=kind, num_mixtures=4)
    assert design(FOUR, kind=kind, num_mixtures=12)[: len(few)] == few
    assert design(FOUR, kind=kind, num_mixtures=4) == few
    for changes in ({"seed": 12}, {"num_sequences": 7008}, {"concentration": (2.0, 2.0)}):
        others = design(FOUR, kind=kind, num_mixtures=4, **changes)
        assert not {run.sequences for run in few} & {run.sequences for run in others[1:]}


@pytest.mark.parametrize("kind", KINDS)
def test_no_mixture_draws_more_of_a_domain_than_it_may(kind: str) -> None:
    most = [7000, 2200, 1500, 701]
    capped = design(FOUR, kind=kind, num_mixtures=30, max_sequences=most)
    assert (np.array([run.sequences for run in capped]) <= most).all()
    free = design(FOUR, kind=kind, num_mixtures=30)
    assert (np.array([run.sequences for run in free]) > most).any()


def test_mixtures_that_cannot_be_drawn() -> None:
    uniform = Mixture.uniform(["a", "b"])
    with pytest.raises(ValueError, match="a dirichlet design of 0 mixtures; expected at least 1"):
        design(uniform, kind="dirichlet")
    with pytest.raises(ValueError, match="draw the same sequences; raise the token budget, lower"):
        design(uniform, kind="dirichlet", num_mixtures=50, num_sequences=16)
    with pytest.raises(ValueError, match="domain 'b' has weight 0 in the reference mixture"):
        design(Mixture.from_mapping({"a": 1.0, "b": 0.0}), kind="optimal", num_mixtures=2)
    with pytest.raises(ValueError, match="optimal design of 1001 mixtures has only 1000"):
        design(uniform, kind="optimal", num_mixtures=1001)
