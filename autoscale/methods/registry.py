"""All mixture methods by name.

MEDU (`utilimax.GivenUtilities`) is made by hand, as it needs utilities.
"""

from difflib import get_close_matches

from .data_mixing_laws import DataMixingLaws
from .fixed import Natural, PublishedWeights, Uniform
from .joint import Joint
from .method import About, Method
from .olmix import Olmix
from .one_at_a_time import AutoScale
from .published_weights import DOREMI_PILE, LLAMA_REDPAJAMA, REGMIX_PILE
from .regmix import RegMix
from .unimax import UniMax
from .utilimax import UtiliMax

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Uniform(),
        Natural(),
        PublishedWeights(
            name="llama_redpajama",
            weights=LLAMA_REDPAJAMA,
            about=About(
                citation="Touvron et al. 2023, arXiv 2302.13971", needs="RedPajama's domains"
            ),
        ),
        PublishedWeights(
            name="doremi_pile",
            weights=DOREMI_PILE,
            about=About(citation="Xie et al. 2023, arXiv 2305.10429", needs="domains of the Pile"),
        ),
        PublishedWeights(
            name="regmix_pile",
            weights=REGMIX_PILE,
            about=About(citation="Liu et al. 2024, arXiv 2407.01492", needs="domains of the Pile"),
        ),
        UniMax(),
        RegMix(),
        DataMixingLaws(),
        Olmix(),
        UtiliMax(),
        AutoScale(kind="full"),
        AutoScale(kind="hold"),
        AutoScale(kind="damped"),
        Joint(),
    )
}


def method_named(name: str) -> Method:
    """A method with its published settings.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"method {name!r} is unknown; {hint}Known are {', '.join(METHODS)}")
    return METHODS[name]
