"""`fit --table`, `predict` and `solve`, from a file of runs to a mixture, on known laws."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoscale.laws import trees
from autoscale.laws.frame import Form
from autoscale.objective import Objective
from autoscale.records import read_json, write_json
from autoscale.run_table import RunTable
from autoscale.table_commands import TableFit, fit_table
from tests.unit.synthetic_runs import BUDGETS, DOMAINS, SETS, SIZES, runs_of, true_law
from tests.unit.table_files import CommandLine, read_mixture, read_predictions, write_table

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures/autoscale_official.json").read_text())
BUDGET = 1_000_000_000
NOISE = 0.003
LAW = true_law("eti")
SCALED_LAW = true_law("eti", form=Form(tokens="both", size="sum"))
RUNS = runs_of(LAW, 30, noise=NOISE, budgets=[BUDGET])
SCALED_RUNS = runs_of(SCALED_LAW, 45, noise=NOISE, budgets=BUDGETS, sizes=SIZES)
AVAILABLE = "web=2B,code=100M,books=150M,wiki=300M,math=1B"


@pytest.fixture
def autoscale(monkeypatch, capsys):
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that several tests read: a table and a fit of one budget, and of several."""
    folder = tmp_path_factory.mktemp("tables")
    for name, runs in (("one", RUNS), ("scaled", SCALED_RUNS)):
        table = write_table(folder / f"{name}.csv", runs)
        fit_table(table, folder / f"{name}.json", TableFit(law="eti", draws=4))
    return folder


@pytest.fixture(scope="module")
def fit(folder):
    return folder / "one.json"


def predict(autoscale, fit, table):
    output = table.with_name("predicted.csv")
    autoscale.succeed("predict", fit, "--table", table, "-o", output)
    return read_predictions(output)


def solve(autoscale, fit, tmp_path, *options):
    """The record and the weights that `solve` writes, with its output."""
    output = autoscale.succeed("solve", fit, "-o", tmp_path / "mixture.json", *options)
    return (*read_mixture(tmp_path / "mixture.json"), output)


def words(text):
    """Terminal output without its line breaks."""
    return " ".join(text.split())


def refit(autoscale, path, runs, *options, **columns):
    """The record of a fit of these runs, and what the terminal showed."""
    write_table(path.with_name("refit.csv"), runs, **columns)
    table = path.with_name("refit.csv")
    output = autoscale.succeed("fit", "--table", table, "--draws", "4", "-o", path, *options)
    return read_json(path, "fit"), output


def test_auto_shows_its_candidates_and_predicts_what_it_has_not_seen(autoscale, tmp_path):
    record, output = refit(autoscale, tmp_path / "fit.json", RUNS)
    found = record["estimate"]
    assert {score["law"] for score in found["scores"]} >= {"eti", "etk", "separable"}
    for score in found["scores"]:
        assert f"{score['objective_error']:.4f}" in output
    assert found["reason"] in words(output)
    assert str(tmp_path / "fit.json") in output
    test = runs_of(LAW, 60, seed=7, noise=NOISE, budgets=[BUDGET])
    table = write_table(tmp_path / "new.csv", test, losses=False)
    names, header, numbers = predict(autoscale, tmp_path / "fit.json", table)
    assert names == list(test.runs)
    kinds = ("loss", "low", "high")
    assert header == ["run", *(f"{kind}/{name}" for name in SETS for kind in kinds)]
    mean, low, high = numbers[:, ::3], numbers[:, 1::3], numbers[:, 2::3]
    assert np.std(mean - test.losses) < 0.2 * np.std(test.losses)
    assert 0.8 < ((low <= test.losses) & (test.losses <= high)).mean() < 1


def test_domains_are_matched_by_name(autoscale, fit, tmp_path):
    test = runs_of(LAW, 8, seed=3, budgets=[BUDGET])
    _, _, straight = predict(autoscale, fit, write_table(tmp_path / "a.csv", test))
    turned = write_table(tmp_path / "b.csv", test, order=DOMAINS[::-1])
    np.testing.assert_allclose(predict(autoscale, fit, turned)[2], straight, rtol=1e-12)
    other = write_table(tmp_path / "c.csv", test, order=DOMAINS[:4], by_domain=True)
    message = autoscale.refuse("predict", fit, "--table", other)
    assert "no weights for 'math', which the fit knows" in message


def test_tokens_by_domain_and_perplexities_describe_the_same_runs(autoscale, fit, tmp_path):
    known = read_json(fit, "fit")["estimate"]["law"]["theta"]
    same = replace(RUNS, losses=np.exp(RUNS.losses))
    options = ("--law", "eti", "--perplexity")
    record, _ = refit(autoscale, tmp_path / "fit.json", same, *options, by_domain=True)
    np.testing.assert_allclose(record["estimate"]["law"]["theta"], known, rtol=1e-6, atol=1e-6)


def test_budgets_and_sizes_enter_one_fit(autoscale, folder, tmp_path):
    fit = folder / "scaled.json"
    test = runs_of(SCALED_LAW, 20, seed=5, budgets=BUDGETS[::-1], sizes=SIZES)
    _, _, numbers = predict(autoscale, fit, write_table(tmp_path / "new.csv", test))
    assert np.abs(numbers[:, ::3] / test.losses - 1).mean() < 0.01
    for column in ("tokens", "parameters"):
        table = write_table(tmp_path / "less.csv", replace(test, **{column: None}))
        message = autoscale.refuse("predict", fit, "--table", table)
        assert f"give the {column} to solve or predict for" in message
    assert "runs of 10M to 40M tokens; give the tokens" in autoscale.refuse("solve", fit)
    assert "500K to 2M parameters" in autoscale.refuse("solve", fit, "--tokens", "10M")


def test_far_from_the_runs_intervals_widen_and_words_are_said(autoscale, folder, tmp_path):
    fit = folder / "scaled.json"
    near = runs_of(SCALED_LAW, 6, seed=5, budgets=[BUDGETS[-1]], sizes=[SIZES[-1]])
    far = replace(near, tokens=30 * near.tokens)
    widths = []
    for runs in (near, far):
        numbers = predict(autoscale, fit, write_table(tmp_path / "new.csv", runs))[2]
        widths.append(numbers[:, 2::3] - numbers[:, 1::3])
    assert (widths[1] > widths[0]).all()
    asked = ("--tokens", "1B", "--parameters", "1B")
    record, _, output = solve(autoscale, fit, tmp_path, *asked)
    assert (record["token_budget"], record["parameters"]) == (10**9, 10**9)
    for said in (
        "1B tokens are 25 times the largest budget probed; the law is extrapolated.",
        "The model of 1B parameters lies outside the sizes probed (500K to 2M)",
    ):
        assert said in " ".join(record["warnings"]) and said in words(output)


def test_counts_that_the_runs_do_not_give_change_nothing(autoscale, tmp_path):
    """A law of tokens has no unit for them where those of its runs are not known."""
    fit = tmp_path / "fit.json"
    refit(autoscale, fit, replace(RUNS, tokens=None), "--law", "separable")
    test = runs_of(LAW, 5, seed=3)
    without = predict(autoscale, fit, write_table(tmp_path / "new.csv", test))[2]
    counted = replace(test, tokens=np.full(5, 1e9), parameters=np.full(5, 1e8))
    with_counts = predict(autoscale, fit, write_table(tmp_path / "new.csv", counted))[2]
    np.testing.assert_array_equal(with_counts, without)
    _, known_K, _ = solve(autoscale, fit, tmp_path)
    record, weights_K, _ = solve(autoscale, fit, tmp_path, "--tokens", "9B", "--parameters", "7B")
    np.testing.assert_array_equal(weights_K, known_K)
    said = " ".join(record["warnings"])
    assert "tokens are not known, so that no law says what 9B tokens change" in said
    assert "model sizes are not known, so that 7B parameters change nothing" in said


def test_seeds_tell_replicates_from_contradictions(autoscale, tmp_path):
    first = RUNS.select(np.arange(4))
    again = replace(first, runs=tuple("abcd"), losses=first.losses + 0.02)
    both = RunTable.concatenate([RUNS, again])
    seeds = (0,) * RUNS.num_runs + (1,) * 4
    fit = tmp_path / "fit.json"
    record, _ = refit(autoscale, fit, replace(both, seeds=seeds), "--law", "etk")
    facts = record["estimate"]["facts"]
    assert facts["seed_degrees_of_freedom"] == 4
    assert facts["seed_noise"] == pytest.approx(dict.fromkeys(SETS, 0.02 / np.sqrt(2)))
    table = write_table(tmp_path / "runs.csv", both, seed=np.zeros(both.num_runs))
    message = autoscale.refuse("fit", "--table", table, "-o", fit)
    assert "runs 'run-0' and 'a' contradict each other" in message
    assert "give a replicate its own seed" in message


def test_the_optimum_is_near_that_of_the_truth_and_certified(autoscale, fit, tmp_path):
    record, weights_K, output = solve(autoscale, fit, tmp_path, "--tokens", "1B")
    rng = np.random.default_rng(0)
    sampled = LAW.predict(rng.dirichlet(np.ones(len(DOMAINS)), 4000), None, None).mean(axis=1)
    found = LAW.predict(weights_K[None], None, None).mean()
    uniform = LAW.predict(np.full((1, 5), 0.2), None, None).mean()
    assert found - sampled.min() < 0.1 * (uniform - sampled.min())
    assert 0 <= record["duality_gap"] < 1e-6
    assert (record["law"], record["token_budget"]) == ("eti", BUDGET)
    assert set(record["gains"]) == {"uniform"}
    gain = record["gains"]["uniform"]
    assert gain["low"] < gain["expected"] < gain["high"] and gain["probability"] > 0.95
    assert record["sentence"].startswith("Expected gain over uniform")
    assert record["sentence"] in words(output)
    for name, weight in record["weights"].items():
        assert record["low"][name] <= weight <= record["high"][name]
        assert f"{weight:.4f}" in output


def test_bounds_groups_and_caps_hold(autoscale, fit, tmp_path):
    def weights(*options):
        record, found_K, _ = solve(autoscale, fit, tmp_path, "--tokens", "1B", *options)
        assert found_K.sum() == pytest.approx(1)
        return record, found_K

    free_K = weights()[1]
    record, bounded_K = weights("--min-weight", "0.1", "--max-weight", "0.3")
    assert (bounded_K >= 0.1 - 1e-9).all() and (bounded_K <= 0.3 + 1e-9).all()
    assert "The least weight allowed holds" in " ".join(record["warnings"])
    assert "The greatest weight allowed holds" in " ".join(record["warnings"])
    groups = ("--group", "rare:wiki+math=0.4..", "--group", "c:code=..0.1")
    _, grouped_K = weights(*groups)
    assert grouped_K[3] + grouped_K[4] >= 0.4 - 1e-9 and grouped_K[1] <= 0.1 + 1e-9
    assert free_K[3] + free_K[4] < 0.4 and free_K[1] > 0.1
    record, capped_K = weights("--available", AVAILABLE, "--max-epochs", "2")
    assert capped_K[1] <= 0.2 + 1e-9 and capped_K[2] <= 0.3 + 1e-9 and free_K[1] > 0.2
    assert set(record["gains"]) == {"uniform", "natural"}


def test_no_harm_and_pull_keep_near_the_reference(autoscale, fit, tmp_path):
    law = true_law("eti")
    uniform_K = np.full(5, 0.2)
    free_K = solve(autoscale, fit, tmp_path, "--objective", "web")[1]
    record, kept_K, _ = solve(autoscale, fit, tmp_path, "--objective", "web", "--no-harm", "0.01")
    harm_free_J = (law.predict(free_K, None, None) - law.predict(uniform_K, None, None))[0]
    harm_kept_J = (law.predict(kept_K, None, None) - law.predict(uniform_K, None, None))[0]
    assert harm_free_J.max() > 0.05 and harm_kept_J.max() < 0.01 + 4 * NOISE
    assert record["duality_gap"] < 1e-6
    for kind in ("kl", "l2"):
        distances = [
            np.abs(solve(autoscale, fit, tmp_path, "--pull", f"{kind}:{s}")[1] - 0.2).sum()
            for s in (0.001, 100)
        ]
        assert distances[0] > 0.1 and distances[1] < 0.01


def test_the_objective_may_be_another_than_that_of_the_fit(autoscale, fit, tmp_path):
    by = {}
    for text in ("mean", "worst", "perplexity", "web=3,mail", "worst:web,code"):
        record, weights_K, _ = solve(autoscale, fit, tmp_path, "--objective", text)
        by[text] = weights_K
        assert record["duality_gap"] < 1e-6
    for text, weights_K in by.items():
        objective = Objective.parse(text, SETS)
        values = {
            other: float(objective.values(LAW.predict(found_K, None, None), SETS)[0])
            for other, found_K in by.items()
        }
        best = min(values.values())
        uniform_K = np.full(5, 0.2)
        spread = float(objective.values(LAW.predict(uniform_K, None, None), SETS)[0]) - best
        assert values[text] - best < 0.25 * abs(spread) + NOISE, text
        assert weights_K.sum() == pytest.approx(1)


def test_gains_are_stated_over_a_reference_file(autoscale, fit, tmp_path):
    reference = tmp_path / "reference.json"
    weights = dict(zip(DOMAINS[::-1], (0.5, 0.2, 0.1, 0.1, 0.1), strict=True))
    write_json(reference, "mixture", {"weights": weights})
    record, _, _ = solve(autoscale, fit, tmp_path, "--reference", reference)
    assert set(record["gains"]) == {"uniform", "reference"}
    assert record["gains"]["reference"]["expected"] > record["gains"]["uniform"]["expected"]
    pulled_K = solve(autoscale, fit, tmp_path, "--reference", reference, "--pull", "l2:100")[1]
    assert dict(zip(DOMAINS, pulled_K, strict=True)) == pytest.approx(weights, abs=0.01)
    natural = ("--reference", "natural", "--available", AVAILABLE)
    pulled_K = solve(autoscale, fit, tmp_path, *natural, "--pull", "kl:100")[1]
    np.testing.assert_allclose(pulled_K, np.array([2000, 100, 150, 300, 1000]) / 3550, atol=0.01)
    message = autoscale.refuse("solve", fit, "--reference", "natural")
    assert "give --available too" in message


def test_the_front_between_two_objectives_is_written_and_shown(autoscale, fit, tmp_path):
    options = ("--objective", "web", "--pareto", "code=2,mail", "--points", "6")
    record, _, output = solve(autoscale, fit, tmp_path, *options)
    front = record["pareto"]
    assert len(front) == 6 and all(set(p) == {"weights", "first", "second"} for p in front)
    first, second = (np.array([point[key] for point in front]) for key in ("first", "second"))
    assert (np.diff(first) > 0).all() and (np.diff(second) < 0).all()
    assert front[0]["weights"] == pytest.approx(record["weights"], abs=1e-6)
    steps = np.diff(second)
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.02)
    for point in front:
        assert f"{point['first']:.4f}" in output and f"{point['second']:.4f}" in output
    least = solve(autoscale, fit, tmp_path, "--objective", "code=2,mail")[0]["objective"]
    assert second[-1] == pytest.approx(least, abs=1e-6)
    message = autoscale.refuse("solve", fit, "--pareto", "web", "--pull", "kl:1")
    assert "has no place for a pull" in message
    alike = solve(autoscale, fit, tmp_path, "--pareto", "mean")[0]["pareto"]
    assert len(alike) == 1 and alike[0]["first"] == alike[0]["second"]


def test_repetition_wears_a_small_domain_out(autoscale, tmp_path):
    law = true_law("eti", form=Form(tokens="product"))
    runs = runs_of(law, 36, noise=NOISE, budgets=BUDGETS)
    fit = tmp_path / "fit.json"
    plenty = "web=10B,code=10B,books=10B,wiki=10B,math=10B"
    record, _ = refit(autoscale, fit, runs, "--law", "eti", "--available", plenty, "--rate", "5")
    members = record["estimate"]["law"]
    law_record = members.get("members", [members])[0]
    assert law_record["repetition"]["rate"] == 5
    ample = solve(autoscale, fit, tmp_path, "--tokens", "1B")[1]
    largest = DOMAINS[int(ample.argmax())]
    scarce = plenty.replace(f"{largest}=10B", f"{largest}=10M")
    record, rationed, _ = solve(autoscale, fit, tmp_path, "--tokens", "1B", "--available", scarce)
    assert rationed[ample.argmax()] < 0.8 * ample.max()
    assert set(record["gains"]) == {"uniform", "natural"}
    for law_name in ("trees", "autoscale"):
        options = ("--law", law_name, "--available", plenty)
        message = autoscale.refuse("fit", "--table", tmp_path / "refit.csv", *options)
        assert f"which law {law_name!r} cannot; leave it out here" in message
    message = autoscale.refuse(
        "fit", "--table", tmp_path / "refit.csv", "--available", plenty, "--rate", "fit"
    )
    assert "R* cannot be fitted" in message


def test_bits_per_byte_as_table_and_as_objective(autoscale, fit, tmp_path):
    bytes_per_token = dict(zip(SETS, (3.0, 2.5, 4.0, 3.5), strict=True))
    unit_J = np.log(2) * np.array(list(bytes_per_token.values()))
    given = ",".join(f"{name}={number}" for name, number in bytes_per_token.items())
    asked = ("--objective", "bits_per_byte", "--bytes-per-token", given)
    converted_K = solve(autoscale, fit, tmp_path, *asked)[1]
    weights = ",".join(f"{name}={1 / unit}" for name, unit in zip(SETS, unit_J, strict=True))
    expected_K = solve(autoscale, fit, tmp_path, "--objective", weights)[1]
    np.testing.assert_allclose(converted_K, expected_K, atol=1e-4)
    in_bits = replace(RUNS, losses=RUNS.losses / unit_J)
    options = ("--metric", "bits_per_byte", "--law", "eti")
    record, _ = refit(autoscale, tmp_path / "bits.json", in_bits, *options)
    assert record["metric"] == "bits_per_byte"
    assert "bits per byte" in record["estimate"]["reason"]
    own = solve(autoscale, tmp_path / "bits.json", tmp_path)
    assert "bits per byte" in own[0]["sentence"]
    np.testing.assert_allclose(own[1], expected_K, atol=0.05)
    table = tmp_path / "refit.csv"
    for objective in ("bits_per_byte", "perplexity"):
        message = autoscale.refuse(
            *("fit", "--table", table, "--metric", "bits_per_byte", "--objective", objective),
            *("--bytes-per-token", given),
        )
        assert "converts losses in nats, and the table is in bits per byte" in message
    message = autoscale.refuse("solve", fit, "--objective", "bits_per_byte")
    assert "bits per byte need the bytes per token of 'web'" in message


def test_trees_predict_with_intervals_and_solve_without(autoscale, tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "NUM_TREES", 40)
    monkeypatch.setitem(trees.SETTINGS, "learning_rate", 0.1)
    fit = tmp_path / "fit.json"
    runs = runs_of(LAW, 80, noise=NOISE, budgets=[BUDGET])
    record, output = refit(autoscale, fit, runs, "--law", "trees")
    assert len(record["estimate"]["scores"]) == 1 and "against eti" not in output
    test = runs_of(LAW, 60, seed=9, noise=NOISE, budgets=[BUDGET])
    _, _, numbers = predict(autoscale, fit, write_table(tmp_path / "new.csv", test))
    low, high = numbers[:, 1::3], numbers[:, 2::3]
    assert 0.75 < ((low <= test.losses) & (test.losses <= high)).mean() < 1
    asked = ("--max-weight", "0.5", "--tokens", "1B")
    record, weights_K, output = solve(autoscale, fit, tmp_path, *asked)
    assert weights_K.max() <= 0.5 + 1e-9
    assert record["low"] is None and record["gains"] == {} and record["duality_gap"] is None
    assert "The trees have no intervals" in words(output)


def official_table():
    """The authors' 15 runs, one domain scaled at a time, as a table of perplexities."""
    scaled = [np.eye(7) * (OFFICIAL["multiples"][way] - 1) for way in ("down", "up")]
    multiples = 1 + np.vstack([np.zeros((1, 7)), *scaled])
    found = OFFICIAL["perplexity"]
    values = np.array([found["reference"], *found["down"], *found["up"]])
    tokens = multiples * 300_000_000 / 7
    return RunTable(
        runs=tuple(f"r{number}" for number in range(15)),
        domains=tuple(OFFICIAL["domains"]),
        sets=("all",),
        weights=tokens / tokens.sum(axis=1, keepdims=True),
        tokens=tokens.sum(axis=1),
        losses=values[:, None],
    )


@pytest.mark.parametrize("by_domain", [True, False])
def test_the_published_law_gives_the_authors_numbers(autoscale, tmp_path, by_domain):
    fit = tmp_path / "fit.json"
    options = ("--law", "autoscale", "--perplexity", "--objective", "perplexity")
    record, output = refit(autoscale, fit, official_table(), *options, by_domain=by_domain)
    [budget] = record["budgets"]
    for name in ("equivalent", "exponent", "irreducible"):
        found = [law[name] for law in budget["laws"]]
        np.testing.assert_allclose(found, OFFICIAL["laws"][name], rtol=1e-6)
    assert budget["base_objective"] == pytest.approx(OFFICIAL["perplexity"]["reference"])
    assert all(name in output for name in OFFICIAL["domains"])
    least = OFFICIAL["lower_bound"] / 7
    record, weights_K, output = solve(autoscale, fit, tmp_path, "--min-weight", repr(least))
    np.testing.assert_allclose(7 * weights_K, OFFICIAL["optimum"], atol=1e-6)
    assert record["token_budget"] == 300_000_000 and record["duality_gap"] < 1e-9
    assert 20 < record["objective"] < OFFICIAL["perplexity"]["reference"]
    assert "Best mixture at 300M" in output
    message = autoscale.refuse("predict", fit, "--table", tmp_path / "refit.csv")
    assert "describes the objective and not the single losses" in message
    for option, value in {
        "--objective": "all", "--pareto": "all", "--group": "g:arxiv=0..0.5",
        "--no-harm": "0.1", "--pull": "kl:1", "--parameters": "1B", "--reference": "natural",
    }.items():  # fmt: skip
        message = autoscale.refuse("solve", fit, option, value)
        assert f"{option} has no place in law 'autoscale'" in message


SMALL = "run,weight/a,weight/b,tokens,seed,loss/a,loss/b\n" + "".join(
    f"r{p},{p / 10},{1 - p / 10:.1f},1B,{p},{3 - p / 10 + p % 3 / 100:.2f},{2.5 + p / 50:.2f}\n"
    for p in range(1, 9)
)


def head(num_runs):
    return "".join(SMALL.splitlines(keepends=True)[: 1 + num_runs])


def constant_losses():
    header, *rows = SMALL.splitlines()
    return "\n".join([header, *(f"{row.rsplit(',', 1)[0]},2.5" for row in rows)])


def one_mixture():
    header, *rows = SMALL.splitlines()
    return "\n".join(
        [header, *(",".join([row.split(",")[0], "0.5,0.5", *row.split(",")[3:]]) for row in rows)]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (head(2), "a fit needs at least 3 runs; found 2: r1, r2"),
        (constant_losses(), "loss/b is 2.5 in all 8 runs: there is nothing to fit"),
        (one_mixture(), "all 8 runs have the same mixture"),
        (SMALL.replace("2.52", "nan"), "run 'r1' has loss/b nan; expected a positive number"),
        (SMALL.replace("2.52", "-1"), "run 'r1' has loss/b -1; expected a positive number"),
        (SMALL.replace("r2,0.2,0.8,1B,2", "r2,0.1,0.9,1B,1"), "'r1' and 'r2' contradict each"),
        (SMALL.replace("0.1,0.9", "0.1,0.8"), "weights of run 'r1' sum to 0.9; expected 1"),
        (SMALL.replace("0.1,0.9", "-0.1,1.1"), "run 'r1' has weight/a -0.1"),
        (SMALL.replace("loss/b", "los/b"), "'los/b' is not known; did you mean 'loss/b'"),
        ("run,weight/a\n", "has 1 row(s); expected a header row"),
    ],
)
def test_bad_runs_end_with_one_message(autoscale, tmp_path, text, message):
    table = tmp_path / "runs.csv"
    table.write_text(text)
    assert message in autoscale.refuse("fit", "--table", table, "-o", tmp_path / "fit.json")
    assert not (tmp_path / "fit.json").exists()


def test_fewer_mixtures_than_a_law_can_carry_are_refused_and_few_are_told(autoscale, tmp_path):
    table = write_table(tmp_path / "runs.csv", RUNS.select(np.arange(4)))
    message = autoscale.refuse("fit", "--table", table, "-o", tmp_path / "fit.json")
    assert "4 runs of 4 different mixtures cannot carry a law of 5 domains" in message
    few = RUNS.select(np.arange(7))
    record, output = refit(autoscale, tmp_path / "fit.json", few, "--law", "etk")
    said = "7 mixtures for 5 domains are few: priors decide much"
    assert said in words(output) and said in " ".join(record["estimate"]["warnings"])


def test_a_domain_that_never_varied_is_named(autoscale, tmp_path):
    weights = np.array(RUNS.weights)
    weights[:, :4] *= 0.9 / weights[:, :4].sum(axis=1, keepdims=True)
    weights[:, 4] = 0.1
    runs = replace(RUNS, weights=weights, losses=LAW.predict(weights, None, None))
    record, output = refit(autoscale, tmp_path / "fit.json", runs, "--law", "etk")
    assert record["estimate"]["facts"]["never_varied"] == ["math"]
    assert "The weight of math never varied: what its tokens are worth is prior" in words(output)


def test_a_fit_that_does_not_converge_says_so(autoscale, tmp_path, monkeypatch):
    from autoscale.laws import fitter

    minimise = fitter.minimise
    monkeypatch.setattr(
        fitter, "minimise", lambda *args, **options: minimise(*args, **options, max_iterations=1)
    )
    _, output = refit(autoscale, tmp_path / "fit.json", RUNS, "--law", "eti")
    assert "did not converge; its parameters are not final" in words(output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "wob"], "names 'wob', which is no validation set; did you mean 'web'"),
        (["--objective", "web=x"], "gives 'web' the weight 'x'; expected a number"),
        (["--group", "web:code"], "group 'web:code' cannot be read; expected name:domain+domain"),
        (["--group", "g:code=.5.."], None),
        (["--group", "g:cod=..0.5"], "group 'g' names domain 'cod'"),
        (["--group", "g:code=0.8..0.5"], "group 'g' has minimum 0.8 and maximum 0.5"),
        (["--group", "a:web=0.7..", "--group", "b:code=0.7.."], "no mixture has minimum 0.7"),
        (["--pull", "kl"], "pull 'kl' cannot be read; expected kl:strength"),
        (["--pull", "lk:1"], "pull 'lk:1' cannot be read; expected kl:strength"),
        (["--pull", "kl:-1"], "strength of the pull is -1"),
        (["--tokens", "many"], "token count 'many' cannot be read"),
        (["--available", "web"], "available tokens 'web' cannot be read; expected domain=tokens"),
        (["--available", "web=x"], "available tokens of 'web' is 'x', which is no positive number"),
        (["--available", "web=1,web=2"], "names 'web' twice"),
        (["--available", "none.json"], "none.json is not readable as tokens by domain"),
        (["--available", "web=1B"], "available tokens lacks domain 'code', 'books'"),
        (["--bytes-per-token", "web=0..1"], "bytes per token of 'web' is '0..1'"),
        (["--max-epochs", "2"], "give --available and --tokens too"),
        (["--available", AVAILABLE, "--tokens", "9T", "--max-epochs", "2"], "raise max_epochs to"),
        (["--min-weight", "0.3"], "the minimum weights sum to 1.5, above 1"),
        (["--max-weight", "0.1"], "the maximum weights sum to 0.5, below 1"),
        (["--no-harm", "-2"], "no mixture within the constraints keeps the losses within"),
        (["--reference", "none.json"], "none.json does not exist; expected the mixture"),
    ],
)  # fmt: skip
def test_what_solve_is_asked_must_make_sense(autoscale, fit, tmp_path, options, message):
    arguments = ("solve", fit, "-o", tmp_path / "mixture.json", *options)
    if message is None:
        autoscale.succeed(*arguments)
    else:
        assert message in autoscale.refuse(*arguments)


def test_available_tokens_may_be_a_file(autoscale, fit, tmp_path):
    path = tmp_path / "available.json"
    path.write_text(json.dumps({name: 1e9 for name in DOMAINS} | {"code": "2.5B"}))
    record, _, _ = solve(autoscale, fit, tmp_path, "--available", path)
    assert "natural" in record["gains"]
    path.write_text("[1, 2]")
    assert "holds no tokens by domain" in autoscale.refuse("solve", fit, "--available", path)
    path.write_text('{"code": -1}')
    assert "token count '-1' cannot be read" in autoscale.refuse("solve", fit, "--available", path)


def test_what_fit_is_asked_must_make_sense(autoscale, folder, tmp_path):
    table, output = folder / "one.csv", tmp_path / "fit.json"
    for options, message in {
        ("--law", "etii"): "law 'etii' is unknown; did you mean 'eti'? Known are auto, autoscale,",
        ("--rate", "slow"): "rate 'slow' cannot be read",
        ("--perplexity", "--metric", "bits_per_byte"): "perplexities give nats a token",
        ("--available", AVAILABLE, "--rate", "-1"): "the repetition rate R* is -1",
        ("--law", "bimix"): "a set here has none; choose another law",
        ("--law", "autoscale"): "needs a reference run from which every other run differs in the",
        ("--set", "fit.law=eti"): "--set overrides an experiment file",
    }.items():
        assert message in autoscale.refuse("fit", "--table", table, "-o", output, *options)
    assert "not both" in autoscale.refuse("fit", "x.toml", "--table", table)
    assert "not both" in autoscale.refuse("fit")
    message = autoscale.refuse("fit", "x.toml", "--law", "eti")
    assert "--law is for --table; set it in [fit]" in message
    for options in (["--draws", "1"], ["--folds", "1"], ["--metric", "bits"]):
        status, _, errors = autoscale("fit", "--table", table, "-o", output, *options)
        assert status == 2 and options[0] in errors
    assert not output.exists()


def test_other_files_are_refused_by_what_they_are(autoscale, fit, tmp_path):
    assert "does not exist; expected the fit" in autoscale.refuse("solve", tmp_path / "fit.json")
    path = write_json(tmp_path / "mixture.json", "mixture", {})
    assert "is of kind 'mixture'; expected 'fit'" in autoscale.refuse("solve", path)
    assert "is not readable as a CSV" in autoscale.refuse("predict", fit, "--table", tmp_path)


def test_the_commands_load_no_torch_and_leave_with_the_right_status(folder, tmp_path):
    code = (
        "import sys; from autoscale.cli import app\n"
        "for arguments in {commands}:\n"
        "    app(arguments, standalone_mode=False)\n"
        "assert not {{'torch', 'deepspeed', 'lightgbm', 'datasets'}} & set(sys.modules)"
    )
    fit, output = str(tmp_path / "fit.json"), str(tmp_path / "out")
    table = str(folder / "one.csv")
    commands = [
        ["fit", "--table", table, "--law", "etk", "--draws", "2", "-o", fit],
        ["predict", fit, "--table", table, "-o", output],
        ["solve", fit, "-o", output],
    ]
    run = [sys.executable, "-c", code.format(commands=commands)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        [sys.executable, "-m", "autoscale", "fit", "--table", str(tmp_path / "none.csv")],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr
