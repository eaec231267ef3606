"""Sections of the experiment file on what runs are made of: texts, data, model, trainer.

`config.py` puts them together. Paths are relative to the file that names them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

from .locations import HUB_PREFIX, is_url
from .token_count import format_token_count, parse_token_count
from .windows.form import Packing

TokenCount = Annotated[
    int,
    BeforeValidator(parse_token_count),
    PlainSerializer(format_token_count, return_type=str, when_used="json"),
]


def _resolve_path(value: Any, info: ValidationInfo) -> Any:
    """Expand variables and anchor a relative path; names of hub data sets pass unchanged."""
    if not isinstance(value, str | Path) or str(value).startswith(HUB_PREFIX):
        return value
    expanded = os.path.expanduser(os.path.expandvars(str(value)))
    if is_url(expanded):
        raise ValueError(
            f"found the URL {expanded}; expected a local path (URLs are read as texts of "
            "prepare.domains, and as shards by prepare --from)"
        )
    base = (info.context or {}).get("base", Path())
    return os.path.normpath(Path(base, expanded))


def _resolve_location(value: Any, info: ValidationInfo) -> Any:
    """A path like any other, or a URL, in which only variables are expanded."""
    expanded = os.path.expandvars(value) if isinstance(value, str) else value
    return expanded if is_url(str(expanded)) else _resolve_path(value, info)


def _resolve_path_or_name(value: Any, info: ValidationInfo) -> Any:
    """A path when something lies there (or it starts like one), else a name for transformers."""
    resolved = _resolve_path(value, info)
    if looks_like_path(value) or (isinstance(resolved, str) and Path(resolved).exists()):
        return resolved
    return value


def looks_like_path(value: Any) -> bool:
    """Whether a name can only be meant as a path."""
    return isinstance(value, str) and value.startswith((".", "/", "~", "$"))


DOMAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Share = Annotated[float, Field(ge=0, lt=1)]
FilePath = Annotated[str, BeforeValidator(_resolve_path)]
FileLocation = Annotated[str, BeforeValidator(_resolve_location)]
PathOrName = Annotated[str, BeforeValidator(_resolve_path_or_name)]


class Section(BaseModel):
    """A table of the experiment file: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceConfig(Section):
    """The texts of one domain, for `prepare`, or of a validation set that no run is trained on."""

    name: str = Field(min_length=1, pattern=DOMAIN_NAME)
    train: tuple[FileLocation, ...] = ()
    """Files, globs, folders, by path or URL (`s3://...`), or `hf://dataset[:config][@split]`; when
    empty, all of `validation` is held out, and there is nothing to train on."""
    validation: tuple[FileLocation, ...] = ()
    """Separate validation files; when empty, documents are split off `train`."""
    text_field: str = "text"
    split: str = "train"
    """Split to read of Hugging Face data sets that are named without one."""

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if not (self.train or self.validation):
            raise ValueError(
                f"domain {self.name!r} has no texts; give 'train', or 'validation' for a set that "
                "runs are only measured on"
            )
        return self


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
        require_unique([source.name for source in self.domains], "prepare.domains")
        if not any(source.train for source in self.domains):
            raise ValueError(
                "prepare.domains: none has 'train' texts; give some to the domains to train on"
            )
        return self


class DataConfig(Section):
    """Which shards a run streams, and how often it may repeat them."""

    manifest: FilePath | None = None
    """Manifest written by `prepare`; by default the one in `prepare.output`."""
    domains: tuple[str, ...] | None = None
    """Domains to train on, in this order; by default all of the manifest with training shards."""
    sequence_length: int = Field(default=1024, ge=2)
    max_epochs: float = Field(default=4.0, ge=1.0)
    """Most passes over a domain in any run; 1 forbids repetition."""
    packing: Packing = "contiguous"
    """How documents fill the sequences: cut at regular distances, or whole with attention and
    positions of their own, in the order of the shards or packed as tightly as they go."""
    locality: int = Field(default=1, ge=1)
    """Neighbouring windows that are drawn together, for disks that are slow to seek and for object
    storage; 1 shuffles single windows."""


class ModelConfig(Section):
    """A language model, causal or masked, randomly initialised or started from given weights."""

    name: PathOrName | None = None
    """A short name (`gpt2-small`, `bert-base`, ...), a config file or folder, or a hub name; by
    default the config in `start_from`."""
    overrides: dict[str, int | float | str | bool] = {}
    """Fields of the transformers config to change."""
    start_from: FilePath | None = None
    """Folder of a model as `save_pretrained` writes it, whose weights every run starts from."""

    @model_validator(mode="after")
    def _has_a_config(self) -> Self:
        if self.name is None and self.start_from is None:
            raise ValueError("give 'name', or 'start_from', the folder of a model to continue")
        return self

    @property
    def config_source(self) -> str:
        """Where the transformers config comes from."""
        source = self.name or self.start_from
        assert source is not None
        return source


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
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak rate of one device, for MFU; by default from a table of GPUs, or measured."""


class EvaluationConfig(Section):
    """Validation on the same windows for every run."""

    sets: tuple[str, ...] | None = None
    """Validation sets beside those of the training domains, by their names in the manifest; by
    default all domains there that have no training shards. Every run is measured on them."""
    sequences_per_domain: int = Field(default=256, ge=1)
    """Windows of each validation set; fewer when it has fewer."""
    points: int = Field(default=10, ge=1)
    """Evaluations over a run, evenly spaced on the log-token axis from a tenth to the end."""
    probe_points: int = Field(default=3, ge=1)
    """The same for probe runs, of which only the last enters the fit."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        require_unique(self.sets or (), "evaluation.sets")
        return self


def require_unique(names: Sequence[str], where: str) -> None:
    """Raise ValueError naming what is given more than once."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}: {', '.join(map(repr, repeated))} given more than once")
