"""Section of the experiment file on `autoscale bench`: methods, objectives, and what to train."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .config_data import FilePath, Section, TokenCount, require_unique
from .config_method import NAME
from .methods.ado import ADO
from .methods.doremi import DoReMi
from .methods.registry import method_named

TRAINED = (DoReMi.name, ADO.name)
"""Methods that need the training engine, beside those of the registry."""


def _known(name: str) -> str:
    if name not in TRAINED:
        method_named(name)
    return name


class BenchObjective(Section):
    """What mixtures are chosen for and judged by."""

    name: str = Field(pattern=NAME)
    kind: Literal["mean_loss", "mean_perplexity", "worst_loss"] = "mean_loss"
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """By validation set, those not named 0; by default equal for the training domains."""


class BenchConfig(Section):
    """Mixture methods against uniform weights, at `train.budget` under `train.seeds`."""

    methods: tuple[Annotated[str, AfterValidator(_known)], ...] = Field(min_length=1)
    """Names of `methods.registry`, `doremi` and `ado`."""
    probe_tokens: TokenCount
    """Of one probe run, the largest where a method wants several budgets."""
    total_probe_tokens: TokenCount
    """Of all probe runs of a method."""
    published_designs: bool = False
    """Also with the number of probe runs that every method published, whatever they cost."""
    uniform_budgets: tuple[TokenCount, ...] = Field(min_length=2)
    """Budgets of further uniform runs; with `train.budget` they say what a gain is worth in tokens,
    and should reach beyond it."""
    search_runs: int = Field(default=0, ge=0)
    """Runs at `train.budget` by which the attainable is searched directly; 0 leaves it out."""
    path_budgets: tuple[TokenCount, ...] = ()
    """Smaller budgets at which the mixtures of the search are trained too, so that the projection
    from the first two is judged on the others."""
    objectives: tuple[BenchObjective, ...] = (BenchObjective(name="mean_loss"),)
    records: FilePath | None = None
    """File that finished runs are copied to and taken from, so that they outlive `output_dir`."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        require_unique(self.methods, "bench.methods")
        require_unique([objective.name for objective in self.objectives], "bench.objectives")
        return self

    @model_validator(mode="after")
    def _searched_path(self) -> Self:
        if self.path_budgets and not self.search_runs:
            raise ValueError(
                "bench.path_budgets trains the mixtures of the search; set search_runs"
            )
        if self.path_budgets and len(self.path_budgets) < 2:
            raise ValueError("bench.path_budgets needs two budgets or more below train.budget")
        return self
