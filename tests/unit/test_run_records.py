"""Results of runs in one file."""

import gzip

import pytest

from autoscale.run_records import keep_results, restore_results
from autoscale.runs import RunStore
from tests.unit.fake_experiment import FakeExperiment


@pytest.fixture
def fake(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.probe(only=4)
    return fake


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.jsonl.gz"])
def test_results_come_back_as_they_were(fake, tmp_path, name):
    experiment = fake.experiment
    kept = tmp_path / "records" / name
    assert keep_results(experiment.store, kept) == 4
    other = RunStore(root=tmp_path / "other")
    assert restore_results(kept, other) == 4
    specs = [planned.spec for planned in experiment.probes()]
    assert [other.status(spec) for spec in specs[:5]] == ["finished"] * 4 + ["waiting"]
    for spec in specs[:4]:
        assert other.result(spec) == experiment.store.result(spec)
    assert restore_results(kept, other) == 0


def test_runs_are_added_and_equal_runs_give_equal_bytes(fake, tmp_path):
    kept = tmp_path / "runs.jsonl.gz"
    keep_results(fake.experiment.store, kept)
    first = kept.read_bytes()
    keep_results(RunStore(root=tmp_path / "nothing"), kept)
    assert kept.read_bytes() == first
    fake.probe(only=5)
    assert keep_results(fake.experiment.store, kept) == 5
    assert gzip.decompress(kept.read_bytes()).count(b"\n") == 5


def test_no_file_is_no_runs_and_another_file_is_refused(tmp_path):
    store = RunStore(root=tmp_path / "runs")
    assert restore_results(tmp_path / "none.jsonl", store) == 0
    for content in (b"{}\n", b"not json\n", b"\xff\xfe"):
        (tmp_path / "bad.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.jsonl holds no results of runs"):
            restore_results(tmp_path / "bad.jsonl", store)
