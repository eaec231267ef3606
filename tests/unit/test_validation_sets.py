"""Validation sets beside those of the domains: which there are, and what they decide."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from autoscale import stages
from autoscale.experiment_table import probe_table
from autoscale.manifest import Manifest
from autoscale.mixture import Mixture
from autoscale.mixture_stream import MixtureStream
from autoscale.plan_tables import plan_table
from autoscale.planning import Experiment
from autoscale.report import report
from autoscale.summary import summarise
from autoscale.terminal import summary_table
from tests.unit.fake_experiment import FOUR, JOINT, FakeExperiment

FURTHER = ("law_books", "abstracts")
ELSEWHERE = {"law_books": 1.0}


@pytest.fixture
def fake(tmp_path):
    return FakeExperiment(tmp_path, further=FURTHER, tables=JOINT)


def experiment(fake, **tables):
    return Experiment(fake.changed({**JOINT, **tables}))


def test_runs_are_measured_on_the_domains_and_on_what_nothing_is_trained_on(fake):
    found = fake.experiment
    assert (found.domains, found.sets) == (FOUR, FOUR + FURTHER)
    [spec] = {json.dumps(p.spec.evaluation) for p in found.probes()}
    assert json.loads(spec)["domains"] == list(FOUR + FURTHER)
    assert all(p.spec.domains == FOUR for p in found.probes())


def test_a_stream_draws_from_what_can_be_trained_on(fake):
    settings = {"sequence_length": 128, "batch_size": 4, "num_samples": 8}
    manifest = fake.folder / "manifest.json"
    assert MixtureStream(manifest, weights=[1] * 4, **settings).domains == FOUR
    held_out = MixtureStream(manifest, weights=[1] * 6, split="validation", **settings)
    assert held_out.domains == FOUR + FURTHER


@pytest.mark.parametrize(
    ("data", "named", "domains", "sets"),
    [
        ({}, [], FOUR, FOUR),
        ({}, ["abstracts"], FOUR, (*FOUR, "abstracts")),
        ({}, ["abstracts", "licences"], FOUR, (*FOUR, "abstracts")),
        (
            {"domains": ["cpp_headers", "python_code"]},
            ["python_code", "abstracts", "licences"],
            ("cpp_headers", "python_code"),
            ("cpp_headers", "python_code", "abstracts", "licences"),
        ),
    ],
)
def test_sets_are_chosen_by_name(fake, data, named, domains, sets):
    tables = {"data": data, "evaluation": {"sets": named}}
    found = experiment(fake, **tables)
    assert (found.domains, found.sets) == (domains, sets)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"data": {"domains": [*FOUR, "abstracts"]}},
            "data.domains names 'abstracts', which has no training shards in .*manifest.json: it "
            "is a validation set; name it in evaluation.sets, or prepare text",
        ),
        ({"evaluation": {"sets": ["abstract"]}}, "no domain 'abstract'; did you mean 'abstracts'"),
        ({"evaluation": {"sets": ["abstracts"] * 2}}, "evaluation.sets: 'abstracts' given more"),
        (
            {"fit": {"law": "auto", "objective_weights": {"abstracs": 1}}},
            "fit.objective_weights names 'abstracs', .* not measured on; did you mean 'abstracts'",
        ),
        (
            {
                "evaluation": {"sets": []},
                "fit": {"law": "auto", "objective_weights": {"abstracts": 1}},
            },
            "names 'abstracts', which runs are not measured on; known are python_code, ",
        ),
        ({"fit": {"law": "bimix"}}, r"law_books, abstracts cannot .* evaluation.sets = \[\]"),
        ({"evaluation": {"sets": []}, "data": {"sequence_length": 4096},
          "trainer": {"global_batch_tokens": 4096}}, "domain 'python_code', validation: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(fake, tables, message):
    with pytest.raises(ValueError, match=message):
        experiment(fake, **tables)


def test_without_further_sets_every_run_is_what_it_was(fake, tmp_path):
    plain = FakeExperiment(tmp_path / "plain", tables=JOINT).experiment
    without = experiment(fake, evaluation={"sets": []})
    [evaluation] = {json.dumps(dict(p.spec.evaluation)) for p in plain.probes()}
    assert json.loads(evaluation) == {
        "domains": list(FOUR), "sequences_per_domain": 256, "points": 3,
    }  # fmt: skip
    assert plain.data_fingerprint == plain.manifest.fingerprint
    known = [p.spec.identity for p in plain.probes()]
    assert [p.spec.identity for p in without.probes()] == known
    assert not set(known) & {p.spec.identity for p in fake.experiment.probes()}


def test_the_data_of_a_run_are_its_domains_and_the_validation_of_its_sets(fake):
    manifest = Manifest.load(fake.folder / "manifest.json")

    def fingerprint(**changed):
        domains = [
            replace(d, **{split: (replace(getattr(d, split)[0], sha256="a" * 64),)})
            if (split := changed.get(d.name))
            else d
            for d in manifest.domains
        ]
        used = replace(manifest, domains=tuple(domains))
        return used.of_runs(FOUR[:2], (*FOUR[:2], "licences", "abstracts")).fingerprint

    assert fingerprint() == fingerprint(licences="train") == fingerprint(law_books="validation")
    assert fingerprint() != fingerprint(licences="validation")
    assert fingerprint() != fingerprint(abstracts="validation")
    assert fingerprint() != fingerprint(python_code="train")


def test_the_domains_count_alike_unless_weights_say_otherwise(fake):
    objective = fake.experiment.objective
    assert objective.weights == {name: 0.25 * (name in FOUR) for name in FOUR + FURTHER}
    given = {"law_books": 3, "licences": 1}
    weighted = experiment(fake, fit={"law": "auto", "objective_weights": given}).objective
    assert {name: weight for name, weight in weighted.weights.items() if weight} == {
        "law_books": 0.75, "licences": 0.25,
    }  # fmt: skip
    worst = {"objective": "worst_loss", "objective_weights": dict.fromkeys(FURTHER, 1)}
    losses = dict(zip(FOUR + FURTHER, (9, 9, 9, 9, 1, 2), strict=True))
    assert experiment(fake, fit={"law": "auto", **worst}).objective.value(losses) == 2


def test_the_table_of_runs_has_all_sets_in_the_unit_asked_for(fake):
    fake.config = fake.changed({**JOINT, "fit": {"law": "auto", "metric": "bits_per_byte"}})
    fake.probe()
    found = fake.experiment
    pairs = [(p, found.store.result(p.spec)) for p in found.probes()]
    table = probe_table(found, pairs).table
    assert (table.domains, table.sets) == (FOUR, FOUR + FURTHER)
    unit = np.log(2) * found.manifest.bytes_per_token("abstracts")
    nats = pairs[0][1].final_losses["abstracts"]
    assert table.losses[0, -1] == pytest.approx(nats / unit)


@pytest.mark.parametrize("law", ["auto", "autoscale"])
def test_a_mixture_is_chosen_for_a_set_that_nothing_is_trained_on(tmp_path, law):
    tables = {} if law == "autoscale" else JOINT
    fit = {"law": law, "objective_weights": ELSEWHERE, "draws": 8}
    fake = FakeExperiment(tmp_path, further=FURTHER, noise=0.001, tables={**tables, "fit": fit})
    planned = json.loads(stages.plan(fake.config).read_text())
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(planned))
    assert "Measured on law_books and abstracts as well, which no" in console.file.getvalue()
    fake.run()
    summary = summarise(fake.config)
    assert summary["missing"] == []
    comparison = next(c for c in summary["targets"]["comparisons"] if c["baseline"] == "uniform")
    assert comparison["gain"]["low"] > 0
    assert comparison["gain"]["mean"] == pytest.approx(-comparison["sets"]["law_books"])
    losses = summary["mixtures"][0]["sets"]
    assert tuple(losses) == FOUR + FURTHER
    assert summary["mixtures"][0]["objective"] == pytest.approx(losses["law_books"]["loss"])
    mean = np.mean([losses[name]["loss"] for name in FOUR])
    assert summary["mixtures"][0]["final_mean_loss"] == pytest.approx(mean)
    [doubt] = [w["text"] for w in summary["warnings"] if "was chosen for" in w["text"]]
    assert "a weighted mean loss on law_books" in doubt and "over the training domains" in doubt
    page = report(fake.config).read_text()
    assert "law_books, abstracts are not trained on" in page
    assert "law_books</td>" in page
    assert summary_table(summary)


def test_the_optimum_for_a_set_is_that_of_its_own_law(tmp_path):
    """The best mixture for a set without a domain, beside the one for the domains' mean."""
    mixtures = {}
    for name, weights in (("further", ELSEWHERE), ("domains", None)):
        fit = {"law": "etk", "objective_weights": weights, "draws": 4}
        fake = FakeExperiment(
            tmp_path / name, further=FURTHER, noise=0.0, tables={**JOINT, "fit": fit}
        )
        fake.probe()
        fake.fit_and_project()
        content = json.loads((fake.folder / "out" / "mixture-320K.json").read_text())
        mixtures[name] = Mixture.from_mapping(content["weights"]).as_array()
    worth_K = fake.worth_of("law_books")
    best = int(np.argmax(worth_K))
    assert int(np.argmax(mixtures["further"])) == best
    assert mixtures["further"][best] > mixtures["domains"][best] + 0.1


def test_a_fit_of_other_sets_is_not_used(fake):
    fake.probe()
    stages.fit(fake.config)
    fake.config = fake.changed({**JOINT, "evaluation": {"sets": ["abstracts"]}})
    with pytest.raises(ValueError, match=r"fitted to losses on .*law_books, abstracts but "):
        stages.project(fake.config)
    [fit] = [m for m in summarise(fake.config)["missing"] if m["section"] == "fit"]
    assert "its validation sets are python_code" in fit["why"]
