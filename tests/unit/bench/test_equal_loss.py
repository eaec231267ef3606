"""Tokens that uniform needs for a loss, on curves whose answer is known."""

import math

import pytest

from autoscale.bench.equal_loss import AnnealedCurve
from autoscale.bench.standing import Curve, share_of_attainable, stand

BUDGETS = (1e6, 2e6, 4e6)


def level(tokens):
    """Linear in the logarithm of the tokens, as the interpolation takes it to be."""
    return 5.0 - 0.4 * math.log(tokens / 1e6)


ANNEALED = AnnealedCurve(BUDGETS, [level(tokens) for tokens in BUDGETS])


@pytest.mark.parametrize("tokens", [1e6, 1.3e6, 2e6, 3.7e6, 4e6])
def test_inside_the_budgets_the_answer_is_exact(tokens):
    found = ANNEALED.tokens_for(level(tokens))
    assert found.tokens == pytest.approx(tokens)
    assert not found.extrapolated


@pytest.mark.parametrize("tokens", [0.5e6, 9e6])
def test_beyond_them_the_nearest_segment_goes_on_and_says_so(tokens):
    found = ANNEALED.tokens_for(level(tokens))
    assert found.tokens == pytest.approx(tokens)
    assert found.extrapolated


def test_a_bend_between_budgets_is_kept():
    bent = AnnealedCurve(BUDGETS, [5.0, 4.0, 3.9])
    assert bent.tokens_for(4.5).tokens == pytest.approx(1e6 * 2**0.5)
    assert bent.tokens_for(3.95).tokens == pytest.approx(2e6 * 2**0.5)
    assert bent.at(2e6) == 4.0


@pytest.mark.parametrize(
    "tokens, objectives, message",
    [
        (BUDGETS[:2], [5.0, 4.0], "expected 3 budgets or more"),
        (BUDGETS, [5.0, 4.0, 4.0], "expected it to fall"),
        ((2e6, 1e6, 4e6), [5.0, 4.0, 3.0], "expected it to fall"),
    ],
)
def test_curves_that_answer_nothing_are_refused(tokens, objectives, message):
    with pytest.raises(ValueError, match=message):
        AnnealedCurve(tokens, objectives)


def curve(end, *, tokens=2e6):
    """A run that falls to `end` at its last token."""
    points = [tokens * share for share in (0.25, 0.5, 1.0)]
    return Curve(tokens=tuple(points), objectives=(end + 0.8, end + 0.3, end))


SEEDS = (0.02, -0.01, -0.01)  # what each does to every run


def of_seeds(end):
    return [curve(end + offset) for offset in SEEDS]


def test_a_gain_of_a_known_size_is_worth_the_tokens_that_the_curve_says():
    """Uniform has the loss of 3M tokens only at 3M; whoever has it at 2M saved a third."""
    uniform = of_seeds(level(2e6))
    better = of_seeds(level(3e6))
    standing = stand(better, uniform, ANNEALED, probe_cost=5e5)
    assert standing.difference.verdict == "better"
    assert standing.difference.mean == pytest.approx(level(3e6) - level(2e6))
    assert standing.annealed.mean == pytest.approx(1 / 3)
    assert standing.annealed.low == pytest.approx(1 / 3)  # the seeds' own parts cancel
    assert standing.speed_up.mean == pytest.approx(1.5)
    assert standing.net.mean == pytest.approx(1 - 2.5e6 / 3e6)
    assert not standing.extrapolated
    # On its own curve: between half the tokens, 0.3 above the end, and the end.
    gain = level(2e6) - level(3e6)
    assert standing.on_curve.mean == pytest.approx(1 - 0.5 * 2 ** ((0.3 - gain) / 0.3))
    assert standing.num_reached == 3


def test_a_run_that_never_gets_there_saves_less_than_nothing():
    uniform, worse = of_seeds(level(2e6)), of_seeds(level(1.6e6))
    standing = stand(worse, uniform, ANNEALED, probe_cost=0)
    assert standing.difference.verdict == "worse"
    assert standing.on_curve is None and standing.num_reached == 0
    assert standing.annealed.mean == pytest.approx(1 - 2 / 1.6)


def test_uniform_itself_saves_nothing():
    uniform = of_seeds(level(2e6))
    standing = stand(uniform, uniform, ANNEALED, probe_cost=0)
    assert standing.difference.verdict == "not distinguishable"
    assert standing.annealed.mean == pytest.approx(0, abs=1e-12)
    assert standing.speed_up.mean == pytest.approx(1)


def test_the_share_is_of_what_is_known_to_be_attainable():
    uniform = of_seeds(level(2e6))
    best = stand(of_seeds(level(4e6)), uniform, ANNEALED, probe_cost=0)
    half = stand(of_seeds(level(2e6 / 0.75)), uniform, ANNEALED, probe_cost=0)
    assert share_of_attainable(half, best) == pytest.approx(0.5)
    assert share_of_attainable(best, stand(uniform, uniform, ANNEALED, probe_cost=0)) is None
