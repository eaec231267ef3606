"""Prefetched batches are the stream's own, whatever happens to the loop around them."""

import threading

import numpy as np
import pytest
import torch

from autoscale.mixture_stream import MixtureStream
from autoscale.prefetch import Prefetcher
from autoscale.sampler import MixtureOrder
from autoscale.stage_quotas import Stage
from tests.unit.token_data import write_data

PACKINGS = ("contiguous", "best_fit")


@pytest.fixture
def manifest(tmp_path):
    return write_data(tmp_path, {"web": [[90, 40], [60]], "code": [[30, 30, 50]]})


def open_stream(manifest, **changes):
    settings = {"weights": [2, 1], "num_samples": 60, "sequence_length": 5, "batch_size": 4}
    return MixtureStream(manifest, **settings | changes)


def assert_same(prefetched, expected):
    assert prefetched.step == expected.step
    assert prefetched.tokens.dtype == torch.int64
    assert np.array_equal(prefetched.tokens.numpy(), expected.tokens)
    assert (prefetched.positions is None) == (expected.positions is None)
    if expected.positions is not None:
        assert prefetched.positions.dtype == torch.int64
        assert np.array_equal(prefetched.positions.numpy(), expected.positions)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_batches_are_those_of_the_stream(manifest, packing, depth):
    stream = open_stream(manifest, packing=packing)
    with Prefetcher(stream, depth=depth) as batches:
        found = list(batches)  # reused buffers do not show in tensors handed out before
    for batch, expected in zip(found, open_stream(manifest, packing=packing), strict=True):
        assert_same(batch, expected)
        assert np.array_equal(batch.located.window, expected.located.window)
    assert stream.position == 60 and stream.delivered.tolist() == [40, 20]


def test_ids_of_32_bits_are_widened_without_a_sign(tmp_path):
    manifest = write_data(tmp_path, {"web": [[70_000]]}, vocab_size=70_000)
    stream = MixtureStream(manifest, sequence_length=999, batch_size=7, weights=[1], num_samples=70)
    with Prefetcher(stream) as batches:
        tokens = torch.cat([batch.tokens for batch in batches])
    assert tokens.unique().numel() == 70 * 999 + 1 and tokens.max() == 69_930


def test_ids_above_the_sign_of_16_bits_are_kept(tmp_path):
    manifest = write_data(tmp_path, {"web": [[65_536]]})
    stream = MixtureStream(
        manifest, sequence_length=1023, batch_size=4, weights=[1], num_samples=64
    )
    with Prefetcher(stream) as batches:
        assert max(int(batch.tokens.max()) for batch in batches) == 64 * 1023


def test_the_position_counts_what_was_handed_out_not_what_was_read(manifest):
    stream = open_stream(manifest)
    with Prefetcher(stream, depth=4) as batches:
        for batch in batches:
            assert stream.position == 4 * (batch.step + 1) == stream.delivered.sum()
            if batch.step == 5:
                break
        other = open_stream(manifest)
        other.load_state_dict(stream.state_dict())
        # A second loop over the same prefetcher goes on, and so does another stream.
        for batch, expected in zip(batches, other, strict=True):
            assert_same(batch, expected)


def test_given_steps_are_read_in_their_order(manifest):
    plain = open_stream(manifest)
    with Prefetcher(open_stream(manifest), [7, 0, 14]) as batches:
        for batch, step in zip(batches, [7, 0, 14], strict=True):
            assert_same(batch, plain.batch(step))


@pytest.mark.parametrize("num_samples", [None, 8, 40])
def test_weights_may_change_inside_the_loop(manifest, num_samples):
    plain, stream = open_stream(manifest), open_stream(manifest)
    with Prefetcher(stream, depth=3) as batches:
        for batch, expected in zip(batches, plain, strict=False):
            assert_same(batch, expected)
            if batch.step in (5, 6):
                for changing in (plain, stream):
                    changing.change_weights([0, 1], num_samples)
            if batch.step == 20:
                break
        assert batch.step == {None: 20, 8: 8, 40: 16}[num_samples]
    assert np.array_equal(stream.delivered, plain.delivered)


def test_weights_may_change_within_the_last_batches_read_ahead(manifest):
    stream = open_stream(manifest)
    with Prefetcher(stream, depth=4) as batches:
        for batch in batches:
            if batch.step == 13:  # of 15
                stream.change_weights([0, 1], 16)
    assert batch.step == 17 and stream.position == stream.order.num_samples == 72


@pytest.mark.parametrize("depth", [0, 3])
def test_rounds_decided_on_the_way_are_drawn_as_if_planned(manifest, depth):
    """As in a run whose weights follow its losses: behind each round stands a stage to read on."""
    rounds = [(20, 0), (8, 12), (4, 16)]

    def order(decided, rest):
        stages = [Stage(quotas=quotas) for quotas in (*decided, *rest)]
        known = open_stream(manifest).order
        return MixtureOrder(
            domains=known.domains, num_windows=known.num_windows, seed=known.seed, stages=stages
        )

    planned = open_stream(manifest)
    planned.adopt(order(rounds, []))
    stream = open_stream(manifest)
    stream.adopt(order(rounds[:1], [(40, 0)]))
    with Prefetcher(stream, range(15), depth=depth) as batches:
        for batch, expected in zip(batches, planned, strict=True):
            assert_same(batch, expected)
            if batch.step in (4, 9):
                decided = rounds[: 2 + (batch.step == 9)]
                stream.adopt(order(decided, [(10, 10)] if batch.step == 4 else []))
    assert stream.delivered.tolist() == [32, 28]


def test_an_error_in_the_thread_reaches_the_loop(manifest):
    stream = open_stream(manifest)
    with (
        Prefetcher(stream, [0, 1, 99]) as batches,
        pytest.raises(ValueError, match="step 99 is outside the stream's 15 steps"),
    ):
        for batch in batches:
            assert batch.step < 2
    assert stream.position == 8


def test_the_thread_ends_with_the_block(manifest):
    before = threading.active_count()
    with Prefetcher(open_stream(manifest)) as batches:
        next(iter(batches))
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="shutdown"):
        next(iter(batches))
    with pytest.raises(KeyError), Prefetcher(open_stream(manifest)) as batches:
        next(iter(batches))
        raise KeyError
    assert threading.active_count() == before


def test_a_rank_without_rows_gets_empty_batches(manifest):
    stream = open_stream(manifest, rank=0, world_size=5)
    with Prefetcher(stream) as batches:
        assert [batch.tokens.shape for batch in batches] == [(0, 6)] * 15


def test_nothing_read_ahead_is_refused(manifest):
    with pytest.raises(ValueError, match="depth is -1; expected 0 or more batches to read ahead"):
        Prefetcher(open_stream(manifest), depth=-1)


@pytest.mark.gpu
@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_arrive_on_a_gpu_unharmed(manifest, packing):
    with Prefetcher(open_stream(manifest, packing=packing), device="cuda") as batches:
        found = [batch for batch in batches]
    for batch, expected in zip(found, open_stream(manifest, packing=packing), strict=True):
        assert batch.tokens.is_cuda
        assert np.array_equal(batch.tokens.cpu().numpy(), expected.tokens)
        if packing == "best_fit":
            assert np.array_equal(batch.positions.cpu().numpy(), expected.positions)
