import math

import numpy as np
import pytest

from autoscale.outcomes import targets_section
from autoscale.runs import RunResult
from autoscale.summary import summarise
from tests.unit.fake_experiment import FakeExperiment, complete_experiment

ONE_SEED = {"train": {"seeds": [0]}}


def run(folder, **options) -> tuple[FakeExperiment, dict]:
    fake = FakeExperiment(folder, **options)
    fake.run()
    return fake, summarise(fake.config)


def results(fake) -> dict[str, RunResult]:
    folders = (fake.folder / "out" / "runs").iterdir()
    return {folder.name: RunResult.load(folder) for folder in folders}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    fake = complete_experiment(tmp_path_factory)
    return fake, summarise(fake.config)


def results_of(complete, mixture) -> dict[int, RunResult]:
    fake, summary = complete
    return {
        row["seed"]: RunResult.load(fake.folder / "out" / "runs" / row["run_id"])
        for row in summary["runs"]
        if row["mixture"] == mixture
    }


def test_losses_are_means_over_seeds_in_three_units(complete):
    fake, summary = complete
    manifest = fake.experiment.manifest
    for mixture in summary["mixtures"]:
        done = results_of(complete, mixture["name"]).values()
        for name, entry in mixture["sets"].items():
            loss = np.mean([result.final_losses[name] for result in done])
            assert entry["loss"] == pytest.approx(loss)
            assert entry["perplexity"] == pytest.approx(math.exp(loss))
            bits = loss / math.log(2) / manifest.bytes_per_token(name)
            assert entry["bits_per_byte"] == pytest.approx(bits)


def test_the_curve_spans_the_seeds(complete):
    _, summary = complete
    for mixture in summary["mixtures"]:
        curve = mixture["curve"]
        assert curve["tokens"] == sorted(curve["tokens"])
        assert (np.array(curve["low"]) <= curve["mean"]).all()
        assert (np.array(curve["mean"]) <= curve["high"]).all()
        assert curve["mean"][-1] == pytest.approx(mixture["final_mean_loss"])


def test_differences_are_paired_by_seed(complete):
    _, summary = complete
    ours = results_of(complete, "autoscale")
    for comparison in summary["targets"]["comparisons"]:
        theirs = results_of(complete, comparison["baseline"])
        pairs = [ours[s].final_mean_loss - theirs[s].final_mean_loss for s in comparison["seeds"]]
        assert comparison["difference"] == pytest.approx(np.mean(pairs))
        assert comparison["low"] < comparison["difference"] < comparison["high"]
        assert [entry["difference"] for entry in comparison["by_seed"]] == pytest.approx(pairs)
        inside = comparison["low"] < 0 < comparison["high"]
        assert (comparison["verdict"] == "not distinguishable") is inside


def test_tokens_saved_and_speed_up_are_two_views_of_one_number(complete):
    _, summary = complete
    found = [e for c in summary["targets"]["comparisons"] for e in c["by_seed"] if e["reached"]]
    assert found
    for entry in found:
        assert entry["tokens_saved"] == pytest.approx(1 - 1 / entry["speed_up"])
        assert entry["tokens_saved"] == pytest.approx(1 - entry["tokens"] / 640_000)


def test_a_mean_of_tokens_saved_needs_every_seed(complete):
    for comparison in complete[1]["targets"]["comparisons"]:
        everywhere = comparison["num_reached"] == len(comparison["by_seed"])
        assert (comparison["tokens_saved"] is not None) is everywhere


def test_the_noise_is_that_of_the_target_runs_where_they_have_seeds(complete):
    noise = complete[1]["targets"]["seed_noise"]
    assert noise["source"] == "target runs"
    assert noise["degrees_of_freedom"] == 2 * 4
    groups = [
        [r.final_mean_loss for r in results_of(complete, m["name"]).values()]
        for m in complete[1]["mixtures"]
    ]
    assert noise["sd"] == pytest.approx(math.sqrt(np.mean([np.var(g, ddof=1) for g in groups])))


def test_the_gain_is_the_difference_in_the_objective(complete, tmp_path):
    for comparison in complete[1]["targets"]["comparisons"]:
        gain = comparison["gain"]
        assert gain["mean"] == pytest.approx(-comparison["difference"])
        assert (gain["low"], gain["high"]) == pytest.approx(
            (-comparison["high"], -comparison["low"])
        )
    tables = {"fit": {"law": "autoscale", "objective": "mean_perplexity"}, **ONE_SEED}
    _, summary = run(tmp_path, tables=tables)
    objective = {mixture["name"]: mixture["objective"] for mixture in summary["mixtures"]}
    for comparison in summary["targets"]["comparisons"]:
        expected = objective[comparison["baseline"]] - objective["autoscale"]
        assert comparison["gain"]["mean"] == pytest.approx(expected)
        assert comparison["gain"]["low"] < expected < comparison["gain"]["high"]


def test_one_seed_borrows_the_noise_of_the_probe_runs(tmp_path):
    _, summary = run(tmp_path, tables=ONE_SEED)
    noise = summary["targets"]["seed_noise"]
    assert noise["source"] == "reference probe runs at 160K"
    assert noise["degrees_of_freedom"] == 2
    comparison = summary["targets"]["comparisons"][0]
    reach = (comparison["high"] - comparison["low"]) / 2
    assert reach == pytest.approx(2.920 * math.sqrt(2) * noise["sd"], rel=1e-3)


def test_drawn_mixtures_are_no_reference_runs(tmp_path_factory):
    fake = complete_experiment(tmp_path_factory, "auto")
    experiment = fake.experiment
    rows = summarise(fake.config)["runs"]
    probes = [row for row in rows if row["stage"] == "probe"]
    noise = targets_section(
        experiment, [*probes, *[r for r in rows if r["mixture"] and not r["seed"]]], results(fake)
    )["seed_noise"]
    losses = [row["final_mean_loss"] for row in probes if "reference" in row["label"]]
    assert noise["source"] == "reference probe runs at 160K"
    assert noise["sd"] == pytest.approx(np.std(losses, ddof=1))


def test_without_any_noise_nothing_is_told_apart(tmp_path):
    tables = {**ONE_SEED, "probe": {"reference_seeds": 1}}
    _, summary = run(tmp_path, tables=tables)
    assert summary["targets"]["seed_noise"]["sd"] is None
    for comparison in summary["targets"]["comparisons"]:
        assert comparison["verdict"] == "not distinguishable"
        assert comparison["low"] is None


def test_a_baseline_equal_to_the_target_shares_its_runs(tmp_path):
    tables = {**ONE_SEED, "project": {"projection": "hold"}}
    _, summary = run(tmp_path, tables=tables)
    held = next(c for c in summary["targets"]["comparisons"] if c["baseline"] == "hold")
    assert held["same_runs"] and held["difference"] == 0
    assert "nothing to compare" in held["sentence"]
    assert summary["costs"]["train"]["runs"] == 3  # autoscale and hold are one


def test_effects_within_the_noise_are_counted(tmp_path):
    fake = FakeExperiment(tmp_path, noise=0.2, gain=0.0)
    fake.probe()
    fake.fit_and_project()
    summary = summarise(fake.config)
    texts = " ".join(warning["text"] for warning in summary["warnings"])
    for budget, name in zip(summary["fit"]["budgets"], ("80K", "160K"), strict=True):
        hidden = sum(not effect["distinguishable"] for effect in budget["effects"])
        assert hidden > 0
        assert f"At {name} {hidden} of 8 probe effects are not distinguishable" in texts
