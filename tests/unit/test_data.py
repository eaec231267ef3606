import numpy as np
import pytest

from autoscale.data import RunStream, validation_windows
from autoscale.delivery import Delivery, rows_checksum
from tests.unit.fake_experiment import FakeExperiment


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return FakeExperiment(tmp_path_factory.mktemp("fake"), documents=300)


@pytest.fixture(scope="module", params=["contiguous", "best_fit", "matched", "stages"])
def spec(fake, request):
    tables = {
        "contiguous": {},
        "best_fit": {"data": {"packing": "best_fit"}},
        "matched": {"probe": {"match_repetition": True}},
        "stages": {"train": {"stages": [{"begin": 0.3, "weights": "natural"}]}},
    }[request.param]
    experiment = type(fake.experiment)(fake.changed(tables))
    if request.param == "stages":
        return experiment.targets({"uniform": experiment.reference})[0].spec
    return experiment.probes()[3].spec


def stream(fake, spec, rank=0, world_size=1):
    return RunStream(spec, fake.experiment.manifest, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_ranks_together_draw_the_batches_of_one_process(fake, spec, world_size):
    alone = stream(fake, spec)
    ranks = [stream(fake, spec, rank, world_size) for rank in range(world_size)]
    for step in range(0, spec.num_steps, 7):
        together = np.concatenate([rank.batch(step).tokens for rank in ranks])
        assert np.array_equal(together, alone.batch(step).tokens)


def test_a_run_is_given_exactly_its_quotas(fake, spec):
    source = stream(fake, spec)
    labels = np.zeros(len(fake.domains), dtype=np.int64)
    for batch in source:
        for domain, row in enumerate(batch.located.domain):
            places = None if batch.positions is None else batch.positions[domain, 1:]
            labels[row] += spec.sequence_length if places is None else (places > 0).sum()
    assert source.delivery.windows.tolist() == list(spec.sequences)
    assert source.delivery.labels.tolist() == labels.tolist()
    assert np.array_equal(source.delivered, source.delivery.windows)


def test_what_ranks_were_given_adds_up_whatever_the_order(fake, spec):
    alone = stream(fake, spec)
    for _ in alone:
        pass
    total = Delivery.nothing(len(fake.domains))
    for rank in range(4):
        part = stream(fake, spec, rank, 4)
        for _ in part:
            pass
        assert part.delivery.checksum != alone.delivery.checksum
        # As it is sent to other ranks, and as a checkpoint holds it.
        sent = Delivery.from_array(part.delivery.to_array())
        total = total.plus(Delivery.from_dict(sent.to_dict()))
    assert total.to_dict() == alone.delivery.to_dict()


def test_arrays_of_ranks_may_be_added_before_they_are_read():
    most = np.iinfo(np.uint64).max
    parts = [
        Delivery(windows=np.array([n]), labels=np.array([9]), checksum=int(most) - n)
        for n in range(1000)
    ]
    summed = Delivery.from_array(np.sum([part.to_array() for part in parts], axis=0))
    assert summed.checksum == sum(part.checksum for part in parts) % (1 << 64)
    assert (summed.windows.tolist(), summed.labels.tolist()) == ([499_500], [9_000])


def test_the_checksum_is_of_rows_not_of_their_order():
    rows = np.arange(40, dtype=np.uint16).reshape(4, 10)
    assert rows_checksum(rows) == rows_checksum(rows[::-1]) == 0x16D7B48B2
    moved = np.roll(rows.reshape(-1), 1).reshape(4, 10)
    assert rows_checksum(moved) != rows_checksum(rows)
    assert rows_checksum(rows.astype(np.uint32)) != rows_checksum(rows)  # of the wire's bytes


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
def test_validation_windows_are_fixed_and_spread(fake, packing):
    settings = {"sequence_length": 128, "packing": packing}
    manifest = fake.experiment.manifest
    windows = validation_windows(manifest, fake.domains, limit=8, **settings)
    again = validation_windows(manifest, fake.domains, limit=8, **settings)
    for name in fake.domains:
        tokens, positions, masks = windows[name]
        assert tokens.shape == (8, 129)
        assert np.array_equal(tokens, again[name].tokens)
        assert len(np.unique(tokens[:, 0])) > 1
        assert (positions is None) == (packing == "contiguous")
        assert masks is None
    everything = validation_windows(manifest, fake.domains, limit=10**6, **settings)["licences"]
    if packing == "contiguous":
        assert everything.tokens.shape == ((4_000 - 1) // 128, 129)
    else:
        assert (everything.positions >= 0).sum() == 4_000
