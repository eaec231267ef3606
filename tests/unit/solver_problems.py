"""Loss surfaces with exact derivatives, bounds and whole problems drawn at random, for solvers."""

from dataclasses import dataclass

import numpy as np

from autoscale.constraints import Constraints, Group, project_onto_bounds
from autoscale.mixture import Mixture
from autoscale.mixture_objective import Pull, WeightedSum, Worst


class Surface:
    """Names for the domains and validation sets of (J, K) coefficients."""

    convex, differentiable = True, True

    def __init__(self, coefficients):
        num_sets, num_domains = coefficients.shape
        self.domains = tuple(f"d{i}" for i in range(num_domains))
        self.sets = tuple(f"s{j}" for j in range(num_sets))


class EffectiveTokens(Surface):
    """`L_j = E_j + A_j S_j^-g_j, S_j = sum_i t_ji w_i^k_ji`: infinite gradients at weight 0."""

    def __init__(self, rng, num_domains, num_sets):
        shape = (num_sets, num_domains)
        self.transfer = np.exp(rng.normal(-2.5, 1.5, shape))
        own = np.arange(min(shape))
        self.transfer[own, own] = np.exp(rng.normal(0, 1, len(own)))
        self.power = 1 / (1 + np.exp(-rng.normal(0.6, 0.6, shape)))
        self.irreducible = rng.uniform(1, 2, num_sets)
        self.amplitude = rng.uniform(0.3, 2, num_sets)
        self.exponent = np.exp(rng.normal(np.log(0.3), 0.5, num_sets))
        super().__init__(self.transfer)

    def tokens(self, weights):
        return (self.transfer * np.asarray(weights)[..., None, :] ** self.power).sum(-1)

    def losses(self, weights):
        return self.irreducible + self.amplitude * self.tokens(weights) ** -self.exponent

    def _slopes(self, weights):
        return self.transfer * self.power * weights ** (self.power - 1)

    def gradients(self, weights):
        outer = -self.amplitude * self.exponent * self.tokens(weights) ** (-self.exponent - 1)
        return outer[:, None] * self._slopes(weights)

    def hessian(self, weights, multipliers):
        tokens, slopes, g = self.tokens(weights), self._slopes(weights), self.exponent
        inner = multipliers * self.amplitude * g * tokens ** (-g - 1)
        outer = inner * (g + 1) / tokens
        bend = inner @ (slopes * (1 - self.power) / weights)
        return slopes.T @ (outer[:, None] * slopes) + np.diag(bend)


class LogLinear(Surface):
    """`L_j = E_j + exp(a_j + tau_j . w)`: a Hessian of low rank, optima at vertices."""

    def __init__(self, rng, num_domains, num_sets):
        self.slopes = rng.normal(0, 1.5, (num_sets, num_domains))
        self.intercepts = rng.normal(0, 0.5, num_sets)
        self.irreducible = rng.uniform(1, 2, num_sets)
        super().__init__(self.slopes)

    def losses(self, weights):
        return self.irreducible + np.exp(self.intercepts + weights @ self.slopes.T)

    def gradients(self, weights):
        return (self.losses(weights) - self.irreducible)[:, None] * self.slopes

    def hessian(self, weights, multipliers):
        reducible = multipliers * (self.losses(weights) - self.irreducible)
        return self.slopes.T @ (reducible[:, None] * self.slopes)


class InverseSum(Surface):
    """`L_j = E_j + 1 / sum_i c_ji w_i^g_ji`, some g above 1: not convex."""

    convex = False

    def __init__(self, rng, num_domains, num_sets):
        shape = (num_sets, num_domains)
        self.coefficients = np.exp(rng.normal(0, 1, shape))
        self.exponents = np.exp(rng.normal(0.2, 0.4, shape))
        super().__init__(self.coefficients)

    def losses(self, weights):
        terms = self.coefficients * np.asarray(weights)[..., None, :] ** self.exponents
        return 1 + 1 / terms.sum(-1)

    def _slopes(self, weights):
        return self.coefficients * self.exponents * weights ** (self.exponents - 1)

    def gradients(self, weights):
        return -((self.losses(weights) - 1) ** 2)[:, None] * self._slopes(weights)

    def hessian(self, weights, multipliers):
        reducible, slopes = self.losses(weights) - 1, self._slopes(weights)
        bend = (multipliers * reducible**2) @ (slopes * (self.exponents - 1) / weights)
        outer = 2 * multipliers * reducible**3
        return slopes.T @ (outer[:, None] * slopes) - np.diag(bend)


def random_bounds(seed: int, num_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Feasible bounds around a random mixture, some of them tight."""
    rng = np.random.default_rng(seed)
    inside = rng.dirichlet(np.full(num_domains, 0.5))
    lower = inside * rng.choice([0, 0.5, 1], num_domains)
    upper = np.minimum(inside + rng.choice([0.0, 0.1, 1.0], num_domains) + 1e-3, 1)
    return lower, upper


@dataclass(frozen=True, kw_only=True)
class SolverProblem:
    """Arguments of `optimise`."""

    surface: Surface
    objective: WeightedSum | Worst
    constraints: Constraints
    limits: np.ndarray | None
    pull: Pull | None

    def value(self, weights):
        """Objective and pull of mixtures of shape (..., K)."""
        rows = self.objective.rows(self.surface.sets).values(self.surface.losses(weights))
        pull = 0.0 if self.pull is None else self.pull.values(np.asarray(weights))
        return rows.max(axis=-1) + pull

    def is_feasible(self, weights, *, tolerance=0.0):
        """Of mixtures of shape (..., K), shape (...)."""
        found = (weights >= self.constraints.lower - tolerance).all(-1)
        found &= (weights <= self.constraints.upper + tolerance).all(-1)
        for group in self.constraints.groups:
            total = weights[..., [self.constraints.domains.index(d) for d in group.domains]].sum(-1)
            found &= (total >= group.lower - tolerance) & (total <= group.upper + tolerance)
        if self.limits is not None:
            found &= (self.surface.losses(weights) <= self.limits + 1e-9 + tolerance).all(-1)
        return found


def random_problem(seed: int, law=EffectiveTokens) -> SolverProblem:
    """2 to 15 domains, loose or tight bounds, up to three groups; any objective, limits, pull."""
    rng = np.random.default_rng(seed)
    num_domains, num_sets = int(rng.integers(2, 16)), int(rng.integers(1, 7))
    surface = law(rng, num_domains, num_sets)
    lower, upper = np.zeros(num_domains), np.ones(num_domains)
    kind = rng.integers(4)
    if kind == 1:
        lower += 0.2 / num_domains
    elif kind == 2:
        lower, upper = random_bounds(seed, num_domains)
    elif kind == 3:
        upper = np.minimum(rng.uniform(1.2, 4, num_domains) / num_domains, 1)
    center = project_onto_bounds(
        rng.dirichlet(np.full(num_domains, rng.choice([0.3, 1, 5]))) + 1e-9,
        domains=surface.domains,
        lower=lower,
        upper=upper,
    )
    groups = []
    for i in range(int(rng.integers(-2, 4))):
        members = np.sort(rng.choice(num_domains, int(rng.integers(1, num_domains)), replace=False))
        total = center[members].sum()
        names = tuple(surface.domains[member] for member in members)
        low, high = total * rng.choice([0, 0.8, 1]), min(total * rng.choice([1.01, 1.2, 50]), 1)
        groups.append(Group(name=f"g{i}", domains=names, lower=low, upper=max(low, high)))
    weights = rng.uniform(0, 1, num_sets) + 1e-3
    objective = [
        WeightedSum(weights=weights),
        WeightedSum(weights=weights, of="perplexity"),
        Worst(offsets=np.zeros(num_sets)),
        Worst(offsets=0.9 * surface.losses(center)),
    ][rng.integers(4)]
    limits = pull = None
    if rng.random() < 0.4:
        limits = surface.losses(center) + rng.choice([0, 0.001, 0.05])
    if rng.random() < 0.3:
        prior = Mixture.from_array(surface.domains, rng.dirichlet(np.ones(num_domains)) + 1e-6)
        strength = float(rng.choice([0.01, 1]))
        pull = Pull(kind=str(rng.choice(["kl", "l2"])), strength=strength, mixture=prior)
    constraints = Constraints(
        domains=surface.domains, lower=lower, upper=upper, groups=tuple(groups)
    )
    return SolverProblem(
        surface=surface, objective=objective, constraints=constraints, limits=limits, pull=pull
    )
