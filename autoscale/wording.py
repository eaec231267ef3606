"""How numbers and lists read in sentences and tables."""

from collections.abc import Sequence

_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, and a minus that is as wide as the plus; nothing is plain 0."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


def interval(low: float, high: float, digits: int = 4) -> str:
    """An interval of differences, such as `+0.0084 to +0.0129`."""
    return f"{signed(low, digits)} to {signed(high, digits)}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them, such as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number_word(count: int) -> str:
    """A count at the start of a sentence, in a word up to nine."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def probability(value: float) -> str:
    """Two digits, but never a 1 or a 0 that is only nearly one."""
    if value > 0.995:
        return "> 0.99"
    return "< 0.01" if value < 0.005 else f"{value:.2f}"
