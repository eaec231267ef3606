"""UtiliMax's portfolio, AutoScale's projections, and the joint law."""

import numpy as np
import pytest

from autoscale.methods.joint import Joint
from autoscale.methods.method import ProbeBudget
from autoscale.methods.one_at_a_time import AutoScale
from autoscale.methods.utilimax import GivenUtilities, UtiliMax, solve_utilities
from autoscale.mixture import Mixture
from autoscale.objective import Objective
from autoscale.projection import path_tokens
from autoscale.run_table import RunTable
from autoscale.scaling_law import PowerLaw
from autoscale.solver import solve_mixture
from tests.unit.methods.problems import DOMAINS, SETS, TRUTH, best_on_simplex, problem, rng, runs_of

RUN = 12_000_000
BUDGET = ProbeBudget(run_tokens=RUN)


def free():
    return problem().constraints(problem().target_tokens)


def test_domains_alike_share_equally():
    mixture, gap = solve_utilities(np.full((4, 3), 0.7), free())
    assert mixture.weights == pytest.approx((0.25,) * 4, abs=1e-5) and gap < 1e-6


def test_a_portfolio_matches_its_closed_form():
    # One task: minimise 1 - w.u + m |w|^2, so that w_i = 1/K + (u_i - mean u) / 2m inside.
    utility = np.array([0.9, 0.6, 0.5, 0.4])
    mixture, _ = solve_utilities(utility[:, None], free(), risk=2.0)
    assert mixture.weights == pytest.approx(0.25 + (utility - utility.mean()) / 4, abs=1e-5)


def test_a_portfolio_is_the_best_of_many():
    utility = rng(3).uniform(size=(4, 5))

    def value(weights):
        distance = np.sqrt(((weights @ utility - 1) ** 2).sum(axis=-1))
        return distance + 0.5 * (weights**2).sum(axis=-1)

    mixture, _ = solve_utilities(utility, free(), risk=0.5)
    np.testing.assert_allclose(mixture.as_array(), best_on_simplex(value), atol=2e-3)


def test_without_risk_the_best_domain_takes_what_it_may():
    utility = np.array([[0.2], [1.0], [0.5], [0.1]])
    capped = problem(target_tokens=1_000_000_000, max_epochs=3.0)
    mixture, _ = solve_utilities(utility, capped.constraints(1_000_000_000), risk=0.0)
    assert mixture.weights == pytest.approx((0, 0.3, 0.7, 0), abs=1e-6)


def test_utilities_come_from_runs_on_single_domains():
    method = UtiliMax(risk=0.2)
    found = method.choose(problem(), runs_of(method.design(problem(), BUDGET, rng())))
    losses = TRUTH.losses(np.eye(4))
    utility = (losses.max(axis=0) - losses) / np.ptp(losses, axis=0)
    expected, _ = solve_utilities(utility, free(), risk=0.2)
    assert found.mixture.weights == pytest.approx(expected.weights, abs=1e-5)


def test_a_domain_without_a_run_of_its_own_is_named():
    probes = UtiliMax().design(problem(), BUDGET, rng())
    runs = runs_of([probe for probe in probes if probe.label != "only-books"])
    with pytest.raises(ValueError, match="needs a probe run on domain 'books' alone"):
        UtiliMax().choose(problem(), runs)


def test_given_utilities_need_every_domain_and_task():
    given = dict(zip(DOMAINS, [(1.0, 0.5), (0.5, 1.0), (0.2, 0.2), (0.0, 0.0)], strict=True))
    found = GivenUtilities(utilities=given, risk=2.0).choose(problem(), None)
    # Both tasks fall equally short, so that the distance is sqrt(2) times that of their mean.
    utility = np.mean(list(given.values()), axis=1)
    expected = 0.25 + np.sqrt(2) * (utility - utility.mean()) / (2 * 2.0)
    assert found.mixture.weights == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="utilities lacks domain 'wiki'"):
        GivenUtilities(utilities={k: v for k, v in given.items() if k != "wiki"}).choose(
            problem(), None
        )
    with pytest.raises(ValueError, match="have 1 to 2 utilities"):
        GivenUtilities(utilities=given | {"wiki": (0.1,)}).choose(problem(), None)
    with pytest.raises(ValueError, match="utility of domain 'wiki' is not a finite number"):
        GivenUtilities(utilities=given | {"wiki": (0.1, np.nan)}).choose(problem(), None)


LAWS = [
    PowerLaw(domain=name, exponent=gamma, equivalent=worth, irreducible=0.7)
    for name, gamma, worth in zip(DOMAINS, (1.1, 1.5, 0.8, 1.2), (2.0, 3.0, 4.0, 2.5), strict=True)
]


def separable_runs(probes, budgets=(RUN / 2, RUN)):
    """Losses by the published law around uniform weights, the same law at every budget."""
    losses = []
    for probe in probes:
        tokens = probe.mixture.as_array() * probe.tokens
        base = next(b for b in budgets if np.isclose(tokens, b / 4, rtol=1e-4).sum() >= 3)
        multiples = tokens / (base / 4)
        changes = [float(law(x) - law(1.0)) for law, x in zip(LAWS, multiples, strict=True)]
        losses.append(4.0 * (1 + sum(changes)))
    return RunTable(
        runs=tuple(probe.label for probe in probes),
        domains=DOMAINS,
        sets=("all",),
        weights=np.stack([probe.mixture.as_array() for probe in probes]),
        tokens=np.array([probe.tokens for probe in probes]),
        losses=np.array(losses)[:, None],
    )


def of_all(**changes):
    return problem(objective=Objective.create("mean_loss", ("all",)), **changes)


def optimum():
    bounds = {"lower": np.full(4, 0.05), "upper": np.ones(4)}
    return solve_mixture(LAWS, Mixture.uniform(DOMAINS), **bounds).mixture.as_array()


@pytest.mark.parametrize("kind", ["full", "hold", "damped"])
def test_one_optimum_at_both_budgets_is_kept_at_the_target(kind):
    method = AutoScale(kind=kind)
    probes = method.design(of_all(), BUDGET, rng())
    found = method.choose(of_all(), separable_runs(probes))
    # Three points determine each law up to the rounding of tokens.
    np.testing.assert_allclose(found.mixture.as_array(), optimum(), atol=2e-3)


def test_the_full_projection_follows_the_path_of_the_two_optima():
    method = AutoScale(kind="full")
    probes = method.design(of_all(), BUDGET, rng())
    runs = separable_runs(probes)
    # At the smaller budget code is worth less: its effects there are halved.
    small = np.array(["code" in name and name.endswith(str(RUN // 2)) for name in runs.runs])
    base = runs.losses[list(runs.runs).index(f"reference-{RUN // 2}")]
    losses = np.where(small[:, None], base + (runs.losses - base) / 2, runs.losses)
    table = RunTable(
        runs=runs.runs,
        domains=DOMAINS,
        sets=runs.sets,
        weights=runs.weights,
        tokens=runs.tokens,
        losses=losses,
    )
    hold = AutoScale(kind="hold").choose(of_all(), table).mixture.as_array()
    damped = AutoScale(kind="damped").choose(of_all(), table).mixture.as_array()
    full = method.choose(of_all(), table).mixture.as_array()
    assert full[1] > damped[1] > hold[1]
    half = AutoScale(kind="hold").choose(of_all(), table.select(runs.tokens < 0.9 * RUN)).mixture
    tokens = path_tokens(half.as_array() * RUN / 2, hold * RUN, 3.0)
    at_three = of_all(target_tokens=round(tokens.sum()))
    np.testing.assert_allclose(
        method.choose(at_three, table).mixture.as_array(), tokens / tokens.sum(), atol=1e-6
    )


def test_the_projections_need_their_own_design():
    hold = AutoScale(kind="hold").design(of_all(), BUDGET, rng())
    with pytest.raises(ValueError, match=r"'autoscale_full' needs 2 probe budget\(s\).*found 1"):
        AutoScale(kind="full").choose(of_all(), separable_runs(hold))
    swarm = Joint().design(problem(), BUDGET, rng())
    with pytest.raises(ValueError, match="Runs that change several domains are of no use"):
        AutoScale(kind="hold").choose(problem(), runs_of(swarm))


def test_the_joint_law_comes_near_the_optimum():
    method = Joint()
    probes = method.design(problem(), ProbeBudget(run_tokens=RUN, total_tokens=40 * RUN), rng())
    found = method.choose(problem(), runs_of(probes, noise=0.002))

    def mean_loss(weights):
        return TRUTH.losses(weights).mean(axis=-1)

    uniform, best = mean_loss(np.full(4, 0.25)), mean_loss(best_on_simplex(mean_loss))
    assert mean_loss(found.mixture.as_array()) < uniform - 0.9 * (uniform - best)
    assert "held from the largest probe budget" in found.message


def test_the_joint_law_knows_repetition_where_a_domain_can_repeat():
    method = Joint(law="etk", draws=2)
    probes = method.design(problem(), BUDGET, rng())
    runs = runs_of(probes)
    plenty = problem(available_tokens=np.full(4, 1e12))
    scarce = problem(
        available_tokens=np.array([1e12, 2e6, 1e12, 1e12]), reference=Mixture.uniform(DOMAINS)
    )
    code = {
        name: method.choose(asked, runs).mixture.to_dict()["code"]
        for name, asked in (("plenty", plenty), ("scarce", scarce))
    }
    assert code["scarce"] < code["plenty"]
    assert set(SETS) == set(runs.sets)
