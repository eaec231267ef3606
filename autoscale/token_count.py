"""Token counts as people write them: one parser, one formatter, exact in both directions."""

import re
from decimal import Decimal

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_PATTERN = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([KMBT]?)", re.IGNORECASE)


def parse_token_count(value: int | str) -> int:
    """Read a token count written as `1_200_000_000`, `1.2B`, `300M`, `5e9` or an int.

    Raises:
        ValueError: the text is no token count, is not positive, or is not a whole number.
    """
    expected = "expected a positive whole number such as 1_200_000_000, '1.2B' or '300M'"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"token count {value!r} is a {type(value).__name__}; {expected}")
    if isinstance(value, int):
        count = Decimal(value)
    else:
        match = _PATTERN.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"token count {value!r} cannot be read; {expected}")
        count = Decimal(match[1].replace("_", "")) * _SUFFIXES[match[2].upper()]
    if count <= 0 or count != count.to_integral_value():
        raise ValueError(f"token count {value!r} is {count:f} tokens; {expected}")
    return int(count)


def format_token_count(tokens: int) -> str:
    """Write a token count shortly and exactly: `1.2B`, `300M`, `1_234_567`."""
    for suffix, unit in reversed(_SUFFIXES.items()):
        if suffix and tokens >= unit:
            scaled = Decimal(tokens) / unit
            if scaled < 1000 and scaled == scaled.quantize(Decimal("0.001")):
                return f"{scaled.normalize():f}{suffix}"
    return f"{tokens:_}"


def round_token_count(tokens: float) -> str:
    """Three significant digits for prose and tables, where exactness would only distract."""
    return format_token_count(int(Decimal(f"{tokens:.3g}"))) if tokens >= 1 else f"{tokens:.3g}"
