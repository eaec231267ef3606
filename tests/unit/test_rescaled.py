"""Corrections of a law by a handful of runs at the target's model size."""

import json

import numpy as np
import pytest

from autoscale.laws.fit import bootstrap, fit_law
from autoscale.laws.frame import Form
from autoscale.laws.records import law_from_dict
from autoscale.laws.rescaled import RescaledLaw, rescaled
from autoscale.run_table import RunTable

DOMAINS = ("web", "code", "books", "wiki")
SMALL, LARGE = 1e6, 6e7


def losses(weights_PK, size):
    """Slopes of the mixture steeper at the large size than any term of the law has it."""
    transfer = 0.2 + 0.8 * np.eye(4)
    reducible = ((weights_PK**0.6) @ transfer) ** -0.4
    return 1.5 + (1.2 * reducible if size == SMALL else 0.2 + 1.0 * reducible**1.6)


def table(num_small, num_large, *, large_tokens=1e9, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 1.5), num_small + num_large)
    size = np.repeat([SMALL, LARGE], [num_small, num_large])
    observed = np.where((size == SMALL)[:, None], losses(weights, SMALL), losses(weights, LARGE))
    tokens = np.full(len(size), 1e9)
    tokens[num_small:] = large_tokens
    return RunTable(
        runs=tuple(map(str, range(len(size)))),
        domains=DOMAINS,
        sets=DOMAINS,
        weights=weights,
        tokens=tokens,
        parameters=size,
        losses=observed + 0.003 * rng.normal(size=observed.shape),
    )


def fitted(runs):
    law = fit_law(runs, "eti", forms=(Form(size="product"),))
    return bootstrap(law, runs, num_draws=8, seed=0)


@pytest.fixture(scope="module")
def corrected():
    runs = table(30, 6)
    base = fitted(runs)
    return base, rescaled(base, runs)


def test_a_handful_of_runs_improves_predictions_at_their_size(corrected):
    base, law = corrected
    new = np.random.default_rng(9).dirichlet(np.full(4, 1.5), 200)
    truth = losses(new, LARGE)
    before = np.abs(base.predict(new, None, LARGE) - truth).mean()
    assert np.abs(law.predict(new, None, LARGE) - truth).mean() < 0.8 * before


def test_other_sizes_are_left_alone(corrected):
    base, law = corrected
    new = np.full((1, 4), 0.25)
    assert np.array_equal(law.predict(new, None, SMALL), base.predict(new, None, SMALL))
    assert np.array_equal(law.predict_draws(new, None, 2e7), base.predict_draws(new, None, 2e7))


def test_surface_is_that_of_the_predictions(corrected):
    _, law = corrected
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    for draw in (None, 3):
        surface = law.surface(None, LARGE, draw)
        expected = (
            law.predict(weights, None, LARGE)[0]
            if draw is None
            else law.predict_draws(weights, None, LARGE)[draw, 0]
        )
        assert surface.losses(weights) == pytest.approx(expected, rel=1e-12)
        assert surface.convex
    surface, along = law.surface(None, LARGE), np.eye(4) - 1 / 4
    step = 1e-6
    numeric = np.stack(
        [(surface.losses(weights + step * d) - surface.losses(weights - step * d)) / (2 * step)
         for d in along], axis=1
    )  # fmt: skip
    assert surface.gradients(weights) @ along == pytest.approx(numeric, abs=1e-6)
    curved = np.stack(
        [(surface.gradients(weights + step * d) - surface.gradients(weights - step * d))[0]
         / (2 * step) for d in along]
    )  # fmt: skip
    hessian = surface.hessian(weights, np.eye(4)[0])
    assert along @ hessian @ along == pytest.approx(along @ curved @ along, abs=1e-5)


def test_json_round_trip_is_exact(corrected):
    _, law = corrected
    again = law_from_dict(json.loads(json.dumps(law.to_dict())))
    assert isinstance(again, RescaledLaw)
    weights = np.full((1, 4), 0.25)
    for name in ("predict", "predict_draws"):
        assert np.array_equal(
            getattr(again, name)(weights, None, LARGE), getattr(law, name)(weights, None, LARGE)
        )


def test_one_run_or_several_budgets_cannot_tell():
    for runs in (table(30, 1), table(30, 6, large_tokens=np.geomspace(1e8, 1e9, 6))):
        law = fitted(runs)
        assert rescaled(law, runs) is law
