"""Residual tests: they reject a wrong law, accept the right one, and say which way it errs."""

import re
from dataclasses import replace

import numpy as np
import pytest

from autoscale.law_choice import TREES, Candidate, Judge, Judged
from autoscale.objective import Objective
from autoscale.residuals import misfits
from autoscale.run_table import ReplicateNoise
from tests.unit.synthetic_runs import SETS, runs_of, true_law

NOISE = 0.003


def judged(truth, law, *, num_runs=60, seed=0):
    table = runs_of(true_law(truth, seed=seed), num_runs, noise=NOISE, seed=seed)
    judge = Judge.create(table, Objective.create("mean_loss", table.sets))
    return judge, judge.judge(Candidate(law=law))


def seed_noise(degrees=10):
    return ReplicateNoise(standard_deviation=np.full(4, NOISE), degrees_of_freedom=degrees)


@pytest.mark.parametrize("truth", ["eti", "log_linear", "separable"])
@pytest.mark.parametrize("num_runs", [12, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_right_law_is_accepted(truth, num_runs, seed):
    """Even with few runs, where it errs by much more than the noise for want of information."""
    judge, found = judged(truth, truth, num_runs=num_runs, seed=seed)
    assert list(misfits(judge, found, seed_noise())) == []


@pytest.mark.parametrize(
    ("truth", "law"),
    [("eti", "log_linear"), ("log_linear", "eti"), ("separable", "log_linear"),
     ("eti", "separable"), ("log_linear", "separable")],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wrong_law_is_rejected(truth, law, seed):
    judge, found = judged(truth, law, seed=seed)
    rejected = [text for text in misfits(judge, found, seed_noise()) if "rejected" in text]
    assert rejected
    name = next(name for name in SETS if f"rejected for {name}:" in rejected[0])
    error = np.sqrt(np.mean((found.held_out - judge.table.losses)[:, SETS.index(name)] ** 2))
    assert (
        f"its held-out error is {error / NOISE:.1f} times the noise between seeds." in rejected[0]
    )


def test_without_replicates_or_with_a_vague_noise_nothing_is_rejected():
    judge, found = judged("eti", "separable")
    assert not any("rejected" in text for text in misfits(judge, found, None))
    vague = ReplicateNoise(standard_deviation=np.full(4, 1.0), degrees_of_freedom=1)
    assert not any("rejected" in text for text in misfits(judge, found, vague))


def trend(judge, found, slope):
    """The same predictions with errors that follow them in the first set."""
    rng = np.random.default_rng(0)
    error = slope * (found.held_out[:, 0] - found.held_out[:, 0].mean())
    losses = judge.table.losses.copy()
    losses[:, 0] = found.held_out[:, 0] - error + 0.001 * rng.normal(size=len(losses))
    return replace(judge, table=replace(judge.table, losses=losses))


@pytest.mark.parametrize(("slope", "side"), [(0.2, "high"), (-0.2, "low")])
def test_errors_that_follow_the_losses_are_named(slope, side):
    judge, found = judged("eti", "eti")
    [text] = misfits(trend(judge, found, slope), found, None)
    start = f"The law's held-out errors for web are not random: it predicts too {side} where"
    assert text.startswith(start)
    sign = "+" if slope > 0 else "-"
    assert re.search(rf"losses are high \(rank correlation \{sign}\d\.\d\d\)\.$", text)


def test_few_runs_and_constant_predictions_show_no_trend():
    judge, found = judged("eti", "eti", num_runs=7)
    assert list(misfits(trend(judge, found, 0.5), found, None)) == []
    judge, found = judged("eti", "eti", num_runs=20)
    flat = Judged(found.candidate, found.law, np.full_like(found.held_out, 2.0))
    assert list(misfits(judge, flat, None)) == []


def test_only_judged_runs_are_tested():
    judge, found = judged("eti", "eti")
    spoiled = found.held_out.copy()
    spoiled[30:] = np.nan
    part = replace(judge, judged=np.arange(60) < 30)
    assert list(misfits(part, Judged(found.candidate, found.law, spoiled), seed_noise())) == []


def test_trees_are_tested_too(monkeypatch):
    monkeypatch.setattr("autoscale.laws.trees.NUM_TREES", 30)
    judge, found = judged("eti", TREES)
    assert any("rejected" in text for text in misfits(judge, found, seed_noise()))
