"""A benchmark whose losses come from a known law: what is trained, chosen, concluded and shown."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from autoscale.bench.choices import choices_path, choose
from autoscale.bench.plan import BenchPlan
from autoscale.bench.report import report_bench
from autoscale.bench.summary import summarise_bench
from autoscale.mixture import Mixture
from autoscale.planning import Experiment
from tests.unit.fake_experiment import FakeExperiment

BENCH = {
    "methods": ["natural", "olmix", "autoscale_hold", "joint"],
    "probe_tokens": "80K",
    "total_probe_tokens": "1M",
    "uniform_budgets": ["320K", "1.28M"],
    "search_runs": 14,
    "path_budgets": ["80K", "160K"],
    "objectives": [
        {"name": "mean_loss"},
        {"name": "elsewhere", "weights": {"news": 1}},
    ],
}


def make(folder, **changes):
    return FakeExperiment(
        folder,
        noise=0.002,
        available=2_000_000,
        further=("news",),
        tables={"bench": BENCH | changes, "fit": {"draws": 4}},
    )


def finish(fake, specs):
    experiment = fake.experiment
    for spec in specs:
        if experiment.store.status(spec) != "finished":
            fake.finish(experiment, spec)


def chosen_specs(plan, choices):
    return plan.target_specs(
        [(each.name, Mixture.from_mapping(each.weights)) for each in choices if each.weights]
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A benchmark with all its runs, and its summary."""
    fake = make(tmp_path_factory.mktemp("bench"))
    plan = BenchPlan(fake.experiment)
    finish(fake, plan.first_specs())
    finish(fake, chosen_specs(plan, choose(plan, choices_path(fake.config))))
    return fake, plan, summarise_bench(fake.config)


def test_every_method_stays_within_the_probe_budget(done):
    _, plan, _ = done
    costs = {arm.name: sum(spec.total_tokens for _, spec in plan.probes(arm)) for arm in plan.arms}
    assert costs["natural"] == 0
    assert all(0.85e6 < costs[name] <= 1e6 for name in ("olmix", "autoscale_hold", "joint"))


def test_equal_runs_are_one_run(done):
    _, plan, _ = done
    specs = plan.first_specs()
    assert len({spec.identity for spec in specs}) == len(specs)
    # Uniform's runs at three budgets under three seeds.
    uniform = [s for s in specs if len(set(s.sequences)) == 1 and s.total_tokens > 300_000]
    assert len(uniform) == 9


def row_of(section, method):
    [row] = [row for row in section["rows"] if row["method"] == method]
    return row


def test_conclusions_are_those_of_the_law(done):
    """The set that nothing is trained on is learned from few of the domains: much is attainable."""
    fake, _, summary = done
    section = summary["objectives"][1]
    assert section["name"] == "elsewhere"
    joint = row_of(section, "joint")
    best = fake.domains[int(np.argmax(fake.worth_of("news")))]
    assert max(joint["weights"], key=joint["weights"].get) == best
    assert joint["standing"]["difference"]["verdict"] == "better"
    assert joint["share"] > 0.7
    uniform = row_of(section, "uniform")
    assert uniform["standing"]["annealed"]["mean"] == pytest.approx(0, abs=1e-9)
    assert joint["ours_less"] is None and uniform["ours_less"]["verdict"] == "better"
    # Paying for the probes costs what they cost.
    gross, net = (joint["standing"][key]["mean"] for key in ("annealed", "net"))
    assert net < gross
    ratio = (joint["probe_tokens"] + summary["target_tokens"]) / summary["target_tokens"]
    assert 1 - net == pytest.approx((1 - gross) * ratio, rel=0.02)


def test_the_path_judges_projections_on_a_later_budget(done):
    _, plan, summary = done
    path = summary["path"][1]
    assert [optimum["tokens"] for optimum in path["optima"]] == [80_000, 160_000, 640_000]
    [projected] = path["projected"]
    assert projected["tokens"] == plan.target_tokens
    regrets = projected["regrets"]
    assert regrets.keys() == {"full", "hold", "damped", "joint", "uniform"}
    # No mixture beats the optimum of the law that judges, and uniform is far from it.
    assert all(regret["mean"] > -1e-6 for regret in regrets.values())
    assert regrets["uniform"]["mean"] > max(regrets["joint"]["mean"], regrets["hold"]["mean"])


def test_choices_are_made_once(done, tmp_path):
    fake, plan, _ = done
    path = tmp_path / "choices.json"
    content = json.loads(choices_path(fake.config).read_text())
    for choice in content["choices"].values():
        choice["message"] = "as it was"
    path.write_text(json.dumps(content))
    assert {choice.message for choice in choose(plan, path)} == {"as it was"}


class Tags(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tables, self.figures = [], 0, 0

    def handle_starttag(self, tag, attrs):
        self.tables += tag == "table"
        self.figures += tag == "svg"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_shows_every_method_and_figure(done):
    fake, _, summary = done
    page = report_bench(fake.config)
    html, markdown = page.read_text(), page.with_suffix(".md").read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.figures == 4
    assert "http" not in html.replace("http://www.w3.org", "")
    for section in summary["objectives"]:
        for row in section["rows"]:
            assert html.count(f"<th>{row['method']}</th>") >= 3
            assert f"| {row['method']} | {row['standing']['final']['mean']:.4f} |" in markdown
    widths = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert widths and "None" not in markdown
    assert json.loads(page.with_suffix(".json").read_text())["objectives"] == json.loads(
        json.dumps(summary["objectives"])
    )


def test_what_is_not_trained_yet_is_said(tmp_path):
    fake = make(tmp_path, methods=["joint"], search_runs=0, path_budgets=[])
    plan = BenchPlan(fake.experiment)
    with pytest.raises(ValueError, match="runs of the benchmark have no result yet"):
        summarise_bench(fake.config)
    finish(fake, plan.first_specs())
    section = summarise_bench(fake.config)["objectives"][0]
    assert row_of(section, "joint")["standing"] is None
    assert row_of(section, "uniform")["standing"] is not None
    assert section["attainable"] is None
    assert "no result" in report_bench(fake.config).with_suffix(".md").read_text()


def test_published_designs_are_arms_of_their_own(tmp_path):
    fake = make(tmp_path, published_designs=True, methods=["olmix", "joint"])
    plan = BenchPlan(fake.experiment)
    assert [arm.name for arm in plan.arms] == [
        "olmix", "olmix@published", "joint", "joint@published",
    ]  # fmt: skip
    published = {arm.name: len(plan.probes(arm)) for arm in plan.arms}
    assert published["olmix@published"] == 5 * len(fake.domains)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods": ["regmx"]}, "did you mean 'regmix'"),
        ({"uniform_budgets": ["640K", "1M"]}, "which is trained anyway"),
        ({"path_budgets": ["80K"]}, "needs two budgets or more"),
        ({"path_budgets": ["160K", "80K"]}, "must rise"),
        ({"search_runs": 0}, "set search_runs"),
        ({"probe_tokens": "1M"}, "exceeds train.budget"),
        ({"objectives": [{"name": "a"}, {"name": "a"}]}, "more than once"),
    ],
)
def test_mistakes_are_found_in_the_file(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)


def test_mistakes_are_found_before_anything_is_trained(tmp_path):
    fake = make(tmp_path, objectives=[{"name": "x", "weights": {"newz": 1}}])
    with pytest.raises(ValueError, match=r"weighs 'newz'; the runs are evaluated on python_code"):
        BenchPlan(fake.experiment)
    with pytest.raises(ValueError, match=r"no \[bench\] section"):
        BenchPlan(Experiment(fake.config.model_copy(update={"bench": None})))
    small = make(tmp_path / "small", total_probe_tokens="160K")
    with pytest.raises(ValueError, match="needs at least"):
        BenchPlan(small.experiment)
