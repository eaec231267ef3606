"""What the sections of an experiment file must agree on, so that mistakes cost no compute.

Every check raises ValueError with the key, what was found, and the remedy.
"""

from collections.abc import Sequence

from .config_bench import BenchConfig
from .config_data import EvaluationConfig, ModelConfig, TrainerConfig
from .config_method import (
    BudgetConfig,
    FitConfig,
    ProbeBudgetConfig,
    ProbeConfig,
    ProjectConfig,
    SolveConfig,
    TrainConfig,
)
from .probes import DesignKind
from .token_count import format_token_count

PATHS = ("full", "damped")


def check_batch(
    where: str, budget: BudgetConfig, trainer: TrainerConfig, sequence_length: int
) -> None:
    """A batch is whole sequences, a budget at least one batch."""
    batch = budget.global_batch_tokens or trainer.global_batch_tokens
    if batch % sequence_length:
        raise ValueError(
            f"{where}: global_batch_tokens is {batch}, no multiple of data.sequence_length "
            f"{sequence_length}; use {max(1, batch // sequence_length) * sequence_length}"
        )
    if budget.tokens < batch:
        raise ValueError(
            f"{where}: token budget {format_token_count(budget.tokens)} is smaller than one batch "
            f"of {format_token_count(batch)}; raise it or lower trainer.global_batch_tokens"
        )


def check_probe_budgets(budgets: Sequence[ProbeBudgetConfig], model: ModelConfig) -> None:
    """The budgets of each model rise, so that none is there twice."""
    tokens_by_model: list[tuple[ModelConfig, list[int]]] = []
    for budget in budgets:
        used = budget.model or model
        known = next((tokens for other, tokens in tokens_by_model if other == used), None)
        if known is None:
            tokens_by_model.append((used, known := []))
        known.append(budget.tokens)
    for used, tokens in tokens_by_model:
        if sorted(set(tokens)) != tokens:
            which = "" if len(tokens_by_model) == 1 else f" of model {used.name!r}"
            listed = ", ".join(map(format_token_count, tokens))
            raise ValueError(f"probe.budgets{which} must rise and differ; found {listed}")


def check_published_law(fit: FitConfig, probe: ProbeConfig, solve: SolveConfig) -> None:
    """Law `autoscale` is the published method, which knows nothing of what came later."""
    for key, found in {
        "probe.design": None if probe.design in ("auto", "one_at_a_time") else probe.design,
        "probe.replicates": probe.replicates if probe.replicates > 1 else None,
        "probe.budgets with a model": next((b.model.name for b in probe.budgets if b.model), None),
        "fit.metric": None if fit.metric == "nats" else fit.metric,
        "fit.objective": fit.objective if fit.objective == "worst_loss" else None,
        "fit.repetition": fit.repetition if isinstance(fit.repetition, float) else None,
        "fit.trajectories": fit.trajectories or None,
        "solve.groups": ", ".join(group.name for group in solve.groups) or None,
        "solve.prior": solve.prior and solve.prior.kind,
        "solve.no_harm": solve.no_harm,
    }.items():
        if found is not None:
            raise ValueError(
                f"{key} ({found}) has no place in law 'autoscale', which is the published method; "
                "leave it out or take another fit.law, e.g. 'auto'"
            )
    if fit.amplitude == "free" and len(probe.factors) < 2:
        raise ValueError(
            "fit.amplitude 'free' has four parameters a domain, and one probe factor gives "
            "three points; add a factor to probe.factors or use 'unit'"
        )


def check_joint_law(fit: FitConfig, evaluation: EvaluationConfig) -> None:
    """Settings of the published law alone; trajectories need evaluations on the way."""
    if fit.amplitude != "unit":
        raise ValueError(
            f"fit.amplitude {fit.amplitude!r} belongs to law 'autoscale', fit.law is {fit.law!r}; "
            "use law 'separable', whose amplitudes are free, or leave it out"
        )
    if fit.metric == "bits_per_byte" and fit.objective != "mean_loss":
        raise ValueError(
            f"fit.objective {fit.objective!r} is made of losses in nats a token, fit.metric is "
            "'bits_per_byte'; use 'mean_loss' or metric 'nats'"
        )
    if fit.law == "trees" and isinstance(fit.repetition, float):
        raise ValueError(
            f"fit.repetition {fit.repetition:g} has no place in law 'trees', which has no term of "
            "repetition; leave it out or take another law"
        )
    if fit.trajectories and evaluation.probe_points < 2:
        raise ValueError(
            "fit.trajectories uses evaluations before the end of a probe run, and "
            "evaluation.probe_points is 1; raise it or set fit.trajectories = 0"
        )


def check_matched_probes(probe: ProbeConfig, fit: FitConfig) -> None:
    """Probes that repeat like the target show what repetition costs: no law adds it again."""
    if probe.match_repetition and fit.repetition not in ("auto", "none"):
        raise ValueError(
            f"fit.repetition {fit.repetition!r} models what repeated tokens are worth, and with "
            "probe.match_repetition the probe runs repeat like the target run, so that their "
            "losses hold it already; leave fit.repetition out or set probe.match_repetition = false"
        )
    if probe.match_repetition and fit.trajectories:
        raise ValueError(
            "fit.trajectories takes evaluations before the end of a probe run into the fit, and "
            "with probe.match_repetition only its end has repeated the data as often as the target "
            "run will have; leave fit.trajectories out or set probe.match_repetition = false"
        )


def check_design(probe: ProbeConfig, design: DesignKind) -> None:
    """Settings of another design would have no effect."""
    default = ProbeConfig.model_fields
    if design == "one_at_a_time":
        unused = {
            "runs": probe.runs is not None,
            "concentration": probe.concentration != default["concentration"].default,
        }
        remedy = "leave it out or set probe.design = 'dirichlet'"
    else:
        unused = {
            "factors": probe.factors != default["factors"].default,
            "fixed_budget = false": probe.fixed_budget is False,
        }
        remedy = "leave it out or set probe.design = 'one_at_a_time'"
    for key, given in unused.items():
        if given:
            raise ValueError(f"probe.{key} has no place in the design {design!r}; {remedy}")


def check_diloco(train: TrainConfig, trainer: TrainerConfig, sequence_length: int) -> None:
    """The groups of ranks share every batch equally."""
    batch = train.budget.global_batch_tokens or trainer.global_batch_tokens
    if train.diloco is None or batch // sequence_length % train.diloco.groups == 0:
        return
    groups = train.diloco.groups
    raise ValueError(
        f"train.diloco.groups is {groups}, and a batch of {batch // sequence_length} sequences "
        f"cannot be cut into {groups} equal shares; make trainer.global_batch_tokens a multiple of "
        f"{sequence_length * groups} (data.sequence_length x groups)"
    )


def path_budgets(project: ProjectConfig, probe: ProbeConfig) -> tuple[int, int] | None:
    """The two probe budgets of a path, small and large; None when there is only one."""
    probed = sorted({budget.tokens for budget in probe.budgets})
    if project.budgets is not None:
        return project.budgets
    return (probed[-2], probed[-1]) if len(probed) > 1 else None


def check_path(
    project: ProjectConfig,
    probe: ProbeConfig,
    solve: SolveConfig,
    train: TrainConfig,
    *,
    fit: FitConfig,
) -> None:
    """The projections asked for, of the target or of a baseline, must be possible."""
    probed = sorted({budget.tokens for budget in probe.budgets})
    for tokens in project.budgets or ():
        if tokens not in probed:
            raise ValueError(
                f"project.budgets names {format_token_count(tokens)}, which is no probe "
                f"budget; probed are {', '.join(map(format_token_count, probed))}"
            )
    budgets = path_budgets(project, probe)
    if budgets is not None and budgets[0] >= budgets[1]:
        raise ValueError("project.budgets must rise, e.g. ['300M', '600M']")
    baselines = {baseline.name for baseline in train.baselines if baseline.weights is None}
    wanted = {project.projection, *baselines}
    if fit.law == "autoscale" and "joint" in wanted:
        raise ValueError(
            "projection 'joint' solves a joint law at the target, and fit.law 'autoscale' is none; "
            "use 'hold', 'damped' or 'full', or another law"
        )
    if "joint" in wanted and len(probed) == 1 and not fit.trajectories:
        raise ValueError(
            "projection 'joint' solves a law of tokens at the target, and probe.budgets has one "
            "budget; add another, or use 'hold' or 'auto'"
        )
    for kind in sorted(wanted.intersection(PATHS)):
        _check_one_path(kind, budgets, solve, train.budget.tokens)


def _check_one_path(
    kind: str, budgets: tuple[int, int] | None, solve: SolveConfig, target: int
) -> None:
    if budgets is None:
        raise ValueError(
            f"projection {kind!r} follows a path through two token budgets, and probe.budgets has "
            "one; add another, or use 'joint' or 'hold'"
        )
    if target < budgets[0]:
        raise ValueError(
            f"train.budget {format_token_count(target)} lies below the smaller probe budget "
            f"{format_token_count(budgets[0])}, where the path of projection {kind!r} starts; use "
            "'hold' or smaller probe budgets"
        )
    minimum = solve.min_weight
    smallest = min(minimum.values(), default=0) if isinstance(minimum, dict) else minimum
    if smallest == 0:
        raise ValueError(
            f"solve.min_weight 0 with projection {kind!r}: a domain with no tokens at one budget "
            "has no path to the next; use a positive minimum or 'hold'"
        )


def check_bench(bench: BenchConfig, train: TrainConfig, trainer: TrainerConfig) -> None:
    """Budgets of the benchmark lie where they are of use."""
    target = train.budget.tokens
    if train.stages:
        raise ValueError(
            "bench compares runs of one mixture each, and train.stages changes their weights; "
            "leave the stages out"
        )
    if target in bench.uniform_budgets:
        raise ValueError(
            f"bench.uniform_budgets lists train.budget {format_token_count(target)}, which is "
            "trained anyway; give other budgets"
        )
    late = [budget for budget in bench.path_budgets if budget >= target]
    if late or sorted(set(bench.path_budgets)) != list(bench.path_budgets):
        raise ValueError(
            "bench.path_budgets must rise and lie below train.budget "
            f"{format_token_count(target)}; found "
            f"{', '.join(map(format_token_count, bench.path_budgets))}"
        )
    if bench.probe_tokens > target:
        raise ValueError(
            f"bench.probe_tokens {format_token_count(bench.probe_tokens)} exceeds train.budget "
            f"{format_token_count(target)}; probes are to be cheaper than the target"
        )
    batch = trainer.global_batch_tokens
    if bench.probe_tokens < batch:
        raise ValueError(
            f"bench.probe_tokens {format_token_count(bench.probe_tokens)} is less than a batch of "
            f"{format_token_count(batch)}; raise it"
        )
