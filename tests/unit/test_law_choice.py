"""The choice of a law: who wins on synthetic runs, which forms, folds, and errors at the edge."""

from dataclasses import replace

import numpy as np
import pytest

from autoscale.law_choice import (
    DEFAULT_LAW,
    JOINT_LAWS,
    TREES,
    Candidate,
    Judge,
    choose_law,
    edge_errors,
    hypotheses,
)
from autoscale.laws.fit import mixture_folds, predict_held_out
from autoscale.laws.frame import Form
from autoscale.laws.repetition import Repetition
from autoscale.laws.trees import TreeLaw
from autoscale.objective import Objective
from autoscale.run_table import RunTable
from tests.unit.synthetic_runs import BUDGETS, DOMAINS, SETS, SIZES, mixtures, runs_of, true_law

SCARCE = Repetition(rate=3.0, unique_tokens=np.full(len(DOMAINS), 1e6))


def mean_loss(table):
    return Objective.create("mean_loss", table.sets)


def chosen(table, laws=JOINT_LAWS):
    judge = Judge.create(table, mean_loss(table))
    return choose_law(judge, [Candidate(law=law) for law in laws])


@pytest.mark.parametrize("truth", ["eti", "etk", "separable", "log_linear"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_law_that_made_the_runs_is_chosen(truth, seed):
    table = runs_of(true_law(truth, seed=seed), 60, noise=0.002, seed=seed)
    choice = chosen(table)
    accepted = {"eti", "etk"} if truth == "etk" else {truth}  # the first contains the second
    assert choice.best.law.law in accepted
    assert choice.scores[0].candidate == choice.best.candidate
    assert {score.candidate.law for score in choice.scores} == set(JOINT_LAWS)


def test_the_law_to_beat_stays_unless_another_is_clearly_better():
    """With noise as large as the effects no law can be told from another."""
    kept = 0
    for seed in range(8):
        table = runs_of(true_law("eti", seed=seed), 20, noise=0.2, seed=seed)
        choice = chosen(table, ("eti", "etk", "log_linear"))
        kept += choice.best.law.law == DEFAULT_LAW
        advantages = {score.candidate.law: score.advantage for score in choice.scores}
        assert advantages[DEFAULT_LAW] == 0
        best = max(advantages, key=advantages.__getitem__)
        assert choice.best.law.law == (best if advantages[best] > 1 else DEFAULT_LAW)
    assert kept >= 4


def test_scores_are_those_of_the_held_out_predictions():
    table = runs_of(true_law("eti"), 30, noise=0.01)
    choice = chosen(table, ["eti"])
    errors = np.abs(choice.best.held_out - table.losses)
    score = choice.scores[0]
    assert list(score.set_errors) == list(SETS)
    np.testing.assert_allclose(list(score.set_errors.values()), errors.mean(axis=0))
    means = (choice.best.held_out - table.losses).mean(axis=1)
    assert score.objective_error == pytest.approx(np.abs(means).mean())
    assert score.converged == 1
    record = score.to_dict()
    assert record["law"] == "eti" and record["set_errors"] == score.set_errors


def test_the_objective_takes_part_in_the_choice():
    """A set of weight 0 counts among the sets, but not in the objective."""
    table = runs_of(true_law("eti"), 30, noise=0.01)
    only = Objective.create("mean_loss", SETS, dict.fromkeys(SETS, 0.0) | {"code": 1.0})
    judge = Judge.create(table, only)
    score = choose_law(judge, [Candidate(law="eti")]).scores[0]
    assert score.objective_error == pytest.approx(score.set_errors["code"])


# Folds


def test_few_mixtures_are_folds_of_their_own_and_many_share_some():
    few, many = (runs_of(true_law("eti"), n, noise=0.01) for n in (20, 21))
    assert len(set(Judge.create(few, mean_loss(few)).folds)) == 20
    assert len(set(Judge.create(many, mean_loss(many)).folds)) == 5
    assert len(set(Judge.create(many, mean_loss(many), num_folds=7).folds)) == 7


def two_budgets():
    """12 mixtures at each of two budgets, the first 6 of them the same."""
    law = true_law("eti", form=Form(tokens="product"))
    large, small = mixtures(12, seed=1), mixtures(12, seed=2)
    small[:6] = large[:6]
    weights, tokens = np.vstack([small, large]), np.repeat([1e7, 4e7], 12)
    return RunTable(
        runs=tuple(map(str, range(24))),
        domains=DOMAINS,
        sets=SETS,
        weights=weights,
        tokens=tokens,
        losses=law.predict(weights, tokens, None),
    )


def test_runs_that_are_not_judged_leave_the_fit_with_their_mixture():
    """A smaller budget must not show a mixture that is to be predicted at the larger one."""
    table = two_budgets()
    judged = table.tokens == 4e7
    judge = Judge.create(table, mean_loss(table), judged=judged)
    assert (judge.folds[:6] == judge.folds[12:18]).all()
    assert (judge.folds[6:12] == -1).all() and (judge.folds[12:] >= 0).all()
    alone = table.select(judged)
    np.testing.assert_array_equal(judge.folds[12:], Judge.create(alone, mean_loss(alone)).folds)
    np.testing.assert_array_equal(judge.folds[12:], mixture_folds(alone, 12, seed=0))
    found = judge.judge(Candidate(law="etk", forms=(Form(tokens="product"),)))
    losses = table.losses.copy()
    losses[0] *= 2  # the small run of the mixture of run 12
    after = predict_held_out(found.law, replace(table, losses=losses), judge.folds)
    np.testing.assert_allclose(after[12], found.held_out[12], rtol=1e-9)
    assert np.abs(after[13:] - found.held_out[13:]).max() > 1e-2


def test_scores_are_of_judged_runs_alone():
    table = two_budgets()
    judge = Judge.create(table, mean_loss(table), judged=table.tokens == 4e7)
    choice = choose_law(judge, [Candidate(law="etk", forms=(Form(tokens="product"),))])
    errors = np.abs(choice.best.held_out - table.losses)[12:]
    np.testing.assert_allclose(list(choice.scores[0].set_errors.values()), errors.mean(axis=0))


# Forms


def counts(budgets, sizes):
    form = Form(
        tokens="product" if budgets else "none",
        size="product" if sizes else "none",
    )
    return runs_of(
        true_law("eti", form=form),
        24,
        budgets=BUDGETS if budgets else None,
        sizes=SIZES if sizes else None,
    )


@pytest.mark.parametrize("budgets", [False, True])
@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("law", ["eti", "separable", TREES])
def test_forms_have_terms_of_what_varies_and_of_nothing_else(law, budgets, sizes):
    forms = hypotheses(law, counts(budgets, sizes), None)
    assert len(set(forms)) == len(forms)
    for form in forms:
        assert sizes == (form.size != "none")
        if law == "eti":
            assert budgets == (form.tokens != "none")


def test_with_repetition_every_form_keeps_the_factor_that_convexity_needs():
    for sizes in (False, True):
        for form in hypotheses("eti", counts(True, sizes), SCARCE):
            assert form.tokens in ("product", "both")


def test_candidates_describe_themselves():
    forms = (Form(tokens="both", size="sum"), Form(tokens="sum", size="product"))
    expected = "eti, tokens both and size sum, tokens sum and size product"
    assert Candidate(law="eti", forms=forms).describe() == expected
    assert Candidate(law="etk").describe() == "etk"


# The edge


def test_errors_at_the_edge_need_two_counts_and_enough_mixtures_below_it():
    full = counts(True, True)
    judge = Judge.create(full, mean_loss(full))
    errors = edge_errors(judge, Candidate(law="eti"))
    assert set(errors) == {"tokens", "size"}
    assert all(0 < error < 0.1 for error in errors.values())
    below = np.flatnonzero(full.tokens < 4e7)
    two = full.select(np.flatnonzero(full.tokens > 1e7))
    few = full.select(np.r_[below[:3], np.flatnonzero(full.tokens == 4e7)])
    for table in (two, few):
        assert "tokens" not in edge_errors(
            Judge.create(table, mean_loss(table)), Candidate(law="eti")
        )
    flat = counts(False, False)
    assert edge_errors(Judge.create(flat, mean_loss(flat)), Candidate(law="eti")) == {}


# Trees


def test_trees_are_judged_like_a_law(monkeypatch):
    monkeypatch.setattr("autoscale.laws.trees.NUM_TREES", 30)
    table = runs_of(true_law("eti"), 40, noise=0.01)
    choice = chosen(table, [TREES])
    assert isinstance(choice.best.law, TreeLaw)
    assert choice.scores[0].converged == 1
    assert np.isfinite(choice.best.held_out).all()
