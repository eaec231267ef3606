"""Uniform, natural and published weights, and UniMax against its algorithm."""

import numpy as np
import pytest

from autoscale.methods.fixed import Natural, PublishedWeights, Uniform
from autoscale.methods.method import About, ProbeBudget
from autoscale.methods.published_weights import DOREMI_PILE, LLAMA_REDPAJAMA, REGMIX_PILE
from autoscale.methods.registry import METHODS, method_named
from autoscale.methods.unimax import UniMax, unimax
from autoscale.objective import Objective
from tests.unit.methods.problems import AVAILABLE, DOMAINS, problem, rng

BUDGET = ProbeBudget(run_tokens=1_000_000, total_tokens=50_000_000)


def named(domains, **changes):
    """A problem of other domains with the same tokens each."""
    return problem(
        domains=domains,
        available_tokens=np.full(len(domains), 1e9),
        objective=Objective.create("mean_loss", domains),
        **changes,
    )


@pytest.mark.parametrize("name", ["uniform", "natural", "llama_redpajama", "unimax"])
def test_fixed_methods_want_no_probes(name):
    assert method_named(name).design(problem(), BUDGET, rng()) == ()


def test_uniform_and_natural():
    assert Uniform().choose(problem(), None).mixture.weights == (0.25,) * 4
    assert Natural().choose(problem(), None).mixture.weights == pytest.approx((0.4, 0.1, 0.3, 0.2))


def test_a_fixed_mixture_says_what_it_repeats():
    scarce = problem(target_tokens=1_000_000_000, max_epochs=2.0)
    found = Uniform().choose(scarce, None)
    assert found.mixture.weights == (0.25,) * 4
    assert "'code' 2.5 times" in found.message and "'web'" not in found.message


@pytest.mark.parametrize("weights", [LLAMA_REDPAJAMA, DOREMI_PILE, REGMIX_PILE])
def test_published_weights_are_mixtures_up_to_what_was_printed(weights):
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)


def test_published_weights_are_found_in_other_spellings():
    domains = ("commoncrawl", "C4", "github", "wiki", "books", "arxiv", "stack_exchange")
    found = METHODS["llama_redpajama"].choose(named(domains), None)
    weights = found.mixture.to_dict()
    assert weights["commoncrawl"] == pytest.approx(0.7256, abs=1e-4)
    assert weights["books"] == pytest.approx(0.0215, abs=1e-4)
    assert "100.0%" in found.message


def test_published_domains_that_the_problem_lacks_leave_their_share_to_the_rest():
    found = METHODS["doremi_pile"].choose(named(("Pile-CC", "arxiv", "github")), None)
    weights = found.mixture.to_dict()
    assert weights["arxiv"] == pytest.approx(0.0036 / (0.6057 + 0.0036 + 0.0179))
    assert "62.7%" in found.message


def test_a_domain_without_a_published_weight_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"no published weight for domain 'mail'.*common_crawl"):
        METHODS["llama_redpajama"].choose(named(("c4", "mail")), None)


def test_a_domain_can_be_named_by_hand_but_not_twice():
    about = About(citation="", needs="")
    method = PublishedWeights(
        name="p", weights={"a": 0.2, "b": 0.8}, about=about, names={"mail": "a"}
    )
    assert method.choose(named(("mail", "b")), None).mixture.weights == pytest.approx((0.2, 0.8))
    with pytest.raises(ValueError, match="both stand for 'a'"):
        method.choose(named(("mail", "a")), None)


@pytest.mark.parametrize(
    ("available", "budget", "epochs", "expected"),
    [
        # Nothing is scarce: the same for all.
        ([100, 200, 300, 400, 500], 100, 1, [20, 20, 20, 20, 20]),
        # The paper's loop by hand: 1000/5 is above 100, then 900/4 above 200, then 700/3 each.
        ([100, 200, 300, 400, 500], 1000, 1, [100, 200, 700 / 3, 700 / 3, 700 / 3]),
        # Order does not matter; with two epochs 1000/5 = 200 each is exactly affordable.
        ([500, 100, 300, 200, 400], 1000, 2, [200, 200, 200, 200, 200]),
        ([10, 10_000, 1000], 6000, 2, [20, 3980, 2000]),
        # More than all epochs: the budget is not spent.
        ([100, 300], 1000, 1, [100, 300]),
    ],
)
def test_unimax_allocates_as_its_algorithm(available, budget, epochs, expected):
    np.testing.assert_allclose(unimax(available, budget, epochs), expected)


def test_unimax_takes_the_cap_of_the_problem():
    scarce = problem(target_tokens=1_000_000_000, max_epochs=2.0)
    found = UniMax().choose(scarce, None)
    assert found.mixture.to_dict() == pytest.approx(
        {"web": 0.8 / 3, "code": 0.2, "books": 0.8 / 3, "wiki": 0.8 / 3}
    )
    assert "at most 2 epochs, which code use up" in found.message
    uncapped = UniMax().choose(problem(target_tokens=2_000_000_000), None)  # one epoch of all
    assert uncapped.mixture.weights == pytest.approx(tuple(AVAILABLE / AVAILABLE.sum()))


def test_unimax_keeps_the_bounds():
    found = UniMax().choose(problem(min_weight=np.array([0.4, 0, 0, 0])), None)
    assert found.mixture.to_dict() == pytest.approx(
        dict(zip(DOMAINS, (0.4, 0.2, 0.2, 0.2), strict=True))
    )


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="'regmx' is unknown; did you mean 'regmix'"):
        method_named("regmx")
