"""The mixture order: exact quotas, whole epochs, one sequence whatever the world size."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoscale.mixture import largest_remainder
from autoscale.sampler import Located, MixtureOrder, Stage, batch_positions

# K domains, S stages, B windows a global batch


@st.composite
def orders(draw: st.DrawFn, max_stages: int = 3) -> MixtureOrder:
    """Orders of a few hundred samples, with zero quotas and empty domains among them."""
    num_domains = draw(st.integers(1, 6))
    num_windows = draw(st.lists(st.integers(0, 40), min_size=num_domains, max_size=num_domains))
    if not any(num_windows):
        num_windows[0] = 1
    quota_K = st.tuples(*[st.integers(0, 90 if windows else 0) for windows in num_windows])
    stages = draw(st.lists(quota_K.filter(any), min_size=1, max_size=max_stages))
    return MixtureOrder(
        domains=[f"domain-{number}" for number in range(num_domains)],
        num_windows=num_windows,
        seed=draw(st.integers(0, 2**63)),
        stages=[Stage(quotas=quotas) for quotas in stages],
    )


def everything(order: MixtureOrder) -> Located:
    return order.locate(np.arange(order.num_samples))


def as_rows(located: Located) -> list[tuple[int, int, int]]:
    columns = (located.domain, located.epoch, located.window)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(max_examples=60, deadline=None)
@given(order=orders())
def test_quotas_are_exact_at_the_end_of_every_stage(order: MixtureOrder) -> None:
    domain, begin = everything(order).domain, 0
    for stage in order.stages:
        end = begin + stage.num_samples
        drawn = np.bincount(domain[begin:end], minlength=len(order.domains))
        assert drawn.tolist() == list(stage.quotas)
        begin = end


@settings(max_examples=60, deadline=None)
@given(order=orders())
def test_every_window_comes_exactly_once_per_epoch(order: MixtureOrder) -> None:
    located = everything(order)
    for number, num_windows in enumerate(order.num_windows):
        here = located.domain == number
        windows, epochs = located.window[here], located.epoch[here]
        if not num_windows:
            assert not len(windows)
            continue
        assert np.array_equal(epochs, np.arange(len(windows)) // num_windows)
        for epoch in range(len(windows) // num_windows):
            assert sorted(windows[epochs == epoch]) == list(range(num_windows))
        rest = windows[epochs == len(windows) // num_windows]
        assert len(set(rest.tolist())) == len(rest) and np.all(rest < num_windows)


def test_every_epoch_has_a_fresh_order() -> None:
    order = one_domain(num_windows=50, quota=50 * 20)
    epochs = everything(order).window.reshape(20, 50)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 20


def one_domain(*, num_windows: int, quota: int, name: str = "web", seed: int = 1) -> MixtureOrder:
    return MixtureOrder(
        domains=[name], num_windows=[num_windows], seed=seed, stages=[Stage(quotas=(quota,))]
    )


@settings(max_examples=40, deadline=None)
@given(order=orders())
def test_window_order_depends_on_neither_weights_nor_other_domains(order: MixtureOrder) -> None:
    located = everything(order)
    for number, name in enumerate(order.domains):
        windows = located.window[located.domain == number]
        if len(windows):
            alone = one_domain(
                name=name,
                num_windows=order.num_windows[number],
                quota=len(windows),
                seed=order.seed,
            )
            assert np.array_equal(windows, everything(alone).window)


def test_seed_and_name_change_the_window_order() -> None:
    base = everything(one_domain(num_windows=100, quota=100)).window
    for changed in (
        one_domain(num_windows=100, quota=100, seed=2),
        one_domain(num_windows=100, quota=100, name="code"),
    ):
        assert not np.array_equal(base, everything(changed).window)


@settings(max_examples=40, deadline=None)
@given(order=orders(), data=st.data())
def test_drawn_is_a_recount(order: MixtureOrder, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, order.num_samples))
    domain = order.locate(np.arange(position)).domain
    recount = np.bincount(domain, minlength=len(order.domains))
    assert order.drawn(position).tolist() == recount.tolist()
    epochs = order.epochs(position)
    for number, num_windows in enumerate(order.num_windows):
        assert epochs[number] == (recount[number] / num_windows if num_windows else 0)


@settings(max_examples=40, deadline=None)
@given(order=orders(), data=st.data())
def test_resuming_anywhere_continues_the_same_sequence(
    order: MixtureOrder, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, order.num_samples - 1))
    resumed = MixtureOrder.from_state(json.loads(json.dumps(order.state())))
    assert resumed.digest() == order.digest()
    rest = resumed.locate(np.arange(position, order.num_samples))
    assert as_rows(rest) == as_rows(everything(order))[position:]


@settings(max_examples=40, deadline=None)
@given(order=orders(), seed=st.integers(0, 2**32))
def test_positions_may_come_in_any_order_and_shape(order: MixtureOrder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    positions = generator.integers(0, order.num_samples, size=(5, 7))
    located, rows = order.locate(positions), as_rows(everything(order))
    assert located.domain.shape == located.epoch.shape == located.window.shape == (5, 7)
    flat = Located(
        domain=located.domain.reshape(-1),
        epoch=located.epoch.reshape(-1),
        window=located.window.reshape(-1),
    )
    assert as_rows(flat) == [rows[position] for position in positions.reshape(-1)]


def test_more_positions_than_one_chunk_agree_with_single_look_ups() -> None:
    order = seven_domains(num_samples=100_000)
    whole = as_rows(everything(order))
    for position in (0, 1, 16_383, 16_384, 16_385, 65_536, 99_999):
        assert as_rows(order.locate(np.array([position]))) == [whole[position]]
    assert order.locate(np.zeros(0, dtype=np.int64)).domain.shape == (0,)


def seven_domains(*, num_samples: int, seed: int = 3) -> MixtureOrder:
    weights = [0.67, 0.15, 0.045, 0.045, 0.025, 0.045, 0.02]
    quotas = largest_remainder(weights, num_samples)
    return MixtureOrder(
        domains=["web", "c4", "code", "wiki", "papers", "books", "forum"],
        num_windows=[70_000, 9_000, 400, 3_000, 2_500, 1_000, 37],
        seed=seed,
        stages=[Stage(quotas=tuple(quotas.tolist()))],
    )


def test_stages_change_at_exact_positions() -> None:
    order = MixtureOrder(
        domains=["a", "b", "c"],
        num_windows=[5, 5, 5],
        seed=0,
        stages=[Stage(quotas=(4, 0, 0)), Stage(quotas=(0, 3, 0)), Stage(quotas=(2, 0, 2))],
    )
    located = everything(order)
    assert located.domain[:7].tolist() == [0] * 4 + [1] * 3
    assert sorted(located.domain[7:].tolist()) == [0, 0, 2, 2]
    assert located.epoch[located.domain == 0].tolist() == [0, 0, 0, 0, 0, 1]  # counted through
    assert order.drawn(7).tolist() == [4, 3, 0]


@settings(max_examples=30, deadline=None)
@given(order=orders(max_stages=3), data=st.data())
def test_appending_a_stage_leaves_what_came_before(
    order: MixtureOrder, data: st.DataObject
) -> None:
    before, digest, length = as_rows(everything(order)), order.digest(), order.num_samples
    order.append_stage(order.stages[data.draw(st.integers(0, len(order.stages) - 1))])
    assert as_rows(everything(order))[:length] == before
    assert order.digest() != digest


def test_an_order_without_stages_is_empty() -> None:
    order = MixtureOrder(domains=["a"], num_windows=[3], seed=0)
    assert order.num_samples == 0
    assert order.drawn(0).tolist() == [0]
    assert order.locate(np.zeros(0, dtype=np.int64)).domain.tolist() == []


def test_digests_differ_in_everything_that_changes_the_order() -> None:
    def digest(**changes: Any) -> str:
        arguments: dict[str, Any] = {
            "domains": ["a", "b"],
            "num_windows": [4, 5],
            "seed": 1,
            "stages": [Stage(quotas=(3, 3))],
        }
        return MixtureOrder(**arguments | changes).digest()

    digests = [
        digest(),
        digest(seed=2),
        digest(domains=["b", "a"]),
        digest(num_windows=[5, 4]),
        digest(stages=[Stage(quotas=(2, 4))]),
        digest(stages=[Stage(quotas=(1, 1)), Stage(quotas=(2, 2))]),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(num_windows=np.array([4, 5])) == digest()


def test_stages_past_two_to_the_31_samples() -> None:
    """Exact quotas, draws and epochs where 32-bit arithmetic ends, across a stage boundary."""
    quotas = (3 * 2**40, 2**33 + 1, 5, 0)
    order = MixtureOrder(
        domains=["a", "b", "c", "d"],
        num_windows=[10**9, 2**31 + 11, 2, 0],
        seed=9,
        stages=[Stage(quotas=quotas), Stage(quotas=(0, 2**32, 2**32, 0))],
    )
    first = sum(quotas)
    assert order.drawn(first).tolist() == list(quotas)
    assert order.drawn(order.num_samples).tolist() == [3 * 2**40, 2**33 + 1 + 2**32, 2**32 + 5, 0]
    for begin in (0, 2**31 - 500, 2**32, 2**40, first - 500, order.num_samples - 1000):
        located = order.locate(np.arange(begin, begin + 1000))
        before, after = order.drawn(begin), order.drawn(begin + 1000)
        assert np.bincount(located.domain, minlength=4).tolist() == (after - before).tolist()
        for number, num_windows in enumerate(order.num_windows):
            epochs = located.epoch[located.domain == number]
            draws = np.arange(before[number], after[number])
            assert np.array_equal(epochs, draws // max(num_windows, 1))
            assert np.all(located.window[located.domain == number] < num_windows)


def interleaved(order: MixtureOrder, *, num_steps: int, batch_size: int, world_size: int) -> Any:
    """What all ranks draw, one rank after the other within each global batch."""
    shares = [
        batch_positions(
            step=step, batch_size=batch_size, rank=rank, world_size=world_size, seed=order.seed
        )
        for step in range(num_steps)
        for rank in range(world_size)
    ]
    return as_rows(order.locate(np.concatenate(shares)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), batches=st.integers(1, 5))
def test_all_world_sizes_draw_the_same_sequence(seed: int, batches: int) -> None:
    batch_size = 12 * batches
    order = seven_domains(num_samples=batch_size * 6, seed=seed)
    single = interleaved(order, num_steps=6, batch_size=batch_size, world_size=1)
    for world_size in (2, 3, 4):
        assert single == interleaved(
            order, num_steps=6, batch_size=batch_size, world_size=world_size
        )
    assert sorted(single) == sorted(as_rows(everything(order)))


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(0, 2**40),
    share=st.integers(1, 40),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 2**70),
)
def test_the_ranks_cover_each_global_batch_once(
    step: int, share: int, world_size: int, seed: int
) -> None:
    batch_size = share * world_size
    slices = [
        batch_positions(
            step=step, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed
        )
        for rank in range(world_size)
    ]
    assert all(each.shape == (share,) for each in slices)
    expected = np.arange(step * batch_size, (step + 1) * batch_size)
    assert np.array_equal(np.sort(np.concatenate(slices)), expected)


def test_many_steps_at_once_are_the_steps_one_by_one() -> None:
    settings_of_rank: dict[str, Any] = {"batch_size": 12, "rank": 1, "world_size": 3, "seed": 4}
    steps: NDArray[np.int64] = np.arange(10, 20)
    together = batch_positions(step=steps, **settings_of_rank)
    alone = [batch_positions(step=int(step), **settings_of_rank) for step in steps]
    assert np.array_equal(together, np.stack(alone))


def test_batches_are_shuffled_anew_at_every_step() -> None:
    positions = batch_positions(step=np.arange(1000), batch_size=8, rank=0, world_size=1, seed=0)
    places = positions - 8 * np.arange(1000)[:, None]
    assert len({tuple(place) for place in places.tolist()}) > 950
    counts = np.stack([np.bincount(column, minlength=8) for column in places.T])
    assert np.abs(counts - 125).max() < 5 * np.sqrt(125)  # each place, each position


def test_ranks_see_the_mixture_and_not_one_domain() -> None:
    """Equal quotas repeat with the batch; uncut slices would give each rank one domain for ever."""
    num_steps, num_ranks = 2000, 4
    order = MixtureOrder(
        domains=["a", "b", "c", "d"],
        num_windows=[100] * 4,
        seed=5,
        stages=[Stage(quotas=(num_steps,) * 4)],
    )
    unshuffled = everything(order).domain.reshape(num_steps, num_ranks)
    assert all(len(set(column.tolist())) == 1 for column in unshuffled.T)
    for rank in range(num_ranks):
        positions = batch_positions(
            step=np.arange(num_steps), batch_size=4, rank=rank, world_size=num_ranks, seed=5
        )
        counts = np.bincount(order.locate(positions).domain.reshape(-1), minlength=4)
        expected = num_steps / 4
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_the_order_is_pinned() -> None:
    """A change here changes what resumed runs draw: raise the order version with it."""
    order = seven_domains(num_samples=1000)
    assert as_rows(order.locate(np.arange(500, 506))) == PINNED_ROWS
    positions = batch_positions(step=3, batch_size=8, rank=1, world_size=2, seed=3)
    assert positions.tolist() == PINNED_POSITIONS


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": []}, "at least one domain; found none"),
        ({"num_windows": [4]}, "2 domains but 1 numbers of windows"),
        ({"domains": ["a", "a"]}, "domain 'a' is named more than once"),
        ({"num_windows": [4, -1]}, "domain 'b' has -1 windows; expected between 0 and"),
        ({"stages": [Stage(quotas=(1, 1, 1))]}, "stage has 3 quotas; expected one for each of the"),
        ({"stages": [Stage(quotas=(1, -2))]}, "domain 'b' has quota -2; expected at least 0"),
        ({"stages": [Stage(quotas=(0, 0))]}, "stage draws nothing: all quotas are 0"),
        ({"num_windows": [4, 0]}, "domain 'b' has quota 3 but no windows; give it weight 0"),
        ({"stages": [Stage(quotas=(2**50, 1))]}, f"samples together; at most {2**50}"),
    ],
)
def test_errors_name_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "domains": ["a", "b"],
        "num_windows": [4, 5],
        "seed": 1,
        "stages": [Stage(quotas=(3, 3))],
    }
    with pytest.raises(ValueError, match=message):
        MixtureOrder(**arguments | changes)


@pytest.mark.parametrize("position", [-1, 6, 2**40])
def test_positions_outside_the_run_are_refused(position: int) -> None:
    order = one_domain(num_windows=3, quota=6)
    with pytest.raises(ValueError, match=f"position {position} is outside the order's 6 samples"):
        order.locate(np.array([0, position]))
    if position != 6:
        with pytest.raises(ValueError, match=f"position {position} is outside"):
            order.drawn(position)


def test_positions_that_are_no_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="positions are of type float64; expected integers"):
        one_domain(num_windows=3, quota=6).locate(np.array([0.5]))  # type: ignore[arg-type]


def test_a_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 10 windows cannot be shared evenly by 4 ranks"):
        batch_positions(step=0, batch_size=10, rank=0, world_size=4, seed=0)


def test_a_state_of_another_order_version_is_refused() -> None:
    state = one_domain(num_windows=3, quota=6).state() | {"order_version": 7}
    with pytest.raises(ValueError, match="order version 7; this version of autoscale continues 1"):
        MixtureOrder.from_state(state)


PINNED_ROWS = [
    (0, 0, 39663),
    (3, 0, 1590),
    (0, 0, 36190),
    (0, 0, 18302),
    (1, 0, 2307),
    (0, 0, 15104),
]
PINNED_POSITIONS = [30, 26, 31, 28]
