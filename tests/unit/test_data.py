import numpy as np
import pytest

from autoscale.data import BatchStream, validation_windows
from tests.unit.fake_experiment import FakeExperiment


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return FakeExperiment(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def spec(fake):
    return fake.experiment.probes()[3].spec


def stream(fake, spec, rank=0, world_size=1):
    return BatchStream(spec, fake.experiment.manifest, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_ranks_together_draw_the_batches_of_one_process(fake, spec, world_size):
    alone = stream(fake, spec)
    ranks = [stream(fake, spec, rank, world_size) for rank in range(world_size)]
    for step in range(spec.num_steps):
        together = np.concatenate([rank.batch(step) for rank in ranks])
        assert np.array_equal(together, alone.batch(step))


def test_any_step_can_be_asked_for_in_any_order(fake, spec):
    forward = [stream(fake, spec).batch(step) for step in range(spec.num_steps)]
    backward = stream(fake, spec)
    for step in reversed(range(spec.num_steps)):
        assert np.array_equal(backward.batch(step), forward[step])


def test_a_run_draws_exactly_its_quotas(fake, spec):
    source = stream(fake, spec)
    drawn = source.order.drawn(spec.num_steps * spec.sequences_per_batch)
    assert tuple(drawn.tolist()) == spec.sequences


def test_validation_windows_are_fixed_and_spread(fake):
    manifest = fake.experiment.manifest
    windows = validation_windows(manifest, fake.domains, sequence_length=128, limit=8)
    again = validation_windows(manifest, fake.domains, sequence_length=128, limit=8)
    for name in fake.domains:
        assert windows[name].shape == (8, 129)
        assert np.array_equal(windows[name], again[name])
        assert len(np.unique(windows[name][:, 0])) > 1
    everything = validation_windows(manifest, fake.domains, sequence_length=128, limit=10**6)
    assert everything["licences"].shape == ((4_000 - 1) // 128, 129)
