"""The batched fit: minima that others find too, robustness, independence, and honest status."""

import numpy as np
import pytest
from scipy.optimize import minimize

from autoscale.laws.levenberg_marquardt import Problem, minimise

NUM_RUNS = 25
X = np.linspace(0.1, 3, NUM_RUNS)


def decay(theta_BQ, fits):
    """`exp(a) + exp(b - exp(c) x)`, a curve with a level, an amplitude and a rate."""
    level, amplitude, rate = np.exp(theta_BQ.T[:, :, None])
    falling = amplitude * np.exp(-rate * X)
    columns = [np.broadcast_to(level, falling.shape), falling, -falling * rate * X]
    return level + falling, np.stack(columns, axis=2)


def straight(theta_BQ, fits):
    design = np.stack([np.ones(NUM_RUNS), X], axis=1)
    return theta_BQ @ design.T, np.tile(design, (len(theta_BQ), 1, 1))


def problem(evaluate, observed, **changes):
    observed = np.atleast_2d(observed)
    num_fits, num_parameters = len(observed), 2 if evaluate is straight else 3
    fields = {
        "evaluate": evaluate,
        "observed": observed,
        "run_weights": np.ones(observed.shape),
        "noise": np.full(num_fits, 0.1),
        "prior_mean": np.zeros((num_fits, num_parameters)),
        "prior_sd": np.full((num_fits, num_parameters), 2.0),
        "relative": False,
    }
    return Problem(**(fields | changes))


def decays(num_fits, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, 0.5, (num_fits, 3))
    values, _ = decay(theta, np.arange(num_fits))
    return theta, values + noise * rng.normal(size=values.shape)


def cost(task, theta, fit=0):
    """The documented cost, written out."""
    value = task.evaluate(theta[None], np.array([fit]))[0][0]
    observed = task.observed[fit]
    residual = (np.log(value / observed) if task.relative else value - observed) / task.noise[fit]
    size, bend = np.abs(residual), task.huber
    huber = np.where(size < bend, residual**2 / 2, bend * (size - bend / 2))
    distance = (theta - task.prior_mean[fit]) / task.prior_sd[fit]
    return task.run_weights[fit] @ huber + 0.5 * distance @ distance


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("huber", [0.5, 1.5, 100.0])
def test_the_minimum_is_that_of_a_general_solver(relative, huber):
    _, observed = decays(4, noise=0.05)
    weights = np.random.default_rng(3).uniform(0, 3, observed.shape)
    task = problem(decay, observed, relative=relative, huber=huber, run_weights=weights)
    found = minimise(task, np.zeros((4, 3)), tolerance=1e-12)
    assert found.converged.all()
    for fit in range(4):
        assert found.cost[fit] == pytest.approx(cost(task, found.theta[fit], fit), rel=1e-12)
        other = minimize(lambda theta, fit=fit: cost(task, theta, fit), np.zeros(3))
        assert found.cost[fit] <= other.fun + 1e-7
        np.testing.assert_allclose(found.theta[fit], other.x, atol=2e-4)


def test_a_linear_law_without_outliers_has_the_closed_form():
    rng = np.random.default_rng(1)
    observed = 1.0 + 2.0 * X + 0.1 * rng.normal(size=NUM_RUNS)
    task = problem(straight, observed, huber=1e9)
    found = minimise(task, np.zeros((1, 2)), tolerance=1e-14)
    design = np.stack([np.ones(NUM_RUNS), X], axis=1)
    information = design.T @ design / 0.1**2 + np.eye(2) / 2.0**2
    expected = np.linalg.solve(information, design.T @ observed / 0.1**2)
    np.testing.assert_allclose(found.theta[0], expected, rtol=1e-9)
    np.testing.assert_allclose(found.information[0], information, rtol=1e-9)


def test_without_data_the_prior_remains():
    _, observed = decays(1)
    mean = np.array([[0.3, -0.2, 0.1]])
    task = problem(decay, observed, run_weights=np.zeros(observed.shape), prior_mean=mean)
    found = minimise(task, np.zeros((1, 3)), tolerance=1e-14)
    np.testing.assert_allclose(found.theta, mean, atol=1e-8)
    np.testing.assert_allclose(found.information[0], np.eye(3) / 4)


def test_a_run_of_weight_2_counts_like_two_runs_and_one_of_weight_0_not_at_all():
    _, observed = decays(1)
    weights = np.ones(observed.shape)
    weights[0, 3], weights[0, 5] = 0, 2
    changed = observed.copy()
    changed[0, 3] = 1e6
    task = problem(decay, observed, run_weights=weights)
    found = minimise(task, np.zeros((1, 3)), tolerance=1e-12)
    ignored = minimise(
        problem(decay, changed, run_weights=weights), np.zeros((1, 3)), tolerance=1e-12
    )
    np.testing.assert_allclose(ignored.theta, found.theta, atol=1e-9)
    rows = np.r_[[i for i in range(NUM_RUNS) if i != 3], 5]
    few = problem(
        lambda theta, fits: tuple(part[:, rows] for part in decay(theta, fits)), observed[:, rows]
    )
    np.testing.assert_allclose(
        minimise(few, np.zeros((1, 3)), tolerance=1e-12).theta, found.theta, atol=1e-6
    )


def test_outliers_pull_little():
    _, observed = decays(1, noise=0.02)
    spoiled = observed.copy()
    spoiled[0, ::8] += 3.0
    start, noise = np.zeros((1, 3)), np.full(1, 0.02)
    clean, robust, square = (
        minimise(problem(decay, data, noise=noise, huber=huber), start).theta
        for data, huber in ((observed, 1.5), (spoiled, 1.5), (spoiled, 1e9))
    )
    assert np.abs(robust - clean).max() < 0.1 * np.abs(square - clean).max()


def test_every_fit_of_a_batch_is_its_own():
    """More fits than a chunk holds give what each gives alone."""
    _, observed = decays(9000, seed=2)
    found = minimise(problem(decay, observed), np.zeros((9000, 3)))
    assert found.theta.shape == (9000, 3)
    for fit in (0, 3999, 4000, 8999):
        alone = minimise(problem(decay, observed[fit]), np.zeros((1, 3)))
        np.testing.assert_allclose(found.theta[fit], alone.theta[0], rtol=1e-9)
        assert found.converged[fit] == alone.converged[0]


def test_it_finds_its_way_from_far_off():
    truth, observed = decays(50, noise=0.02, seed=4)
    wide = {"noise": np.full(50, 0.02), "prior_sd": np.full((50, 3), 10.0)}
    near = minimise(problem(decay, observed, **wide), truth, tolerance=1e-10)
    far = minimise(
        problem(decay, observed, **wide), np.tile([3.0, -3.0, 2.0], (50, 1)), tolerance=1e-10
    )
    assert near.converged.all() and far.converged.all()
    assert np.mean(far.cost <= near.cost + 1e-6) > 0.9


def test_the_status_is_honest():
    _, observed = decays(3)
    short = minimise(problem(decay, observed), np.full((3, 3), 2.0), max_iterations=2)
    assert not short.converged.any()
    spoiled = observed.copy()
    spoiled[1, 0] = np.nan
    found = minimise(problem(decay, spoiled), np.zeros((3, 3)))
    assert found.converged.tolist() == [True, False, True]
