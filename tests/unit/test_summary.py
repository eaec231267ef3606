import json
import math

import pytest

from autoscale import stages
from autoscale.mixture import Mixture
from autoscale.records import read_json, write_json
from autoscale.report import report as write_report
from autoscale.runs import RunResult
from autoscale.stages import artifact
from autoscale.summary import summarise
from tests.unit.fake_experiment import JOINT, FakeExperiment, complete_experiment


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return complete_experiment(tmp_path_factory)


@pytest.fixture(scope="module")
def summary(complete):
    return summarise(complete.config)


def result_of(complete, row) -> RunResult:
    return RunResult.load(complete.folder / "out" / "runs" / row["run_id"])


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return summarise(complete_experiment(tmp_path_factory, "auto").config)


@pytest.mark.parametrize("law", ["autoscale", "auto"])
def test_a_finished_experiment_lacks_nothing_and_is_plain_json(tmp_path_factory, law):
    summary = summarise(complete_experiment(tmp_path_factory, law).config)
    assert summary["missing"] == []
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {row["status"] for row in summary["runs"]} == {"finished"}


def test_all_mixtures_are_listed_from_the_reference_to_the_one_chosen(summary):
    names = [(row["name"], row["token_budget"]) for row in summary["weights"]]
    assert names[:3] == [("reference", None), ("optimum", 80_000), ("optimum", 160_000)]
    assert names[-1] == ("chosen (full)", 640_000)
    assert {"full projection", "hold projection", "damped projection"} <= {n for n, _ in names}
    for row in summary["weights"]:
        assert sum(row["weights"].values()) == pytest.approx(1)


def test_the_path_of_the_projection_ends_at_its_unbounded_weights(summary):
    projection = summary["projection"]
    end = {name: weights[-1] for name, weights in projection["path"]["weights"].items()}
    assert end == pytest.approx(projection["kinds"]["full"]["unbounded_weights"])
    assert projection["reach"] == 4


def test_effects_stand_beside_the_noise_of_a_difference(summary):
    for budget in summary["fit"]["budgets"]:
        assert budget["difference_noise"] == pytest.approx(math.sqrt(2) * budget["seed_noise"])
        assert len(budget["effects"]) == 2 * len(summary["domains"])
        for effect in budget["effects"]:
            beyond = abs(effect["effect"]) > 2 * budget["difference_noise"]
            assert effect["distinguishable"] is beyond


def test_the_fit_expects_the_optimum_to_be_no_worse_than_the_reference(summary):
    for budget in summary["fit"]["budgets"]:
        assert budget["fitted_change"] < 0


def test_costs_count_every_finished_run_once(complete, summary):
    results = [
        RunResult.load(path.parent) for path in complete.folder.glob("out/runs/*/result.json")
    ]
    costs = summary["costs"]
    assert costs["probe"]["runs"] + costs["train"]["runs"] == len(results)
    total = sum(result.total_tokens for result in results)
    assert costs["probe"]["tokens"] + costs["train"]["tokens"] == total
    one = costs["target_run"]
    assert one["runs"] == 1
    assert costs["probe_share"] == pytest.approx(costs["probe"]["flops"] / one["flops"])
    assert costs["train"]["mfu"] == pytest.approx(0.21)


def test_rows_tell_what_a_run_realised(complete, summary):
    for row in summary["runs"]:
        result = result_of(complete, row)
        assert row["tokens"] == dict(result.tokens)
        assert row["epochs"] == pytest.approx(dict(result.epochs))


def test_provenance_names_versions_commit_devices_and_seeds(summary):
    provenance = summary["provenance"]
    assert provenance["versions"][0]["torch"] == "2.13.0"
    assert provenance["commits"] == ["0123456789abcdef0123456789abcdef01234567"]
    assert provenance["devices"] == ["CPU (1 thread a rank)"]
    assert provenance["seeds"] == [0, 1, 2]


def missing_of(fake) -> dict[str, str]:
    return {entry["section"]: entry["command"] for entry in summarise(fake.config)["missing"]}


def test_every_moment_of_an_experiment_says_which_command_comes_next(tmp_path):
    fake = FakeExperiment(tmp_path)
    everything = {
        "fit": "autoscale fit experiment.toml",
        "mixture": "autoscale project experiment.toml",
        "probe runs": "autoscale probe experiment.toml",
        "target runs": "autoscale train experiment.toml",
    }
    assert missing_of(fake) == everything
    fake.probe(only=3)
    assert missing_of(fake) == everything
    assert summarise(fake.config)["missing"][2]["why"] == "19 of 22 probe runs have no result"
    fake.probe()
    fake.fit_and_project()
    assert missing_of(fake) == {"target runs": everything["target runs"]}
    fake.train(only=4)
    half = summarise(fake.config)
    assert [c["baseline"] for c in half["targets"]["comparisons"]] == ["uniform"]
    assert half["targets"]["comparisons"][0]["seeds"] == [0]
    assert half["missing"][0]["why"] == "8 of 12 target runs have no result"


def test_a_fit_of_other_domains_or_budgets_is_left_out_with_a_word(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.probe()
    fake.fit_and_project()
    path = artifact(fake.config, "fit")
    fit = read_json(path, "fit")
    for changes, why in (
        ({"domains": ["a", "b"]}, "of another experiment: its domains are a, b"),
        ({"budgets": fit["budgets"][:1]}, "of another experiment: its budgets are 80K"),
    ):
        write_json(path, "fit", {**fit, **changes})
        summary = summarise(fake.config)
        assert summary["fit"] is None
        assert summary["missing"][0]["why"] == f"fit.json is {why}"


def test_artifacts_of_another_kind_of_law_are_left_out_with_a_word(tmp_path):
    published = FakeExperiment(tmp_path)
    published.probe()
    published.fit_and_project()
    tables = {"fit": {"law": "etk", "draws": 2}, "probe": {"design": "one_at_a_time"}}
    joint = published.changed(tables)
    summary = summarise(joint)
    assert summary["fit"] is None and summary["projection"] is None
    why = [entry["why"] for entry in summary["missing"][:2]]
    said = "is of another experiment: it is of the published law, and fit.law is now 'etk'"
    assert why == [f"fit.json {said}", f"mixture-640K.json {said}"]
    stages.fit(joint)
    stages.project(joint)
    said = "is of another experiment: it is of a joint law, and fit.law is now 'autoscale'"
    missing = summarise(published.config)["missing"]
    assert missing[0]["why"] == f"fit.json {said}"
    assert missing[0]["command"] == "autoscale fit experiment.toml"


def test_a_mixture_without_a_baseline_that_is_asked_for_is_left_out(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.probe()
    fake.fit_and_project()
    path = artifact(fake.config, "mixture")
    content = read_json(path, "mixture")
    write_json(path, "mixture", {**content, "alternatives": {}})
    missing = summarise(fake.config)["missing"]
    assert missing[0]["why"].endswith("is of another experiment: it has no mixture hold")


def test_a_joint_law_lists_its_mixtures_too(joint):
    names = [(row["name"], row["token_budget"]) for row in joint["weights"]]
    assert names[:2] == [("reference", None), ("optimum", 160_000)]
    assert names[-2:] == [("hold projection", 320_000), ("chosen (hold)", 320_000)]


def test_every_moment_of_a_joint_law_says_which_command_comes_next(tmp_path):
    fake = FakeExperiment(tmp_path, tables={**JOINT, "fit": {"law": "etk", "draws": 4}})
    assert list(missing_of(fake)) == ["fit", "mixture", "probe runs", "target runs"]
    fake.probe()
    stages.fit(fake.config)
    assert list(missing_of(fake)) == ["mixture", "target runs"]
    stages.project(fake.config)
    assert list(missing_of(fake)) == ["target runs"]
    fake.train()
    assert missing_of(fake) == {}


def test_an_artifact_of_an_unknown_version_is_refused_by_name(tmp_path):
    fake = FakeExperiment(tmp_path)
    path = artifact(fake.config, "fit")
    path.parent.mkdir(parents=True)
    path.write_text('{"kind": "fit", "schema_version": 99}')
    with pytest.raises(ValueError, match=r"fit\.json \(fit\) has schema version 99"):
        summarise(fake.config)


def test_a_failed_run_is_listed_with_its_reason(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"probe": {"max_failed": 1}})
    fake.probe()
    experiment = fake.experiment
    spec = experiment.probes()[-1].spec
    (experiment.store.folder(spec) / "result.json").unlink()
    fake.fail(spec)
    summary = summarise(fake.config)
    row = next(row for row in summary["runs"] if row["status"] == "failed")
    assert row["reason"] == "diverged: loss is nan at step 12"
    assert summary["warnings"][0]["text"].startswith("Run probe-160K-licences-up3 failed (diverged")


def test_the_target_mixture_has_as_many_weights_as_there_are_domains(summary):
    for mixture in summary["mixtures"]:
        assert Mixture.from_mapping(mixture["weights"]).domains == tuple(summary["domains"])


def test_adopted_shards_of_unknown_texts_have_no_bits_per_byte(tmp_path):
    fake = FakeExperiment(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    for domain in content["domains"]:
        for shard in domain["validation"]:
            shard["text_bytes"] = None
    path.write_text(json.dumps(content))
    fake.run()
    found = summarise(fake.config)
    assert set(found["data"]["bytes_per_token"].values()) == {None}
    by_set = found["mixtures"][0]["sets"]
    assert all(losses["bits_per_byte"] is None for losses in by_set.values())
    assert ">unknown</td>" in write_report(fake.config).read_text()


def test_matched_probes_are_compared_by_what_they_drew_from(tmp_path):
    """The target repeats no more than probes at a quarter of it, on a quarter of the documents."""
    tables = JOINT | {
        "data": {"max_epochs": 8},
        "probe": {**JOINT["probe"], "match_repetition": True},
        "train": {**JOINT["train"], "budget": "640K"},
    }
    fake = FakeExperiment(tmp_path, documents=300, noise=0.003, tables=tables)
    fake.run()
    found = summarise(fake.config)
    target = next(m for m in found["mixtures"] if m["name"] == "autoscale")
    epochs = {
        name: weight * 640_000 / found["data"]["available_tokens"][name]
        for name, weight in target["weights"].items()
    }
    most = {
        name: max(row["epochs"][name] for row in found["runs"] if row["stage"] == "probe")
        for name in epochs
    }
    beyond = {name for name in epochs if epochs[name] > max(1.05, 1.2 * most[name])}
    said = " ".join(w["text"] for w in found["warnings"] if "repeats" in w["text"])
    assert {name for name in epochs if name in said} == beyond
    assert not said or "was fitted to runs that repeat it less" in said
