import math

import pytest

from autoscale.objective import Objective

LOSSES = {"a": 1.0, "b": 3.0}


def test_mean_loss_and_mean_perplexity():
    assert Objective.create("mean_loss", ["a", "b"]).value(LOSSES) == pytest.approx(2)
    perplexity = Objective.create("mean_perplexity", ["a", "b"]).value(LOSSES)
    assert perplexity == pytest.approx((math.e + math.e**3) / 2)


def test_given_weights_are_normalised():
    objective = Objective.create("mean_loss", ["a", "b"], {"b": 6.0, "a": 2.0})
    assert objective.weights == {"a": 0.25, "b": 0.75}
    assert objective.value(LOSSES) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, "lacks domain 'b'"),
        ({"a": 1.0, "b": 1.0, "bb": 1.0}, "names domain 'bb'"),
        ({"a": 0.0, "b": 0.0}, "are all 0"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        Objective.create("mean_loss", ["a", "b"], weights)
