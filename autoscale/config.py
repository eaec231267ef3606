"""One TOML file describes an experiment: the whole of it, and how it is read.

Its sections are in `config_data.py`, `config_execution.py` and `config_method.py`, what they must
agree on in `config_checks.py`. `load_config` reads the file, applies `--set section.key=value`
overrides and validates the whole before anything is computed. Paths in the file are relative to the
file, paths in an override to the working directory; `${NAME}` in a path is an environment variable.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from .config_bench import BenchConfig
from .config_checks import (
    check_batch,
    check_bench,
    check_design,
    check_diloco,
    check_joint_law,
    check_matched_probes,
    check_path,
    check_probe_budgets,
    check_published_law,
    path_budgets,
)
from .config_data import (
    DataConfig,
    EvaluationConfig,
    FilePath,
    ModelConfig,
    PrepareConfig,
    Section,
    TrainerConfig,
    looks_like_path,
)
from .config_execution import CheckpointConfig, LimitsConfig
from .config_method import (
    NAME,
    BudgetConfig,
    FitConfig,
    ProbeBudgetConfig,
    ProbeConfig,
    ProjectConfig,
    ProjectionName,
    SolveConfig,
    TrainConfig,
)
from .mixture import Mixture
from .probes import DesignKind


class ExperimentConfig(Section):
    """The whole experiment."""

    name: str = Field(pattern=NAME)
    output_dir: FilePath
    seed: int = Field(default=0, ge=0)
    prepare: PrepareConfig | None = None
    data: DataConfig
    model: ModelConfig
    trainer: TrainerConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    limits: LimitsConfig = LimitsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probe: ProbeConfig
    fit: FitConfig = FitConfig()
    solve: SolveConfig = SolveConfig()
    project: ProjectConfig = ProjectConfig()
    train: TrainConfig
    bench: BenchConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.manifest is None and self.prepare is None:
            raise ValueError("give data.manifest, or a [prepare] section that makes one")
        for where, budget in self.budgets():
            check_batch(where, budget, self.trainer, self.data.sequence_length)
        check_probe_budgets(self.probe.budgets, self.model)
        if self.fit.law == "autoscale":
            check_published_law(self.fit, self.probe, self.solve)
        else:
            check_joint_law(self.fit, self.evaluation)
        check_matched_probes(self.probe, self.fit)
        check_design(self.probe, self.probe_design)
        check_path(self.project, self.probe, self.solve, self.train, fit=self.fit)
        check_diloco(self.train, self.trainer, self.data.sequence_length)
        if self.bench is not None:
            check_bench(self.bench, self.train, self.trainer)
        return self

    @property
    def manifest_path(self) -> Path:
        if self.data.manifest is not None:
            return Path(self.data.manifest)
        assert self.prepare is not None
        return Path(self.prepare.output) / "manifest.json"

    @property
    def probe_design(self) -> DesignKind:
        """The design of the probes, `auto` resolved."""
        if self.probe.design != "auto":
            return self.probe.design
        return "one_at_a_time" if self.fit.law == "autoscale" else "dirichlet"

    @property
    def fixed_budget(self) -> bool:
        """Whether all probes of a budget have one total, the default resolved."""
        return self.probe_design != "one_at_a_time" or bool(self.probe.fixed_budget)

    @property
    def projection(self) -> ProjectionName:
        """The projection asked for; `auto` is left to the fit of a joint law."""
        asked = self.project.projection
        return "hold" if asked == "auto" and self.fit.law == "autoscale" else asked

    @property
    def projection_budgets(self) -> tuple[int, int] | None:
        """The two probe budgets of the path, small and large; None when only one was probed."""
        return path_budgets(self.project, self.probe)

    @property
    def train_seeds(self) -> tuple[int, ...]:
        return self.train.seeds or (self.seed,)

    def budgets(self) -> Iterator[tuple[str, BudgetConfig]]:
        """All token budgets, each with the name of its place in the file."""
        for index, budget in enumerate(self.probe.budgets):
            yield f"probe.budgets[{index}]", budget
        yield "train.budget", self.train.budget

    def probe_model(self, budget: ProbeBudgetConfig) -> ModelConfig:
        """The model that the probe runs of a budget train."""
        return budget.model or self.model

    def num_mixtures(self, index: int, num_domains: int) -> int:
        """Mixtures drawn beside the reference at probe budget `index`."""
        runs = self.probe.runs
        if runs is None:
            return 2 * num_domains
        return runs if isinstance(runs, int) else runs[index]

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


_PATH_KEYS = {
    "output_dir", "data.manifest", "trainer.deepspeed", "prepare.output", "model.start_from",
    "checkpoint.staging",
}  # fmt: skip
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
    is_path = key in _PATH_KEYS or (key in _PATH_OR_NAME_KEYS and looks_like_path(value))
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
    """One line a key; what each alternative of a key says is joined."""
    messages: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for item in error.errors():
        location = [part for part in item["loc"] if not _is_alternative(part)]
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
            found[name] = f"; found {item['input']!r}"
        messages.setdefault(name, []).append(message)
    return "\n".join(
        f"{where}: {name}: {', or: '.join(said)}{found.get(name, '')}"
        for name, said in messages.items()
    )


def _is_alternative(part: Any) -> bool:
    """Whether a part of a location names no key but a check, or one of several types allowed."""
    text = str(part)
    return text in ("int", "float") or text.startswith(
        ("function-", "constrained-", "literal[", "dict[", "tuple[")
    )


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
