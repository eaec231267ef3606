"""Designs of all methods, their cost, and what runs no method accepts."""

from dataclasses import replace

import numpy as np
import pytest

from autoscale.constraints import InfeasibleError
from autoscale.methods.method import ProbeBudget, num_tokens
from autoscale.methods.registry import METHODS
from autoscale.objective import Objective
from tests.unit.methods.problems import DOMAINS, problem, rng, runs_of

RUN = 1_000_000
OWN_COST = {  # in runs of that size
    "regmix": 512,
    "data_mixing_laws": 20,
    "olmix": 20,
    "utilimax": 4,
    "autoscale_full": 1.5 * (9 + 4 / 3),
    "autoscale_hold": 9 + 4 / 3,
    "autoscale_damped": 1.5 * (9 + 4 / 3),
    "joint": 16,
}
PROBED = list(OWN_COST)


def design(name, total=None, seed=0, **changes):
    budget = ProbeBudget(run_tokens=RUN, total_tokens=total)
    return METHODS[name].design(problem(**changes), budget, rng(seed))


def test_all_methods_with_probes_are_tested_here():
    fixed = {"uniform", "natural", "unimax", "llama_redpajama", "doremi_pile", "regmix_pile"}
    assert set(PROBED) | fixed == set(METHODS)


@pytest.mark.parametrize("name", PROBED)
def test_own_designs_cost_what_was_published(name):
    probes = design(name)
    assert num_tokens(probes) / RUN == pytest.approx(OWN_COST[name], abs=0.01)
    assert len({probe.label for probe in probes}) == len(probes)
    assert {probe.mixture.domains for probe in probes} == {DOMAINS}


@pytest.mark.parametrize("name", PROBED)
def test_designs_spend_the_budget_and_no_more(name):
    probes = design(name, total=40 * RUN)
    assert 39 * RUN <= num_tokens(probes) <= 40 * RUN + len(probes)
    weights = np.array([probe.mixture.weights for probe in probes])
    assert len(np.unique(weights.round(6), axis=0)) >= (4 if name == "utilimax" else 9)


@pytest.mark.parametrize("name", ["regmix", "data_mixing_laws", "olmix", "joint"])
def test_swarms_are_drawn_from_the_generator(name):
    assert design(name, seed=1) == design(name, seed=1)
    assert design(name, seed=1) != design(name, seed=2)


@pytest.mark.parametrize("name", ["regmix", "data_mixing_laws", "olmix", "joint"])
def test_swarms_stay_within_what_the_target_can_use(name):
    scarce = {"target_tokens": 1_000_000_000, "max_epochs": 3.0}  # code: 0.3 at most
    weights = np.array([probe.mixture.weights for probe in design(name, 40 * RUN, **scarce)])
    assert weights[:, 1].max() <= 0.3 + 2e-3
    assert weights[:, 0].max() > 0.5


def test_the_swarm_of_regmix_reaches_corners_and_drops_small_weights():
    weights = np.array([probe.mixture.weights for probe in design("regmix")])
    assert (weights.max(axis=1) > 0.9).mean() > 0.2
    assert 0 < weights[weights > 0].min() < 0.01
    # The prior to the power of 0.5: code has half of web's weight on average, not a quarter.
    assert weights.mean(axis=0) == pytest.approx(
        np.sqrt([4, 1, 3, 2]) / np.sqrt([4, 1, 3, 2]).sum(), abs=0.05
    )


def test_data_mixing_laws_halves_proportions():
    weights = np.array([probe.mixture.weights for probe in design("data_mixing_laws")])
    halved = {0.0, 1.0, 0.5, 0.25, 0.125, 0.0625}
    assert all(sum(w in halved for w in row) >= 3 for row in weights.tolist())
    assert (weights == 0).any(axis=1).sum() == 5


def test_one_at_a_time_leaves_the_other_tokens_alone():
    probes = {probe.label: probe for probe in design("autoscale_full")}
    base, up = probes[f"reference-{RUN}"], probes[f"code-up-{RUN}"]
    change = up.mixture.as_array() * up.tokens / (base.mixture.as_array() * base.tokens)
    np.testing.assert_allclose(change, [1, 3, 1, 1], rtol=1e-12)
    assert f"reference-{RUN // 2}" in probes


@pytest.mark.parametrize("name", PROBED)
def test_runs_are_whole_batches_and_one_at_a_time_every_domain_too(name):
    budget = ProbeBudget(run_tokens=RUN, total_tokens=40 * RUN, batch_tokens=4096)
    probes = METHODS[name].design(problem(), budget, rng())
    assert all(probe.tokens % 4096 == 0 for probe in probes)
    assert num_tokens(probes) <= 40 * RUN
    if name.startswith("autoscale"):
        batches = np.array([probe.mixture.as_array() * probe.tokens / 4096 for probe in probes])
        np.testing.assert_allclose(batches, batches.round(), atol=1e-6)


@pytest.mark.parametrize("name", ["utilimax", "autoscale_full"])
def test_a_design_that_leaves_no_batch_to_a_domain_is_refused(name):
    budget = ProbeBudget(run_tokens=RUN, total_tokens=RUN, batch_tokens=RUN // 2)
    with pytest.raises(ValueError, match=f"method '{name}' .*raise the"):
        METHODS[name].design(problem(), budget, rng())


def test_a_swarm_too_small_for_its_law_is_refused():
    with pytest.raises(ValueError, match="'olmix' needs at least 6 probe runs; 3M tokens are 3 of"):
        design("olmix", total=3 * RUN)


@pytest.mark.parametrize("budget", [{"run_tokens": 0}, {"run_tokens": 1, "total_tokens": 0}])
def test_a_probe_budget_is_positive(budget):
    with pytest.raises(ValueError, match="expected at least 1"):
        ProbeBudget(**budget)


def test_a_probe_run_has_a_batch():
    with pytest.raises(ValueError, match="run of 10 tokens is smaller than a batch of 20"):
        ProbeBudget(run_tokens=10, batch_tokens=20)


@pytest.mark.parametrize("name", PROBED)
def test_probes_are_required(name):
    with pytest.raises(ValueError, match=f"'{name}' chooses from probe runs; found none"):
        METHODS[name].choose(problem(), None)


@pytest.mark.parametrize("name", PROBED)
def test_too_few_runs_are_refused(name):
    runs = runs_of(design("olmix", total=6 * RUN)).select([0, 1, 2])
    with pytest.raises(ValueError, match="needs"):
        METHODS[name].choose(problem(), runs)


@pytest.mark.parametrize("name", PROBED)
def test_runs_of_other_domains_or_sets_are_refused(name):
    runs = runs_of(design(name, total=40 * RUN))
    other = replace(runs, domains=("web", "code", "books", "forum"))
    with pytest.raises(ValueError, match="names domain 'forum', which the data does not have"):
        METHODS[name].choose(problem(), other)
    wanted = problem(objective=Objective.create("mean_loss", ("web", "speech")))
    with pytest.raises(ValueError, match="the objective needs losses of 'speech'"):
        METHODS[name].choose(wanted, runs)


def test_losses_that_are_no_numbers_never_reach_a_method():
    with pytest.raises(ValueError, match=r"has loss/web nan; expected a positive number"):
        runs_of(
            design("olmix"), lambda w: np.where([1, 0, 0, 0], np.nan, 3.0) * np.ones((len(w), 1))
        )


@pytest.mark.parametrize("name", ["regmix", "olmix", "utilimax"])
def test_methods_of_the_mixture_alone_refuse_several_budgets(name):
    runs = runs_of(design(name, total=40 * RUN))
    tokens = runs.tokens * np.resize([1, 2], len(runs.runs))
    with pytest.raises(ValueError, match="knows the mixture only, and the probe runs have"):
        METHODS[name].choose(problem(), replace(runs, tokens=tokens))


def test_perplexity_needs_nats():
    runs = replace(runs_of(design("olmix")), metric="bits_per_byte")
    wanted = problem(objective=Objective.create("mean_perplexity", runs.sets))
    with pytest.raises(ValueError, match="takes losses in nats"):
        METHODS["olmix"].choose(wanted, runs)


def test_a_problem_checks_its_numbers():
    with pytest.raises(ValueError, match="'code' has 0 available tokens"):
        problem(available_tokens=[1, 0, 1, 1])
    with pytest.raises(ValueError, match="expected one number for each of web, code"):
        problem(available_tokens=[1, 2])
    with pytest.raises(ValueError, match="expected at least 1"):
        problem(target_tokens=0)
    with pytest.raises(InfeasibleError, match="raise max_epochs"):
        problem(target_tokens=10_000_000_000, max_epochs=2.0)
