"""The non-parametric yardstick: fit, prediction, folds, JSON, and the missing extra."""

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest

from autoscale.laws import trees
from autoscale.laws.fit import mixture_folds
from autoscale.laws.frame import Form
from autoscale.laws.records import law_from_dict
from autoscale.laws.trees import TreeLaw, predict_held_out_trees
from tests.unit.synthetic_runs import BUDGETS, SIZES, runs_of, simplex_grid, true_law

FULL = Form(tokens="product", size="product")


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """The published number takes seconds; the learning rate makes up for fewer."""
    monkeypatch.setattr(trees, "NUM_TREES", 60)
    monkeypatch.setitem(trees.SETTINGS, "learning_rate", 0.1)


def runs(num_runs=150, noise=0.005):
    return runs_of(true_law("eti"), num_runs, noise=noise)


def runs_with_counts():
    return runs_of(true_law("eti", form=FULL), 150, noise=0.005, budgets=BUDGETS, sizes=SIZES)


def test_trees_learn_what_mixtures_do():
    law = TreeLaw.fit(runs())
    test = runs_of(true_law("eti"), 100, seed=50)
    predicted = law.predict(test.weights, None, None)
    assert predicted.shape == test.losses.shape
    left = (predicted - test.losses).var(axis=0) / test.losses.var(axis=0)
    assert (left < 0.35).all()


def test_trees_learn_what_tokens_and_sizes_do():
    table = runs_with_counts()
    law = TreeLaw.fit(table)
    assert law.uses_tokens and law.uses_parameters
    few = law.predict(simplex_grid(), BUDGETS[0], SIZES[0]).mean(axis=0)
    many = law.predict(simplex_grid(), BUDGETS[-1], SIZES[-1]).mean(axis=0)
    assert (many < few).all()


def test_folds_never_use_a_runs_own_mixture():
    table = runs(60)
    folds = mixture_folds(table, 3, seed=0)
    folds[:10] = -1
    predicted = predict_held_out_trees(table, folds)
    assert np.isnan(predicted[:10]).all() and np.isfinite(predicted[10:]).all()
    losses = table.losses.copy()
    held = folds == 1
    losses[held] *= 1.5
    changed = predict_held_out_trees(replace(table, losses=losses), folds)
    np.testing.assert_array_equal(changed[held], predicted[held])


def test_json_round_trips_are_exact():
    law = TreeLaw.fit(runs_with_counts())
    again = law_from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
    assert isinstance(again, TreeLaw)
    point = (simplex_grid(), 3e7, 1e6)
    np.testing.assert_array_equal(again.predict(*point), law.predict(*point))


def test_fits_repeat():
    first, second = (TreeLaw.fit(runs()).models for _ in range(2))
    assert first == second


def test_the_surface_gives_losses_and_claims_no_more():
    law = TreeLaw.fit(runs_with_counts())
    surface = law.surface(4e7, 1e6)
    assert not surface.convex and not surface.differentiable
    weights = simplex_grid()[:6]
    losses = surface.losses(weights.reshape(2, 3, -1))
    assert losses.shape == (2, 3, 4)
    np.testing.assert_array_equal(losses.reshape(6, 4), law.predict(weights, 4e7, 1e6))


def test_a_few_runs_are_enough_to_fit():
    law = TreeLaw.fit(runs(6))
    assert np.isfinite(law.predict(simplex_grid(), None, None)).all()


@pytest.mark.parametrize(
    ("tokens", "parameters", "what"), [(None, 1e6, "tokens"), (1e7, None, "parameters")]
)
def test_counts_that_were_fitted_are_needed(tokens, parameters, what):
    law = TreeLaw.fit(runs_with_counts())
    with pytest.raises(ValueError, match=f"fitted with {what}; give them to predict too"):
        law.predict(simplex_grid(), tokens, parameters)


def test_without_lightgbm_the_message_names_the_extra(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "lightgbm":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"not installed: pip install 'autoscale\[trees\]'"):
        TreeLaw.fit(runs(10))


def test_tables_that_carry_no_law_are_refused():
    with pytest.raises(ValueError, match="a fit needs at least 3 runs"):
        TreeLaw.fit(runs(2))
