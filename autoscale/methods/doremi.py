"""DoReMi: the weights with which a proxy model is nowhere far behind a reference model.

Xie et al., arXiv 2305.10429. Two runs of the same size and length are needed: a reference, which is
an ordinary run, and a proxy, which draws the same uniform batches (P_u of algorithm 1) and weights
their losses by group DRO against the reference (`group_dro`, `online_doremi`). The mean of the
proxy's weights is the mixture. It is written with runs as settings only, so that nothing here
depends on how they are trained:

    reference = replace(base, label="reference")          # exported
    proxy = replace(base, label="proxy", **DoReMi().proxy_changes(reference.identity))
    chosen = DoReMi().choose(problem, result_of_proxy.online["weights"])

The weights are taken as they are, like every published method's that knows no epoch cap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..mixture import Mixture
from .method import About, Chosen
from .problem import MixingProblem


@dataclass(frozen=True, kw_only=True, slots=True)
class DoReMi:
    """The method with the published settings.

    Attributes:
        step_size: of the exponentiated gradient, eta.
        smoothing: share of uniform weights in every step's, c.
    """

    step_size: float = 1.0
    smoothing: float = 1e-3

    name = "doremi"
    about = About(
        citation="Xie et al. 2023, arXiv 2305.10429",
        needs="a reference run and a proxy run, of the target's model or a smaller one",
    )

    def proxy_changes(self, reference: str) -> dict[str, Any]:
        """Fields of a run's spec that make it the proxy.

        Args:
            reference: identity of the reference run, whose exported model it is compared with.
        """
        return {
            "online": {
                "method": self.name,
                "reference": reference,
                "step_size": self.step_size,
                "smoothing": self.smoothing,
            }
        }

    def choose(self, problem: MixingProblem, weights: Mapping[str, float]) -> Chosen:
        """The mixture of a finished proxy run.

        Args:
            problem: the target.
            weights: by domain, the mean over the proxy's steps.

        Raises:
            ValueError: the weights are of other domains.
        """
        mixture = Mixture.from_mapping(weights).reordered(problem.domains)
        message = (
            "Mean weights of a proxy model trained with group DRO against a reference "
            f"(step size {self.step_size:g}, smoothing {self.smoothing:g})."
        )
        return Chosen(mixture=mixture, message=message + problem.repeats(mixture))
