"""The manifest: which shards hold the tokens of each domain, and with which tokenizer.

Prepared data is a folder with a `manifest.json`; all paths in it are relative to the folder, so
that it can be moved. Every later step reads the data through its manifest.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, field, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from . import records
from .indexed_shard import IndexedShard, hash_shard
from .records import read_json, write_json

_RECORD = ConfigDict(extra="forbid", strict=True)


def _inside_folder(path: str) -> str:
    """Refuse a path that leads out of the manifest's folder."""
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path:
        raise ValueError(
            f"path {path!r} leads out of the manifest's folder; expected a relative path with '/' "
            "and without '..'"
        )
    return path


RelativePath = Annotated[str, AfterValidator(_inside_folder)]
Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class Shard:
    """One `.bin`/`.idx` pair.

    Attributes:
        path: prefix without `.bin` and `.idx`, relative to the manifest's folder.
        tokens: number of tokens, end-of-text tokens included.
        documents: number of documents.
        text_bytes: UTF-8 bytes of the texts, end-of-text excluded.
        sha256: of the bytes of `.bin`, then of `.idx`.
    """

    path: RelativePath
    tokens: Count
    documents: Count
    text_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class DomainShards:
    """The shards of a domain, in the order in which their windows are numbered."""

    name: Annotated[str, Field(min_length=1)]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError(
                f"domain {self.name!r} has no training shards; give it text, or leave it out"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class TokenizerRecord:
    """The tokenizer that made the tokens.

    Attributes:
        path: folder with its files, relative to the manifest's folder.
        vocab_size: every token id is below it.
        end_of_text_id: last token of every document.
        sha256: of what decides the token ids.
    """

    path: RelativePath
    vocab_size: Count
    end_of_text_id: Annotated[int, Field(ge=0)]
    sha256: Sha256

    def __post_init__(self) -> None:
        if self.end_of_text_id >= self.vocab_size:
            raise ValueError(
                f"end_of_text_id {self.end_of_text_id} is not below vocab_size {self.vocab_size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class Manifest:
    """All prepared data of an experiment.

    Attributes:
        dtype: of a token in every shard.
        tokenizer: the tokenizer of every shard.
        domains: the domains, in the order of preparation.
        root: folder of the manifest; not part of the file.
    """

    schema_version: ClassVar[int] = records.SCHEMA_VERSION

    dtype: Literal["uint16", "int32"]
    tokenizer: TokenizerRecord
    domains: Annotated[tuple[DomainShards, ...], Field(min_length=1)]
    root: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        names = self.domain_names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"domain {name!r} is listed more than once; name each only once")
        paths: set[str] = set()
        for _, _, shard in self._all_shards():
            normal = PurePosixPath(shard.path).as_posix()
            if normal in paths:
                raise ValueError(
                    f"shard {shard.path!r} is listed more than once; its windows would be drawn "
                    "twice, or be trained on and validated with"
                )
            paths.add(normal)
        largest = np.iinfo(self.dtype).max
        if self.tokenizer.vocab_size - 1 > largest:
            raise ValueError(
                f"dtype {self.dtype} holds token ids up to {largest}; vocab_size "
                f"{self.tokenizer.vocab_size} needs int32"
            )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a manifest; `check` compares it with the shards.

        Raises:
            ValueError: the file is missing, is no manifest, is of another schema version, or
                says something impossible.
        """
        path = Path(path)
        document = read_json(path, "manifest")
        content = {
            key: value for key, value in document.items() if key not in ("kind", "schema_version")
        }
        if "root" in content:
            raise ValueError(f"manifest {path}: root: unknown key; remove it")
        try:
            checked = TypeAdapter(cls).validate_json(json.dumps(content))
        except ValidationError as error:
            raise ValueError(f"manifest {path}: {_first_problem(error)}") from error
        return replace(checked, root=path.parent)

    def save(self, path: Path | str) -> Path:
        """Write the manifest into its folder, whole or not at all."""
        path = Path(path)
        if path.parent.resolve() != self.root.resolve():
            raise ValueError(
                f"manifest of folder {self.root} cannot be written to {path}: its paths are "
                "relative to its folder; write it there"
            )
        content = asdict(self)
        del content["root"]
        return write_json(path, "manifest", content)

    @property
    def fingerprint(self) -> str:
        """sha256 of what determines the tokens of each domain: contents, not paths or order."""
        tokenizer = self.tokenizer
        content = {
            "dtype": self.dtype,
            "tokenizer": [tokenizer.sha256, tokenizer.vocab_size, tokenizer.end_of_text_id],
            "domains": {
                domain.name: {
                    "train": [shard.sha256 for shard in domain.train],
                    "validation": [shard.sha256 for shard in domain.validation],
                }
                for domain in self.domains
            },
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def domain_names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)

    def domain(self, name: str) -> DomainShards:
        """The shards of one domain.

        Raises:
            ValueError: there is no such domain.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        near = get_close_matches(name, self.domain_names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.domain_names)}"
        raise ValueError(f"the manifest in {self.root} has no domain {name!r}; {hint}")

    def available_tokens(self, name: str) -> int:
        """Training tokens of a domain."""
        return sum(shard.tokens for shard in self.domain(name).train)

    def bytes_per_token(self, name: str) -> float:
        """UTF-8 bytes of text per validation token, end-of-text tokens counted as tokens.

        With it a loss in nats a token becomes bits per byte: loss / ln 2 / bytes_per_token.
        """
        shards = self.domain(name).validation
        if not shards:
            raise ValueError(f"domain {name!r} has no validation shards; hold out some documents")
        return sum(shard.text_bytes for shard in shards) / sum(shard.tokens for shard in shards)

    def check(self) -> None:
        """Compare the manifest with sizes and headers of the files; reads no tokens.

        Raises:
            ValueError: a file is missing, damaged, of another dtype, or of other counts.
        """
        for name, split, shard in self._all_shards():
            where = f"domain {name!r}, {split} shard {shard.path}"
            try:
                opened = IndexedShard(self.root / shard.path)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            found = (opened.dtype.name, opened.num_tokens, opened.num_documents)
            if found != (self.dtype, shard.tokens, shard.documents):
                raise ValueError(
                    f"{where}: the manifest expects {shard.tokens} {self.dtype} tokens in "
                    f"{shard.documents} documents; the files hold {found[1]} {found[0]} tokens in "
                    f"{found[2]}. Run prepare again"
                )
        folder = self.root / self.tokenizer.path
        if not folder.is_dir():
            raise ValueError(f"the tokenizer's folder {folder} does not exist; run prepare again")

    def verify(self) -> None:
        """Check, then read every byte: index entries and sha256 of each shard.

        Raises:
            ValueError: a file is not the one that the manifest names.
        """
        self.check()
        for name, split, shard in self._all_shards():
            where = f"domain {name!r}, {split} shard {shard.path}"
            IndexedShard(self.root / shard.path).check()
            found = hash_shard(self.root / shard.path)
            if found != shard.sha256:
                raise ValueError(
                    f"{where}: sha256 is {found}; the manifest expects {shard.sha256}: the content "
                    "was changed. Run prepare again"
                )

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder, e.g. that of an exported model."""
        shutil.copytree(self.root / self.tokenizer.path, folder, dirs_exist_ok=True)

    def _all_shards(self) -> Iterator[tuple[str, str, Shard]]:
        """Domain name, split and shard, for all of them."""
        for domain in self.domains:
            for shard in domain.train:
                yield domain.name, "train", shard
            for shard in domain.validation:
                yield domain.name, "validation", shard


def _first_problem(error: ValidationError) -> str:
    """One line for the first problem: where in the file, and what is wrong."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
    elif problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = "unknown key; remove it"
    elif problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        message = "missing; run prepare again"
    else:
        message = f"{problem['msg']}; found {problem['input']!r}"
    return f"{where}: {message}" if where else message
