"""A fitted law: predictions, the surface that it gives the solver, and its JSON."""

# S draws, J validation sets, P runs, K domains, Q parameters

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .fitter import Units, make_inputs, own_domains
from .frame import Form, Frame
from .mixture_term import MixtureTerm
from .repetition import Repetition
from .surface import LawSurface
from .terms import TERMS

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedLaw:
    """Parameters of one law for every validation set.

    Attributes:
        law: its name, a key of `TERMS`.
        form: where tokens and model size enter.
        domains: training domains, K of them.
        sets: validation sets, J of them.
        metric: unit of the losses.
        units: tokens and parameters that count as 1 inside the law.
        repetition: worth of repeated tokens, or None when every token counts in full.
        theta: parameters as fitted, shape (num_sets, num_parameters).
        draws: bootstrap draws of them, shape (num_draws, num_sets, num_parameters), or None.
        noise: standard deviation of the residuals, shape (num_sets,); relative to the loss when
            `relative`, else in `metric`.
        effective_parameters: how many the data determine rather than the priors, shape (num_sets,).
        converged: by set.
    """

    law: str
    form: Form
    domains: tuple[str, ...]
    sets: tuple[str, ...]
    metric: str
    units: Units
    repetition: Repetition | None
    theta: Array
    draws: Array | None
    noise: Array
    relative: bool
    effective_parameters: Array
    converged: tuple[bool, ...]

    @property
    def term(self) -> MixtureTerm:
        return TERMS[self.law]

    @property
    def uses_tokens(self) -> bool:
        """Whether its losses depend on the token budget."""
        return self.term.in_tokens or self.form.tokens != "none"

    @property
    def num_draws(self) -> int:
        return 0 if self.draws is None else len(self.draws)

    def predict(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses of runs, shape (num_runs, num_sets).

        Args:
            weights: shape (num_runs, num_domains), in the order of `domains`.
            tokens: shape (num_runs,); None where the law knows one budget only.
            parameters: shape (num_runs,); None where the law knows one size only.
        """
        return np.asarray(self._values(self.theta[None], weights, tokens, parameters)[0].T)

    def predict_draws(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses under every bootstrap draw, shape (num_draws, num_runs, num_sets)."""
        values_SJP = self._values(self._drawn(), weights, tokens, parameters)
        return values_SJP.transpose(0, 2, 1)

    def at_draw(self, number: int) -> Self:
        """The law with the parameters of one bootstrap draw."""
        return replace(self, theta=self._drawn()[number], draws=None)

    def surface(
        self, tokens: float | None, parameters: float | None, draw: int | None = None
    ) -> LawSurface:
        """Losses as functions of the weights at one budget and size, for the solver."""
        return LawSurface(self if draw is None else self.at_draw(draw), tokens, parameters)

    def require_counts(self, tokens: ArrayLike | None, parameters: ArrayLike | None) -> None:
        """Raise ValueError where the law has a term of counts that are not given."""
        for placement, counts, what in (
            (self.form.tokens, tokens, "tokens"),
            (self.form.size, parameters, "parameters"),
        ):
            if placement != "none" and counts is None:
                raise ValueError(
                    f"the law was fitted with a term of {what}; give the {what} to predict for"
                )

    def with_repetition(self, repetition: Repetition | None) -> Self:
        """The same law where tokens repeat differently."""
        return replace(self, repetition=repetition)

    def readable(self) -> dict[str, dict[str, Any]]:
        """Parameters by validation set, under the names and in the units of the docs."""
        frame = Frame(self.term, self.form)
        found = {}
        for name, theta_Q in zip(self.sets, self.theta, strict=True):
            own = {
                key.removeprefix("log_"): float(
                    np.exp(theta_Q[at]) if key.startswith("log_") else theta_Q[at]
                )
                for key, at in frame.position.items()
            }
            if "token_exponent" in own:
                own["token_exponent"] = float(frame.token_exponent(theta_Q[None])[0])
            found[name] = own | self.term.readable(theta_Q[frame.num_own :], self.domains)
        return found

    def to_dict(self) -> dict[str, Any]:
        frame = Frame(self.term, self.form)
        return {
            "law": self.law,
            "form": self.form.to_dict(),
            "domains": list(self.domains),
            "sets": list(self.sets),
            "metric": self.metric,
            "units": self.units._asdict(),
            "repetition": None if self.repetition is None else self.repetition.to_dict(),
            "parameter_names": list(frame.parameter_names(self.domains)),
            "theta": self.theta.tolist(),
            "draws": None if self.draws is None else self.draws.tolist(),
            "noise": self.noise.tolist(),
            "relative": self.relative,
            "effective_parameters": self.effective_parameters.tolist(),
            "converged": list(self.converged),
            "parameters": self.readable(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        if record["law"] not in TERMS:
            raise ValueError(
                f"the record holds law {record['law']!r}; known are {', '.join(TERMS)}"
            )
        repetition, draws = record["repetition"], record["draws"]
        return cls(
            law=record["law"],
            form=Form(**record["form"]),
            domains=tuple(record["domains"]),
            sets=tuple(record["sets"]),
            metric=record["metric"],
            units=Units(**record["units"]),
            repetition=None if repetition is None else Repetition.from_dict(repetition),
            theta=np.array(record["theta"], dtype=np.float64),
            draws=None if draws is None else np.array(draws, dtype=np.float64),
            noise=np.array(record["noise"], dtype=np.float64),
            relative=record["relative"],
            effective_parameters=np.array(record["effective_parameters"], dtype=np.float64),
            converged=tuple(record["converged"]),
        )

    def _drawn(self) -> Array:
        if self.draws is None:
            raise ValueError(f"law {self.law!r} was fitted without bootstrap draws; draw some")
        return self.draws

    def _values(
        self,
        theta_SJQ: Array,
        weights: ArrayLike,
        tokens: ArrayLike | None,
        parameters: ArrayLike | None,
    ) -> Array:
        """Shape (S, J, P)."""
        frame = Frame(self.term, self.form)
        self.require_counts(tokens, parameters)
        weights_PK = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        if weights_PK.shape[1] != len(self.domains):
            raise ValueError(
                f"mixtures to predict have {weights_PK.shape[1]} weights; expected one for each of "
                f"the {len(self.domains)} domains {', '.join(self.domains)}"
            )
        tokens_P, parameters_P = (
            None if counts is None else np.broadcast_to(np.asarray(counts, float), len(weights_PK))
            for counts in (tokens, parameters)
        )
        inputs = make_inputs(frame, self.units, self.repetition, weights_PK, tokens_P, parameters_P)
        own_B = np.tile(own_domains(self.domains, self.sets), len(theta_SJQ))
        value_BP = frame.value(theta_SJQ.reshape(len(own_B), -1), inputs, own_B)
        return value_BP.reshape(*theta_SJQ.shape[:2], -1)
