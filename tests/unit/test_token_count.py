import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.token_count import format_token_count, parse_token_count


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1_200_000_000", 1_200_000_000),
        ("1.2B", 1_200_000_000),
        ("300M", 300_000_000),
        ("5k", 5_000),
        ("2T", 2 * 10**12),
        ("5e9", 5 * 10**9),
        (7, 7),
    ],
)
def test_reads_what_people_write(text, tokens):
    assert parse_token_count(text) == tokens


@given(st.integers(1, 10**16))
def test_formatting_is_exact(tokens):
    assert parse_token_count(format_token_count(tokens)) == tokens


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(1_200_000_000, "1.2B"), (300_000_000, "300M"), (1_234_567, "1_234_567"), (12, "12")],
)
def test_formats_shortly(tokens, text):
    assert format_token_count(tokens) == text


@pytest.mark.parametrize("value", ["", "B", "1.2X", "-3M", "0", 0, -1, True, 1.5, "1.0000001K"])
def test_refuses_what_is_no_token_count(value):
    with pytest.raises(ValueError, match=r"token count .* expected a positive whole number"):
        parse_token_count(value)
