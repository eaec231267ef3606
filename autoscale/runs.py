"""Runs: what one is (`RunSpec`), what it gave (`RunResult`), and where both lie (`RunStore`).

The identity of a run is a hash of everything that changes its loss and of nothing else, so that a
finished run is never run again, whatever the label, the world size or the folder.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from .records import read_json, write_json
from .windows.form import Packing

Status = Literal["finished", "failed", "interrupted", "waiting"]
_IDENTITY_VERSION = 1  # raise it when the same spec would give another loss
# Fields that came later enter the identity only where they say something new.
_ADDED_FIELDS: dict[str, Any] = {"packing": "contiguous", "locality": 1, "share": 1.0, "stages": []}
_ADDED_FIELDS |= {"start_from": "", "diloco": {}, "online": {}}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """Everything that determines the losses of one training run.

    Attributes:
        label: readable name, e.g. `probe-300M-arxiv-up3`; no part of the identity.
        domains: names, in the order of `sequences`.
        sequences: windows drawn of each domain over the run; the sum is a whole number of batches.
        sequence_length: tokens a window.
        seed: of the initialisation and of the window order.
        model: fields of the transformers config.
        optimisation: rate, schedule, AdamW, clipping, sequences a batch, precision.
        evaluation: validation windows and evaluation points.
        data: fingerprint of the shards.
        packing: how documents fill the windows (`windows.form.Packing`).
        locality: neighbouring windows that are drawn together.
        share: of every domain's documents that the run draws from.
        stages: windows of each domain in each part of a run whose weights change; empty for one
            part. `sequences` is their sum.
        start_from: digest of the weights that the run starts from; empty for random ones.
        diloco: fields of `config_method.DilocoConfig`; empty where all ranks exchange gradients.
        online: a method that works while the run trains, with its settings (`methods.doremi`,
            `methods.ado`); empty for none. With ADO `sequences` is the plan, and not what is drawn.
    """

    label: str
    domains: tuple[str, ...]
    sequences: tuple[int, ...]
    sequence_length: int
    seed: int
    model: Mapping[str, Any]
    optimisation: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    data: str
    packing: Packing = "contiguous"
    locality: int = 1
    share: float = 1.0
    stages: tuple[tuple[int, ...], ...] = ()
    start_from: str = ""
    diloco: Mapping[str, Any] = field(default_factory=dict)
    online: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.domains) == len(self.sequences)
        for quotas in (self.sequences, *self.stages):
            assert sum(quotas) % self.sequences_per_batch == 0, self
        if self.stages:
            assert tuple(map(sum, zip(*self.stages, strict=True))) == self.sequences, self

    @property
    def quotas(self) -> tuple[tuple[int, ...], ...]:
        """Windows of each domain in each part of the run, one part or more."""
        return self.stages or (self.sequences,)

    @property
    def sequences_per_batch(self) -> int:
        return int(self.optimisation["sequences_per_batch"])

    @property
    def num_steps(self) -> int:
        return sum(self.sequences) // self.sequences_per_batch

    @property
    def tokens_per_batch(self) -> int:
        return self.sequences_per_batch * self.sequence_length

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens that the run draws of each domain; with packing, padding counts."""
        return {
            name: count * self.sequence_length
            for name, count in zip(self.domains, self.sequences, strict=True)
        }

    @property
    def total_tokens(self) -> int:
        return sum(self.sequences) * self.sequence_length

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits."""
        content = self.to_dict() | {"identity_version": _IDENTITY_VERSION}
        del content["label"]
        for key, default in _ADDED_FIELDS.items():
            if content[key] == default:
                del content[key]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def run_id(self) -> str:
        return f"{self.label}-{self.identity}"

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        tuples: dict[str, Any] = {key: tuple(content[key]) for key in ("domains", "sequences")}
        tuples["stages"] = tuple(map(tuple, content.get("stages", ())))
        return cls(**{**content, **tuples})


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Validation losses at one moment of a run, nats a token.

    Attributes:
        tokens: that the run has seen.
        losses: of every validation set.
        mean_loss: over the sets of the domains trained on; further sets do not enter it.
    """

    tokens: int
    losses: Mapping[str, float]
    mean_loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a finished run gave; tokens are those realised, not those asked for.

    Attributes:
        tokens: labels of each domain that the run learned from; padding does not count.
        epochs: passes over each domain's windows.
        windows: windows of each domain that the ranks were given; None in older records.
        checksum: of all rows that the ranks were given (`delivery.Delivery`); None likewise.
        online: what came of `spec.online`: the `weights` by domain, with ADO also the windows of
            each domain in each round, the `stages`; None without a method.
    """

    spec: RunSpec
    tokens: Mapping[str, int]
    epochs: Mapping[str, float]
    evaluations: tuple[Evaluation, ...]
    seconds: float
    tokens_per_second: float
    mfu: float | None
    flops: float
    world_size: int
    device: str
    versions: Mapping[str, str]
    commit: str | None
    started_at: str
    finished_at: str
    windows: Mapping[str, int] | None = None
    checksum: str | None = None
    online: Mapping[str, Any] | None = None

    @property
    def drawn(self) -> RunSpec:
        """The spec of a run that draws the same windows by plan."""
        stages = tuple(map(tuple, (self.online or {}).get("stages", ())))
        if not stages:
            return self.spec
        sequences = tuple(map(sum, zip(*stages, strict=True)))
        return replace(self.spec, sequences=sequences, stages=stages, online={})

    @property
    def final_losses(self) -> Mapping[str, float]:
        return self.evaluations[-1].losses

    @property
    def final_mean_loss(self) -> float:
        return self.evaluations[-1].mean_loss

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens.values())

    def save(self, folder: Path) -> Path:
        content = asdict(self) | {"spec": self.spec.to_dict()}
        derived = {
            "run_id": folder.name,
            "final_losses": self.final_losses,
            "final_mean_loss": self.final_mean_loss,
        }
        return write_json(folder / "result.json", "result", {**derived, **content})

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = read_json(folder / "result.json", "result")
        for derived in ("kind", "schema_version", "run_id", "final_losses", "final_mean_loss"):
            content.pop(derived, None)
        content["spec"] = RunSpec.from_dict(content["spec"])
        content["evaluations"] = tuple(Evaluation(**item) for item in content["evaluations"])
        return cls(**content)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFailure:
    """Why a run has no result. A diverged run would diverge again; a crashed one may not."""

    reason: Literal["diverged", "crashed"]
    message: str

    def save(self, folder: Path) -> Path:
        return write_json(folder / "failed.json", "failure", asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStore:
    """The runs of one experiment, one folder each; state is what the folders hold."""

    root: Path
    _folders: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def folder(self, spec: RunSpec) -> Path:
        """Where the run lies, under whatever label it was first started."""
        known = self._folders.get(spec.identity)
        if known is None or not known.is_dir():
            matches = sorted(self.root.glob(f"*-{spec.identity}"))
            known = matches[0] if matches else self.root / spec.run_id
            self._folders[spec.identity] = known
        return known

    def status(self, spec: RunSpec) -> Status:
        folder = self.folder(spec)
        if (folder / "result.json").is_file():
            return "finished"
        if (folder / "failed.json").is_file():
            return "failed"
        return "interrupted" if (folder / "spec.json").is_file() else "waiting"

    def result(self, spec: RunSpec) -> RunResult:
        return RunResult.load(self.folder(spec))

    def exported_model(self, identity: str) -> Path | None:
        """Folder of the model that a run exported; None where there is none yet."""
        found = sorted(self.root.glob(f"*-{identity}/model/config.json")) if identity else []
        return found[0].parent if found else None

    def failure(self, spec: RunSpec) -> RunFailure:
        content = read_json(self.folder(spec) / "failed.json", "failure")
        return RunFailure(reason=content["reason"], message=content["message"])

    def start(self, spec: RunSpec) -> Path:
        """Make the folder and record what is run; a record of an earlier failure is removed."""
        folder = self.folder(spec)
        write_json(folder / "spec.json", "spec", {"run_id": folder.name, "spec": spec.to_dict()})
        (folder / "failed.json").unlink(missing_ok=True)
        return folder

    def forget_progress(self, spec: RunSpec) -> None:
        """Delete what an unfinished run left, so that it starts from its first step."""
        if self.status(spec) in ("failed", "interrupted"):
            shutil.rmtree(self.folder(spec))
