"""The stream draws its quotas exactly, whoever reads it, from wherever, in batches of any size."""

import json
import pickle
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.mixture_stream import MixtureStream
from autoscale.stage_quotas import Stage
from autoscale.windows.opening import open_windows
from autoscale.windows.reading import WindowReader
from tests.unit.both_paths import numpy_alone
from tests.unit.token_data import write_data

DOMAINS = {
    "web": [[40, 7, 90, 23], [60, 60]],
    "code": [[30, 30, 30, 11]],
    "books": [[150], [9, 50], [33]],
}
T = 5
PACKINGS = ("contiguous", "whole_documents", "best_fit")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), DOMAINS)


def open_stream(manifest, **changes):
    settings = {"sequence_length": T, "batch_size": 6, "weights": [3, 1, 2], "num_samples": 240}
    if "stages" in changes:
        del settings["weights"], settings["num_samples"]
    return MixtureStream(manifest, **settings | changes)


def drawn(batches) -> list[tuple[int, int, int]]:
    """(domain, epoch, window) of every row."""
    return [
        key
        for batch in batches
        for key in zip(*(getattr(batch.located, name).tolist() for name in KEYS), strict=True)
    ]


KEYS = ("domain", "epoch", "window")

# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_are_the_windows_that_the_order_names(manifest, packing):
    stream = open_stream(manifest, packing=packing, shares={"web": 0.5})
    readers = [
        WindowReader(
            open_windows(manifest, name, "train", sequence_length=T, packing=packing, share=share)
        )
        for name, share in (("web", 0.5), ("code", 1.0), ("books", 1.0))
    ]
    for batch in stream:
        for row, (domain, _, window) in enumerate(drawn([batch])):
            tokens, positions = readers[domain].read(np.array([window]))
            assert np.array_equal(batch.tokens[row], tokens[0])
            assert (batch.positions is None) == (packing == "contiguous")
            if positions is not None:
                assert np.array_equal(batch.positions[row], positions[0])
    assert np.array_equal(batch.inputs, batch.tokens[:, :-1])
    assert np.array_equal(batch.labels, batch.tokens[:, 1:])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("locality", [1, 4])
def test_every_window_is_drawn_once_an_epoch(manifest, packing, locality):
    counts = [
        len(open_windows(manifest, name, "train", sequence_length=T, packing=packing))
        for name in DOMAINS
    ]
    stream = open_stream(
        manifest,
        packing=packing,
        locality=locality,
        batch_size=2,
        stages=[Stage(quotas=tuple(2 * count for count in counts))],
    )
    found = drawn(stream)
    expected = {
        (domain, epoch, window)
        for domain, count in enumerate(counts)
        for epoch in range(2)
        for window in range(count)
    }
    assert len(found) == len(expected) and set(found) == expected


def test_quotas_are_exact_at_the_end_of_every_stage(manifest):
    stages = [Stage(quotas=(7, 3, 2)), Stage(quotas=(0, 11, 1)), Stage(quotas=(1, 1, 10))]
    stream = open_stream(manifest, stages=stages)
    for stage in stages:
        before = stream.delivered.copy()
        for _ in range(stage.num_samples // 6):
            next(iter(stream))
        assert tuple(stream.delivered - before) == stage.quotas
    assert list(stream) == []


def test_weights_are_met_within_a_window(manifest):
    stream = open_stream(manifest, weights={"web": 0.5, "books": 0.31, "code": 0.19})
    assert len(list(stream)) == stream.num_steps == 40
    assert np.all(np.abs(stream.delivered - 240 * np.array([0.5, 0.19, 0.31])) < 1)


def test_domains_can_be_chosen_and_ordered(manifest):
    stream = open_stream(manifest, domains=["books", "web"], weights={"web": 1, "books": 3})
    assert stream.domains == ("books", "web")
    list(stream)
    assert stream.delivered.tolist() == [180, 60]


def test_validation_can_be_streamed(manifest):
    stream = open_stream(manifest, split="validation", num_samples=24)
    assert {tuple(np.diff(row)) for batch in stream for row in batch.tokens.astype(int)} == {
        (1,) * T
    }


# --- who reads, and from where --------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 7])
def test_the_ranks_of_any_world_interleave_to_the_same_batches(manifest, packing, world_size):
    alone = open_stream(manifest, packing=packing)
    ranks = [
        open_stream(manifest, packing=packing, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert np.array_equal(np.concatenate([part.tokens for part in parts]), batch.tokens)
        rows = [len(part.tokens) for part in parts]
        assert max(rows) - min(rows) <= 1
    assert np.array_equal(sum(rank.delivered for rank in ranks), alone.delivered)


def test_any_step_can_be_asked_for_in_any_order(manifest):
    forward = [batch.tokens for batch in open_stream(manifest)]
    stream = open_stream(manifest)
    for step in np.random.default_rng(0).permutation(stream.num_steps):
        assert np.array_equal(stream.batch(int(step)).tokens, forward[step])
    assert stream.position == 0 and not stream.delivered.any()


def test_steps_far_apart_are_planned_anew(manifest):
    stream = open_stream(manifest, num_samples=6 * 10**11)
    last = stream.batch(10**11 - 1)
    assert last.located.epoch.max() > 10**8
    assert np.array_equal(stream.batch(10**11 - 1).tokens, last.tokens)


@settings(max_examples=25)
@given(data=st.data())
def test_a_stream_goes_on_from_anywhere_with_any_ranks_and_batches(manifest, data):
    uninterrupted = drawn(open_stream(manifest, batch_size=1))
    found, state, position = [], None, 0
    while position < 240:
        divisors = [size for size in range(1, 25) if (240 - position) % size == 0]
        batch_size = data.draw(st.sampled_from(divisors), label="batch_size")
        world_size = data.draw(st.integers(1, 3), label="world_size")
        ranks = [
            open_stream(
                manifest, batch_size=batch_size, num_samples=None, rank=rank, world_size=world_size
            )
            if state is not None
            else open_stream(manifest, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(json.loads(json.dumps(state)))
        steps = data.draw(st.integers(1, (240 - position) // batch_size), label="steps")
        for _, batches in zip(range(steps), zip(*ranks, strict=True), strict=False):
            rows = drawn(batches)
            # The same windows as without an interruption; the order inside a batch may differ.
            assert sorted(rows) == sorted(uninterrupted[position : position + batch_size])
            position += batch_size
            found += rows
        states = [rank.state_dict() for rank in ranks]
        assert all(other == states[0] for other in states)
        assert ranks[0].position == position
        state = states[0]
    assert sorted(found) == sorted(uninterrupted)


def test_the_same_batch_size_gives_the_same_batches_after_a_resume(manifest):
    whole = [batch.tokens for batch in open_stream(manifest)]
    stream = open_stream(manifest)
    for batch in stream:
        if batch.step == 16:
            break
    other = open_stream(manifest, seed=0)
    other.load_state_dict(stream.state_dict())
    for batch, expected in zip(other, whole[17:], strict=True):
        assert np.array_equal(batch.tokens, expected)


# --- weights that change --------------------------------------------------------------------------


@settings(max_examples=25)
@given(data=st.data())
def test_a_live_change_is_accounted_exactly(manifest, data):
    stream = open_stream(manifest, num_samples=None)
    found = []
    for weights in [(1, 0, 1), (1, 5, 2), (0, 1, 0)]:
        for _, batch in zip(range(data.draw(st.integers(0, 12))), stream, strict=False):
            found += drawn([batch])
        if data.draw(st.booleans()):  # a resume
            other = open_stream(manifest, weights=[1, 1, 1])
            other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
            stream = other
        before = stream.order.drawn(stream.position)
        num_samples = data.draw(st.sampled_from([None, 60]))
        stream.change_weights(weights, num_samples)
        assert np.array_equal(stream.order.drawn(stream.position), before)
        if num_samples:
            assert np.all(
                np.abs(stream.order.drawn(stream.order.num_samples) - before
                - 60 * np.array(weights) / sum(weights)) < 1
            )  # fmt: skip
    for _, batch in zip(range(10), stream, strict=False):
        found += drawn([batch])
    # Each domain went through its windows in turn: no window early, none left out, none repeated.
    counts = np.bincount([domain for domain, *_ in found], minlength=3)
    assert np.array_equal(counts, stream.order.drawn(stream.position))
    for domain, count in enumerate(counts):
        order = open_stream(
            manifest,
            batch_size=1,
            stages=[Stage(quotas=tuple(count * (d == domain) for d in range(3)))],
        ) if count else []  # fmt: skip
        assert sorted(row for row in found if row[0] == domain) == sorted(drawn(order))


def test_a_change_takes_effect_at_once(manifest):
    stream = open_stream(manifest, num_samples=None)
    for batch in stream:
        if batch.step == 3:
            stream.change_weights({"web": 0, "code": 1, "books": 0})
        if batch.step > 3:
            assert np.all(batch.located.domain == 1)
        if batch.step == 8:
            break


def test_a_changed_stream_ends_where_its_last_stage_ends(manifest):
    stream = open_stream(manifest)
    next(iter(stream))
    stream.change_weights([1, 1, 1], num_samples=18)
    assert stream.num_steps == 4
    assert [batch.step for batch in stream] == [1, 2, 3]
    stream.change_weights([0, 1, 0], num_samples=6)
    (last,) = stream
    assert last.step == 4 and np.all(last.located.domain == 1)


# --- buffers and types ----------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.int64])
def test_batches_fill_given_buffers_of_any_width(manifest, packing, dtype):
    stream = open_stream(manifest, packing=packing)
    out = np.full((6, T + 1), 9, dtype=dtype)
    positions = np.full((6, T + 1), 9, dtype=np.int32)
    for step in (0, 7):
        batch, expected = stream.batch(step, out, positions), stream.batch(step)
        assert batch.tokens is out and expected.tokens.dtype == np.uint16
        assert np.array_equal(batch.tokens, expected.tokens)
        if packing != "contiguous":
            assert batch.positions is positions
            assert np.array_equal(batch.positions, expected.positions)


def test_ids_above_16_bits_travel_as_uint32(tmp_path):
    manifest = write_data(tmp_path, {"web": [[70_000]]}, vocab_size=70_000)
    stream = MixtureStream(
        manifest, sequence_length=1000, batch_size=1, stages=[Stage(quotas=(69,))]
    )
    tokens = np.concatenate([batch.tokens for batch in stream])
    assert tokens.dtype == np.uint32
    assert tokens.max() == 69_000
    assert np.array_equal(np.sort(tokens[:, 0]), np.arange(69) * 1000)


# --- where the tokens lie -------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKINGS)
def test_numpy_alone_gives_the_same_batches(manifest, packing):
    found = list(open_stream(manifest, packing=packing, locality=3))
    with numpy_alone():
        alone = list(open_stream(manifest, packing=packing, locality=3))
    for batch, other in zip(found, alone, strict=True):
        assert np.array_equal(batch.tokens, other.tokens)
        assert packing == "contiguous" or np.array_equal(batch.positions, other.positions)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_stream_can_be_sent_to_another_process(manifest, packing):
    stream = open_stream(manifest, packing=packing)
    next(iter(stream))
    sent = pickle.loads(pickle.dumps(stream))
    for batch, other in zip(stream, sent, strict=True):
        assert np.array_equal(batch.tokens, other.tokens)
        assert packing == "contiguous" or np.array_equal(batch.positions, other.positions)


@pytest.mark.parametrize("locality", [1, 4])
def test_shards_may_lie_behind_a_url(tmp_path, locality):
    manifest = write_data(tmp_path, DOMAINS)
    storage = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.*"):
        storage.pipe_file(f"/stream/{path.relative_to(tmp_path)}", path.read_bytes())
    remote = replace(manifest, data_root="memory://stream")
    for batch, other in zip(
        open_stream(manifest, locality=locality),
        open_stream(remote, locality=locality),
        strict=True,
    ):
        assert np.array_equal(batch.tokens, other.tokens)


def test_a_shard_that_vanished_is_named(tmp_path):
    manifest = write_data(tmp_path, {"web": [[40_000]]})
    stream = MixtureStream(
        manifest, sequence_length=1000, batch_size=3, weights=[1], num_samples=39
    )
    stream.batch(0)
    with (tmp_path / "web" / "train-0.bin").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(ValueError, match=r"train-0\.bin.*80000 bytes, found 4096"):
        list(stream)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2; expected 0 to 1"),
        ({"num_samples": 241}, "the stages end at sample 241, 1 after the last whole batch of 6"),
        ({"weights": None, "num_samples": None}, "neither of weights and stages given; give one"),
        ({"weights": [1, 2]}, "2 weights for the 3 domains web, code, books; give one for each"),
        ({"weights": {"web": 1, "code": 2}}, "weights lacks domain 'books'"),
        ({"weights": [1, 2, float("nan")]}, "weight of domain 'books' is nan; expected a finite"),
        ({"weights": {"web": 1, "code": -1, "books": 0}}, "weight of domain 'code' is -1"),
        ({"weights": [0, 0, 0]}, "all weights are 0; give at least one domain a positive"),
        ({"shares": {"wob": 0.5}}, "shares name domain 'wob', which the stream does not draw from"),
        ({"shares": {"web": 2}}, "share of domain 'web' is 2; expected a number above 0"),
        ({"domains": ["web", "web", "code"]}, "domain 'web' is named more than once"),
        ({"domains": ["web", "cod", "books"]}, "no domain 'cod'; did you mean 'code'"),
        ({"domains": []}, "domains are none; name at least one"),
        ({"locality": 0}, "locality"),
        ({"packing": "tight"}, "packing is 'tight'"),
        ({"split": "test"}, "split is 'test'; expected 'train' or 'validation'"),
    ],
)
def test_impossible_streams_are_refused(manifest, changes, message):
    with pytest.raises(ValueError, match=message):
        open_stream(manifest, **changes)


def test_stages_and_weights_exclude_each_other(manifest):
    stages = [Stage(quotas=(4, 4, 4))]
    settings = {"sequence_length": T, "batch_size": 6, "stages": stages}
    with pytest.raises(ValueError, match="both of weights and stages given; give one"):
        MixtureStream(manifest, weights=[1, 1, 1], **settings)
    with pytest.raises(ValueError, match="num_samples goes with weights"):
        MixtureStream(manifest, num_samples=12, **settings)


def test_steps_and_buffers_that_do_not_fit_are_refused(manifest):
    stream = open_stream(manifest)
    for step in (-1, 40):
        with pytest.raises(ValueError, match=f"step {step} is outside the stream's 40 steps"):
            stream.batch(step)
    with pytest.raises(ValueError, match=r"out has shape \(5, 6\); expected \(6, 6\)"):
        stream.batch(0, np.empty((5, T + 1), dtype=np.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "stream state has seed 0; this stream has 1: resume with"),
        ({"sequence_length": 6}, "sequence_length 5; this stream has 6"),
        ({"packing": "best_fit"}, "packing 'contiguous'; this stream has 'best_fit'"),
        ({"shares": {"web": 0.5}}, "shares {}; this stream has {'web': 0.5}"),
        ({"domains": ["code", "web", "books"]}, "stream state has domains"),
        ({"locality": 4}, "stream state has locality 1; this stream has 4"),
        ({"split": "validation"}, "split 'train'; this stream has 'validation'"),
        ({"batch_size": 9, "num_samples": 9}, "2 after the last whole batch of 9"),
    ],
)
def test_a_state_of_something_else_is_refused(manifest, changes, message):
    stream = open_stream(manifest)
    with pytest.raises(ValueError, match=message):
        open_stream(manifest, **changes).load_state_dict(stream.state_dict(position=4))


def test_a_state_of_other_data_is_refused(manifest, tmp_path):
    other = write_data(tmp_path, DOMAINS | {"code": [[30, 30, 30, 12]]})
    with pytest.raises(ValueError, match="stream state has manifest"):
        open_stream(other).load_state_dict(open_stream(manifest).state_dict())


def test_states_that_say_something_impossible_are_refused(manifest):
    stream = open_stream(manifest)
    state = stream.state_dict()
    with pytest.raises(ValueError, match="stream state has version 7; this version of autoscale"):
        stream.load_state_dict(state | {"stream_version": 7})
    with pytest.raises(ValueError, match="position 241 is outside the stream's 240 samples"):
        stream.load_state_dict(state | {"position": 241})
