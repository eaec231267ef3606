"""What the commands on tables take as text: tokens by domain, groups, pulls, rates."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from .constraints import Group
from .token_count import parse_token_count

T = TypeVar("T")

GROUP_FORM = "name:domain+domain=low..high, such as web:c4+commoncrawl=0.2..0.5"
AVAILABLE_FORM = "domain=tokens,..., such as arxiv=2.1B,github=900M, or a .json file"
BYTES_FORM = "set=bytes,..., such as arxiv=3.1,github=2.8"


class PullOption(NamedTuple):
    """A pull without the mixture that it is to."""

    kind: Literal["kl", "l2"]
    strength: float


def parse_available(text: str) -> dict[str, int]:
    """Tokens by domain: `arxiv=2.1B,github=900M`, or a JSON file of them."""
    path = Path(text)
    if path.suffix != ".json":
        return _by_name(text, parse_token_count, "available tokens", AVAILABLE_FORM)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not readable as tokens by domain: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f'{path} holds no tokens by domain; expected {{"arxiv": 2100000000, ...}}')
    try:
        return {name: parse_token_count(str(count)) for name, count in found.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_bytes_per_token(text: str) -> dict[str, float]:
    """Bytes of text a token, by validation set: `arxiv=3.1,github=2.8`."""
    return _by_name(text, float, "bytes per token", BYTES_FORM)


def parse_group(text: str) -> Group:
    """Bounds of the sum of some weights: `web:c4+commoncrawl=0.2..0.5`; 0 or 1 where left out."""
    name, colon, rest = text.partition(":")
    members, equals, bounds = rest.partition("=")
    low, dots, high = bounds.partition("..")
    try:
        if not (name and colon and equals and dots):
            raise ValueError
        lower, upper = float(low or 0), float(high or 1)
    except ValueError:
        raise ValueError(f"group {text!r} cannot be read; expected {GROUP_FORM}") from None
    domains = tuple(member.strip() for member in members.split("+"))
    return Group(name=name.strip(), domains=domains, lower=lower, upper=upper)


def parse_pull(text: str) -> PullOption:
    """`kl:0.01` or `l2:0.1`."""
    kind, _, strength = text.partition(":")
    try:
        if kind == "kl":
            return PullOption("kl", float(strength))
        if kind == "l2":
            return PullOption("l2", float(strength))
    except ValueError:
        pass
    raise ValueError(
        f"pull {text!r} cannot be read; expected kl:strength or l2:strength, such as kl:0.01"
    )


def parse_rate(text: str) -> float | None:
    """R* of repeated tokens, or None for `fit`."""
    if text == "fit":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"rate {text!r} cannot be read; expected a number of epochs, or 'fit'"
        ) from None


def _by_name(text: str, parse: Callable[[str], T], what: str, form: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        if not (name and equals):
            raise ValueError(f"{what} {text!r} cannot be read; expected {form}")
        if name in found:
            raise ValueError(f"{what} {text!r} names {name!r} twice; give each one number")
        try:
            found[name] = parse(number)
        except ValueError:
            raise ValueError(
                f"{what} of {name!r} is {number!r}, which is no positive number; expected {form}"
            ) from None
    return found
