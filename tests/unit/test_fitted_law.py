"""Fitted laws: JSON, readable parameters, messages; and the docs' priors."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoscale.laws.fit import fit_law
from autoscale.laws.fitted_law import FittedLaw
from autoscale.laws.frame import Form, Frame
from autoscale.laws.records import law_from_dict
from autoscale.laws.repetition import Repetition
from autoscale.laws.terms import TERMS
from tests.unit.synthetic_runs import (
    BUDGETS,
    DOMAINS,
    LARGE_FORM,
    REPETITIONS,
    SCARCE,
    UNITS,
    every_law,
    mixtures,
    runs_of,
    simplex_grid,
    true_law,
    with_and_without_repetition,
)

K = len(DOMAINS)


# Records


@every_law
@with_and_without_repetition
def test_json_round_trips_are_exact(law, repetition):
    fitted = true_law(law, form=LARGE_FORM, repetition=REPETITIONS[repetition])
    fitted = replace(fitted, draws=np.stack([fitted.theta, fitted.theta + 1 / 3]))
    record = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    again = law_from_dict(record)
    for predict in ("predict", "predict_draws"):
        found, expected = (
            getattr(one, predict)(simplex_grid(), 3e7, 1e6) for one in (again, fitted)
        )
        np.testing.assert_array_equal(found, expected)
    assert again.to_dict() == fitted.to_dict()


@every_law
def test_parameters_have_names_and_units(law):
    fitted = true_law(law, form=LARGE_FORM)
    record = fitted.to_dict()
    assert len(record["parameter_names"]) == fitted.theta.shape[1]
    for values in record["parameters"].values():
        assert {"irreducible", "token_exponent", "size_exponent"} <= set(values)
        for name, value in values.items():
            if isinstance(value, dict):
                assert list(value) == list(DOMAINS), name


def test_readable_parameters_are_those_of_the_equation():
    """The loss of ETI, written out from `readable`."""
    fitted = true_law("eti", form=LARGE_FORM)
    weights, (tokens, parameters) = simplex_grid()[0], (5e7, 3e6)
    d, p = tokens / UNITS.tokens, parameters / UNITS.parameters
    expected = []
    for values in fitted.readable().values():
        transfer, power = (np.array(list(values[k].values())) for k in ("transfer", "power"))
        total = np.sum(transfer * weights**power)
        expected.append(
            values["irreducible"]
            + values["amplitude"]
            * d ** -values["token_exponent"]
            * p ** -values["size_exponent"]
            * total ** -values["exponent"]
            + values["added_token_amplitude"]
            * d ** -values["added_token_exponent"]
            * p ** values["added_token_size_exponent"]
            + values["added_size_amplitude"] * p ** -values["added_size_exponent"]
        )
    found = fitted.predict(weights[None], tokens, parameters)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Messages


def test_unknown_laws():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match="law 'olmix' is unknown; known are eti, etk, separable"):
        fit_law(table, "olmix", forms=[Form()])
    record = true_law("eti").to_dict() | {"law": "olmix"}
    with pytest.raises(ValueError, match="record holds law 'olmix'; known are eti, etk"):
        FittedLaw.from_dict(record)


def test_tables_that_carry_no_law_are_refused():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match="a fit needs at least 3 runs"):
        fit_law(table.select([0, 1]), "eti", forms=[Form()])


@pytest.mark.parametrize(
    ("form", "what"), [(Form(tokens="sum"), "tokens"), (Form(size="both"), "parameters")]
)
def test_terms_need_their_counts(form, what):
    table = runs_of(true_law("eti"), 10)
    match = f"a term of {what} cannot be fitted to runs whose {what} are not known; add a column"
    with pytest.raises(ValueError, match=match):
        fit_law(table, "eti", forms=[form])
    law = true_law("eti", form=form)
    match = f"fitted with a term of {what}; give the {what} to predict for"
    with pytest.raises(ValueError, match=match):
        law.predict(simplex_grid(), None, None)
    with pytest.raises(ValueError, match=match):
        law.surface(None, None)


def test_repetition_needs_tokens_and_a_number_for_every_domain():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match="worth of repeated tokens needs the tokens of the runs"):
        fit_law(table, "eti", forms=[Form()], repetition=SCARCE)
    table = runs_of(true_law("eti", form=Form(tokens="product")), 10, budgets=BUDGETS)
    scarce = Repetition(rate=3.0, unique_tokens=np.array([1e6, 1e6]))
    with pytest.raises(
        ValueError, match="given for 2 domains; expected one number for each of web"
    ):
        fit_law(table, "eti", forms=[Form(tokens="product")], repetition=scarce)


def test_mixtures_of_other_domains_are_refused():
    with pytest.raises(ValueError, match="have 3 weights; expected one for each of the 5 domains"):
        true_law("eti").predict(mixtures(4, num_domains=3), None, None)


def test_bimix_needs_a_domain_of_each_set():
    table = runs_of(true_law("eti"), 10)
    with pytest.raises(ValueError, match=r"law 'bimix' describes .* same name, and a set here has"):
        fit_law(table, "bimix", forms=[Form()])


def test_draws_are_asked_for_only_where_there_are_some():
    with pytest.raises(ValueError, match="law 'eti' was fitted without bootstrap draws"):
        true_law("eti").predict_draws(simplex_grid(), None, None)
    with pytest.raises(ValueError, match="law 'eti' was fitted without bootstrap draws"):
        true_law("eti").surface(None, None, draw=0)


# Docs


def as_written(prior, *, of=""):
    """A prior as the docs have it: `log .3 ± .7`, or `log(.5 min L) ± 1` of a share of the loss."""
    (mean, sd), logarithm = prior, of != "itself"
    number = f"{np.exp(mean) if logarithm else mean:.2g}"
    number, width = (re.sub(r"^0(?=\.)", "", text) for text in (number, f"{sd:.2g}"))
    if of == "min L":
        return f"log({number} min L) ± {width}"
    return f"{'log ' * logarithm}{number} ± {width}"


def priors(law):
    """Means and standard deviations by name, of a set whose own domain is the first."""
    frame = Frame(TERMS[law], LARGE_FORM)
    mean, sd = frame.prior(np.ones(1), np.zeros(1, np.int64), K)
    return dict(zip(frame.parameter_names(DOMAINS), zip(mean[0], sd[0], strict=True), strict=True))


def test_the_docs_have_the_priors_of_the_code():
    path = Path(__file__).parents[2] / "autoscale/laws/README.md"
    text = path.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    rows = dict(re.findall(r"^\| (\w)[^|]*? \| ([^|]+?) \|$", text, flags=re.MULTILINE))
    eti, etk, log_linear = map(priors, ("eti", "etk", "log_linear"))
    for row, written in (
        ("E", as_written(eti["log_irreducible"], of="min L")),
        ("A", as_written(eti["log_amplitude"], of="itself")),
        ("g", as_written(eti["log_exponent"])),
        ("k", as_written(eti["power_logit"], of="itself")),
        ("k", f"offsets ± {as_written(eti['power_logit_offset/web'], of='itself')[4:]} a domain"),
        ("k", as_written(etk["power_logit"], of="itself")),
        ("t", f"own domain {as_written(eti['log_transfer/web'], of='itself')}"),
        ("t", f"others {as_written(eti['log_transfer/code'], of='itself')}"),
        ("b", as_written(eti["log_token_exponent"])),
        ("b", as_written(log_linear["log_token_exponent"])),
        ("B", as_written(eti["log_added_token_amplitude"], of="min L")),
        ("B", as_written(eti["log_added_token_exponent"])),
        ("B", as_written(eti["added_token_size_exponent"], of="itself")),
        ("h", as_written(eti["log_size_exponent"])),
        ("K", as_written(eti["log_added_size_amplitude"], of="min L")),
        ("K", as_written(eti["log_added_size_exponent"])),
    ):
        assert written in rows[row], (row, written)
