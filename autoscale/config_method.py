"""Sections of the experiment file on the method: probe, fit, solve, project, train.

`config.py` puts them together and checks them against each other.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .config_data import ModelConfig, Section, TokenCount, require_unique

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

LawName = Literal[
    "auto", "autoscale", "eti", "etk", "separable", "separable_unit", "inverse_sum",
    "inverse_sum_tokens", "log_linear", "bimix", "trees",
]  # fmt: skip
ProjectionName = Literal["auto", "joint", "hold", "damped", "full"]
Weight = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class BudgetConfig(Section):
    """A token budget, with what the optimiser needs changed at it."""

    tokens: TokenCount
    lr: float | None = Field(default=None, gt=0)
    global_batch_tokens: TokenCount | None = None
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _bare_count(cls, value: Any) -> Any:
        return {"tokens": value} if isinstance(value, int | str) else value


class ProbeBudgetConfig(BudgetConfig):
    """A token budget of probe runs, and their model where it is not the target's."""

    model: ModelConfig | None = None
    """By default `[model]`; probes of several sizes enter one fit."""


class ProbeConfig(Section):
    """Probe runs: the reference mixture and mixtures around it."""

    budgets: tuple[ProbeBudgetConfig, ...] = Field(min_length=1)
    reference: Literal["uniform", "natural"] | dict[str, float] = "uniform"
    design: Literal["auto", "one_at_a_time", "dirichlet", "optimal"] = "auto"
    """`one_at_a_time` scales each domain up and down (published); `dirichlet` draws mixtures around
    the reference; `optimal` chooses the most informative such draws. `auto`: the first for
    `fit.law` 'autoscale', else the second."""
    runs: Count | tuple[Count, ...] | None = None
    """Mixtures drawn beside the reference, one number or one a budget; by default twice the number
    of domains."""
    concentration: tuple[float, float] = (1.0, 6.0)
    """Least and greatest concentration of the Dirichlet draws; higher is nearer to the
    reference."""
    factors: tuple[Annotated[float, Field(gt=1)], ...] = Field(default=(3.0,), min_length=1)
    """One at a time: how far a domain is scaled."""
    fixed_budget: bool | None = None
    """One at a time: keep the total instead of the other domains' tokens; by default false. Other
    designs always keep the total."""
    reference_seeds: int = Field(default=2, ge=1)
    """Seeds of the reference run; from two on they measure the noise between seeds."""
    replicates: int = Field(default=1, ge=1)
    """Seeds of every other probe run."""
    ranks_per_run: int = Field(default=1, ge=1)
    max_failed: int = Field(default=0, ge=0)
    """Failed probe runs that a budget may have before `fit` refuses."""
    match_repetition: bool = False
    """Give every probe run so small a share of each domain's documents that it repeats them as
    often as the target run would at the same weight (arXiv 2606.07597)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.concentration
        if not 0 < low <= high:
            raise ValueError(
                f"concentration is [{low:g}, {high:g}]; expected 0 < low <= high, e.g. [1, 6]"
            )
        if isinstance(self.runs, tuple) and len(self.runs) != len(self.budgets):
            raise ValueError(
                f"runs lists {len(self.runs)} numbers for {len(self.budgets)} budgets; give one a "
                "budget, or one number for all"
            )
        return self


class FitConfig(Section):
    """The law of the losses, and what a mixture is chosen for."""

    law: LawName = "auto"
    """`auto` chooses among the joint laws by held-out error; `autoscale` is the published law, one
    domain at a time; the others are named in the README."""
    amplitude: Literal["unit", "free"] = "unit"
    """Of law `autoscale`: `unit` as published; `free` needs two or more `probe.factors`."""
    metric: Literal["nats", "bits_per_byte"] = "nats"
    """Unit of the losses: nats a token, or bits per byte (comparable across tokenizers)."""
    objective: Literal["mean_loss", "mean_perplexity", "worst_loss"] = "mean_loss"
    objective_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Weights of validation sets, 0 for those left out; by default equal ones of the training
    domains. For `worst_loss`, 1 or 0."""
    draws: int = Field(default=40, ge=2)
    """Bootstrap draws behind the intervals."""
    folds: int = Field(default=5, ge=2)
    """Folds of the held-out error by which a law is chosen."""
    repetition: Literal["none", "auto", "fit"] | Annotated[float, Field(gt=0)] = "auto"
    """R* of arXiv 2305.16264: all repetition of a domain is worth at most R* fresh epochs. `auto`
    takes the published R* when a probe or the target would repeat a domain, `fit` fits it."""
    trajectories: float = Field(default=0.0, ge=0, le=1)
    """Weight of a probe run's intermediate evaluations in the fit."""


class GroupConfig(Section):
    """Domains whose weights together lie within bounds."""

    name: str = Field(pattern=NAME)
    domains: tuple[str, ...] = Field(min_length=1)
    min_weight: Weight = 0.0
    max_weight: Weight = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require_unique(self.domains, f"domains of group {self.name!r}")
        if self.min_weight > self.max_weight:
            raise ValueError(
                f"group {self.name!r} has min_weight {self.min_weight:g} above max_weight "
                f"{self.max_weight:g}; lower one or raise the other"
            )
        return self


class PriorConfig(Section):
    """A pull of the optimum towards a mixture."""

    kind: Literal["kl", "l2"] = "kl"
    strength: float = Field(gt=0)
    """Added to the objective: strength times the divergence (kl) or half the squared distance
    (l2)."""
    mixture: Literal["reference", "uniform", "natural"] | dict[str, float] = "reference"


class SolveConfig(Section):
    """Constraints on the mixture."""

    min_weight: float | dict[str, float] | None = None
    """Least weight, for all or by domain; by default 0.2 / number of domains, as published."""
    max_weight: float | dict[str, float] = 1.0
    groups: tuple[GroupConfig, ...] = ()
    """Bounds on the sum of several weights."""
    prior: PriorConfig | None = None
    no_harm: float | None = Field(default=None, ge=0)
    """Most that any validation loss may lie above its value under the reference mixture, in the
    unit of `fit.metric`; by default no limit."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        require_unique([group.name for group in self.groups], "solve.groups")
        return self


class ProjectConfig(Section):
    """How a fit at the probe budgets becomes a mixture for the target budget."""

    projection: ProjectionName = "auto"
    """`joint` solves the joint law at the target budget, `hold` keeps the optimum of the largest
    probe budget, `full` and `damped` follow the published path. `auto` decides between `joint` and
    `hold`; with law `autoscale` it is `hold`."""
    budgets: tuple[TokenCount, TokenCount] | None = None
    """The two probe budgets of the path; by default the two largest."""


class BaselineConfig(Section):
    """A mixture to compare with."""

    name: str = Field(pattern=NAME)
    weights: dict[str, float] | None = None
    """Given weights; without them `name` is one of `KNOWN_BASELINES`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.weights is None and self.name not in KNOWN_BASELINES:
            raise ValueError(
                f"baseline {self.name!r} has no weights and is none of "
                f"{', '.join(KNOWN_BASELINES)}; give it weights"
            )
        return self


class TrainStageConfig(Section):
    """A later part of every target run, on weights of its own."""

    begin: float = Field(gt=0, lt=1)
    """Where it begins, as a share of the run; rounded to whole batches."""
    weights: Literal["uniform", "natural"] | dict[str, float]


class DilocoConfig(Section):
    """Target runs whose groups of ranks meet only now and then (DiLoCo, arXiv 2503.09799)."""

    groups: int = Field(ge=2)
    """Groups of ranks; each trains on its share of every batch with an AdamW of its own."""
    inner_steps: int = Field(default=30, ge=1)
    """Steps between two meetings of the groups."""
    outer_lr: float = Field(default=0.7, gt=0)
    outer_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the Nesterov step on what the groups changed since they last met. In a run of few meetings
    0.9, the published one, overshoots: there take 0, with `outer_lr = 1`."""


KNOWN_BASELINES = ("uniform", "natural", "reference", "joint", "full", "hold", "damped")


class TrainConfig(Section):
    """The target run and the baselines that it is compared with."""

    budget: BudgetConfig
    baselines: tuple[BaselineConfig, ...] = (BaselineConfig(name="uniform"),)
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Seeds of every target run, paired over mixtures; by default the experiment's."""
    ranks_per_run: Count | Literal["all"] = "all"
    stages: tuple[TrainStageConfig, ...] = ()
    """Later parts of every target run, of the projected mixture as of the baselines."""
    diloco: DilocoConfig | None = None
    """By default all ranks exchange gradients in every step."""
    export: bool = True
    """Write the final model of the first seed as safetensors, with its tokenizer."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = ["autoscale", *(baseline.name for baseline in self.baselines)]
        require_unique(names, "train.baselines ('autoscale' is the projected mixture)")
        return self

    @model_validator(mode="after")
    def _rising_stages(self) -> Self:
        begins = [stage.begin for stage in self.stages]
        if sorted(set(begins)) != begins:
            listed = ", ".join(f"{begin:g}" for begin in begins)
            raise ValueError(f"the begins of train.stages must rise and differ; found {listed}")
        return self
