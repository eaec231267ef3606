"""The frame around every mixture term: irreducible loss, and terms of tokens and model size.

    L_j = E_j + A_j D^-b_j P^-h_j exp(m_j) + B_j D^-beta_j P^eta_j + K_j P^-alpha_j

D tokens and P parameters, in units near those of the fit; m_j the mixture term of the law. Each of
the factors and of the additive terms is there or not, as `Form` says.

With a factor D^-b, b is at least the term's `token_floor` (g times the largest power of the
effective tokens law): then tokens of a useless domain never raise the loss, and with repetition,
where D and the shares become effective ones, the loss stays convex in the weights. Proof of the
latter: in effective tokens y_i and Y = sum y_i, `Y^kmax S = sum_i t_i y_i^k_i Y^(kmax - k_i)` is a
sum of geometric means, hence concave, and so is Y; the loss is their powers with exponents -g and
-(b - g kmax), a log-convex decreasing function of each; and y_i is concave in w_i.
"""

# B fits, P runs, K domains, Q parameters

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .mixture_term import Amounts, Index, MixtureTerm, Prior

Array = NDArray[np.float64]
Placement = Literal["none", "product", "sum", "both"]

LOG_IRREDUCIBLE = (float(np.log(0.6)), 0.5)  # of the smallest loss; mean and sd of the logarithm
LOG_IRREDUCIBLE_OF_MANY = (float(np.log(0.5)), 0.3)  # with several budgets or sizes
LOG_AMPLITUDE_SD = 3.0
LEAST_REDUCIBLE = 0.02  # of the typical loss, where a fit starts
LOG_TOKEN_EXPONENT = (float(np.log(0.2)), 0.5)
LOG_TOKEN_EXCESS = (float(np.log(0.05)), 1.0)  # b less its floor, where the floor is not 0
LOG_SIZE_EXPONENT = (float(np.log(0.2)), 0.5)
LOG_ADDED_TOKEN_AMPLITUDE = (float(np.log(0.1)), 1.5)  # of the smallest loss
LOG_ADDED_TOKEN_EXPONENT = (float(np.log(0.5)), 0.5)
ADDED_TOKEN_SIZE_EXPONENT = (0.2, 0.2)  # no logarithm: larger models lag at first, or lead
LOG_ADDED_SIZE_AMPLITUDE = (float(np.log(0.2)), 1.0)  # of the smallest loss
LOG_ADDED_SIZE_EXPONENT = (float(np.log(0.2)), 0.4)
LOG_TERM_RANGE = (-30.0, 8.0)  # so that the steps of a fit cannot overflow
LOG_EXPONENT_RANGE = (-8.0, 2.0)
LOG_IRREDUCIBLE_RANGE = (-9.0, 4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Where tokens and model size enter: as a factor (product), as a term (sum), both or not."""

    tokens: Placement = "none"
    size: Placement = "none"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What the frame sees of the runs.

    Attributes:
        amounts: for the mixture term.
        log_tokens: logarithm of the (effective) tokens over the token unit, shape (num_runs,).
        log_parameters: of the parameters over their unit, shape (num_runs,).
    """

    amounts: Amounts
    log_tokens: Array
    log_parameters: Array


class Parts(NamedTuple):
    """The summands of the losses; arrays of shape (B, P) unless said."""

    irreducible: Array  # (B, 1)
    product: Array
    added_tokens: Array
    added_size: Array
    added_token_exponent: Array  # (B,)
    term_jacobian: Array  # of the logarithm of the product, (B, P, Q of the term)

    @property
    def value(self) -> Array:
        return self.irreducible + self.product + self.added_tokens + self.added_size


class Frame:
    """A law in one form: values, Jacobian, priors and starts. Parameters are logarithms."""

    def __init__(self, term: MixtureTerm, form: Form) -> None:
        self.term, self.form = term, form
        names = ["log_irreducible"]
        if term.has_amplitude:
            names.append("log_amplitude")
        if form.tokens in ("product", "both"):
            names.append("log_token_exponent")
        if form.size in ("product", "both"):
            names.append("log_size_exponent")
        if form.tokens in ("sum", "both"):
            names += ["log_added_token_amplitude", "log_added_token_exponent"]
            names += ["added_token_size_exponent"] * (form.size != "none")
        if form.size in ("sum", "both"):
            names += ["log_added_size_amplitude", "log_added_size_exponent"]
        self.names = tuple(names)
        self.position = {name: index for index, name in enumerate(names)}
        self.num_own = len(names)

    def parameter_names(self, domains: Sequence[str]) -> tuple[str, ...]:
        return self.names + self.term.parameter_names(domains)

    def prior(self, least_B: Array, own_B: Index, num_domains: int) -> Prior:
        """Priors given the smallest loss of each fit, shape (B,)."""
        many = self.form != Form()
        priors = {
            "log_irreducible": LOG_IRREDUCIBLE_OF_MANY if many else LOG_IRREDUCIBLE,
            "log_amplitude": (0.0, LOG_AMPLITUDE_SD),
            "log_token_exponent": self._token_exponent_prior(),
            "log_size_exponent": LOG_SIZE_EXPONENT,
            "log_added_token_amplitude": LOG_ADDED_TOKEN_AMPLITUDE,
            "log_added_token_exponent": LOG_ADDED_TOKEN_EXPONENT,
            "added_token_size_exponent": ADDED_TOKEN_SIZE_EXPONENT,
            "log_added_size_amplitude": LOG_ADDED_SIZE_AMPLITUDE,
            "log_added_size_exponent": LOG_ADDED_SIZE_EXPONENT,
        }
        mean, sd = np.transpose([priors[name] for name in self.names])
        mean_BQ, sd_BQ = np.tile(mean, (len(own_B), 1)), np.tile(sd, (len(own_B), 1))
        for name in ("log_irreducible", "log_added_token_amplitude", "log_added_size_amplitude"):
            if name in self.position:  # these are levels, in the unit of the losses
                mean_BQ[:, self.position[name]] += np.log(least_B)
        of_term = self.term.prior(own_B, num_domains)
        return Prior(np.hstack([mean_BQ, of_term.mean]), np.hstack([sd_BQ, of_term.sd]))

    def start(self, prior: Prior, inputs: Inputs, own_B: Index, typical_B: Array) -> Array:
        """The prior's mean with the level moved to the typical loss of each fit, shape (B, Q)."""
        theta_BQ = prior.mean.copy()
        rest_B = typical_B - np.exp(theta_BQ[:, 0])
        for name in ("log_added_token_amplitude", "log_added_size_amplitude"):
            if name in self.position:
                rest_B = rest_B - np.exp(theta_BQ[:, self.position[name]])
        term_BP, _ = self.term.evaluate(theta_BQ[:, self.num_own :], inputs.amounts, own_B)
        lift_B = np.log(np.maximum(rest_B, LEAST_REDUCIBLE * typical_B))
        lift_B = lift_B - np.median(term_BP, axis=1)
        if "log_amplitude" in self.position:
            theta_BQ[:, self.position["log_amplitude"]] = lift_B
        else:
            theta_BQ[:, self.num_own :] = self.term.shifted(theta_BQ[:, self.num_own :], lift_B)
        return theta_BQ

    def value(self, theta_BQ: Array, inputs: Inputs, own_B: Index) -> Array:
        """Losses, shape (B, P)."""
        return self.parts(theta_BQ, inputs, own_B).value

    def parts(self, theta_BQ: Array, inputs: Inputs, own_B: Index) -> "Parts":
        """The summands of the losses."""
        term_BP, term_jacobian = self.term.evaluate(
            theta_BQ[:, self.num_own :], inputs.amounts, own_B
        )
        log_product_BP = term_BP - self.token_exponent(theta_BQ)[:, None] * inputs.log_tokens
        log_product_BP -= self._exponent(theta_BQ, "log_size_exponent") * inputs.log_parameters
        if "log_amplitude" in self.position:
            log_product_BP += self._column(theta_BQ, "log_amplitude")
        return Parts(
            irreducible=np.exp(np.clip(theta_BQ[:, :1], *LOG_IRREDUCIBLE_RANGE)),
            product=np.exp(np.clip(log_product_BP, *LOG_TERM_RANGE)),
            added_tokens=self._added_tokens(theta_BQ, inputs),
            added_size=self._added(theta_BQ, "size", inputs.log_parameters),
            added_token_exponent=self._exponent(theta_BQ, "log_added_token_exponent")[:, 0],
            term_jacobian=term_jacobian,
        )

    def evaluate(self, theta_BQ: Array, inputs: Inputs, own_B: Index) -> tuple[Array, Array]:
        """Losses, shape (B, P), and their Jacobian, shape (B, P, Q)."""
        parts = self.parts(theta_BQ, inputs, own_B)
        jacobian = np.empty((*parts.product.shape, theta_BQ.shape[1]))
        by_term = np.multiply(
            parts.term_jacobian, parts.product[:, :, None], out=jacobian[:, :, self.num_own :]
        )
        columns = {"log_irreducible": parts.irreducible, "log_amplitude": parts.product}
        if "log_token_exponent" in self.position:
            slope_BP = -parts.product * inputs.log_tokens
            columns["log_token_exponent"] = slope_BP * self._exponent(
                theta_BQ, "log_token_exponent"
            )
            _, floor_jacobian = self.term.token_floor(theta_BQ[:, self.num_own :])
            if floor_jacobian.any():
                by_term += slope_BP[:, :, None] * floor_jacobian[:, None, :]
        exponent_B1 = self._exponent(theta_BQ, "log_size_exponent")
        columns["log_size_exponent"] = -parts.product * exponent_B1 * inputs.log_parameters
        for what, added_BP, logs_P in (
            ("token", parts.added_tokens, inputs.log_tokens),
            ("size", parts.added_size, inputs.log_parameters),
        ):
            exponent_B1 = self._exponent(theta_BQ, f"log_added_{what}_exponent")
            columns[f"log_added_{what}_amplitude"] = added_BP
            columns[f"log_added_{what}_exponent"] = -added_BP * exponent_B1 * logs_P
        columns["added_token_size_exponent"] = parts.added_tokens * inputs.log_parameters
        for name, at in self.position.items():
            jacobian[:, :, at] = columns[name]
        return parts.value, jacobian

    def token_exponent(self, theta_BQ: Array) -> Array:
        """b of the factor D^-b, shape (B,); 0 without one."""
        if "log_token_exponent" not in self.position:
            return np.zeros(len(theta_BQ))
        floor_B, _ = self.term.token_floor(theta_BQ[:, self.num_own :])
        return np.asarray(floor_B + self._exponent(theta_BQ, "log_token_exponent")[:, 0])

    def _column(self, theta_BQ: Array, name: str) -> Array:
        at = self.position[name]
        return theta_BQ[:, at : at + 1]

    def _exponent(self, theta_BQ: Array, name: str) -> Array:
        """exp of a parameter, shape (B, 1); 0 where the form has none."""
        if name not in self.position:
            return np.zeros((len(theta_BQ), 1))
        return np.asarray(np.exp(np.clip(self._column(theta_BQ, name), *LOG_EXPONENT_RANGE)))

    def _added_tokens(self, theta_BQ: Array, inputs: Inputs) -> Array:
        """B D^-beta P^eta, shape (B, P)."""
        added_BP = self._added(theta_BQ, "token", inputs.log_tokens)
        if "added_token_size_exponent" in self.position:
            exponent_B1 = self._column(theta_BQ, "added_token_size_exponent")
            added_BP = added_BP * np.exp(np.clip(exponent_B1 * inputs.log_parameters, -30, 30))
        return added_BP

    def _added(self, theta_BQ: Array, what: str, logs_P: Array) -> Array:
        """An additive power term, shape (B, P); 0 where the form has none."""
        if f"log_added_{what}_amplitude" not in self.position:
            return np.zeros((len(theta_BQ), len(logs_P)))
        exponent_B1 = self._exponent(theta_BQ, f"log_added_{what}_exponent")
        log_BP = self._column(theta_BQ, f"log_added_{what}_amplitude") - exponent_B1 * logs_P
        return np.asarray(np.exp(np.clip(log_BP, *LOG_TERM_RANGE)))

    def _token_exponent_prior(self) -> tuple[float, float]:
        has_floor = self.term.token_floor(self.term.prior(np.zeros(1, np.int64), 1).mean)[0][0] > 0
        return LOG_TOKEN_EXCESS if has_floor else LOG_TOKEN_EXPONENT
