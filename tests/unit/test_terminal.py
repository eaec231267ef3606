import io
from dataclasses import replace

import pytest
from rich.console import Console

from autoscale import stages
from autoscale.audit import Audit, DomainAudit
from autoscale.plan_tables import plan_table
from autoscale.records import read_json
from autoscale.summary import summarise
from autoscale.terminal import audit_table, saved_text, summary_table
from autoscale.wording import interval, signed
from tests.unit.fake_experiment import JOINT, SEVEN, FakeExperiment, complete_experiment


def shown(renderable, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return complete_experiment(tmp_path_factory)


def test_the_summary_shows_weights_effects_noise_and_verdicts_uncut(complete):
    summary = summarise(complete.config)
    text = shown(summary_table(summary))
    for mixture in summary["mixtures"]:
        assert mixture["name"] in text
        assert f"{mixture['final_mean_loss']:.4f}" in text
        assert f"{mixture['perplexity']:.2f}" in text
        for weight in mixture["weights"].values():
            assert f"{weight:.3f}" in text
    for comparison in summary["targets"]["comparisons"]:
        assert comparison["verdict"] in text
    noise = summary["targets"]["seed_noise"]
    assert f"Noise between seeds: {noise['sd']:.4f} nats" in text
    for budget in summary["fit"]["budgets"]:
        assert f"±{2 * budget['difference_noise']:.3f}" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_seven_domains_and_three_baselines_fit_in_100_columns(tmp_path):
    tables = {"train": {"seeds": [0]}, "data": {"max_epochs": 20}}
    fake = FakeExperiment(tmp_path, SEVEN, tables=tables)
    fake.run()
    text = shown(summary_table(summarise(fake.config)))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(name in text for name in SEVEN)


def flat(renderable) -> str:
    return " ".join(shown(renderable).split())


def test_a_joint_law_shows_decision_weights_gains_candidates_and_reasons(tmp_path_factory):
    summary = summarise(complete_experiment(tmp_path_factory, "auto").config)
    text, decision = flat(summary_table(summary)), summary["decision"]
    assert decision["sentence"] in text and decision["certificate"] in text
    assert summary["fit"]["reason"] in text and summary["projection"]["reason"] in text
    for name, weight in decision["weights"].items():
        low, high = decision["low"][name], decision["high"][name]
        assert f"{name} {weight:.3f} {low:.3f} to {high:.3f}" in text
    for row in decision["gains"]:
        expected = f"{' = '.join(row['names'])} {signed(row['expected'])} "
        assert expected + interval(row["low"], row["high"]) in text
        assert signed(row["measured"]["mean"]) in text
    for candidate in summary["fit"]["candidates"]:
        assert f"{candidate['name']} {candidate['objective_error']:.4f}" in text
    assert text.count(" chosen ") == 1
    assert "90% interval saved AutoScale is" in text or "tokens mixture mean loss" in text


def test_bounds_are_marked_beside_the_weights(tmp_path_factory):
    summary = summarise(complete_experiment(tmp_path_factory, "auto").config)
    first, second = summary["domains"][:2]
    held = {**summary["decision"], "at_lower": [first], "at_upper": [second]}
    text = shown(summary_table({**summary, "decision": held}))
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "least" in rows[first] and "greatest" in rows[second]


def test_every_moment_of_a_joint_law_has_its_tables(tmp_path):
    tables = {**JOINT, "fit": {"law": "etk", "draws": 4}}
    fake = FakeExperiment(tmp_path, SEVEN, noise=0.003, tables=tables)
    assert "autoscale fit experiment.toml" in shown(summary_table(summarise(fake.config)))
    fake.probe()
    stages.fit(fake.config)
    text = shown(summary_table(summarise(fake.config)))
    assert "Weights at 160K tokens" in text and "and measured" not in text
    stages.project(fake.config)
    text = shown(summary_table(summarise(fake.config)))
    assert "Weights at 320K tokens" in text and "and measured" not in text
    fake.train(only=4)
    text = shown(summary_table(summarise(fake.config)))
    assert "expected at 160K tokens and measured at 320K" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_what_cannot_be_told_apart_is_called_so(tmp_path):
    tables = {"train": {"seeds": [0]}, "probe": {"reference_seeds": 1}}
    fake = FakeExperiment(tmp_path, tables=tables)
    fake.run()
    text = shown(summary_table(summarise(fake.config)))
    assert text.count("not distinguishable") == 3
    assert "Noise between seeds: unknown" in text


def test_a_half_done_experiment_says_what_comes_next(tmp_path):
    text = shown(summary_table(summarise(FakeExperiment(tmp_path).config)))
    assert "autoscale probe experiment.toml" in text


def test_tokens_saved_are_a_share_or_say_that_they_were_not_reached():
    by_seed = [{}, {}, {}]
    assert saved_text({"tokens_saved": 0.183, "num_reached": 3, "by_seed": by_seed}) == "+18.3%"
    assert saved_text({"tokens_saved": None, "num_reached": 0, "by_seed": by_seed}) == "not reached"
    assert saved_text({"tokens_saved": None, "num_reached": 2, "by_seed": by_seed}) == "reached 2/3"


def test_the_plan_lists_every_run_with_its_cost(complete):
    plan = read_json(stages.plan(complete.config), "plan")
    text = shown(plan_table(plan))
    for row in plan["runs"]:
        assert row["label"] in text
    assert "4 domains, a model of 239K parameters" in text
    assert f"{plan['totals']['probe']['flops']:.2e}" in text
    assert plan["cost_basis"] in " ".join(text.split())


def test_a_plan_of_unknown_cost_says_so(tmp_path):
    fake = FakeExperiment(tmp_path)
    text = shown(plan_table(read_json(stages.plan(fake.config), "plan")))
    assert text.count("unknown") >= 3


def test_the_plan_says_what_runs_draw_from(tmp_path):
    budgets = ["80K", "120K", "160K", "240K", "320K"]
    tables = {
        "data": {"packing": "best_fit"},
        "probe": {"match_repetition": True, "budgets": budgets},
        "train": {"stages": [{"begin": 0.5, "weights": "natural"}]},
    }
    fake = FakeExperiment(tmp_path, SEVEN, documents=300, tables=tables)
    text = flat(plan_table(read_json(stages.plan(fake.config), "plan")))
    assert "Packing best_fit: at most" in text and "of the positions" in text
    assert "Tokens that probe runs draw from" in text
    assert "12.50% of all" in text and "37.50% of all" in text
    assert "Later stages" in text and "from step 312" in text


def test_the_audit_shows_what_was_drawn_or_not_known():
    domain = DomainAudit(
        name="stack_exchange_questions",
        windows=1_234_567_890,
        tokens=2_528_395_038_720,
        epochs=1.6,
        fewest_draws=1,
        most_draws=2,
        documents=123_456_789,
        documents_touched=123_456_789,
        most_drawn_document=2.0,
    )
    unknown = replace(
        domain, name="web", documents=None, documents_touched=None, most_drawn_document=None
    )
    audit = Audit(
        run_id="train-2.5T-autoscale-seed0-0123456789ab",
        steps=20,
        num_steps=20,
        domains=(domain, unknown),
        checksum="d4fb4e37b20c6707",
        problems=(),
    )
    text = shown(audit_table(audit))
    assert "1 to 2" in text and "2.00 times" in text and text.count("unknown") == 2
    assert "The record agrees. Checksum of all rows, read again: d4fb4e37b20c6707." in text
    assert "The record differs." in shown(audit_table(replace(audit, problems=("no",))))
