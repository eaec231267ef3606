"""Recount what a run drew, from its manifest and its sampler, and compare it with its record.

A run's `result.json` says what its ranks were given. Here the same is counted again from the other
end: every position of the mixture order is located, every window counted, and every window's labels
are traced to the documents that they lie in. With `read_tokens` all rows are read again too, and
their checksum must be that of the run to the last bit. A run in progress is compared with the last
record of its `metrics.jsonl`.
"""

# K domains

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import RunStream
from .manifest import Manifest
from .records import read_json
from .runs import RunResult, RunSpec
from .windows.documents import documents_of
from .windows.form import Windows
from .windows.opening import open_windows

_POSITIONS = 1 << 18  # located at a time
_WINDOWS = 1 << 18  # traced to their documents at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainAudit:
    """What a run drew of one domain.

    Attributes:
        name: of the domain.
        windows: drawn.
        tokens: labels in them.
        epochs: passes over the domain's windows.
        fewest_draws, most_draws: of any one window.
        documents: that the run could draw from; None where the shards do not tell.
        documents_touched: of which a label was drawn.
        most_drawn_document: passes over the document that came most often.
    """

    name: str
    windows: int
    tokens: int
    epochs: float
    fewest_draws: int
    most_draws: int
    documents: int | None
    documents_touched: int | None
    most_drawn_document: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The recount of a run.

    Attributes:
        run_id: of the run.
        steps, num_steps: recounted, and those of the whole run.
        domains: in the order of the run.
        checksum: of all rows, read again; None where they were not.
        problems: where the record differs, a sentence each.
    """

    run_id: str
    steps: int
    num_steps: int
    domains: tuple[DomainAudit, ...]
    checksum: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What a run says of itself, so far or at its end; `drawn` is its spec as it was drawn."""

    run_id: str
    spec: RunSpec
    drawn: RunSpec
    steps: int
    epochs: Mapping[str, float]
    tokens: Mapping[str, int] | None
    windows: Mapping[str, int] | None
    checksum: str | None


def audit_run(
    folder: Path, *, manifest_path: Path | None = None, read_tokens: bool = False
) -> Audit:
    """Recount a run.

    Args:
        folder: of the run.
        manifest_path: of its data; by default the one that the experiment's `config.json` names.
        read_tokens: read all rows again and compare their checksum.

    Raises:
        ValueError: the folder holds no run that has begun, or its data is not there any more.
    """
    record = _record(folder)
    spec = record.spec
    manifest = Manifest.load(manifest_path or _manifest_of(folder))
    problems = _identity_problems(record, manifest)
    stream = RunStream(record.drawn, manifest)
    draws_K = _count_draws(stream, record.steps * spec.sequences_per_batch)
    domains = []
    for name, draws in zip(spec.domains, draws_K, strict=True):
        windows = open_windows(
            manifest,
            name,
            "train",
            sequence_length=spec.sequence_length,
            packing=spec.packing,
            share=spec.share,
        )
        domains.append(_audit_domain(name, windows, draws))
    for domain in domains:
        problems += _count_problems(record, domain)
    checksum = None
    if read_tokens:
        if record.checksum is None:
            raise ValueError(
                f"run {record.run_id} has no checksum to compare with: it is not finished, or an "
                "older version trained it; audit it without --tokens"
            )
        for _ in stream:
            pass
        checksum = stream.delivery.checksum_text
        if checksum != record.checksum:
            problems.append(
                f"the rows have checksum {checksum}, the record {record.checksum}: other tokens "
                "lie in the shards now, or others were trained on"
            )
    return Audit(
        run_id=record.run_id,
        steps=record.steps,
        num_steps=spec.num_steps,
        domains=tuple(domains),
        checksum=checksum,
        problems=tuple(problems),
    )


def _record(folder: Path) -> _Record:
    """The result of a finished run, or the last metrics of one in progress."""
    if (folder / "result.json").is_file():
        result = RunResult.load(folder)
        return _Record(
            run_id=str(read_json(folder / "result.json", "result")["run_id"]),
            spec=result.spec,
            drawn=result.drawn,
            steps=result.spec.num_steps,
            epochs=result.epochs,
            tokens=result.tokens,
            windows=result.windows,
            checksum=result.checksum,
        )
    if not (folder / "spec.json").is_file():
        raise ValueError(
            f"{folder} is no folder of a run: it has neither result.json nor spec.json; name one "
            "under runs/ of the experiment's output folder"
        )
    content = read_json(folder / "spec.json", "spec")
    spec = RunSpec.from_dict(content["spec"])
    if spec.online.get("method") == "ado":
        raise ValueError(
            f"the weights of run {content['run_id']} change while it trains, and its result will "
            "have them; audit it when it is finished"
        )
    last = _last_training(folder / "metrics.jsonl")
    if last is None:
        raise ValueError(
            f"run {content['run_id']} has logged nothing yet that could be compared; audit it later"
        )
    return _Record(
        run_id=str(content["run_id"]),
        spec=spec,
        drawn=spec,
        steps=int(last["step"]),
        epochs={name: float(last[f"epochs/{name}"]) for name in spec.domains},
        tokens=None,
        windows=None,
        checksum=None,
    )


def _last_training(path: Path) -> dict[str, Any] | None:
    """The last whole record of the training loss."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that is being written
        if found["kind"] == "training":
            return dict(found)
    return None


def _manifest_of(folder: Path) -> Path:
    """The manifest of the experiment that a run belongs to."""
    path = folder.resolve().parents[1] / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist, which would name the manifest of the run; give --manifest"
        )
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    named = config["data"]["manifest"]
    return Path(named) if named else Path(config["prepare"]["output"]) / "manifest.json"


def _identity_problems(record: _Record, manifest: Manifest) -> list[str]:
    """The record must be of this run, and the manifest of its data."""
    problems, spec = [], record.spec
    if not record.run_id.endswith(spec.identity):
        problems.append(
            f"the record's settings make run {spec.identity}, not {record.run_id}: they were "
            "changed after the run"
        )
    if manifest.of_runs(spec.domains, spec.evaluation["domains"]).fingerprint != spec.data:
        problems.append(
            f"the manifest in {manifest.root} describes other data than the run was trained on"
        )
    return problems


def _count_draws(stream: RunStream, num_samples: int) -> list[NDArray[np.int32]]:
    """How often each window of each domain stands at the first positions."""
    num_windows_K = np.array(stream.order.num_windows, dtype=np.int64)
    ends_K = np.cumsum(num_windows_K)
    begins_K = ends_K - num_windows_K
    draws = np.zeros(ends_K[-1], dtype=np.int32)
    for first in range(0, num_samples, _POSITIONS):
        located = stream.order.locate(np.arange(first, min(first + _POSITIONS, num_samples)))
        np.add.at(draws, begins_K[located.domain] + located.window, 1)
    return np.split(draws, ends_K[:-1])


def _audit_domain(name: str, windows: Windows, draws: NDArray[np.int32]) -> DomainAudit:
    traced = None
    if all(file.document_starts() is not None for file in windows.files):
        traced = _trace(windows, draws)
    drawn = int(draws.sum())
    return DomainAudit(
        name=name,
        windows=drawn,
        # Where documents are packed, the shards tell where they begin.
        tokens=drawn * windows.sequence_length if traced is None else int(traced[0].sum()),
        epochs=drawn / len(windows),
        fewest_draws=int(draws.min()),
        most_draws=int(draws.max()),
        documents=None if traced is None else int(np.count_nonzero(traced[1])),
        documents_touched=None if traced is None else int(np.count_nonzero(traced[0])),
        most_drawn_document=None
        if traced is None
        else float((traced[0] / np.maximum(traced[1], 1)).max()),
    )


def _trace(
    windows: Windows, draws: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels drawn of each document, and labels that all windows have of it, shape (documents,)."""
    starts = [file.document_starts() for file in windows.files]
    num_documents = sum(begins.size - 1 for begins in starts if begins is not None)
    drawn, there = np.zeros((2, num_documents), dtype=np.int64)
    for first in range(0, draws.size, _WINDOWS):
        numbers = np.arange(first, min(first + _WINDOWS, draws.size))
        spans = documents_of(windows, numbers)
        np.add.at(there, spans.document, spans.tokens)
        np.add.at(drawn, spans.document, spans.tokens * draws[numbers[spans.window]])
    return drawn, there


def _count_problems(record: _Record, domain: DomainAudit) -> list[str]:
    found: dict[str, Any] = {"epochs": domain.epochs}
    said: dict[str, Any] = {"epochs": record.epochs[domain.name]}
    if record.tokens is not None:
        found["tokens"], said["tokens"] = domain.tokens, record.tokens[domain.name]
    if record.windows is not None:
        found["windows"], said["windows"] = domain.windows, record.windows[domain.name]
    return [
        f"domain {domain.name!r}: {found[what]:_} {what} recounted, the record says {said[what]:_}"
        for what in found
        if found[what] != said[what]
    ]
