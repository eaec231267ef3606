"""Group DRO against closed forms and a game with a known saddle point; DoReMi's runs and choice."""

import json
from dataclasses import replace

import numpy as np
import pytest

from autoscale.methods.doremi import DoReMi
from autoscale.methods.group_dro import GroupDRO
from tests.unit.methods.problems import DOMAINS, problem
from tests.unit.test_runs import make_spec


def make_dro(num_domains=3, step_size=1.0, smoothing=1e-3):
    return GroupDRO(num_domains, step_size=step_size, smoothing=smoothing)


def test_two_steps_by_hand():
    """alpha a step at a time, with sums over unequal numbers of labels."""
    dro = make_dro()
    labels = np.array([10, 20, 40])
    first = np.array([2.0, 1.0, 0.0])
    expected = (1 - 1e-3) * np.exp(first) / np.exp(first).sum() + 1e-3 / 3
    assert dro.update(first * labels, labels) == pytest.approx(expected, rel=1e-14)
    second = np.array([0.0, 0.5, 3.0])
    moved = expected * np.exp(second)
    then = (1 - 1e-3) * moved / moved.sum() + 1e-3 / 3
    assert dro.update(second * labels, labels) == pytest.approx(then, rel=1e-14)
    assert dro.average == pytest.approx((expected + then) / 2, rel=1e-14)
    assert dro.steps == 2


def test_without_excess_the_weights_stay_uniform():
    dro = make_dro()
    for _ in range(5):
        dro.update(np.zeros(3), np.ones(3))
    assert dro.average == pytest.approx([1 / 3] * 3, rel=1e-14)


def test_smoothing_keeps_a_share_for_every_domain():
    dro = make_dro(smoothing=0.03)
    for _ in range(50):
        weights = dro.update([5.0, 0.0, 0.0], np.ones(3))
    assert weights[1:] == pytest.approx([0.01, 0.01], abs=1e-4)


def test_a_large_excess_does_not_overflow():
    weights = make_dro(step_size=1e3).update([1e4, 0.0, 0.0], np.ones(3))
    assert weights == pytest.approx([1 - 2e-3 / 3, 1e-3 / 3, 1e-3 / 3])


def test_a_domain_that_the_batch_lacks_keeps_its_last_excess():
    seen, lacking = make_dro(), make_dro()
    for dro in (seen, lacking):
        dro.update([1.0, 2.0, 3.0], np.ones(3))
    again = seen.update([4.0, 5.0, 3.0], np.ones(3))
    assert lacking.update([4.0, 5.0, 0.0], [1, 1, 0]) == pytest.approx(again, rel=1e-14)


def test_a_domain_never_seen_takes_the_mean_of_the_others():
    mean = make_dro().update([1.0, 3.0, 2.0], np.ones(3))
    assert make_dro().update([1.0, 3.0, 0.0], [1, 1, 0]) == pytest.approx(mean, rel=1e-14)


@pytest.mark.parametrize("curvatures", [(1.0, 1.0), (4.0, 1.0), (1.0, 9.0)])
def test_the_mean_weights_of_a_game_are_those_of_its_saddle_point(curvatures):
    """Two domains want the parameter at 0 and at 1, with excess a x^2 and b (1 - x)^2.

    The worst is least where both are equal, and the weighted gradient is 0 there:
    alpha_1 : alpha_2 = sqrt(b) : sqrt(a).
    """
    a, b = curvatures
    dro = make_dro(2, step_size=0.02, smoothing=0.0)
    x, sum_x = 0.9, 0.0
    num_steps = 20_000
    for _ in range(num_steps):
        alpha = dro.update([a * x**2, b * (1 - x) ** 2], np.ones(2))
        x -= 0.02 * (alpha[0] * 2 * a * x - alpha[1] * 2 * b * (1 - x))
        sum_x += x
    root_a, root_b = np.sqrt(a), np.sqrt(b)
    assert dro.average == pytest.approx(np.array([root_b, root_a]) / (root_a + root_b), abs=2e-3)
    assert sum_x / num_steps == pytest.approx(root_b / (root_a + root_b), abs=2e-3)


def test_a_state_goes_on_exactly():
    rng = np.random.default_rng(0)
    batches = [
        (rng.random(3) * 9, 1 + rng.integers(-1, 3, 3).clip(min=[0, -1, -1])) for _ in range(20)
    ]
    whole, first = make_dro(), make_dro()
    for dro, part in ((whole, batches), (first, batches[:7])):
        for excess, labels in part:
            dro.update(excess, labels)
    second = make_dro()
    second.restore(json.loads(json.dumps(first.state())))
    for excess, labels in batches[7:]:
        second.update(excess, labels)
    assert second.state() == whole.state()


def test_a_state_before_anything_was_seen():
    other = make_dro()
    other.restore(json.loads(json.dumps(make_dro().state())))
    assert other.update([1.0, 0, 0], [1, 0, 0]) == pytest.approx([1 / 3] * 3)


def test_the_proxy_is_another_run_than_its_reference():
    reference = make_spec(label="reference")
    proxy = replace(reference, label="proxy", **DoReMi().proxy_changes(reference.identity))
    other = replace(reference, **DoReMi(step_size=0.1).proxy_changes(reference.identity))
    assert len({reference.identity, proxy.identity, other.identity}) == 3
    assert proxy.online["reference"] == reference.identity
    assert (proxy.online["step_size"], proxy.online["smoothing"]) == (1.0, 1e-3)
    assert proxy.sequences == reference.sequences


def test_the_choice_is_the_mean_weights():
    weights = dict(zip(reversed(DOMAINS), (0.1, 0.2, 0.6, 0.1), strict=True))
    chosen = DoReMi().choose(problem(max_epochs=1.0), weights)
    assert chosen.mixture.domains == DOMAINS
    assert chosen.mixture.weights == pytest.approx((0.1, 0.6, 0.2, 0.1))
    assert "'code' 1.2 times, above max_epochs 1" in chosen.message


def test_a_choice_of_other_domains_is_refused():
    with pytest.raises(ValueError, match="'mail'"):
        DoReMi().choose(problem(), dict.fromkeys([*DOMAINS[:3], "mail"], 0.25))
