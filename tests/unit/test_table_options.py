"""What the commands on tables take as text; what they refuse is in `test_table_commands.py`."""

import pytest

from autoscale.constraints import Group
from autoscale.table_options import (
    parse_available,
    parse_bytes_per_token,
    parse_group,
    parse_pull,
    parse_rate,
)


def test_tokens_by_domain():
    expected = {"arxiv": 2_100_000_000, "git hub": 900_000_000}
    assert parse_available("arxiv=2.1B, git hub = 900M") == expected


def test_bytes_by_validation_set():
    assert parse_bytes_per_token("arxiv=3.1,github=2") == {"arxiv": 3.1, "github": 2.0}


@pytest.mark.parametrize(
    ("text", "bounds"), [("=0.2..0.5", (0.2, 0.5)), ("=..0.5", (0, 0.5)), ("=0.2..", (0.2, 1))]
)
def test_groups_and_bounds_that_are_left_out(text, bounds):
    expected = Group(name="web", domains=("c4", "cc"), lower=bounds[0], upper=bounds[1])
    assert parse_group(f"web: c4 + cc{text}") == expected


def test_pulls_and_rates():
    assert parse_pull("kl:0.01") == ("kl", 0.01) and parse_pull("l2:3") == ("l2", 3.0)
    assert parse_rate("15.4") == 15.4 and parse_rate("fit") is None


@pytest.mark.parametrize("text", ["", "=1", "a", "a=1,", "a=1,b"])
def test_pairs_that_are_none(text):
    for parse in (parse_available, parse_bytes_per_token):
        with pytest.raises(ValueError, match="cannot be read; expected"):
            parse(text)


@pytest.mark.parametrize("text", ["", ":a=0..1", "g:a", "g:a=1", "g:a=x..1", "a=0..1"])
def test_groups_that_are_none(text):
    with pytest.raises(ValueError, match="cannot be read; expected name:domain"):
        parse_group(text)
