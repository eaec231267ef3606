"""What a mixture is chosen for: one number from the validation losses of a run.

Shapes: P runs, J validation sets. A validation set need not be a training domain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from .mixture import require_same_names

Array = NDArray[np.float64]
Kind = Literal["mean_loss", "mean_perplexity", "mean_bits_per_byte", "worst_loss"]

_SHORT: dict[str, Kind] = {
    "mean": "mean_loss",
    "perplexity": "mean_perplexity",
    "bits_per_byte": "mean_bits_per_byte",
    "worst": "worst_loss",
}
_WORDS: dict[str, Kind] = _SHORT | {kind: kind for kind in get_args(Kind)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A weighted mean over validation sets, or the worst of them.

    Attributes:
        kind: `mean_loss` (nats a token); `mean_perplexity`, as in the official code;
            `mean_bits_per_byte`, comparable across tokenizers; `worst_loss`, the highest loss of
            the sets with a weight above 0 (minimax, when minimised).
        weights: by validation set, at least 0, summing to 1.
        bytes_per_token: by validation set, of the text under the tokenizer of the losses; only for
            `mean_bits_per_byte`.
    """

    kind: Kind
    weights: Mapping[str, float]
    bytes_per_token: Mapping[str, float] | None = None

    @classmethod
    def create(
        cls,
        kind: Kind,
        sets: Sequence[str],
        weights: Mapping[str, float] | None = None,
        *,
        bytes_per_token: Mapping[str, float] | None = None,
    ) -> Self:
        """Equal weights unless given; given ones are normalised.

        Raises:
            ValueError: a set is missing or unknown, a weight is negative, all are 0, they are
                unequal for `worst_loss`, or bytes per token lack a set that has a weight.
        """
        if weights is None:
            weights = dict.fromkeys(sets, 1.0)
        require_same_names(weights, sets, what="fit.objective_weights")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"objective weight of {name!r} is {weight}; expected a number of at least 0"
                )
        total = sum(weights.values())
        if total <= 0:
            raise ValueError("objective weights are all 0; give one set a positive weight")
        weights = {name: weights[name] / total for name in sets}
        if kind == "worst_loss" and len({weight for weight in weights.values() if weight}) > 1:
            raise ValueError(
                "the worst loss takes no weights, only which sets count; give those 1, the rest 0"
            )
        if kind == "mean_bits_per_byte":
            used = [name for name in sets if weights[name]]
            bytes_per_token = _checked_bytes(used, bytes_per_token or {})
        elif bytes_per_token is not None:
            raise ValueError(f"bytes per token have no use for {kind}; leave them out")
        return cls(kind=kind, weights=weights, bytes_per_token=bytes_per_token)

    @classmethod
    def parse(
        cls,
        text: str,
        sets: Sequence[str],
        *,
        bytes_per_token: Mapping[str, float] | None = None,
    ) -> Self:
        """Read an objective as the command line takes it.

        `mean`, `perplexity`, `bits_per_byte` or `worst`, of all sets; or of some, weighted:
        `arxiv=2,github` (a mean loss; 1 where no number stands), `worst:arxiv,github`.

        Raises:
            ValueError: the text names an unknown set or has a weight that is no number, or what
                `create` refuses.
        """
        word, colon, rest = text.strip().partition(":")
        if word not in _WORDS:
            word, colon, rest = "mean", ":", text
        weights = _parse_weights(rest, sets) if colon else None
        return cls.create(_WORDS[word], sets, weights, bytes_per_token=bytes_per_token)

    @property
    def is_linear(self) -> bool:
        """Whether the objective is `losses @ coefficients`."""
        return self.kind in ("mean_loss", "mean_bits_per_byte")

    def coefficients(self, sets: Sequence[str]) -> Array:
        """Weight of each set, shape (num_sets,), 0 for sets that the objective does not know.

        For `mean_bits_per_byte` it holds the change of unit, from nats a token. Sets that count
        towards `worst_loss` have a positive coefficient.

        Raises:
            ValueError: a set with a weight is not among `sets`.
        """
        missing = [name for name, weight in self.weights.items() if weight and name not in sets]
        if missing:
            raise ValueError(
                f"the objective needs losses of {', '.join(map(repr, missing))}; "
                f"found those of {', '.join(sets)}"
            )
        weights_J = np.array([self.weights.get(name, 0.0) for name in sets])
        if self.bytes_per_token is None:
            return weights_J
        bytes_J = np.array([self.bytes_per_token.get(name, math.inf) for name in sets])
        return np.asarray(weights_J / (math.log(2) * bytes_J))

    def values(self, losses_PJ: Array, sets: Sequence[str]) -> Array:
        """The objective of runs from their losses in nats a token, over the last axis."""
        coefficients_J = self.coefficients(sets)
        used_J = coefficients_J > 0
        losses = np.asarray(losses_PJ, dtype=np.float64)[..., used_J]
        if self.kind == "worst_loss":
            return np.asarray(losses.max(axis=-1))
        if self.kind == "mean_perplexity":
            losses = np.exp(losses)
        return np.asarray(losses @ coefficients_J[used_J])

    def value(self, losses: Mapping[str, float]) -> float:
        """The objective of one run from its validation losses in nats a token."""
        return float(self.values(np.array(list(losses.values())), tuple(losses)))

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"kind": self.kind, "weights": dict(self.weights)}
        if self.bytes_per_token is not None:
            document["bytes_per_token"] = dict(self.bytes_per_token)
        return document


def unit_of(metric: str, objective: Objective) -> str:
    """The unit of an objective of losses in a metric, for sentences."""
    if objective.kind == "mean_perplexity":
        return "perplexity"
    in_bits = metric == "bits_per_byte" or objective.kind == "mean_bits_per_byte"
    return "bits per byte" if in_bits else "nats"


def _checked_bytes(sets: Sequence[str], bytes_per_token: Mapping[str, float]) -> dict[str, float]:
    for name in sets:
        found = bytes_per_token.get(name)
        if not (found is not None and math.isfinite(found) and found > 0):
            raise ValueError(
                f"bits per byte need the bytes per token of {name!r}, a positive number; "
                f"found {found}. Count the bytes of its validation text and divide by its tokens"
            )
    return {name: float(bytes_per_token[name]) for name in sets}


def _parse_weights(text: str, sets: Sequence[str]) -> dict[str, float]:
    """`a=2,b` as weights of all sets, 0 for those not named."""
    weights = dict.fromkeys(sets, 0.0)
    named = set()
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        if name not in weights:
            near = get_close_matches(name, [*sets, *_SHORT], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"objective {text!r} names {name!r}, which is no validation set; {hint}Expected "
                f"{', '.join(_SHORT)}, or weights of {', '.join(sets)}, such as {sets[0]}=2"
            )
        if name in named:
            raise ValueError(f"objective {text!r} names {name!r} twice; add the weights up")
        named.add(name)
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            raise ValueError(
                f"objective {text!r} gives {name!r} the weight {number!r}; expected a number"
            ) from None
    return weights
