"""What `fit --table` and `solve` show on the terminal."""

import io

import pytest
from rich.console import Console

from autoscale.law_tables import fit_lines, mixture_lines


def shown(renderable, width=100):
    """Text as a terminal of this width has it; no cell may be cut."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    return text


def score(law, advantage):
    return {
        "law": law,
        "objective_error": 0.0123,
        "set_errors": {"web": 0.02, "code": 0.04},
        "advantage": advantage,
    }


def estimate(**changes):
    fields = {
        "scores": [score("eti", 0.0), score("trees", -2.5)],
        "reason": "Law eti: no other predicts held-out runs better.",
        "edge_errors": {"tokens": 0.0123, "size": 0.2},
        "warnings": ["The weight of math never varied.", "Too few mixtures."],
    }
    return {"estimate": fields | changes}


def mixture(**changes):
    weights = {"web": 0.25, "code": 0.75}
    fields = {
        "token_budget": 5_000_000_000,
        "weights": weights,
        "low": {"web": 0.2, "code": 0.6},
        "high": {"web": 0.4, "code": 0.8},
        "duality_gap": 3e-9,
        "gains": {"uniform": {"expected": 0.021, "low": 0.012, "high": 0.03, "probability": 0.987}},
        "sentence": "Expected gain over uniform 0.0210 nats.",
        "warnings": ["A bound chose it."],
    }
    return fields | changes


def test_candidates_are_listed_with_their_errors_and_the_reason():
    text = shown(fit_lines(estimate()))
    rows = [line.split() for line in text.splitlines()]
    assert ["eti", "0.0123", "0.0300", "+0.0", "s.e."] in rows
    assert ["trees", "0.0123", "0.0300", "-2.5", "s.e."] in rows
    assert "no other predicts held-out runs better" in text
    assert "Largest token budgets predicted from the rest: 1.23% error." in text
    assert "Largest model sizes predicted from the rest: 20.00% error." in text
    assert "! The weight of math never varied." in text and "! Too few mixtures." in text


def test_a_single_law_is_compared_with_none():
    text = shown(fit_lines(estimate(scores=[score("etk", 0.0)], edge_errors={}, warnings=[])))
    assert "against" not in text and "s.e." not in text and "!" not in text


def test_published_laws_are_listed_by_domain():
    law = {"domain": "arxiv", "exponent": 1.23456, "equivalent": 2.5, "irreducible": 0.8}
    text = shown(fit_lines({"budgets": [{"laws": [law | {"status": "at_bound"}]}]}))
    assert ["arxiv", "1.235", "2.5", "0.8", "at", "bound"] in [
        line.split() for line in text.splitlines()
    ]


def test_weights_gains_certificate_and_doubts_are_shown():
    text = shown(mixture_lines(mixture()))
    rows = [line.split() for line in text.splitlines()]
    assert ["web", "0.2500", "0.2000", "to", "0.4000"] in rows
    assert ["uniform", "0.0210", "0.0120", "to", "0.0300", "0.99"] in rows
    assert "Best mixture at 5B" in text and "Expected gain over uniform 0.0210 nats." in text
    assert "No mixture allowed is better by more than 3e-09, by this law." in text
    assert "! A bound chose it." in text


def test_without_draws_or_certificate_neither_is_shown():
    bare = mixture(token_budget=None, low=None, high=None, gains={}, duality_gap=None, warnings=[])
    text = shown(mixture_lines(bare | {"sentence": "The trees have no intervals."}))
    assert text.startswith("Best mixture\n") and "The trees have no intervals." in text
    assert "interval " not in text and "better by" not in text
    published = {"token_budget": 10, "weights": {"a": 1.0}, "duality_gap": 0.0}
    assert "1.0000" in shown(mixture_lines(published))


@pytest.mark.parametrize("num_domains", [3, 30])
def test_the_front_is_a_table_that_fits(num_domains):
    weights = {f"domain_{k}": 1 / num_domains for k in range(num_domains)}
    points = [{"weights": weights, "first": 1 + k / 8, "second": 2 - k / 8} for k in range(3)]
    text = shown(mixture_lines(mixture(pareto=points)))
    front = text.split("Front between the two objectives")[1]
    for number, point in enumerate(points, start=1):
        row = [str(number), f"{point['first']:.4f}", f"{point['second']:.4f}"]
        assert any(line.split()[:3] == row for line in front.splitlines())
    assert ("domain_2" in front) == (num_domains == 3)


def test_long_warnings_wrap_between_words():
    long = "word " * 60 + "end."
    text = shown(fit_lines(estimate(warnings=[long])), width=60)
    assert " ".join(text.split()).endswith(long.strip())
