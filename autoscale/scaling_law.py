"""Fit the published scaling law of each domain to the probe runs of one token budget.

Input: per probe run the multiples `x_i = N_i / N_i(reference)` of each domain's tokens and the
objective divided by that of the reference run, `y`. Output: one `PowerLaw` a domain,

    f_i(x) = amplitude * (x + equivalent) ** -exponent + irreducible

(Kang et al., arXiv 2407.20177, section 3.2). Without an amplitude the fit depends on the unit of
N_i, so the units are fixed here, once: tokens in multiples of the reference run's, objective in
multiples of the reference run's. `equivalent` is what the other domains are worth in that unit.

Two facts about three points (down, reference, up) with amplitude 1 shape this module. The three
parameters leave no degree of freedom. And the curve through three points is not unique: there is
as a rule a second one with a small exponent and nearly no irreducible part (it exists for all seven
domains of the official notebook). Where two fits are equally good the one with the larger
irreducible part is taken. That is what the published code finds, and the more careful of the two:
it promises less from tokens never probed.
"""

# P probe runs (points), K domains, Q parameters

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]
Amplitude = Literal["unit", "free"]
Status = Literal["converged", "at_bound", "max_iterations"]

EXPONENT_BOUNDS = (1e-4, 20.0)
EQUIVALENT_BOUNDS = (0.0, 1e4)
IRREDUCIBLE_BOUNDS = (0.0, 1 - 1e-9)
DROP_BOUNDS = (1e-6, 10.0)  # amplitude * (1 + equivalent) ** -exponent: reducible part at x = 1
LEVEL_BOUNDS = (0.0, 10.0)  # joint fit only: y at the reference
EXPONENT_BANDS = (1e-3, 0.1, 0.3, 1.0, 3.0, 12.0)  # one start between each two neighbours
ROUNDING = 1e-22  # sum of squares that float64 may leave of an exact fit
SAME_FIT = 1e-6  # relative difference in the sum of squares below which two fits tie
FLAT = 1e-9  # largest fall over the points, in units of y, that counts as none
FLAT_EXPONENT = 1e-8  # of such a law; any fitted law gains more per token
MISS = 1e-4  # residual that an exactly determined fit should not have, in units of y
MAX_EVALUATIONS = 500


class FitError(ValueError):
    """The points do not determine the law, or are not numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """The fitted law of one domain.

    Attributes:
        domain: its name.
        exponent: how fast the objective falls, dimensionless.
        equivalent: worth of the other domains, in multiples of this domain's reference tokens.
        irreducible: part that no token of this domain removes, in multiples of the reference
            run's objective.
        amplitude: 1 as published, or fitted.
        residual_rms: root mean square of the residuals, in multiples of the reference objective.
        num_points: probe runs that entered the fit.
        degrees_of_freedom: points less parameters; 0 means that the residual says nothing.
        status: a bound that was hit is a status, not an exception.
        at_bounds: names of the parameters that rest on a bound.
        message: the outcome in a sentence.
    """

    domain: str
    exponent: float
    equivalent: float
    irreducible: float
    amplitude: float = 1.0
    residual_rms: float = 0.0
    num_points: int = 0
    degrees_of_freedom: int = 0
    status: Status = "converged"
    at_bounds: tuple[str, ...] = ()
    message: str = ""

    def __call__(self, multiples: ArrayLike) -> Array:
        """f(x) at token multiples of any shape, in multiples of the reference objective."""
        base = np.asarray(multiples, dtype=np.float64) + self.equivalent
        with np.errstate(divide="ignore"):  # without equivalent tokens f(0) is infinite
            return np.asarray(self.amplitude * base**-self.exponent + self.irreducible)

    def derivative(self, multiples: ArrayLike) -> Array:
        """df/dx at token multiples of any shape; negative."""
        base = np.asarray(multiples, dtype=np.float64) + self.equivalent
        with np.errstate(divide="ignore"):
            return np.asarray(-self.amplitude * self.exponent * base ** -(self.exponent + 1))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"at_bounds": list(self.at_bounds)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        return cls(**(record | {"at_bounds": tuple(record["at_bounds"])}))


def fit_power_law(
    domain: str, multiples: ArrayLike, values: ArrayLike, *, amplitude: Amplitude = "unit"
) -> PowerLaw:
    """Fit one domain's law by bounded least squares, `min sum_p (f(x_p) - y_p)^2`.

    Args:
        domain: its name, for the record and for messages.
        multiples: tokens realised in multiples of the reference run's, shape (num_points,).
        values: objective in multiples of the reference run's, shape (num_points,).
        amplitude: "unit" keeps it at 1 as published (3 parameters), "free" fits it (4).

    Raises:
        FitError: a number is not finite or not positive, or there are fewer distinct multiples
            than parameters.
    """
    x_P, y_P = _checked_points(domain, multiples, values)
    free = amplitude == "free"
    found = len(np.unique(x_P))
    if found < 3 + free:
        remedy = "add a factor to probe.factors" + (" or set fit.amplitude = 'unit'" * free)
        raise FitError(
            f"domain {domain!r} was probed at {found} distinct token counts; a law with "
            f"amplitude {amplitude!r} has {3 + free} parameters and needs at least as many: "
            f"{remedy}, and make sure that its probe runs finished"
        )
    problem = _Problem(x_P[:, None], y_P, free=free, joint=False)
    starts = _grid_starts(problem)
    if not starts:
        return _flat_law(domain, problem)
    best, twin = _choose(problem, _minimise(problem, starts))
    note = ""
    if twin is not None and len(y_P) == problem.num_parameters:
        exponent, equivalent, _ = problem.terms(twin.theta)
        note = (
            f"; a second law (exponent {exponent[0]:.3g}, equivalent {equivalent[0]:.3g}, "
            f"irreducible {twin.theta[0]:.3g}) fits these points as well, the one with the "
            "larger irreducible part is used"
        )
    return _laws(problem, best, (domain,), note)[0]


def fit_separable(
    domains: Sequence[str],
    multiples_PK: ArrayLike,
    values_P: ArrayLike,
    *,
    amplitude: Amplitude = "unit",
) -> tuple[PowerLaw, ...]:
    """Fit the laws of all domains to the probe runs of one budget.

    When every run scales at most one domain this is the published fit: one `fit_power_law` a
    domain through the runs that scale it and the reference runs. When runs change several domains
    at once (a fixed total budget), a point belongs to no single domain, and all are fitted jointly:

        y_p = level + sum_i [f_i(x_pi) - f_i(1)]

    This is the additivity that the objective `sum_i f_i` of the solver assumes anyway. With one
    domain varied at a time the sum has one term, and wherever the published fit passes through its
    points the two agree, with `irreducible_i = level - [f_i(1) without it]`. Runs of one total
    cannot tell `f_i` from `f_i + c x_i N_i(reference)`, the same c for all i, except by curvature:
    the optimum at that total does not depend on c, an optimum at another total would.

    Args:
        domains: names, in the order of the columns.
        multiples_PK: tokens realised in multiples of the reference run's, shape
            (num_runs, num_domains).
        values_P: objective in multiples of the reference run's, shape (num_runs,).
        amplitude: "unit" or "free", see `fit_power_law`.

    Raises:
        FitError: see `fit_power_law`; in the joint fit also fewer runs than parameters.
    """
    x_PK = np.asarray(multiples_PK, dtype=np.float64)
    y_P = np.asarray(values_P, dtype=np.float64)
    if x_PK.shape != (len(y_P), len(domains)):
        raise FitError(
            f"multiples have shape {x_PK.shape}; expected {(len(y_P), len(domains))}, "
            "a row per run and a column per domain"
        )
    scaled_PK = x_PK != 1
    if scaled_PK.sum(axis=1).max(initial=0) <= 1:
        reference_P = ~scaled_PK.any(axis=1)
        rows = [scaled_PK[:, i] | reference_P for i in range(len(domains))]
        return tuple(
            fit_power_law(name, x_PK[rows[i], i], y_P[rows[i]], amplitude=amplitude)
            for i, name in enumerate(domains)
        )
    for i, name in enumerate(domains):
        _checked_points(name, x_PK[:, i], y_P)
    problem = _Problem(x_PK, y_P, free=amplitude == "free", joint=True)
    found = len(np.unique(x_PK, axis=0))
    if found < problem.num_parameters:
        raise FitError(
            f"the joint law of {len(domains)} domains has {problem.num_parameters} parameters but "
            f"only {found} distinct runs finished: add a factor to probe.factors, set "
            "probe.fixed_budget = false, or run the missing probes"
        )
    best, _ = _choose(problem, _minimise(problem, _joint_starts(problem)))
    return _laws(problem, best, tuple(domains), "")


class _Minimum(NamedTuple):
    theta: Array
    cost: float  # half the sum of squares
    finished: bool


class _Problem:
    """Residuals and Jacobian of `y = offset + sum_i [h_i(x_i) - joint * h_i(1)]`.

    The parameters are `[offset, log exponent_K, log(1 + equivalent)_K, (log drop_K)]`, where
    `h(x) = drop * ((x + equivalent) / (1 + equivalent)) ** -exponent` and drop = h(1). Amplitude 1
    means `log drop = -exponent * log(1 + equivalent)` and saves the last block. Logs keep the
    parameters of one magnitude and the drop, unlike the amplitude, hardly depends on the others.
    The offset is `irreducible` in a fit of one domain, the level at the reference in a joint one.
    """

    def __init__(self, x_PK: Array, y_P: Array, *, free: bool, joint: bool) -> None:
        self.x_PK, self.y_P, self.free, self.joint = x_PK, y_P, free, joint
        self.num_domains = x_PK.shape[1]
        blocks = [np.log(EXPONENT_BOUNDS), np.log1p(EQUIVALENT_BOUNDS)]
        blocks += [np.log(DROP_BOUNDS)] if free else []
        offset = np.asarray(LEVEL_BOUNDS if joint else IRREDUCIBLE_BOUNDS)
        lower_upper = np.vstack([offset, np.repeat(blocks, self.num_domains, axis=0)])
        self.lower: Array = lower_upper[:, 0]
        self.upper: Array = lower_upper[:, 1]
        self.num_parameters = len(self.lower)

    def terms(self, theta: Array) -> tuple[Array, Array, Array]:
        """Exponent, equivalent and log drop, each of shape (num_domains,)."""
        log_exponent, log_worth, *rest = theta[1:].reshape(-1, self.num_domains)
        exponent = np.exp(log_exponent)
        return exponent, np.expm1(log_worth), rest[0] if self.free else -exponent * log_worth

    def residual(self, theta: Array) -> Array:
        """Predicted less observed values, shape (num_points,)."""
        exponent, equivalent, log_drop = self.terms(theta)
        distance_PK = np.log((self.x_PK + equivalent) / (1 + equivalent))
        h_PK = np.exp(log_drop - exponent * distance_PK)
        at_reference = np.exp(log_drop) if self.joint else np.zeros(self.num_domains)
        return np.asarray(theta[0] + (h_PK - at_reference).sum(axis=1) - self.y_P)

    def jacobian(self, theta: Array) -> Array:
        """d residual / d parameter, shape (num_points, num_parameters)."""
        exponent, equivalent, log_drop = self.terms(theta)
        ratio_PK = (self.x_PK + equivalent) / (1 + equivalent)
        h_PK = np.exp(log_drop - exponent * np.log(ratio_PK))
        at_reference = np.exp(log_drop) if self.joint else np.zeros(self.num_domains)
        drop_PK = h_PK - at_reference  # d/d log drop
        by_exponent_PK = -exponent * np.log(ratio_PK) * h_PK
        by_worth_PK = -exponent * (1 / ratio_PK - 1) * h_PK
        columns = [np.ones((len(self.y_P), 1)), by_exponent_PK, by_worth_PK]
        if self.free:
            columns.append(drop_PK)
        else:  # the drop follows from exponent and worth
            columns[1] = by_exponent_PK + log_drop * drop_PK
            columns[2] = by_worth_PK - exponent * drop_PK
        return np.hstack(columns)


def _minimise(problem: _Problem, starts: Sequence[Array]) -> list[_Minimum]:
    """Local minima: a short search from every start, the promising ones then to full precision."""
    rough = [_search(problem, start, "trf", tolerance=1e-10, max_nfev=100) for start in starts]
    limit = 1.1 * min(fit.cost for fit in rough) + 1e-12
    return [_polish(problem, fit) for fit in rough if fit.cost <= limit]


def _polish(problem: _Problem, fit: _Minimum) -> _Minimum:
    """Full precision inside, then on the bounds: trf only creeps up to them, dogbox rests there."""
    lower, upper = problem.lower, problem.upper
    fit = _search(problem, fit.theta, "trf", tolerance=1e-15, max_nfev=MAX_EVALUATIONS)
    near = 1e-3 * (upper - lower)
    snapped = np.where(fit.theta - lower < near, lower, fit.theta)
    snapped = np.where(upper - fit.theta < near, upper, snapped)
    for theta in (fit.theta, snapped):
        other = _search(problem, theta, "dogbox", tolerance=1e-15, max_nfev=MAX_EVALUATIONS)
        fit = other if other.cost <= fit.cost else fit
    return fit


def _search(
    problem: _Problem, start: Array, method: str, *, tolerance: float, max_nfev: int
) -> _Minimum:
    result = least_squares(
        problem.residual,
        np.clip(start, problem.lower, problem.upper),
        jac=problem.jacobian,
        bounds=(problem.lower, problem.upper),
        method=method,
        x_scale="jac",
        ftol=tolerance,
        xtol=tolerance,
        gtol=tolerance,
        max_nfev=max_nfev,
    )
    return _Minimum(result.x, float(result.cost), result.status > 0)


def _grid_starts(problem: _Problem) -> list[Array]:
    """The best point of a coarse grid in each band of exponents, or none for points that rise.

    The two curves through three points differ above all in their exponent, so that one start in
    each band finds both. Points that do not fall along any curve of the family have no best curve
    but the constant.
    """
    x_P, y_P = problem.x_PK[:, 0], problem.y_P
    starts, falls = [], False
    for low, high in pairwise(EXPONENT_BANDS):
        candidates = []
        for exponent in np.geomspace(low, high, 5):
            for log_worth in np.linspace(0.02, np.log(50), 12):
                shape_P = ((x_P + np.expm1(log_worth)) * np.exp(-log_worth)) ** -exponent
                spread_P = shape_P - shape_P.mean()
                slope = float(spread_P @ y_P) / float(spread_P @ spread_P)
                falls |= slope * float(np.abs(spread_P).max()) > FLAT
                drop = max(slope, 1e-3) if problem.free else np.exp(-exponent * log_worth)
                offset = np.clip(np.mean(y_P - drop * shape_P), 1e-3, 0.999)
                cost = float(np.sum((offset + drop * shape_P - y_P) ** 2))
                theta = [offset, np.log(exponent), log_worth] + [np.log(drop)] * problem.free
                candidates.append((cost, theta))
        starts.append(np.asarray(min(candidates)[1]))
    return starts if falls else []


def _flat_law(domain: str, problem: _Problem) -> PowerLaw:
    """The law of a domain whose tokens do not help: as constant as the bounds allow."""
    level = float(problem.y_P.mean())
    law = PowerLaw(
        domain=domain,
        exponent=FLAT_EXPONENT,
        equivalent=1.0,
        irreducible=float(np.clip(level - 1, *IRREDUCIBLE_BOUNDS)),
        num_points=len(problem.y_P),
        degrees_of_freedom=len(problem.y_P) - problem.num_parameters,
        status="at_bound",
        at_bounds=("exponent",),
        message=f"the objective did not fall with more tokens of domain {domain!r}: its law is "
        "taken flat, so that it gets no more weight than it must",
    )
    residual = law(problem.x_PK[:, 0]) - problem.y_P
    return replace(law, residual_rms=float(np.sqrt(np.mean(residual**2))))


def _joint_starts(problem: _Problem) -> list[Array]:
    """Each domain's own law through the runs that change it most, and one law for all, twice."""
    x_PK, y_P = problem.x_PK, problem.y_P
    most_P = np.abs(np.log(x_PK)).argmax(axis=1)
    reference_P = (x_PK == 1).all(axis=1)
    starts = [[(1.5, 2.5)] * problem.num_domains, [(0.5, 1.0)] * problem.num_domains]
    own = starts[0].copy()
    for i in range(problem.num_domains):
        rows_P = (most_P == i) | reference_P
        if len(np.unique(x_PK[rows_P, i])) >= 3:
            law = fit_power_law("", x_PK[rows_P, i], y_P[rows_P])
            own[i] = (law.exponent, law.equivalent)
    return [_joint_theta(problem, np.asarray(start)) for start in (own, *starts)]


def _joint_theta(problem: _Problem, exponent_equivalent_K2: Array) -> Array:
    log_exponent, log_worth = np.log(exponent_equivalent_K2 + np.array([0, 1])).T
    log_drop = -np.exp(log_exponent) * log_worth
    blocks = [[np.mean(problem.y_P)], log_exponent, log_worth] + [log_drop] * problem.free
    return np.concatenate(blocks)


def _choose(problem: _Problem, fits: Sequence[_Minimum]) -> tuple[_Minimum, _Minimum | None]:
    """The best fit and one that ties; of equally good ones the least reducible part wins."""
    limit = min(fit.cost for fit in fits) * (1 + SAME_FIT) + ROUNDING
    tied = [fit for fit in fits if fit.cost <= limit]
    reducible = [float(np.exp(problem.terms(fit.theta)[2]).sum()) for fit in tied]
    least = [fit for fit, part in zip(tied, reducible, strict=True) if part < min(reducible) + 1e-6]
    best = min(least, key=lambda fit: fit.cost)
    others = [fit for fit in tied if np.abs(fit.theta - best.theta).max() > 1e-2]
    return best, others[-1] if others else None


def _laws(
    problem: _Problem, fit: _Minimum, domains: tuple[str, ...], note: str
) -> tuple[PowerLaw, ...]:
    """Records of a finished minimisation, in the units of the law."""
    exponent, equivalent, log_drop = problem.terms(fit.theta)
    irreducible = fit.theta[0] - problem.joint * np.exp(log_drop)
    low, high = IRREDUCIBLE_BOUNDS
    names = ("exponent", "equivalent", "amplitude")[: 2 + problem.free]
    tolerance = 1e-9 * (problem.upper - problem.lower)
    on_bound = (fit.theta - problem.lower < tolerance) | (problem.upper - fit.theta < tolerance)
    residual_rms = float(np.sqrt(2 * fit.cost / len(problem.y_P)))
    degrees = len(problem.y_P) - problem.num_parameters
    laws = []
    for i, domain in enumerate(domains):
        on_bound_i = on_bound[1:].reshape(-1, problem.num_domains)[:, i]
        at_bounds = tuple(name for name, hit in zip(names, on_bound_i, strict=True) if hit)
        if not low < irreducible[i] < high or (not problem.joint and on_bound[0]):
            at_bounds += ("irreducible",)
        status: Status = "at_bound" if at_bounds else "converged"
        status = status if fit.finished else "max_iterations"
        laws.append(
            PowerLaw(
                domain=domain,
                exponent=float(exponent[i]),
                equivalent=float(equivalent[i]),
                irreducible=float(np.clip(irreducible[i], low, high)),
                amplitude=float(np.exp(log_drop[i] + exponent[i] * np.log1p(equivalent[i])))
                if problem.free
                else 1.0,
                residual_rms=residual_rms,
                num_points=len(problem.y_P),
                degrees_of_freedom=degrees,
                status=status,
                at_bounds=at_bounds,
                message=_message(problem, domain, status, at_bounds, residual_rms) + note,
            )
        )
    return tuple(laws)


def _message(
    problem: _Problem, domain: str, status: Status, at_bounds: tuple[str, ...], residual_rms: float
) -> str:
    """The outcome of one domain's fit in a sentence."""
    degrees = len(problem.y_P) - problem.num_parameters
    sentence = f"the law of domain {domain!r} converged"
    if status == "max_iterations":
        sentence = (
            f"the fit of domain {domain!r} stopped after {MAX_EVALUATIONS} evaluations: "
            "treat its parameters with care"
        )
    elif at_bounds:
        sentence = f"the law of domain {domain!r} rests on its bound of {' and '.join(at_bounds)}"
    if degrees == 0 and residual_rms > MISS:
        sentence += (
            f"; it misses its points by {residual_rms:.2g} although it has as many parameters: the "
            "form cannot follow them, add a factor to probe.factors and try fit.amplitude = 'free'"
        )
    elif degrees == 0:
        sentence += f"; {len(problem.y_P)} points for as many parameters leave nothing to check it"
    return sentence


def _checked_points(domain: str, multiples: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """The points as float64 arrays, or FitError naming the domain."""
    x_P, y_P = np.asarray(multiples, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x_P.ndim != 1 or x_P.shape != y_P.shape:
        raise FitError(
            f"domain {domain!r} has multiples of shape {x_P.shape} and values of shape "
            f"{y_P.shape}; expected two lists of one length"
        )
    for name, numbers in (("token multiple", x_P), ("objective", y_P)):
        wrong = numbers[~(np.isfinite(numbers) & (numbers > 0))]
        if wrong.size:
            raise FitError(
                f"domain {domain!r} has the {name} {wrong[0]} among its points; expected a "
                "positive finite number: leave out the run that diverged"
            )
    return x_P, y_P
