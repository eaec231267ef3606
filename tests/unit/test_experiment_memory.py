import pytest
from rich.console import Console

from autoscale import stages
from autoscale.experiment_memory import device_memory, planned_memory, require_fitting_devices
from autoscale.memory import GIB
from autoscale.memory_table import memory_lines
from autoscale.records import read_json
from autoscale.tables import stacked
from tests.unit.fake_experiment import FakeExperiment

LARGE = {
    "model": {"name": "gpt2-large"},
    "trainer": {"global_batch_tokens": 128 * 64},
    "probe": {"budgets": ["80K", "160K"], "reference_seeds": 3, "ranks_per_run": 2},
}


@pytest.fixture
def experiment_with(tmp_path):
    def of(**limits):
        return FakeExperiment(tmp_path, tables={**LARGE, "limits": limits})

    return of


def test_every_model_and_number_of_ranks_has_a_row(experiment_with):
    memory = planned_memory(experiment_with(device_memory_gib=12).experiment)
    found = [(row["stage"], row["ranks"], row["micro_batch_size"]) for row in memory["rows"]]
    assert found == [("probe", 2, 8), ("train", 1, 8), ("train", 8, 8), ("train", 64, 1)]
    assert memory["device_bytes"] == 12 * GIB
    for row in memory["rows"]:
        assert row["device_bytes"] == pytest.approx(sum(row["device"].values()))
        assert row["fits"] == (row["device_bytes"] <= 12 * GIB)
    assert [row["fits"] for row in memory["rows"]] == [True, False, True, True]


def test_plan_refuses_what_fits_with_no_number_of_ranks(experiment_with):
    fake = experiment_with(device_memory_gib=4)
    expected = r"a probe run of a model of 711M parameters needs about 11\.2 GiB .* with 2 ranks"
    with pytest.raises(ValueError, match=expected):
        stages.plan(fake.config)


def test_a_stage_is_refused_with_the_ranks_that_it_has(experiment_with):
    experiment = experiment_with(device_memory_gib=12).experiment
    require_fitting_devices(experiment, "probe", 2)
    require_fitting_devices(experiment, "train", 8)
    expected = r"a train run .* about 16\.5 GiB on each device with 1 rank .* has 12 GiB"
    with pytest.raises(ValueError, match=expected):
        require_fitting_devices(experiment, "train", 1)


def test_nothing_is_refused_where_the_device_is_not_known(experiment_with, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    fake = experiment_with()
    assert device_memory(fake.experiment) is None
    require_fitting_devices(fake.experiment, "train", 1)
    memory = read_json(stages.plan(fake.config), "plan")["memory"]
    assert all(row["fits"] for row in memory["rows"])
    console = Console(width=100, record=True)
    console.print(stacked(memory_lines(memory)))
    shown = console.export_text()
    assert "16.5 GiB" in shown and "give limits.device_memory_gib" in shown
