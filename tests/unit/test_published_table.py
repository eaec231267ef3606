"""The published law from a table of runs; the authors' numbers are in `test_table_commands.py`."""

import numpy as np
import pytest

from autoscale.constraints import InfeasibleError
from autoscale.objective import Objective
from autoscale.published_table import fit_published_table, solve_published
from autoscale.run_table import RunTable
from autoscale.scaling_law import FitError, PowerLaw

DOMAINS = ("web", "code", "books")
TRUTH = [
    PowerLaw(domain=name, exponent=exponent, equivalent=equivalent, irreducible=irreducible)
    for name, exponent, equivalent, irreducible in zip(
        DOMAINS, (1.2, 1.5, 0.8), (2.0, 3.0, 4.0), (0.8, 0.9, 0.75), strict=True
    )
]
REFERENCE = np.array([100.0, 50.0, 150.0])
OBJECTIVE = Objective.create("mean_loss", ("all",))
NO_BOUNDS = (np.zeros(3), np.ones(3))


def table_of(multiples_PK, *, level=4.0, tokens=True):
    """Runs of the additive law whose reference run has tokens `REFERENCE`."""
    tokens_PK = np.asarray(multiples_PK) * REFERENCE
    change_P = sum(
        law(x) - law(1.0) for law, x in zip(TRUTH, np.transpose(multiples_PK), strict=True)
    )
    total_P = tokens_PK.sum(axis=1)
    return RunTable(
        runs=tuple(f"r{p}" for p in range(len(tokens_PK))),
        domains=DOMAINS,
        sets=("all",),
        weights=tokens_PK / total_P[:, None],
        tokens=total_P if tokens else None,
        losses=level * (1 + np.asarray(change_P)[:, None]),
    )


def one_at_a_time(factors=(0.25, 0.5, 2.0, 4.0)):
    rows = [np.ones(3)]
    rows += [1 + (factor - 1) * np.eye(3)[i] for i in range(3) for factor in factors]
    return np.array(rows)


@pytest.mark.parametrize("place", [0, 4, 12])
def test_the_reference_run_is_found_wherever_it_stands(place):
    order = np.arange(1, 13).tolist()
    order.insert(place, 0)
    found = fit_published_table(table_of(one_at_a_time()[order]), OBJECTIVE)
    assert found["token_budget"] == 300 and found["base_objective"] == pytest.approx(4)
    assert found["reference_tokens"] == pytest.approx(dict(zip(DOMAINS, REFERENCE, strict=True)))
    for law, truth in zip(found["laws"], TRUTH, strict=True):
        assert law["exponent"] == pytest.approx(truth.exponent, rel=1e-5)
        assert law["equivalent"] == pytest.approx(truth.equivalent, rel=1e-5)


def test_counts_rounded_to_batches_are_one_count():
    multiples = one_at_a_time()
    noisy = multiples * (1 + 4e-4 * np.random.default_rng(0).uniform(-1, 1, multiples.shape))
    exact, rounded = (fit_published_table(table_of(x), OBJECTIVE) for x in (multiples, noisy))
    for one, other in zip(exact["laws"], rounded["laws"], strict=True):
        assert one["num_points"] == other["num_points"] == 5
        assert other["exponent"] == pytest.approx(one["exponent"], rel=0.2)


@pytest.mark.parametrize("budget", [300, 1200])
def test_the_optimum_beats_every_sampled_mixture_and_states_its_objective(budget):
    found = fit_published_table(table_of(one_at_a_time()), OBJECTIVE)
    solution, objective = solve_published(found, budget, *NO_BOUNDS)

    def value(weights_K):
        multiples = budget * weights_K / REFERENCE
        return 4 * (1 + sum(law(x) - law(1.0) for law, x in zip(TRUTH, multiples, strict=True)))

    assert objective == pytest.approx(value(solution.mixture.as_array()), rel=1e-6)
    sampled = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    assert objective <= min(map(value, sampled)) + 1e-6
    reference = REFERENCE / REFERENCE.sum()
    assert value(reference) == pytest.approx(4) if budget == 300 else value(reference) < 4


def test_bounds_hold_or_are_refused():
    found = fit_published_table(table_of(one_at_a_time()), OBJECTIVE)
    solution, _ = solve_published(found, 300, np.full(3, 0.3), np.ones(3))
    assert (solution.mixture.as_array() >= 0.3 - 1e-12).all() and solution.at_lower
    with pytest.raises(InfeasibleError, match=r"minimum weights sum to 1\.2, above 1"):
        solve_published(found, 300, np.full(3, 0.4), np.ones(3))


def test_tables_without_the_design_are_refused():
    multiples = one_at_a_time()
    with pytest.raises(ValueError, match=r"is a law of the domains' tokens, and the table has w"):
        fit_published_table(table_of(multiples, tokens=False), OBJECTIVE)
    several = np.vstack([multiples, [[2, 3, 1]]])
    with pytest.raises(ValueError, match="these runs change several at once: use another law"):
        fit_published_table(table_of(several), OBJECTIVE)
    with pytest.raises(FitError, match="domain 'books' was probed at 1"):
        fit_published_table(table_of(multiples[:9]), OBJECTIVE)
    without = np.where(np.arange(3) == 2, 0.0, multiples[:9])
    with pytest.raises(ValueError, match=r"run 'r0', which the others .* no tokens of 'books'"):
        fit_published_table(table_of(without), OBJECTIVE)
