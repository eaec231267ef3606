"""A mixture chosen for text that no run is trained on, from that text to the report."""

import json

import pytest

from autoscale.audit import audit_run
from tests.conftest import write_tiny

SHORT = [
    "--set", "data.domains=['python_code', 'english_docs']",
    "--set", "probe.budgets=['4K']",
    "--set", "probe.reference_seeds=1",
    "--set", "evaluation.points=1",
    "--set", "evaluation.probe_points=1",
    "--set", "evaluation.sequences_per_domain=4",
    "--set", "fit.draws=2",
    "--set", "fit.folds=2",
    "--set", "fit.objective_weights={licences = 1}",
    "--set", "train.budget='4K'",
    "--set", "train.seeds=[0]",
    "--set", "train.baselines=['uniform']",
]  # fmt: skip


def test_a_set_that_no_run_is_trained_on_decides_the_mixture(tiny_text, tmp_path):
    experiment = write_tiny(tmp_path, tiny_text, tmp_path / "shards")
    settings = experiment.path.read_text()
    licences = f'{{ name = "licences", validation = ["{tiny_text}/licences_metadata.jsonl"] }},'
    experiment.path.write_text(settings.replace("domains = [", f"domains = [ {licences}", 1))
    experiment.autoscale("run", *SHORT)
    results = experiment.results().values()
    assert {tuple(result["tokens"]) for result in results} == {("python_code", "english_docs")}
    for result in results:
        losses = result["final_losses"]
        assert list(losses) == ["python_code", "english_docs", "licences"]
        mean = (losses["python_code"] + losses["english_docs"]) / 2
        assert result["final_mean_loss"] == pytest.approx(mean)
    report = json.loads((experiment.output / "report.json").read_text())
    assert report["missing"] == []
    trained = {mixture["name"]: mixture for mixture in report["mixtures"]}
    for mixture in trained.values():
        assert mixture["objective"] == pytest.approx(mixture["sets"]["licences"]["loss"])
    assert [row["name"] for row in report["fit"]["sets"]] == list(losses)
    for folder in (experiment.output / "runs").glob("train-*"):
        assert audit_run(folder).problems == ()
