"""The mixture order: exact quotas, whole epochs, one sequence whatever the world size."""

import gc
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoscale.batch_order import batch_positions
from autoscale.mixture import largest_remainder
from autoscale.sampler import Located, MixtureOrder
from autoscale.stage_quotas import OPEN_END, Stage
from tests.unit.both_paths import both_paths  # noqa: F401  (every test runs on both)

# K domains, S stages, B windows a global batch


@st.composite
def orders(draw: st.DrawFn, max_stages: int = 3) -> MixtureOrder:
    """Orders of a few hundred samples, with zero quotas and empty domains among them."""
    num_domains = draw(st.integers(1, 6))
    num_windows = draw(st.lists(st.integers(0, 40), min_size=num_domains, max_size=num_domains))
    if not any(num_windows):
        num_windows[0] = 1
    quota_K = st.tuples(*[st.integers(0, 90 if windows else 0) for windows in num_windows])
    stages = draw(st.lists(stages_of(quota_K.filter(any)), min_size=1, max_size=max_stages))
    return MixtureOrder(
        domains=[f"domain-{number}" for number in range(num_domains)],
        num_windows=num_windows,
        seed=draw(st.integers(0, 2**63)),
        stages=stages,
        locality=draw(st.sampled_from([1, 1, 2, 5, 50])),
    )


@st.composite
def stages_of(draw: st.DrawFn, quota_K: st.SearchStrategy[tuple[int, ...]]) -> Stage:
    """Stages of quotas alone, with shares, or cut short."""
    quotas = draw(quota_K)
    shares = tuple(draw(st.integers(1, 2**40)) if quota else 0 for quota in quotas)
    return Stage(
        quotas=quotas,
        shares=draw(st.sampled_from([(), shares])),
        cut=draw(st.integers(1, sum(quotas))) if draw(st.booleans()) else None,
    )


def everything(order: MixtureOrder) -> Located:
    return order.locate(np.arange(order.num_samples))


def as_rows(located: Located) -> list[tuple[int, int, int]]:
    columns = (located.domain, located.epoch, located.window)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(max_examples=60)
@given(order=orders())
def test_quotas_are_exact_at_the_end_of_every_stage(order: MixtureOrder) -> None:
    domain, begin = everything(order).domain, 0
    for stage in order.stages:
        end = begin + stage.num_samples
        drawn = np.bincount(domain[begin:end], minlength=len(order.domains))
        whole = stage.num_samples == sum(stage.quotas)
        assert drawn.tolist() == list(stage.quotas) or not whole
        assert (drawn <= stage.quotas).all()
        begin = end


@settings(max_examples=60)
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


def one_domain(
    *, num_windows: int, quota: int, name: str = "web", seed: int = 1, locality: int = 1
) -> MixtureOrder:
    return MixtureOrder(
        domains=[name],
        num_windows=[num_windows],
        seed=seed,
        stages=[Stage(quotas=(quota,))],
        locality=locality,
    )


@settings(max_examples=40)
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
                locality=order.locality,
            )
            assert np.array_equal(windows, everything(alone).window)


def test_seed_and_name_change_the_window_order() -> None:
    base = everything(one_domain(num_windows=100, quota=100)).window
    for changed in (
        one_domain(num_windows=100, quota=100, seed=2),
        one_domain(num_windows=100, quota=100, name="code"),
    ):
        assert not np.array_equal(base, everything(changed).window)


@settings(max_examples=40)
@given(order=orders(), data=st.data())
def test_drawn_is_a_recount(order: MixtureOrder, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, order.num_samples))
    domain = order.locate(np.arange(position)).domain
    recount = np.bincount(domain, minlength=len(order.domains))
    assert order.drawn(position).tolist() == recount.tolist()
    epochs = order.epochs(position)
    for number, num_windows in enumerate(order.num_windows):
        assert epochs[number] == (recount[number] / num_windows if num_windows else 0)


@settings(max_examples=40)
@given(order=orders(), data=st.data())
def test_resuming_anywhere_continues_the_same_sequence(
    order: MixtureOrder, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, order.num_samples - 1))
    resumed = MixtureOrder.from_state(json.loads(json.dumps(order.state())))
    assert resumed.digest() == order.digest()
    rest = resumed.locate(np.arange(position, order.num_samples))
    assert as_rows(rest) == as_rows(everything(order))[position:]


@settings(max_examples=40)
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


SEVEN = [0.67, 0.15, 0.045, 0.045, 0.025, 0.045, 0.02]


def seven_domains(*, num_samples: int, seed: int = 3, locality: int = 1) -> MixtureOrder:
    quotas = largest_remainder(SEVEN, num_samples)
    return MixtureOrder(
        domains=["web", "c4", "code", "wiki", "papers", "books", "forum"],
        num_windows=[70_000, 9_000, 400, 3_000, 2_500, 1_000, 37],
        seed=seed,
        stages=[Stage(quotas=tuple(quotas.tolist()))],
        locality=locality,
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


@settings(max_examples=30)
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
        digest(stages=[Stage(quotas=(3, 3), shares=(3, 3))]),
        digest(stages=[Stage(quotas=(3, 3), cut=5)]),
        digest(locality=2),
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


@settings(max_examples=15)
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


@settings(max_examples=60)
@given(
    step=st.integers(0, 2**40),
    batch_size=st.integers(1, 100),
    world_size=st.integers(1, 9),
    seed=st.integers(0, 2**70),
)
def test_the_ranks_cover_each_global_batch_once(
    step: int, batch_size: int, world_size: int, seed: int
) -> None:
    """In the order of the ranks, also where they do not divide the batch."""
    slices = [
        batch_positions(
            step=step, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed
        )
        for rank in range(world_size)
    ]
    whole = batch_positions(step=step, batch_size=batch_size, rank=0, world_size=1, seed=seed)
    assert np.array_equal(np.concatenate(slices), whole)
    expected = np.arange(step * batch_size, (step + 1) * batch_size)
    assert np.array_equal(np.sort(whole), expected)
    lengths = {len(each) for each in slices}
    assert lengths <= {batch_size // world_size, -(-batch_size // world_size)}


@settings(max_examples=20)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    switch=st.integers(0, 30),
)
def test_another_batch_size_keeps_the_windows_of_every_prefix(
    sizes: tuple[int, int], worlds: tuple[int, int], switch: int
) -> None:
    """A run that goes on with other batches at a multiple of both draws what is left, once."""
    num_samples = 1000
    order = seven_domains(num_samples=num_samples)
    position = switch * sizes[0] * sizes[1]
    drawn: list[NDArray[np.int64]] = []
    consumed, (size, world_size) = 0, (sizes[0], worlds[0])
    while consumed + size <= num_samples:
        if consumed == position:
            size, world_size = sizes[1], worlds[1]
            if consumed + size > num_samples:
                break
        drawn += [
            batch_positions(
                step=consumed // size, batch_size=size, rank=rank, world_size=world_size, seed=1
            )
            for rank in range(world_size)
        ]
        consumed += size
    together = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
    assert sorted(as_rows(order.locate(together))) == sorted(
        as_rows(order.locate(np.arange(consumed)))
    )


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
    order.change_stage(400, Stage.of_weights(SEVEN))
    assert as_rows(order.locate(np.arange(500, 506))) == PINNED_ROWS_WITH_SHARES
    in_blocks = seven_domains(num_samples=1000, locality=16)
    assert as_rows(in_blocks.locate(np.arange(500, 506))) == PINNED_ROWS_IN_BLOCKS


# --- stages that are cut --------------------------------------------------------------------------


@settings(max_examples=60)
@given(order=orders(), data=st.data())
def test_a_change_keeps_what_came_before_and_counts_through(
    order: MixtureOrder, data: st.DataObject
) -> None:
    before = as_rows(everything(order))
    last_begin = order.num_samples - order.stages[-1].num_samples
    position = data.draw(st.integers(last_begin, order.num_samples))
    drawn = order.drawn(position)
    change = order.stages[data.draw(st.integers(0, len(order.stages) - 1))]
    order.change_stage(position, change)
    assert order.num_samples == position + change.num_samples
    assert as_rows(everything(order))[:position] == before[:position]
    assert order.drawn(position).tolist() == drawn.tolist()
    located = everything(order)
    for number, num_windows in enumerate(order.num_windows):
        epochs = located.epoch[located.domain == number]
        assert np.array_equal(epochs, np.arange(len(epochs)) // max(num_windows, 1))
    resumed = MixtureOrder.from_state(json.loads(json.dumps(order.state())))
    assert resumed.digest() == order.digest()
    assert as_rows(everything(resumed)) == as_rows(located)


def test_a_change_at_the_begin_of_the_last_stage_replaces_it() -> None:
    first, second = Stage(quotas=(4, 1)), Stage(quotas=(1, 4))
    order = MixtureOrder(domains=["a", "b"], num_windows=[3, 3], seed=0, stages=[first])
    order.change_stage(0, second)
    assert order.stages == (second,)
    order.change_stage(5, first)
    assert order.stages == (second, first)
    order.change_stage(7, Stage(quotas=(2, 2)))
    assert order.stages == (second, Stage(quotas=(4, 1), cut=2), Stage(quotas=(2, 2)))
    empty = MixtureOrder(domains=["a"], num_windows=[3], seed=0)
    empty.change_stage(0, Stage(quotas=(2,)))
    assert empty.num_samples == 2


@settings(max_examples=30)
@given(weights=st.lists(st.floats(1e-3, 1), min_size=1, max_size=8), position=st.integers(1, 2**40))
def test_a_stage_without_an_end_follows_its_weights_wherever_it_is_cut(
    weights: list[float], position: int
) -> None:
    order = MixtureOrder(
        domains=[str(number) for number in range(len(weights))],
        num_windows=[100] * len(weights),
        seed=0,
        stages=[Stage.of_weights(weights)],
    )
    assert order.num_samples == OPEN_END
    order.change_stage(position, Stage.of_weights(weights[::-1], 10))
    due = np.array(weights) / sum(weights) * position
    assert np.abs(order.drawn(position) - due).max() < 1.68 + 1e-3  # of the float64 product


@settings(max_examples=60)
@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(any),
    num_samples=st.integers(1, 10**9),
)
def test_quotas_of_weights_are_the_largest_remainders(
    weights: list[float], num_samples: int
) -> None:
    stage = Stage.of_weights(weights, num_samples)
    assert list(stage.quotas) == largest_remainder(weights, num_samples).tolist()
    assert stage.num_samples == num_samples and sum(stage.shares) <= 2**50
    assert [share > 0 for share in stage.shares] == [weight > 0 for weight in weights]


def test_states_of_quotas_alone_are_as_they_were() -> None:
    """So that old states load, and digests of old orders stay the same."""
    state = one_domain(num_windows=3, quota=6).state()
    assert state["stages"] == [[6]] and "locality" not in state
    order = MixtureOrder(
        domains=["a", "b"],
        num_windows=[4, 5],
        seed=1,
        stages=[Stage(quotas=(3, 3))],
    )
    assert order.digest() == PINNED_DIGEST


# --- locality -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(num_windows=st.integers(1, 400), locality=st.integers(2, 60), seed=st.integers(0, 2**40))
def test_locality_keeps_blocks_of_neighbours_together(
    num_windows: int, locality: int, seed: int
) -> None:
    order = one_domain(num_windows=num_windows, quota=num_windows, seed=seed, locality=locality)
    windows = everything(order).window
    assert sorted(windows.tolist()) == list(range(num_windows))
    blocks = windows // locality
    begins = np.flatnonzero(np.diff(blocks, prepend=-1))
    assert len(begins) == -(-num_windows // locality)  # each block is left only once


def test_locality_shuffles_blocks_and_inside_them_anew_in_each_epoch() -> None:
    order = one_domain(num_windows=95, quota=95 * 200, locality=10)
    epochs = everything(order).window.reshape(200, 95)
    places_of_short_block = np.argmax(epochs >= 90, axis=1)
    assert {int(place) for place in places_of_short_block} == set(range(0, 91, 10))
    first_blocks = np.bincount(epochs[:, 0] // 10, minlength=10)
    assert np.abs(first_blocks - 20).max() < 5 * np.sqrt(20)
    orders_inside = {
        tuple(epoch[epoch // 10 == block] % 10) for epoch in epochs for block in range(9)
    }
    assert len(orders_inside) > 1700  # of 1800


@pytest.mark.parametrize("shares", [False, True])
def test_memory_is_at_most_100_bytes_a_domain_whatever_the_samples(shares: bool) -> None:
    def kept(num_domains: int, num_samples: int) -> int:
        names = [f"domain-{number}" for number in range(num_domains)]
        weights = [1 / (rank + 1) for rank in range(num_domains)]
        gc.collect()
        tracemalloc.start()
        stage = Stage.of_weights(weights, num_samples)
        order = MixtureOrder(
            domains=names,
            num_windows=[10**6 + number for number in range(num_domains)],
            seed=0,
            stages=[stage if shares else Stage(quotas=stage.quotas)],
        )
        del stage
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert order.num_samples == num_samples
        return size

    kept(2, 100)  # what is made once
    few, many = kept(100, 10**8), kept(1100, 10**8)
    assert (many - few) / 1000 <= 100
    assert kept(1100, 10**12) <= many + 1000


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
        ({"stages": [Stage(quotas=(1, 1), shares=(1,))]}, "stage has 1 shares; expected one for"),
        ({"stages": [Stage(quotas=(1, 1), shares=(1, -1))]}, "stage has shares from -1 on"),
        ({"stages": [Stage(quotas=(1, 1), shares=(0, 0))]}, "and 1 to 1125899906842624 together"),
        ({"stages": [Stage(quotas=(1, 1), cut=3)]}, "stage has 3 samples; its quotas"),
        ({"stages": [Stage(quotas=(1, 1), cut=0)]}, "its quotas allow 1 to 2"),
        ({"locality": 0}, "locality is 0; expected at least 1 window a block"),
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


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="global batch of 0 windows; expected at least 1"):
        batch_positions(step=0, batch_size=0, rank=0, world_size=4, seed=0)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"weight number 1 is {weight}; expected a finite"):
        Stage.of_weights([0.5, weight])
    with pytest.raises(ValueError, match="all weights are 0; give at least one domain"):
        Stage.of_weights([0.0, 0.0], 9)


@pytest.mark.parametrize("position", [4, 21])
def test_a_change_outside_the_last_stage_is_refused(position: int) -> None:
    order = MixtureOrder(
        domains=["a", "b"],
        num_windows=[9, 9],
        seed=0,
        stages=[Stage(quotas=(5, 0)), Stage(quotas=(5, 10))],
    )
    message = f"cannot begin at position {position}: the last stage goes from 5 to 20"
    with pytest.raises(ValueError, match=message):
        order.change_stage(position, Stage(quotas=(1, 1)))


def test_a_change_that_is_refused_changes_nothing() -> None:
    order = MixtureOrder(domains=["a", "b"], num_windows=[9, 0], seed=0)
    order.append_stage(Stage.of_weights([1, 0]))
    digest = order.digest()
    for stage in (Stage(quotas=(1,)), Stage(quotas=(1, 1)), Stage(quotas=(2**50, 0))):
        with pytest.raises(ValueError):
            order.change_stage(7, stage)
        assert order.digest() == digest


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
PINNED_ROWS_WITH_SHARES = [
    (0, 0, 39663),
    (3, 0, 1590),
    (0, 0, 36190),
    (0, 0, 18302),
    (1, 0, 2307),
    (0, 0, 15104),
]
PINNED_ROWS_IN_BLOCKS = [
    (0, 0, 30919),
    (3, 0, 1759),
    (0, 0, 65780),
    (0, 0, 65776),
    (1, 0, 5095),
    (0, 0, 65788),
]
PINNED_DIGEST = "bd24ab45208a2a62f2b48cdc98b1d87314cb5de81f40d11f12f2d6a65b8b1d22"
PINNED_POSITIONS = [30, 26, 31, 28]
