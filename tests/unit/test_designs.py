"""Drawn mixtures: on the simplex, within bounds, nested, and the informative ones among them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.designs import AssumedLaw, dirichlet_mixtures, optimal_mixtures
from autoscale.mixture import Mixture

NAMES = ("a", "b", "c", "d")
UNIFORM = Mixture.uniform(NAMES)
SKEWED = Mixture.from_mapping({"a": 0.55, "b": 0.25, "c": 0.15, "d": 0.05})


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**62), num_domains=st.integers(2, 30), num=st.integers(1, 8))
def test_draws_are_mixtures_and_a_longer_design_begins_with_the_shorter(seed, num_domains, num):
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(num_domains)]
    reference = Mixture.from_array(names, rng.uniform(0.1, 1, num_domains))
    longer = dirichlet_mixtures(reference, num + 3, stream=(seed, 7))
    assert longer.shape == (num + 3, num_domains) and longer.min() >= 0
    assert np.abs(longer.sum(axis=1) - 1).max() < 1e-12
    assert (dirichlet_mixtures(reference, num, stream=(seed, 7)) == longer[:num]).all()
    assert not np.isclose(dirichlet_mixtures(reference, num, stream=(seed, 8)), longer[:num]).all()


@pytest.mark.parametrize("reference", [UNIFORM, SKEWED], ids=["uniform", "skewed"])
def test_the_mean_is_the_reference_and_concentration_narrows_the_spread(reference):
    spread = []
    for concentration in ((1, 1), (1, 6), (6, 6)):
        drawn = dirichlet_mixtures(reference, 2000, stream=(1,), concentration=concentration)
        mean_K = reference.as_array()
        error_K = drawn.std(axis=0) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(axis=0) - mean_K) < 4 * error_K).all()
        spread.append(drawn.std(axis=0))
        if concentration[0] == concentration[1]:  # Dirichlet: variance w (1 - w) / (c K + 1)
            c = concentration[0]
            expected_K = np.sqrt(mean_K * (1 - mean_K) / (4 * c + 1))
            assert spread[-1] == pytest.approx(expected_K, rel=0.1)
    assert (spread[0] > spread[1]).all() and (spread[1] > spread[2]).all()


def test_upper_weights_hold_and_leave_what_they_allow_alone():
    upper_K = np.array([1.0, 0.4, 0.3, 0.26])
    free = dirichlet_mixtures(UNIFORM, 200, stream=(3,))
    bounded = dirichlet_mixtures(UNIFORM, 200, stream=(3,), upper=upper_K)
    inside = (free <= upper_K).all(axis=1)
    assert 0 < inside.sum() < 200
    assert bounded[inside] == pytest.approx(free[inside], abs=1e-12)
    assert (bounded <= upper_K + 1e-12).all()
    assert np.abs(bounded.sum(axis=1) - 1).max() < 1e-12


def test_tight_upper_weights_still_give_different_mixtures():
    names = [f"d{i}" for i in range(20)]
    upper_K = np.full(20, 1.2 / 20)
    drawn = dirichlet_mixtures(Mixture.uniform(names), 50, stream=(0,), upper=upper_K)
    assert (drawn <= upper_K + 1e-12).all()
    assert np.abs(drawn.sum(axis=1) - 1).max() < 1e-12
    assert len(np.unique(drawn.round(9), axis=0)) == 50


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"probe.concentration is \[6, 1\]; expected 0 < low"):
        dirichlet_mixtures(UNIFORM, 1, stream=(0,), concentration=(6, 1))
    with pytest.raises(ValueError, match=r"probe.concentration is \[0, 1\]"):
        dirichlet_mixtures(UNIFORM, 1, stream=(0,), concentration=(0, 1))
    with pytest.raises(ValueError, match="domain 'b' has weight 0 in the reference mixture, so no"):
        dirichlet_mixtures(Mixture.from_mapping({"a": 1.0, "b": 0.0}), 1, stream=(0,))
    with pytest.raises(ValueError, match=r"maximum weights sum to 0.8"):
        dirichlet_mixtures(UNIFORM, 1, stream=(0,), upper=[0.2] * 4)


def random_law(rng, num_sets=3, num_domains=4):
    return AssumedLaw(
        irreducible=rng.uniform(1, 2, num_sets),
        amplitude=rng.uniform(0.5, 2, num_sets),
        exponent=rng.uniform(0.1, 0.8, num_sets),
        share_exponent=rng.uniform(0.3, 0.9, num_sets),
        transfer=rng.uniform(0.05, 2, (num_sets, num_domains)),
    )


def losses(theta_Q, weights_CK):
    """The law of one set as its docstring gives it, from logarithms of its parameters."""
    level, amplitude, exponent, share_exponent, *transfer = np.exp(theta_Q)
    return level + amplitude * (weights_CK**share_exponent @ np.array(transfer)) ** -exponent


def test_the_jacobian_is_that_of_the_law():
    law = random_law(np.random.default_rng(5))
    weights = dirichlet_mixtures(UNIFORM, 6, stream=(2,))
    weights[0] = [0.7, 0.3, 0, 0]
    jacobian_JCQ = law.jacobian(weights)
    for j in range(3):
        shape = (law.irreducible, law.amplitude, law.exponent, law.share_exponent)
        theta = np.log([*(values[j] for values in shape), *law.transfer[j]])
        for q in range(len(theta)):
            step = 1e-6 * np.eye(len(theta))[q]
            slope = (losses(theta + step, weights) - losses(theta - step, weights)) / 2e-6
            assert jacobian_JCQ[j, :, q] == pytest.approx(slope, rel=1e-6, abs=1e-8)


PRIOR_SD = np.array([0.5, 3.0, 0.7, 0.15, *[1.5] * 4])


def information(law, weights_PK, noise):
    """Sum over the sets of the log determinant of the information, less that of the prior."""
    scaled_JPQ = law.jacobian(np.asarray(weights_PK)) * PRIOR_SD / noise
    matrices = [np.eye(len(PRIOR_SD)) + rows.T @ rows for rows in scaled_JPQ]
    return sum(np.linalg.slogdet(matrix)[1] for matrix in matrices)


@pytest.mark.parametrize("fitted", [False, True])
def test_every_chosen_mixture_is_the_best_next_one(fitted):
    law = random_law(np.random.default_rng(6)) if fitted else AssumedLaw.prior(4)
    candidates = dirichlet_mixtures(UNIFORM, 40, stream=(4,))
    known = [UNIFORM.weights, SKEWED.weights]
    chosen = optimal_mixtures(candidates, 5, known=known, law=law if fitted else None, noise=0.02)
    for p in range(5):
        so_far = [*known, *chosen[:p]]
        left = [row for row in candidates if not any((row == other).all() for other in chosen[:p])]
        best = max(left, key=lambda row: information(law, [*so_far, row], 0.02))
        assert (chosen[p] == best).all()
    assert (optimal_mixtures(candidates, 3, known=known, law=law, noise=0.02) == chosen[:3]).all()


def test_an_optimal_design_tells_more_than_a_drawn_one():
    law = AssumedLaw.prior(4)
    chosen = optimal_mixtures(
        dirichlet_mixtures(UNIFORM, 300, stream=(9,)), 8, known=[UNIFORM.weights]
    )
    assert len(np.unique(chosen, axis=0)) == 8
    drawn = [dirichlet_mixtures(UNIFORM, 8, stream=(seed,)) for seed in range(20)]
    most = max(information(law, [UNIFORM.weights, *rows], 0.01) for rows in drawn)
    assert information(law, [UNIFORM.weights, *chosen], 0.01) > most


def test_as_many_candidates_as_mixtures_are_needed():
    candidates = dirichlet_mixtures(UNIFORM, 3, stream=(0,))
    chosen = optimal_mixtures(candidates, 3, known=[UNIFORM.weights])
    assert sorted(map(tuple, chosen)) == sorted(map(tuple, candidates))
    with pytest.raises(ValueError, match="optimal design of 4 mixtures has only 3 candidates"):
        optimal_mixtures(candidates, 4, known=[UNIFORM.weights])
