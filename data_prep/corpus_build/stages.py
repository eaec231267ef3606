"""A build as stages of datatrove: what each does, on how many tasks, and where.

    documents   read, filter, write by domain                           one task a part
    signatures  MinHash of every document                                a rank = domain and part
    pairs       documents with an equal bucket                           one task a bucket
    groups      the first of each group of near-duplicates stays         one task
    embeddings  of the training documents that are left                  a rank = domain and part
    selection   D4 within a domain                                       one task a domain
    shards      drop near-duplicates, contaminated and not selected      a rank = domain and part
                documents; split; tokenize
    manifest    report and manifest                                      one task

The folder of a stage is named by a hash of everything that decides what it writes, so a build that
is started again goes on where it was, and one with other settings keeps what they do not change.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corpora import SourceFile
from datatrove.pipeline.base import PipelineStep

from autoscale.tokenizer import import_tokenizer, tokenizer_fingerprint

from . import near_duplicates, selecting
from .contamination import DropContaminated, fingerprint
from .dropping import DropListed
from .ledger import Ledger
from .reading import ReadDomain, ReadSources, write_documents
from .report import CONTAMINATION, Finish
from .shards import ShardPlan, WriteShards
from .splitting import Split

FORMAT = 1
"""Part of every key: raise it when the same input would give other bytes."""
MOST_RANKS = 99_999
"""datatrove writes ranks with five digits and sorts by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """D4 selection.

    Attributes:
        encoder: folder of the sentence encoder.
        ratios: R_dedup and R_proto.
        clusters: of k-means, or None for the default.
    """

    encoder: Path
    ratios: tuple[float, float]
    clusters: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSettings:
    """What to build.

    Attributes:
        output: folder of the manifest.
        files: of all corpora.
        domains: in the order of precedence.
        tokenizer: folder or hub name.
        tasks: parts in which the files are worked on.
        filtered: domains that the quality filters see.
        minhash: whether near-duplicates are removed.
        across_domains: also between domains; the earlier one keeps its document.
        evaluations: evaluation sets whose text is removed.
        ngram: words that count as overlap.
        selection: D4, or None.
        split: which documents are held out.
    """

    output: Path
    files: tuple[SourceFile, ...]
    domains: tuple[str, ...]
    tokenizer: str
    tasks: int
    filtered: tuple[str, ...] = ()
    minhash: bool = True
    across_domains: bool = False
    evaluations: tuple[str, ...] = ()
    ngram: int = 13
    selection: Selection | None = None
    split: Split

    def __post_init__(self) -> None:
        for name in self.domains:
            if self.domains.count(name) > 1:
                raise ValueError(
                    f"domain {name!r} comes from two corpora; expected each name once: build them "
                    "apart"
                )
        if not self.files:
            raise ValueError("there is no file to read; give --corpus and --source")
        unknown = sorted(set(self.filtered) - set(self.domains))
        if unknown:
            raise ValueError(
                f"--filter-domains names {unknown[0]!r}; the domains are {', '.join(self.domains)}"
            )
        if not 1 <= self.tasks * len(self.domains) <= MOST_RANKS:
            raise ValueError(
                f"--tasks {self.tasks} for {len(self.domains)} domains makes "
                f"{self.tasks * len(self.domains)} ranks; expected 1 to {MOST_RANKS}"
            )
        if not 0 < self.split.fraction < 1:
            raise ValueError(
                f"--validation-fraction {self.split.fraction}: expected a fraction between 0 and 1"
            )
        if self.ngram < 1:
            raise ValueError(f"--ngram {self.ngram}: expected at least 1 word")

    def summary(self) -> dict[str, Any]:
        """The settings for the report."""
        content = asdict(self)
        del content["files"]
        content["num_files"] = len(self.files)
        content["sources"] = sorted({file.root for file in self.files})
        return dict(json.loads(json.dumps(content, default=str)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One datatrove pipeline.

    Attributes:
        name: what it does, in a word.
        pipeline: its steps.
        tasks: ranks.
        logs: folder for datatrove's logs and marks of finished ranks.
        always: whether it runs again when an earlier call finished it.
    """

    name: str
    pipeline: list[PipelineStep]
    tasks: int
    logs: Path
    always: bool = False


def make_stages(settings: BuildSettings) -> Iterator[Stage]:
    """The stages of a build, in order; takes the tokenizer over into the output."""
    work = settings.output / "work"
    ranks = settings.tasks * len(settings.domains)
    key = _documents_key(settings)
    documents = work / f"documents-{key}"
    yield Stage(
        name="documents",
        pipeline=[
            ReadSources(settings.files, documents, settings.filtered),
            write_documents(documents),
        ],
        tasks=settings.tasks,
        logs=documents / "logs",
    )
    reader = ReadDomain(documents, settings.domains, settings.tasks)
    near = None
    if settings.minhash:
        key = _key(key, settings.domains, str(near_duplicates.CONFIG), settings.across_domains)
        near = work / f"near-duplicates-{key}"
        yield from _near_duplicate_stages(settings, reader, near, ranks)
    key = _key(
        key, settings.domains, asdict(settings.split),
        fingerprint(settings.evaluations), settings.ngram,
    )  # fmt: skip
    selected, selection = None, settings.selection
    if selection is not None:
        chosen_by = [selection.ratios, selection.clusters, _folder_hash(selection.encoder)]
        key = _key(key, chosen_by)
        selected = work / f"selection-{key}"
        before = _left_over(settings, reader, near)
        yield from _selection_stages(settings, selection, before, selected, ranks)
    tokenizer = _take_tokenizer(settings)
    plan = ShardPlan(
        output=settings.output,
        shards=settings.output / "shards" / _key(key, tokenizer_fingerprint(tokenizer)),
        tokenizer=tokenizer,
        domains=settings.domains,
        tasks=settings.tasks,
        split=settings.split,
    )
    ledger = Ledger()
    steps = _left_over(settings, reader, near, ledger, plan.folder / CONTAMINATION)
    if selected is not None:
        steps.append(DropListed(selected / selecting.DROPPED, selecting.REASONS, ledger))
    steps.append(WriteShards(plan, ledger))
    yield Stage(name="shards", pipeline=steps, tasks=ranks, logs=plan.folder / "logs")
    finish = Finish(plan, documents, settings.summary(), settings.evaluations, settings.ngram)
    logs = plan.folder / "logs-manifest"
    yield Stage(name="manifest", pipeline=[finish], tasks=1, logs=logs, always=True)


def _left_over(
    settings: BuildSettings,
    reader: ReadDomain,
    near: Path | None,
    ledger: Ledger | None = None,
    found: Path | None = None,
) -> list[PipelineStep]:
    """Steps that read what is left without near-duplicates and contaminated documents.

    Args:
        settings: of the build.
        reader: of the documents.
        near: folder of the near-duplicates, or None where they stay.
        ledger: counts what is dropped; None counts nothing.
        found: folder for what overlaps evaluation sets; None notes nothing.
    """
    steps: list[PipelineStep] = [reader]
    if near is not None:
        lists = near / near_duplicates.DROPPED
        steps.append(DropListed(lists, near_duplicates.REASONS, ledger))
    if settings.evaluations:
        steps.append(DropContaminated(settings.evaluations, settings.ngram, found, ledger))
    return steps


def _near_duplicate_stages(
    settings: BuildSettings, reader: ReadDomain, folder: Path, ranks: int
) -> Iterator[Stage]:
    yield Stage(
        name="signatures",
        pipeline=[reader, near_duplicates.sign(folder)],
        tasks=ranks,
        logs=folder / "logs-signatures",
    )
    yield Stage(
        name="pairs",
        pipeline=[near_duplicates.pair(folder)],
        tasks=near_duplicates.CONFIG.num_buckets,
        logs=folder / "logs-pairs",
    )
    keep = near_duplicates.KeepFirst(folder, settings.tasks, across_domains=settings.across_domains)
    yield Stage(name="groups", pipeline=[keep], tasks=1, logs=folder / "logs-groups")


def _selection_stages(
    settings: BuildSettings,
    selection: Selection,
    before: list[PipelineStep],
    folder: Path,
    ranks: int,
) -> Iterator[Stage]:
    embed = selecting.EmbedTraining(folder, selection.encoder, settings.split)
    yield Stage(
        name="embeddings",
        pipeline=[*before, embed],
        tasks=ranks,
        logs=folder / "logs-embeddings",
    )
    choose = selecting.SelectDocuments(
        folder, settings.tasks, selection.ratios, selection.clusters, settings.split.seed
    )
    yield Stage(
        name="selection",
        pipeline=[choose],
        tasks=len(settings.domains),
        logs=folder / "logs-selection",
    )


def _take_tokenizer(settings: BuildSettings) -> Path:
    """The tokenizer's folder below the output."""
    temporary = settings.output / ".tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    import_tokenizer(settings.tokenizer, folder=temporary)
    folder = settings.output / f"tokenizer-{tokenizer_fingerprint(temporary)[:12]}"
    if folder.is_dir():
        shutil.rmtree(temporary)
    else:
        os.replace(temporary, folder)
    return folder


def _documents_key(settings: BuildSettings) -> str:
    files = [
        [file.root, file.path, file.size, file.domain, repr(file.layout)] for file in settings.files
    ]
    return _key(FORMAT, files, settings.tasks, sorted(settings.filtered))


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _folder_hash(folder: Path) -> str:
    """Hash of the names and bytes of the files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
