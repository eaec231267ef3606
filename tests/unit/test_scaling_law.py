"""The published law: official parameters, recovery, gradients, ties, bounds, joint fits, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.mixture import Mixture
from autoscale.scaling_law import (
    Amplitude,
    FitError,
    PowerLaw,
    _Problem,
    fit_power_law,
    fit_separable,
)
from autoscale.solver import solve_mixture

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures/autoscale_official.json").read_text())
DOMAINS = OFFICIAL["domains"]
NUM_DOMAINS = len(DOMAINS)


def official_laws() -> list[PowerLaw]:
    columns = [OFFICIAL["laws"][name] for name in ("equivalent", "exponent", "irreducible")]
    return [
        PowerLaw(domain=name, equivalent=e, exponent=g, irreducible=c)
        for name, e, g, c in zip(DOMAINS, *columns, strict=True)
    ]


def official_runs() -> tuple[np.ndarray, np.ndarray]:
    """The 15 probe runs: multiples of shape (15, 7) and objectives of shape (15,)."""
    scaled = [OFFICIAL["multiples"]["down"] - 1, OFFICIAL["multiples"]["up"] - 1]
    changes = np.vstack([np.zeros((1, 7)), *(change * np.eye(7) for change in scaled)])
    perplexity = OFFICIAL["perplexity"]
    values = np.array([perplexity["reference"], *perplexity["down"], *perplexity["up"]])
    return 1 + changes, values / perplexity["reference"]


def fixed_total_runs(factors: tuple[float, ...]) -> np.ndarray:
    """Multiples of runs around uniform weights whose total is unchanged."""
    rows = [np.ones(NUM_DOMAINS)]
    for i in range(NUM_DOMAINS):
        for factor in factors:
            row = np.full(NUM_DOMAINS, (NUM_DOMAINS - factor) / (NUM_DOMAINS - 1))
            row[i] = factor
            rows.append(row)
    return np.array(rows)


def test_official_parameters() -> None:
    laws = fit_separable(DOMAINS, *official_runs())
    for name in ("equivalent", "exponent", "irreducible"):
        found = [getattr(law, name) for law in laws]
        np.testing.assert_allclose(found, OFFICIAL["laws"][name], rtol=1e-6)
    for law in laws:
        assert (law.status, law.degrees_of_freedom, law.at_bounds) == ("converged", 0, ())
        assert law.num_points == 3 and law.residual_rms < 1e-12


def test_three_points_have_a_second_law_and_the_message_says_so() -> None:
    x_PK, y_P = official_runs()
    law = fit_separable(DOMAINS, x_PK, y_P)[0]
    assert "a second law (exponent 0.124, equivalent 0.789, irreducible 0.0697)" in law.message
    rows = [0, 1, 8]
    twin = fit_power_law("other", x_PK[rows, 0], y_P[rows])
    low = PowerLaw(domain="twin", exponent=0.12415, equivalent=0.78929, irreducible=0.06975)
    np.testing.assert_allclose(low(x_PK[rows, 0]), twin(x_PK[rows, 0]), atol=2e-4)
    assert twin.irreducible > low.irreducible


@settings(max_examples=12, deadline=None)
@given(
    exponent=st.floats(0.3, 4),
    equivalent=st.floats(0.05, 8),
    irreducible=st.floats(0.2, 0.95),
    amplitude=st.sampled_from([None, 0.5, 2.0]),
)
def test_recovers_known_parameters(
    exponent: float, equivalent: float, irreducible: float, amplitude: float | None
) -> None:
    x_P = np.geomspace(0.05, 30, 9)
    y_P = (amplitude or 1) * (x_P + equivalent) ** -exponent + irreducible
    kind: Amplitude = "unit" if amplitude is None else "free"
    law = fit_power_law("a", x_P, y_P, amplitude=kind)
    expected = [exponent, equivalent, irreducible, amplitude or 1]
    found = [law.exponent, law.equivalent, law.irreducible, law.amplitude]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert law.status == "converged" and law.residual_rms < 1e-9


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_jacobian_matches_finite_differences(free: bool, joint: bool) -> None:
    rng = np.random.default_rng(0)
    num_domains = 3 if joint else 1
    x_PK = rng.uniform(0.2, 4, size=(6, num_domains))
    problem = _Problem(x_PK, rng.uniform(0.8, 1.2, size=6), free=free, joint=joint)
    theta = rng.uniform(0.1, 0.8, size=problem.num_parameters)
    step = 1e-6
    columns = [
        (problem.residual(theta + step * unit) - problem.residual(theta - step * unit)) / (2 * step)
        for unit in np.eye(problem.num_parameters)
    ]
    np.testing.assert_allclose(problem.jacobian(theta), np.transpose(columns), atol=1e-8)


def test_derivative_matches_finite_differences() -> None:
    law = PowerLaw(domain="a", exponent=1.3, equivalent=0.4, irreducible=0.7, amplitude=0.6)
    x = np.linspace(0.1, 5, 7)
    numeric = (law(x + 1e-6) - law(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(law.derivative(x), numeric, atol=1e-8)
    assert np.isinf(PowerLaw(domain="a", exponent=1, equivalent=0, irreducible=0)(0.0))


def test_record_round_trips_through_json() -> None:
    law = fit_power_law("a", [0.2, 1, 3], [1.1, 1, 1.2])
    assert PowerLaw.from_dict(json.loads(json.dumps(law.to_dict()))) == law


@pytest.mark.parametrize("values", [[0.9, 1, 1.1], [1, 1, 1], [0.99, 1.01, 1.0]])
def test_points_that_do_not_fall_give_a_flat_law(values: list[float]) -> None:
    law = fit_power_law("a", [1 / 3, 1, 3], values)
    assert law.status == "at_bound" and law.at_bounds == ("exponent",)
    assert "did not fall with more tokens of domain 'a'" in law.message
    assert -1e-3 < law.derivative(1.0) < 0


def test_bounds_are_a_status() -> None:
    law = fit_power_law("a", [1 / 3, 1, 3], [1.001, 1, 1.0005])
    assert law.status == "at_bound" and "irreducible" in law.at_bounds
    assert "rests on its bound" in law.message


def test_equivalent_rests_exactly_on_zero() -> None:
    x_P = np.array([0.2, 0.5, 1, 2, 5])
    law = fit_power_law("a", x_P, x_P**-0.5 * 0.4 + 0.6, amplitude="free")
    assert law.equivalent == pytest.approx(0, abs=1e-9) and law.exponent == pytest.approx(0.5)
    law = fit_power_law("a", x_P, (x_P - 0.05) ** -0.5 * 0.4 + 0.6, amplitude="free")
    assert law.equivalent == 0 and law.at_bounds == ("equivalent",)


def test_misfit_of_exactly_determined_points_is_told() -> None:
    law = fit_power_law("a", [0.2, 1, 3], [1.4, 1, 0.6])
    assert law.residual_rms > 0.01 and law.degrees_of_freedom == 0
    assert "the form cannot follow them, add a factor" in law.message


def test_fixed_total_runs_are_fitted_jointly() -> None:
    truth = official_laws()
    x_PK = fixed_total_runs((3, 1 / 3, 2, 0.5))
    y_P = 1 + sum(law(x_PK[:, i]) - law(1.0) for i, law in enumerate(truth))
    laws = fit_separable(DOMAINS, x_PK, y_P)
    assert all(law.degrees_of_freedom == 29 - 15 and law.num_points == 29 for law in laws)
    np.testing.assert_allclose([law.exponent for law in laws], OFFICIAL["laws"]["exponent"])
    np.testing.assert_allclose([law.equivalent for law in laws], OFFICIAL["laws"]["equivalent"])


def test_joint_fit_reduces_to_the_published_one() -> None:
    """A run that repeats the reference mixture but for rounding makes the fit joint."""
    x_PK, y_P = official_runs()
    nearly = x_PK.copy()
    nearly[0, :2] += 1e-9
    joint, separate = fit_separable(DOMAINS, nearly, y_P), fit_separable(DOMAINS, x_PK, y_P)
    for one, other in zip(joint, separate, strict=True):
        for name in ("exponent", "equivalent", "irreducible"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5)


def test_joint_fit_with_noise_finds_a_good_mixture() -> None:
    truth = official_laws()
    x_PK = fixed_total_runs((3, 1 / 3, 2, 0.5))
    y_P = 1 + sum(law(x_PK[:, i]) - law(1.0) for i, law in enumerate(truth))
    y_P = y_P + np.random.default_rng(1).normal(scale=1e-3, size=len(y_P))
    reference = Mixture.uniform(DOMAINS)
    bounds = {"lower": np.zeros(NUM_DOMAINS), "upper": np.ones(NUM_DOMAINS)}
    found = solve_mixture(fit_separable(DOMAINS, x_PK, y_P), reference, **bounds)
    best = solve_mixture(truth, reference, **bounds)
    multiples = NUM_DOMAINS * found.mixture.as_array()
    reached = sum(float(law(x)) for law, x in zip(truth, multiples, strict=True))
    uniform = sum(float(law(1.0)) for law in truth)
    assert reached - best.objective < 0.1 * (uniform - best.objective)


def test_errors() -> None:
    with pytest.raises(FitError, match=r"domain 'arxiv' was probed at 3 .*'free' has 4 parameters"):
        fit_power_law("arxiv", [0.2, 1, 3], [1.1, 1, 0.9], amplitude="free")
    with pytest.raises(FitError, match=r"add a factor to probe\.factors or set fit\.amplitude"):
        fit_power_law("arxiv", [0.2, 1, 3], [1.1, 1, 0.9], amplitude="free")
    with pytest.raises(FitError, match=r"'arxiv' was probed at 2 .* its probe runs finished"):
        fit_power_law("arxiv", [1, 3, 1], [1, 0.9, 1])
    with pytest.raises(FitError, match="domain 'arxiv' has the objective nan"):
        fit_power_law("arxiv", [0.2, 1, 3], [1.1, 1, float("nan")])
    with pytest.raises(FitError, match=r"domain 'arxiv' has the token multiple 0\.0"):
        fit_power_law("arxiv", [0, 1, 3], [1.1, 1, 0.9])
    with pytest.raises(FitError, match="two lists of one length"):
        fit_power_law("arxiv", [0.2, 1], [1.1, 1, 0.9])
    with pytest.raises(FitError, match="a row per run and a column per domain"):
        fit_separable(["a", "b"], np.ones((3, 3)), np.ones(3))
    x_PK = fixed_total_runs((3,))
    with pytest.raises(FitError, match="joint law of 7 domains has 15 parameters but only 8"):
        fit_separable(DOMAINS, x_PK, np.ones(len(x_PK)))
    x_PK[3, 2] = np.inf
    with pytest.raises(FitError, match="domain 'books' has the token multiple inf"):
        fit_separable(DOMAINS, x_PK, np.ones(len(x_PK)))
