"""One TOML file describes an experiment: its sections, their defaults and their checks.

`load_config` reads the file, applies `--set section.key=value` overrides and validates the whole
before anything is computed. Paths in the file are relative to the file, paths in an override to
the working directory; `${NAME}` in a path is an environment variable.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .mixture import Mixture
from .token_count import format_token_count, parse_token_count

TokenCount = Annotated[
    int,
    BeforeValidator(parse_token_count),
    PlainSerializer(format_token_count, return_type=str, when_used="json"),
]


def _resolve_path(value: Any, info: ValidationInfo) -> Any:
    """Expand variables and anchor a relative path; names of hub data sets pass unchanged."""
    if not isinstance(value, str | Path) or str(value).startswith("hf://"):
        return value
    base = (info.context or {}).get("base", Path())
    return os.path.normpath(Path(base, os.path.expanduser(os.path.expandvars(str(value)))))


def _resolve_path_or_name(value: Any, info: ValidationInfo) -> Any:
    """A path when something lies there (or it starts like one), else a name for transformers."""
    resolved = _resolve_path(value, info)
    if _looks_like_path(value) or (isinstance(resolved, str) and Path(resolved).exists()):
        return resolved
    return value


def _looks_like_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith((".", "/", "~", "$"))


Share = Annotated[float, Field(ge=0, lt=1)]
FilePath = Annotated[str, BeforeValidator(_resolve_path)]
PathOrName = Annotated[str, BeforeValidator(_resolve_path_or_name)]


class Section(BaseModel):
    """A table of the experiment file: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceConfig(Section):
    """The texts of one domain, for `prepare`."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    train: tuple[FilePath, ...] = Field(min_length=1)
    """Files, globs, folders, or `hf://dataset[:config][@split]`."""
    validation: tuple[FilePath, ...] = ()
    """Separate validation files; when empty, documents are split off `train`."""
    text_field: str = "text"
    split: str = "train"
    """Split to read when `train` names a Hugging Face data set."""


class TokenizerConfig(Section):
    """Either an existing tokenizer (`path`) or one trained on the spot (`vocab_size`)."""

    path: PathOrName | None = None
    vocab_size: int | None = Field(default=None, ge=257)
    sample_bytes: int = Field(default=20_000_000, gt=0)
    """Bytes of text taken from every domain to train on; equal, so that none dominates."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.vocab_size is None):
            raise ValueError(
                "give either 'path' (an existing tokenizer) or 'vocab_size' (train one), not both"
            )
        return self


class PrepareConfig(Section):
    """Text to tokenized shards."""

    output: FilePath
    domains: tuple[SourceConfig, ...] = Field(min_length=1)
    tokenizer: TokenizerConfig
    validation_fraction: float = Field(default=0.02, gt=0, lt=1)
    validation_tokens: TokenCount | None = None
    """Cap on the validation tokens of a domain; further documents go to training."""
    shard_tokens: TokenCount = 1_000_000_000
    num_workers: int = Field(default=0, ge=0)
    """Processes; 0 means one a core."""
    seed: int = 0
    deduplicate: bool = True

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        _require_unique([source.name for source in self.domains], "prepare.domains")
        return self


class DataConfig(Section):
    """Which shards a run streams, and how often it may repeat them."""

    manifest: FilePath | None = None
    """Manifest written by `prepare`; by default the one in `prepare.output`."""
    domains: tuple[str, ...] | None = None
    """Domains to use, in this order; by default all of the manifest."""
    sequence_length: int = Field(default=1024, ge=2)
    max_epochs: float = Field(default=4.0, ge=1.0)
    """Most passes over a domain in any run; 1 forbids repetition."""


class ModelConfig(Section):
    """A randomly initialised causal language model."""

    name: PathOrName
    """A short name (`gpt2-small`, `llama-1b`, ...), a config file or folder, or a hub name."""
    overrides: dict[str, int | float | str | bool] = {}
    """Fields of the transformers config to change."""


class TrainerConfig(Section):
    """Optimisation and execution of one run."""

    global_batch_tokens: TokenCount
    lr: float = Field(gt=0)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the run's own steps over which the rate rises; the schedule stretches with it."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of the steps that decay, for `wsd`."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    micro_batch_size: int = Field(default=8, ge=1)
    """Most sequences a rank holds at a time; accumulation follows from the global batch."""
    activation_checkpointing: bool = False
    deepspeed: FilePath
    """DeepSpeed file: how memory is spent, never what is computed."""
    checkpoints: int = Field(default=5, ge=0)
    """Checkpoints over a run, evenly spaced; 0 for none."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak rate of one device, for MFU; by default from a table of GPUs, or measured."""


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


class EvaluationConfig(Section):
    """Validation on the same windows for every run."""

    sequences_per_domain: int = Field(default=256, ge=1)
    """Windows of each validation set; fewer when it has fewer."""
    points: int = Field(default=10, ge=1)
    """Evaluations over a run, evenly spaced on the log-token axis from a tenth to the end."""
    probe_points: int = Field(default=3, ge=1)
    """The same for probe runs, of which only the last enters the fit."""


class ProbeConfig(Section):
    """Probe runs: the reference mixture, and each domain scaled up and down."""

    budgets: tuple[BudgetConfig, ...] = Field(min_length=2)
    factors: tuple[Annotated[float, Field(gt=1)], ...] = Field(default=(3.0,), min_length=1)
    reference: Literal["uniform", "natural"] | dict[str, float] = "uniform"
    fixed_budget: bool = False
    """Keep the total of every probe at the budget, instead of the other domains' tokens."""
    reference_seeds: int = Field(default=2, ge=1)
    """Seeds of the reference run; from two on they measure the noise between seeds."""
    ranks_per_run: int = Field(default=1, ge=1)
    max_failed: int = Field(default=0, ge=0)
    """Failed probe runs that a budget may have before `fit` refuses."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        tokens = [budget.tokens for budget in self.budgets]
        if sorted(set(tokens)) != tokens:
            listed = ", ".join(map(format_token_count, tokens))
            raise ValueError(f"budgets must rise and differ; found {listed}")
        return self


class FitConfig(Section):
    """The scaling law and what it describes."""

    law: Literal["autoscale"] = "autoscale"
    amplitude: Literal["unit", "free"] = "unit"
    """`unit` as published; `free` needs two or more `probe.factors`."""
    objective: Literal["mean_loss", "mean_perplexity"] = "mean_loss"
    objective_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Weights of the validation sets in the mean; equal by default."""


class SolveConfig(Section):
    """Bounds on the weights."""

    min_weight: float | dict[str, float] | None = None
    """Least weight, for all or by domain; by default 0.2 / number of domains, as published."""
    max_weight: float | dict[str, float] = 1.0


class ProjectConfig(Section):
    """How optima at the probe budgets become a mixture for the target budget."""

    projection: Literal["full", "hold", "damped"] = "hold"
    budgets: tuple[TokenCount, TokenCount] | None = None
    """The two probe budgets of the path; by default the two largest."""


class BaselineConfig(Section):
    """A mixture to compare with."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
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


KNOWN_BASELINES = ("uniform", "natural", "reference", "full", "hold", "damped")


class TrainConfig(Section):
    """The target run and the baselines that it is compared with."""

    budget: BudgetConfig
    baselines: tuple[BaselineConfig, ...] = (BaselineConfig(name="uniform"),)
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Seeds of every target run, paired over mixtures; by default the experiment's."""
    ranks_per_run: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    export: bool = True
    """Write the final model of the first seed as safetensors, with its tokenizer."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = ["autoscale", *(baseline.name for baseline in self.baselines)]
        _require_unique(names, "train.baselines ('autoscale' is the projected mixture)")
        return self


class ExperimentConfig(Section):
    """The whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    output_dir: FilePath
    seed: int = Field(default=0, ge=0)
    prepare: PrepareConfig | None = None
    data: DataConfig
    model: ModelConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    probe: ProbeConfig
    fit: FitConfig = FitConfig()
    solve: SolveConfig = SolveConfig()
    project: ProjectConfig = ProjectConfig()
    train: TrainConfig

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.manifest is None and self.prepare is None:
            raise ValueError("give data.manifest, or a [prepare] section that makes one")
        for where, budget in self.budgets():
            batch = budget.global_batch_tokens or self.trainer.global_batch_tokens
            if batch % self.data.sequence_length:
                raise ValueError(
                    f"{where}: global_batch_tokens is {batch}, no multiple of "
                    f"data.sequence_length {self.data.sequence_length}; use "
                    f"{max(1, batch // self.data.sequence_length) * self.data.sequence_length}"
                )
            if budget.tokens < batch:
                raise ValueError(
                    f"{where}: token budget {format_token_count(budget.tokens)} is smaller than "
                    f"one batch of {format_token_count(batch)}; raise it or lower "
                    "trainer.global_batch_tokens"
                )
        if self.fit.amplitude == "free" and len(self.probe.factors) < 2:
            raise ValueError(
                "fit.amplitude 'free' has four parameters a domain, and one probe factor gives "
                "three points; add a factor to probe.factors or use 'unit'"
            )
        self._check_projection()
        return self

    def _check_projection(self) -> None:
        probed = [budget.tokens for budget in self.probe.budgets]
        for tokens in self.project.budgets or ():
            if tokens not in probed:
                raise ValueError(
                    f"project.budgets names {format_token_count(tokens)}, which is no probe "
                    f"budget; probed are {', '.join(map(format_token_count, probed))}"
                )
        small, large = self.projection_budgets
        if small >= large:
            raise ValueError("project.budgets must rise, e.g. ['300M', '600M']")
        minimum = self.solve.min_weight
        smallest = min(minimum.values(), default=0) if isinstance(minimum, dict) else minimum
        named = {self.project.projection, *(baseline.name for baseline in self.train.baselines)}
        on_path = sorted(named & {"full", "damped"})
        if on_path and self.train.budget.tokens < small:
            raise ValueError(
                f"train.budget {format_token_count(self.train.budget.tokens)} lies below the "
                f"smaller probe budget {format_token_count(small)}, where the path of projection "
                f"{on_path[0]!r} starts; use 'hold' or smaller probe budgets"
            )
        if smallest == 0 and on_path:
            raise ValueError(
                f"solve.min_weight 0 with projection {on_path[0]!r}: a domain with no tokens at "
                "one budget has no path to the next; use a positive minimum or 'hold'"
            )

    @property
    def manifest_path(self) -> Path:
        if self.data.manifest is not None:
            return Path(self.data.manifest)
        assert self.prepare is not None
        return Path(self.prepare.output) / "manifest.json"

    @property
    def projection_budgets(self) -> tuple[int, int]:
        """The two probe budgets of the path, small and large."""
        return self.project.budgets or (
            self.probe.budgets[-2].tokens,
            self.probe.budgets[-1].tokens,
        )

    @property
    def train_seeds(self) -> tuple[int, ...]:
        return self.train.seeds or (self.seed,)

    def budgets(self) -> Iterator[tuple[str, BudgetConfig]]:
        """All token budgets, each with the name of its place in the file."""
        for index, budget in enumerate(self.probe.budgets):
            yield f"probe.budgets[{index}]", budget
        yield "train.budget", self.train.budget

    def reference_mixture(self, domains: Sequence[str], available_tokens: Sequence[int]) -> Mixture:
        return named_mixture(self.probe.reference, domains, available_tokens)


def named_mixture(
    given: str | Mapping[str, float], domains: Sequence[str], available_tokens: Sequence[int]
) -> Mixture:
    """`uniform`, `natural`, or given weights, in the order of `domains`."""
    if given == "uniform":
        return Mixture.uniform(domains)
    if given == "natural":
        return Mixture.natural(domains, available_tokens)
    assert isinstance(given, Mapping), given
    return Mixture.from_mapping(given).reordered(domains)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment file and apply overrides of the form `section.key=value`.

    Raises:
        ValueError: naming every wrong key or value, with the nearest known key.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"experiment file {path} does not exist")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(tables, override)
    return parse_config(tables, base=path.parent, where=str(path))


def parse_config(tables: Mapping[str, Any], *, base: Path, where: str) -> ExperimentConfig:
    """Validate the tables of an experiment file whose relative paths start at `base`."""
    try:
        return ExperimentConfig.model_validate(tables, context={"base": base.resolve()})
    except ValidationError as error:
        raise ValueError(_explain(error, where)) from None


_PATH_KEYS = {"output_dir", "data.manifest", "trainer.deepspeed", "prepare.output"}
_PATH_OR_NAME_KEYS = {"model.name", "prepare.tokenizer.path"}


def _apply_override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ValueError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word: `--set fit.objective=mean_loss`
    is_path = key in _PATH_KEYS or (key in _PATH_OR_NAME_KEYS and _looks_like_path(value))
    if is_path and isinstance(value, str):
        value = os.path.abspath(os.path.expanduser(os.path.expandvars(value)))
    table: Any = tables
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a section")
    table[last] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        location = [part for part in item["loc"] if not str(part).startswith("function-")]
        name = ".".join(map(str, location)) or "experiment"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            message = f"unknown key; {hint}"
        elif item["type"] == "missing":
            message = "is missing; the experiment needs it"
        elif not item["msg"].startswith("Value error"):
            message = f"{message}; found {item['input']!r}"
        lines.append(f"{where}: {name}: {message}")
    return "\n".join(lines)


def _known_keys(location: Sequence[Any]) -> list[str]:
    """Keys of the section at `location`, found by walking the annotations."""
    section: type[BaseModel] = ExperimentConfig
    for part in location:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            section = _section_in(field.annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _require_unique(names: Sequence[str], where: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}: {', '.join(map(repr, repeated))} given more than once")
