import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.mixture import Mixture, largest_remainder


def test_uniform_and_natural():
    assert Mixture.uniform(["a", "b", "c", "d"]).weights == (0.25,) * 4
    assert Mixture.natural(["a", "b"], [30, 10]).to_dict() == {"a": 0.75, "b": 0.25}


def test_a_tiny_error_of_the_sum_is_normalised_away():
    mixture = Mixture(domains=("a", "b"), weights=(0.5, 0.5 + 1e-7))
    assert sum(mixture.weights) == pytest.approx(1, abs=1e-15)


def test_is_matched_by_name_never_by_position():
    mixture = Mixture.from_mapping({"a": 0.2, "b": 0.8})
    assert mixture.reordered(["b", "a"]).weights == (0.8, 0.2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.5, "b": 0.6}, "sum to 1.1; expected 1. Divide each of them by 1.1"),
        ({"a": -0.5, "b": 1.5}, "weight of domain 'a' is -0.5"),
        ({"a": float("nan"), "b": 1.0}, "weight of domain 'a' is nan"),
        ({}, "at least one domain"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture.from_mapping(weights)


def test_repeated_names_are_refused():
    with pytest.raises(ValueError, match="names 'a' more than once"):
        Mixture(domains=("a", "a"), weights=(0.5, 0.5))


def test_other_domains_than_the_data_are_named():
    mixture = Mixture.uniform(["books", "arxiv"])
    with pytest.raises(ValueError, match=r"names domain 'arxiv'.* did you mean 'arxivs'\?"):
        mixture.reordered(["books", "arxivs"])
    with pytest.raises(ValueError, match="lacks domain 'code'"):
        mixture.reordered(["books", "arxiv", "code"])


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(lambda w: sum(w) > 0),
    st.integers(0, 10**9),
)
def test_rounding_is_exact_in_sum_and_within_one_everywhere(weights, total):
    counts = largest_remainder(weights, total)
    exact = np.asarray(weights) / np.sum(weights) * total
    assert counts.sum() == total
    assert np.all(np.abs(counts - exact) < 1 + 1e-6)
