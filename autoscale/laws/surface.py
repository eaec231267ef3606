"""A fitted law's losses as functions of the weights alone, with the derivatives a solver needs.

With y_i the (effective) tokens of domain i over the budget and Y their sum, set j has

    L_j = E_j + V_j + B_j Y^-beta_j + const,   log V_j = m_j(s) - b_j log Y + const,   s_i = y_i / Y

(for laws in tokens m_j takes y itself, in the law's unit). Derivatives are by y first, then by the
weights through dy/dw and d2y/dw2, which repetition alone makes other than 1 and 0.
"""

# J validation sets, K domains

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .fitter import make_inputs, own_domains
from .frame import Frame

if TYPE_CHECKING:
    from .fitted_law import FittedLaw

Array = NDArray[np.float64]


class LawSurface:
    """The losses of a fitted law as functions of the weights, at one budget and model size.

    Without repetition they are defined on the simplex, and so are gradients and Hessians: what
    these say along a change of the weights' sum means nothing.

    Attributes:
        domains: in the order of the weights.
        sets: in the order of the losses.
        convex: every loss is a convex function of the weights.
        differentiable: gradients and Hessians exist in the interior of the simplex.

    Raises:
        ValueError: the law has a term of tokens or model size that is not given.
    """

    differentiable = True

    def __init__(self, law: "FittedLaw", tokens: float | None, parameters: float | None) -> None:
        law.require_counts(tokens, parameters)
        self.law, self.frame = law, Frame(law.term, law.form)
        self.domains, self.sets = law.domains, law.sets
        self.tokens = law.units.tokens if tokens is None else float(tokens)
        self.parameters = law.units.parameters if parameters is None else float(parameters)
        self.own_J = own_domains(law.domains, law.sets)
        self.convex = law.term.convex
        if law.repetition is not None:  # shares become effective ones, whose total is not fixed
            has_factor = law.form.tokens in ("product", "both")
            self.convex = law.term.convex_repeated and (law.term.in_tokens or has_factor)

    def losses(self, weights: ArrayLike) -> Array:
        """Losses in the law's metric, shape (..., num_sets) for weights (..., num_domains)."""
        array = np.asarray(weights, dtype=np.float64)
        rows = array.reshape(-1, array.shape[-1])
        found = self.law.predict(rows, self.tokens, self.parameters)
        return found.reshape(*array.shape[:-1], -1)

    def gradients(self, weights_K: ArrayLike) -> Array:
        """d loss / d weight, shape (num_sets, num_domains)."""
        point = _Point(self, np.asarray(weights_K, dtype=np.float64))
        return point.gradient_JK * point.slope_K

    def hessian(self, weights_K: ArrayLike, multipliers_J: ArrayLike) -> Array:
        """sum_j multiplier_j d2 loss_j / d weight2, shape (num_domains, num_domains)."""
        point = _Point(self, np.asarray(weights_K, dtype=np.float64))
        scale_J = np.asarray(multipliers_J, dtype=np.float64)
        hessian_KK = point.slope_K[:, None] * point.weighted_hessian(scale_J) * point.slope_K
        bend_K = (scale_J @ point.gradient_JK) * point.curve_K
        hessian_KK[np.diag_indices_from(hessian_KK)] += bend_K
        return hessian_KK


class _Point:
    """Derivatives of the losses by y at one mixture; slope_K and curve_K are dy/dw and d2y/dw2."""

    def __init__(self, surface: LawSurface, weights_K: Array) -> None:
        law = surface.law
        self.repeats = law.repetition is not None
        # Where nothing repeats, Y is 1, and its derivatives would only restate the simplex.
        self.in_shares = self.repeats and not law.term.in_tokens
        y_K = self._effective(surface, weights_K)
        self.total = float(y_K.sum()) if self.repeats else 1.0
        self.shares_K = y_K / self.total
        self.unit = law.units.tokens / surface.tokens if law.term.in_tokens else self.total
        theta_JQ = law.theta[:, surface.frame.num_own :]
        self.term = law.term.derivatives(theta_JQ, y_K / self.unit, surface.own_J)
        self._take_parts(surface, weights_K)
        self._differentiate()

    def _effective(self, surface: LawSurface, weights_K: Array) -> Array:
        """y; sets its derivatives."""
        repetition = surface.law.repetition
        if repetition is None:
            self.slope_K, self.curve_K = np.ones_like(weights_K), np.zeros_like(weights_K)
            return weights_K
        drawn_K = weights_K * surface.tokens
        self.slope_K, curve_K = repetition.slopes(drawn_K)
        self.curve_K = curve_K * surface.tokens
        return repetition.effective(drawn_K) / surface.tokens

    def _take_parts(self, surface: LawSurface, weights_K: Array) -> None:
        """V, B Y^-beta and their exponents."""
        law, frame = surface.law, surface.frame
        inputs = make_inputs(
            frame,
            law.units,
            law.repetition,
            weights_K[None],
            np.array([surface.tokens]),
            np.array([surface.parameters]),
        )
        parts = frame.parts(law.theta, inputs, surface.own_J)
        self.product_J, self.added_J = parts.product[:, 0], parts.added_tokens[:, 0]
        self.exponent_J = frame.token_exponent(law.theta)
        self.added_exponent_J = parts.added_token_exponent

    def _differentiate(self) -> None:
        """Gradients of log V and of the losses."""
        gradient_JK = self.term.gradient
        if self.in_shares:
            gradient_JK = gradient_JK - (gradient_JK @ self.shares_K)[:, None]
        self.log_gradient_JK = gradient_JK / self.unit
        if self.repeats:
            self.log_gradient_JK = self.log_gradient_JK - (self.exponent_J / self.total)[:, None]
        self.gradient_JK = self.product_J[:, None] * self.log_gradient_JK
        if self.repeats:
            fall_J = self.added_J * self.added_exponent_J / self.total
            self.gradient_JK = self.gradient_JK - fall_J[:, None]

    def weighted_hessian(self, scale_J: Array) -> Array:
        """sum_j scale_j d2 loss_j / dy2; that of V is V (G G^T + d2 log V), G = d log V."""
        weight_J = scale_J * self.product_J
        hessian_KK = (self.log_gradient_JK * weight_J[:, None]).T @ self.log_gradient_JK
        hessian_KK += self._term_hessian(weight_J)
        if self.repeats:  # of Y^-b and of the added B Y^-beta
            beta_J = self.added_exponent_J
            added_J = scale_J * self.added_J * beta_J * (beta_J + 1)
            hessian_KK += float(weight_J @ self.exponent_J + added_J.sum()) / self.total**2
        return hessian_KK

    def _term_hessian(self, weight_J: Array) -> Array:
        """sum_j weight_j d2 m_j / dy2."""
        term, shares_K = self.term, self.shares_K
        diagonal_K = weight_J @ term.diagonal / self.unit**2
        vector_JK = term.vector
        if self.in_shares:
            vector_JK = vector_JK - (vector_JK @ shares_K)[:, None]
        rank_J = weight_J * term.coefficient / self.unit**2
        hessian_KK = (vector_JK * rank_J[:, None]).T @ vector_JK
        hessian_KK[np.diag_indices_from(hessian_KK)] += diagonal_K
        if self.in_shares:
            # (I - 1 s^T) diag(d) (I - s 1^T), and the second derivatives of the shares,
            # -(e_i 1^T + 1 e_i^T) / Y^2 + 2 s_i 1 1^T / Y^2, each times its slope.
            slope_K = weight_J @ term.gradient / self.total**2
            row_K = diagonal_K * shares_K + slope_K
            hessian_KK -= row_K[:, None] + row_K
            hessian_KK += float((diagonal_K * shares_K + 2 * slope_K) @ shares_K)
        return hessian_KK
