"""The mixture terms by name."""

from .bimix import BiMix
from .effective_tokens import EffectiveTokens
from .inverse_sum import InverseSum
from .log_linear import LogLinear
from .mixture_term import MixtureTerm
from .separable import Separable

TERMS: dict[str, MixtureTerm] = {
    term.name: term
    for term in (
        EffectiveTokens(individual=True),
        EffectiveTokens(individual=False),
        Separable(free=True),
        Separable(free=False),
        InverseSum(in_tokens=False),
        InverseSum(in_tokens=True),
        LogLinear(),
        BiMix(),
    )
}
