import json
import re
import tomllib
from html.parser import HTMLParser

import pytest

from autoscale import stages
from autoscale.config import parse_config
from autoscale.records import read_json
from autoscale.report import render, report, to_toml
from autoscale.summary import summarise
from autoscale.token_count import format_token_count
from autoscale.wording import interval, signed
from tests.unit.fake_experiment import JOINT, FakeExperiment, complete_experiment

QUICK = {**JOINT, "fit": {"law": "etk", "draws": 4}}
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Text, ids and references of a page; asserts that its elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.ids, self.references = "", [], [], []
        self.rows = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                self.references.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "tr" in self.open:
            self.rows[-1] += data


@pytest.fixture(scope="module", params=["autoscale", "auto"])
def complete(request, tmp_path_factory):
    return complete_experiment(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def html(complete):
    return report(complete.config).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_both_files_lie_in_the_output_folder(complete, html):
    output = complete.folder / "out"
    assert (output / "report.html").is_file()
    content = read_json(output / "report.json", "report")
    summary = json.loads(json.dumps(summarise(complete.config)))
    assert content == {"kind": "report", "schema_version": 1, **summary}


def test_the_page_needs_nothing_but_itself(html, page):
    assert all(reference.startswith("#") for reference in page.references)
    assert set(page.references) <= {f"#{name}" for name in page.ids}
    assert "<script" not in html and "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    links = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique(page):
    assert len(page.ids) == len(set(page.ids))


def test_it_serves_light_dark_narrow_and_paper(html):
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert "@media print" in html
    assert html.count("<table") == html.count('<div class="scroll"><table')


def test_the_answer_comes_first(page, complete):
    target = format_token_count(complete.config.train.budget.tokens)
    order = [
        f"The mixture for {target} tokens",
        "Why",
        "By validation set",
        "How far to trust it",
        "How it was made",
    ]
    places = [page.text.index(f"\n{heading}\n") for heading in order]
    assert places == sorted(places)
    summary = summarise(complete.config)
    if summary["decision"] is not None:
        assert places[0] < page.text.index(summary["decision"]["sentence"]) < places[1]
    for comparison in summary["targets"]["comparisons"]:
        assert places[0] < page.text.index(comparison["sentence"]) < places[1]


def test_its_tables_hold_the_numbers_of_the_summary(page, complete):
    summary = summarise(complete.config)
    rows = [" ".join(row.split()) for row in page.rows]
    for name in summary["domains"]:
        weights = [f"{m['weights'][name]:.1%}" for m in summary["mixtures"]]
        assert any(row.startswith(name) and all(w in row for w in weights) for row in rows)
        losses = [f"{m['sets'][name]['bits_per_byte']:.4f}" for m in summary["mixtures"]]
        assert any(row.startswith(name) and all(x in row for x in losses) for row in rows)
    for warning in summary["warnings"]:
        assert warning["text"] in page.text
    for run in summary["runs"]:
        assert any(run["run_id"] in row for row in rows)


def test_a_joint_law_shows_its_choice_gains_and_worth(tmp_path_factory):
    fake = complete_experiment(tmp_path_factory, "auto")
    summary = summarise(fake.config)
    page = Page(render(summary))
    rows = [" ".join(row.split()) for row in page.rows]
    for candidate in summary["fit"]["candidates"]:
        start = f"{candidate['name']}{candidate['objective_error']:.4f}"
        [row] = [row for row in rows if row.startswith(start)]
        assert row.endswith("chosen") is candidate["chosen"]
    for gain in summary["decision"]["gains"]:
        [row] = [
            r for r in rows if r.startswith(" = ".join(gain["names"]) + signed(gain["expected"]))
        ]
        assert interval(gain["low"], gain["high"]) in row
        assert interval(gain["measured"]["low"], gain["measured"]["high"]) in row
    for name, worth in (summary["fit"]["worth"] or {}).items():
        assert any(row == name + "".join(f"{v:.2f}" for v in worth.values()) for row in rows)
    for text in ("reason", "projection_reason"):
        assert summary["fit"][text] in page.text
    assert summary["decision"]["certificate"] in page.text
    assert "mixtures drawn around the reference, Dirichlet with concentration 1 to 6" in page.text
    assert "What more and less of each domain does" not in page.text


def test_it_names_versions_commit_seeds_and_commands(page):
    for expected in (
        "torch 2.13.0", "0123456789abcdef0123456789abcdef01234567", "target runs 0, 1, 2",
        "autoscale fit experiment.toml", "launch/local.sh experiment.toml 1",
    ):  # fmt: skip
        assert expected in page.text


def test_the_experiment_in_the_page_is_the_one_that_ran(complete):
    text = to_toml(complete.config.model_dump(mode="json"))
    again = parse_config(tomllib.loads(text), base=complete.folder, where="page")
    assert again == complete.config


def test_the_page_is_reproducible(complete, html):
    assert render(summarise(complete.config)) == html


def test_text_from_outside_is_escaped(complete):
    summary = summarise(complete.config)
    summary["warnings"] = [{"about": "fit", "text": "<script>alert(1)</script>"}]
    summary["provenance"]["devices"] = ["<b>CPU</b>"]
    html = render(summary)
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "<b>CPU</b>" not in html


@pytest.mark.parametrize("stage", ["nothing", "some probes", "fit", "one target"])
@pytest.mark.parametrize("tables", [{}, QUICK], ids=["autoscale", "etk"])
def test_a_half_done_experiment_has_a_report_that_says_what_comes_next(tmp_path, stage, tables):
    fake = FakeExperiment(tmp_path, tables=tables)
    if stage != "nothing":
        fake.probe(only=3 if stage == "some probes" else None)
    if stage == "fit":
        stages.fit(fake.config)
    if stage == "one target":
        fake.fit_and_project()
        fake.train(only=1)
    page = Page(report(fake.config).read_text(encoding="utf-8"))
    summary = summarise(fake.config)
    assert summary["missing"]
    for entry in summary["missing"]:
        if entry["section"] != "target runs" or summary["projection"]:
            assert entry["command"] in page.text


def test_a_law_without_intervals_or_proof_is_reported_too(tmp_path_factory):
    summary = summarise(complete_experiment(tmp_path_factory, "auto").config)
    keys = ("low", "high", "duality_gap", "certificate", "at_lower", "at_upper", "note", "sure")
    decision = {**summary["decision"], **dict.fromkeys(keys), "gains": []}
    rows = [
        {**row, "effective_parameters": None, "converged": None} for row in summary["fit"]["sets"]
    ]
    fit = {**summary["fit"], "worth": None, "parameters": [], "sets": rows}
    fit["budgets"] = [
        {**b, "solution": {**b["solution"], "gains": {}, "duality_gap": None}}
        for b in fit["budgets"]
    ]
    page = Page(render({**summary, "decision": decision, "fit": fit}))
    assert "no proof" in page.text
    assert "What a domain's tokens are worth" not in page.text
    assert "probability of being better" not in "".join(page.rows)


def test_two_budgets_without_noise_on_a_path_are_reported_too(tmp_path):
    tables = {
        **QUICK,
        "probe": {"budgets": ["80K", "160K"], "runs": 9, "reference_seeds": 1},
        "project": {"projection": "damped"},
    }
    fake = FakeExperiment(tmp_path, noise=0.003, tables=tables)
    fake.probe()
    stages.fit(fake.config)
    page = Page(report(fake.config).read_text(encoding="utf-8"))
    assert "The noise between seeds was not measured." in page.text
    assert "not measured" in page.text


def test_a_perplexity_objective_without_noise_is_reported_too(tmp_path):
    tables = {
        "fit": {"objective": "mean_perplexity"},
        "probe": {"reference_seeds": 1, "fixed_budget": True},
        "train": {"baselines": [], "seeds": [0]},
        "project": {"projection": "hold"},
    }
    fake = FakeExperiment(tmp_path, tables=tables)
    fake.run()
    page = Page(report(fake.config).read_text(encoding="utf-8"))
    assert "Change of the objective (perplexity)" in page.text
    assert "not measured" in page.text
