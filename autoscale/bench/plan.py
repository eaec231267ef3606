"""The runs of a benchmark, in the order in which they can be trained.

    probes     of every method, within the probe budget; DoReMi's proxy after its reference
    uniform    at several budgets, each annealed to its end
    search     mixtures around the natural one, at the target and below
    targets    the mixtures that were chosen, known once the others are done

Runs that are equal are one run, whoever wants them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..config_bench import TRAINED, BenchConfig, BenchObjective
from ..designs import dirichlet_mixtures
from ..execution import Execution
from ..methods.ado import ADO
from ..methods.doremi import DoReMi
from ..methods.method import Method, Probe, ProbeBudget
from ..methods.problem import MixingProblem
from ..methods.registry import method_named
from ..mixture import Mixture
from ..objective import Objective
from ..planning import Experiment, by_domain
from ..runs import RunSpec
from ..token_count import format_token_count

PUBLISHED = "@published"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A method with a design of probe runs.

    Attributes:
        name: of the method, with `@published` where the design has its published size.
        method: the method.
        budget: what its probes may cost.
    """

    name: str
    method: Method
    budget: ProbeBudget


class BenchPlan:
    """What a benchmark trains.

    Args:
        experiment: whose file has a `bench` section.

    Raises:
        ValueError: it has none, or a method cannot do with the probe budget.
    """

    def __init__(self, experiment: Experiment) -> None:
        config = experiment.config
        if config.bench is None:
            raise ValueError(
                "the experiment file has no [bench] section; add one with methods, probe_tokens, "
                "total_probe_tokens and uniform_budgets"
            )
        self.experiment = experiment
        self.bench: BenchConfig = config.bench
        self.target_tokens = config.train.budget.tokens
        self.seeds = config.train_seeds
        self.problems = {each.name: self._problem(each) for each in self.bench.objectives}
        for arm in self.arms:
            self.probes(arm)

    def _problem(self, given: BenchObjective) -> MixingProblem:
        experiment, solve = self.experiment, self.experiment.config.solve
        domains = experiment.domains
        return MixingProblem(
            domains=domains,
            available_tokens=np.array(experiment.available_tokens, dtype=np.float64),
            target_tokens=self.target_tokens,
            objective=self._objective(given),
            max_epochs=experiment.config.data.max_epochs,
            min_weight=experiment.bounds(self.target_tokens)[0],
            max_weight=np.asarray(by_domain(solve.max_weight, domains, what="solve.max_weight")),
        )

    def _objective(self, given: BenchObjective) -> Objective:
        sets = self.experiment.sets
        if given.weights is None:
            counts = {name: float(name in self.experiment.domains) for name in sets}
        else:
            unknown = sorted(given.weights.keys() - set(sets))
            if unknown:
                raise ValueError(
                    f"bench.objectives {given.name!r} weighs {', '.join(map(repr, unknown))}; the "
                    f"runs are evaluated on {', '.join(sets)}"
                )
            counts = {name: given.weights.get(name, 0.0) for name in sets}
        return Objective.create(given.kind, sets, counts)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch."""
        return self.experiment.config.trainer.global_batch_tokens

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The methods, once with equal probe cost and, where asked for, once as published."""
        bench, batch = self.bench, self.batch_tokens
        arms = []
        for name in bench.methods:
            if name in TRAINED:
                continue
            method = method_named(name)
            for total in (bench.total_probe_tokens, None):
                suffix = PUBLISHED if total is None else ""
                budget = ProbeBudget(
                    run_tokens=bench.probe_tokens, total_tokens=total, batch_tokens=batch
                )
                if total is not None or bench.published_designs:
                    arms.append(Arm(name=name + suffix, method=method, budget=budget))
        return tuple(arms)

    def probes(self, arm: Arm) -> tuple[tuple[Probe, RunSpec], ...]:
        """The probe runs of a method; designs do not depend on the objective."""
        problem = next(iter(self.problems.values()))
        rng = np.random.default_rng(self.experiment.config.seed)
        designed = arm.method.design(problem, arm.budget, rng)
        return tuple((probe, self._probe_spec(probe)) for probe in designed)

    def _probe_spec(self, probe: Probe) -> RunSpec:
        tokens = format_token_count(probe.tokens)
        return self.experiment.trial(
            f"bench-{tokens}-{probe.label}",
            probe.mixture,
            tokens=probe.tokens,
            seed=self.experiment.config.seed,
            evaluations=self.experiment.config.evaluation.probe_points,
        )

    @cached_property
    def doremi(self) -> tuple[RunSpec, RunSpec] | None:
        """DoReMi's reference and proxy run, each half of the probe budget; None if not wanted."""
        if DoReMi.name not in self.bench.methods:
            return None
        problem, batch = next(iter(self.problems.values())), self.batch_tokens
        budget = ProbeBudget(
            run_tokens=self.bench.probe_tokens,
            total_tokens=self.bench.total_probe_tokens,
            batch_tokens=batch,
        )
        tokens = budget.tokens_per_run(DoReMi.name, problem, cost=2.0)
        label = f"bench-{format_token_count(tokens)}-doremi"
        base = self._probe_spec(
            Probe(label="doremi", mixture=Mixture.uniform(problem.domains), tokens=tokens)
        )
        proxy = DoReMi().proxy_changes(base.identity)
        return (
            replace(base, label=f"{label}-reference"),
            replace(base, label=f"{label}-proxy", **proxy),
        )

    @cached_property
    def ado(self) -> dict[int, RunSpec]:
        """Target runs whose weights ADO changes as they train, from the natural ones, by seed."""
        if ADO.name not in self.bench.methods:
            return {}
        max_epochs = self.experiment.config.data.max_epochs
        natural = next(iter(self.problems.values())).natural
        return {
            seed: replace(spec, **ADO().changes(spec.num_steps, max_epochs=max_epochs))
            for seed, spec in self.targets(ADO.name, natural).items()
        }

    @cached_property
    def uniform_budgets(self) -> tuple[int, ...]:
        """Budgets of annealed uniform runs, rising; that of the target is one."""
        return tuple(sorted({*self.bench.uniform_budgets, self.target_tokens}))

    def uniform(self, tokens: int) -> dict[int, RunSpec]:
        """The uniform run of a budget under every seed."""
        return self.targets("uniform", Mixture.uniform(self.experiment.domains), tokens=tokens)

    def targets(
        self, name: str, mixture: Mixture, *, tokens: int | None = None
    ) -> dict[int, RunSpec]:
        """A mixture under every seed, by seed; at the target budget unless another is given."""
        budget = self.target_tokens if tokens is None else tokens
        return {
            seed: self.experiment.trial(
                f"bench-{format_token_count(budget)}-{name}-seed{seed}",
                mixture,
                tokens=budget,
                seed=seed,
                evaluations=self.experiment.config.evaluation.points,
            )
            for seed in self.seeds
        }

    @cached_property
    def search_mixtures(self) -> tuple[Mixture, ...]:
        """Drawn around the natural mixture, which is the first of them."""
        problem, num = next(iter(self.problems.values())), self.bench.search_runs
        if num == 0:
            return ()
        drawn_PK = dirichlet_mixtures(
            problem.prior,
            num - 1,
            stream=(self.experiment.config.seed, num),
            upper=problem.constraints(self.target_tokens).upper,
        )
        drawn = (Mixture.from_array(problem.domains, weights_K) for weights_K in drawn_PK)
        return (problem.prior, *drawn)

    def search(self, tokens: int) -> tuple[RunSpec, ...]:
        """The runs of the search at a budget, one seed each."""
        return tuple(
            self.experiment.trial(
                f"bench-{format_token_count(tokens)}-search{index:03d}",
                mixture,
                tokens=tokens,
                seed=self.seeds[0],
                evaluations=self.experiment.config.evaluation.probe_points,
            )
            for index, mixture in enumerate(self.search_mixtures)
        )

    def first_specs(self) -> list[RunSpec]:
        """All runs that wait for nothing."""
        uniform = [
            spec for tokens in self.uniform_budgets for spec in self.uniform(tokens).values()
        ]
        probes = [spec for arm in self.arms for _, spec in self.probes(arm)]
        budgets = [*self.bench.path_budgets, self.target_tokens]
        search = [spec for tokens in budgets for spec in self.search(tokens)]
        reference = [self.doremi[0]] if self.doremi else []
        return _distinct([*uniform, *probes, *reference, *search])

    def second_specs(self) -> list[RunSpec]:
        """Runs that wait for the model of another."""
        return [self.doremi[1]] if self.doremi else []

    def target_specs(self, mixtures: Sequence[tuple[str, Mixture]]) -> list[RunSpec]:
        """The target runs of chosen mixtures, and those whose weights change as they train."""
        chosen = [
            spec for name, mixture in mixtures for spec in self.targets(name, mixture).values()
        ]
        return _distinct([*chosen, *self.ado.values()])

    def execution(self, spec: RunSpec) -> Execution:
        """How a run of the benchmark is executed."""
        is_reference = self.doremi is not None and spec.identity == self.doremi[0].identity
        return self.experiment.execution(spec, export=is_reference)


def _distinct(specs: Sequence[RunSpec]) -> list[RunSpec]:
    return list({spec.identity: spec for spec in specs}.values())
