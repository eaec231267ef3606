import math

import numpy as np
import pytest

from autoscale.objective import Objective

LOSSES = {"a": 1.0, "b": 3.0}
SETS = ["a", "b", "ood"]


def test_mean_loss_and_mean_perplexity():
    assert Objective.create("mean_loss", ["a", "b"]).value(LOSSES) == pytest.approx(2)
    perplexity = Objective.create("mean_perplexity", ["a", "b"]).value(LOSSES)
    assert perplexity == pytest.approx((math.e + math.e**3) / 2)


def test_bits_per_byte_take_the_bytes_of_each_sets_tokens():
    objective = Objective.create(
        "mean_bits_per_byte", ["a", "b"], {"a": 1.0, "b": 3.0}, bytes_per_token={"a": 2, "b": 5}
    )
    expected = 0.25 * 1 / (2 * math.log(2)) + 0.75 * 3 / (5 * math.log(2))
    assert objective.value(LOSSES) == pytest.approx(expected)


def test_the_worst_loss_is_that_of_the_sets_that_count():
    assert Objective.create("worst_loss", ["a", "b"]).value(LOSSES) == 3
    assert Objective.create("worst_loss", ["a", "b"], {"a": 5.0, "b": 0.0}).value(LOSSES) == 1


def test_given_weights_are_normalised():
    objective = Objective.create("mean_loss", ["a", "b"], {"b": 6.0, "a": 2.0})
    assert objective.weights == {"a": 0.25, "b": 0.75}
    assert objective.value(LOSSES) == pytest.approx(2.5)


@pytest.mark.parametrize("text", ["mean", "perplexity", "bits_per_byte", "worst", "b=2,ood"])
def test_many_runs_have_the_values_of_each(text):
    units = {"a": 3.0, "b": 4.0, "ood": 5.0} if text == "bits_per_byte" else None
    objective = Objective.parse(text, SETS, bytes_per_token=units)
    losses = np.random.default_rng(0).uniform(1, 4, (2, 5, 3))
    values = objective.values(losses, SETS)
    assert values.shape == (2, 5)
    for index in np.ndindex(2, 5):
        one = objective.value(dict(zip(SETS, losses[index], strict=True)))
        assert values[index] == pytest.approx(one, rel=1e-12)


def test_sets_are_matched_by_name_and_others_ignored():
    objective = Objective.parse("b=1", ["a", "b"])
    assert objective.values(np.array([[9.0, 7.0, 5.0]]), ["x", "b", "a"]).tolist() == [7]
    with pytest.raises(ValueError, match="needs losses of 'b'; found those of a, x"):
        objective.values(np.ones((1, 2)), ["a", "x"])


def test_linear_objectives_have_coefficients():
    objective = Objective.parse("b=2,ood=6", SETS)
    assert objective.is_linear
    assert objective.coefficients(["ood", "a", "b"]).tolist() == [0.75, 0, 0.25]
    assert not Objective.parse("worst", SETS).is_linear
    assert not Objective.parse("perplexity", SETS).is_linear


@pytest.mark.parametrize(
    ("text", "kind", "weights"),
    [
        ("mean", "mean_loss", [1 / 3] * 3),
        ("mean_perplexity", "mean_perplexity", [1 / 3] * 3),
        ("worst", "worst_loss", [1 / 3] * 3),
        (" a = 3, ood ", "mean_loss", [0.75, 0, 0.25]),
        ("a=1e-3", "mean_loss", [1, 0, 0]),
        ("perplexity:b", "mean_perplexity", [0, 1, 0]),
        ("worst: b, ood", "worst_loss", [0, 0.5, 0.5]),
    ],
)
def test_objectives_are_read_from_text(text, kind, weights):
    objective = Objective.parse(text, SETS)
    assert objective.kind == kind
    assert list(objective.weights.values()) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrst", "names 'wrst', which is no validation set; did you mean 'worst'"),
        ("a=1,bb=2", "names 'bb', which is no validation set; .*Expected mean, perplexity"),
        ("a=x", "gives 'a' the weight 'x'; expected a number"),
        ("a=nan", "objective weight of 'a' is nan"),
        ("a=-1,b=2", "objective weight of 'a' is -1.0; expected a number of at least 0"),
        ("a=1,a=2", "names 'a' twice"),
        ("a=0", "are all 0"),
        ("worst:a=2,b=1", "takes no weights, only which sets count"),
        ("", "names '', which is no validation set"),
        ("worst:", "names '', which is no validation set"),
        ("bits_per_byte", "need the bytes per token of 'a', a positive number; found None"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        Objective.parse(text, SETS)


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


def test_bytes_per_token_belong_to_bits_per_byte_and_to_sets_that_count():
    with pytest.raises(ValueError, match="no use for mean_loss"):
        Objective.create("mean_loss", ["a"], bytes_per_token={"a": 4.0})
    with pytest.raises(ValueError, match="of 'b', a positive number; found 0"):
        Objective.create("mean_bits_per_byte", ["a", "b"], bytes_per_token={"a": 4, "b": 0})
    objective = Objective.parse("bits_per_byte:a", ["a", "b"], bytes_per_token={"a": 4, "b": 0})
    assert objective.to_dict() == {
        "kind": "mean_bits_per_byte",
        "weights": {"a": 1.0, "b": 0.0},
        "bytes_per_token": {"a": 4.0},
    }
    assert objective.value(LOSSES) == pytest.approx(1 / (4 * math.log(2)))


def test_an_objective_without_units_says_nothing_of_them():
    document = Objective.create("mean_loss", ["a", "b"]).to_dict()
    assert document == {"kind": "mean_loss", "weights": {"a": 0.5, "b": 0.5}}
