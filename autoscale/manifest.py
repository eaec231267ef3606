"""The manifest: which shards hold the tokens of each domain, and with which tokenizer.

Prepared data is a folder with a `manifest.json`; all paths in it are relative to the folder, so
that it can be moved. A manifest of shards that lie elsewhere, adopted as they are, names their
folder or URL (`data_root`). Every later step reads the data through its manifest.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, field, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from . import records
from .locations import is_url, join
from .manifest_records import RECORD, DomainShards, Shard, Split, TokenDtype, TokenizerRecord
from .records import read_json, write_json
from .shard_formats.indexed import IndexedFile, IndexedShard
from .shard_formats.registry import open_token_file
from .shard_formats.token_file import TokenFile

logger = logging.getLogger(__name__)

__all__ = [
    "DomainShards",
    "Manifest",
    "Shard",
    "Split",
    "TokenizerRecord",
    "first_problem",
    "require_documents",
]


def _absolute(data_root: str) -> str:
    if data_root and not is_url(data_root) and not os.path.isabs(data_root):
        raise ValueError(
            f"data_root {data_root!r} is relative; expected the full path or URL of the folder "
            "that holds the shards, or nothing for the manifest's own folder"
        )
    return data_root


@dataclass(frozen=True, kw_only=True, slots=True, config=RECORD)
class Manifest:
    """All prepared data of an experiment.

    Attributes:
        dtype: of a token in every shard that does not give its own.
        tokenizer: the tokenizer of every shard.
        domains: the domains, in the order of preparation.
        data_root: folder or URL that the shards' paths start from; "" for the manifest's folder.
        root: folder of the manifest; not part of the file.
    """

    schema_version: ClassVar[int] = records.SCHEMA_VERSION

    dtype: TokenDtype
    tokenizer: TokenizerRecord
    domains: Annotated[tuple[DomainShards, ...], Field(min_length=1)]
    data_root: Annotated[str, AfterValidator(_absolute)] = ""
    root: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        names = self.domain_names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"domain {name!r} is listed more than once; name each only once")
        paths: set[str] = set()
        for _, _, shard in self.all_shards():
            normal = PurePosixPath(shard.path).as_posix()
            if normal in paths:
                raise ValueError(
                    f"shard {shard.path!r} is listed more than once; its windows would be drawn "
                    "twice, or be trained on and validated with"
                )
            paths.add(normal)
        if not self.training_domains:
            raise ValueError("no domain has training shards; give at least one text to train on")
        largest = np.iinfo(self.dtype).max
        if self.tokenizer.path is not None and self.tokenizer.vocab_size - 1 > largest:
            raise ValueError(
                f"dtype {self.dtype} holds token ids up to {largest}; vocab_size "
                f"{self.tokenizer.vocab_size} needs a wider type: the tokenizer is another one"
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
            raise ValueError(f"manifest {path}: {first_problem(error)}") from error
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

    def of_runs(self, domains: Sequence[str], sets: Sequence[str]) -> Self:
        """What runs use: the domains that they train on, and of other sets the validation alone.

        Raises:
            ValueError: there is no such domain.
        """
        others = [replace(self.domain(name), train=()) for name in sets if name not in domains]
        return replace(self, domains=(*map(self.domain, domains), *others))

    @property
    def fingerprint(self) -> str:
        """sha256 of what determines the tokens of each domain: contents, not paths or order."""
        tokenizer = self.tokenizer
        content = {
            "dtype": self.dtype,
            "tokenizer": [tokenizer.sha256, tokenizer.vocab_size, tokenizer.end_of_text_id],
            "domains": {
                domain.name: {
                    "train": [self._identity(shard) for shard in domain.train],
                    "validation": [self._identity(shard) for shard in domain.validation],
                }
                for domain in self.domains
            },
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _identity(self, shard: Shard) -> str | list[str]:
        """The hash of a shard, with what else its tokens depend on where that is not as usual."""
        if shard.format == "indexed" and shard.dtype is None:
            return shard.sha256
        return [shard.sha256, shard.format, self.dtype_of(shard)]

    @property
    def wire_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The narrowest type in which batches can travel: it holds every token id."""
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32)

    def dtype_of(self, shard: Shard) -> str:
        """Of a token in the shard's file."""
        return shard.dtype or self.dtype

    def token_bytes(self, shard: Shard) -> int:
        """Bytes of the shard's tokens as they are stored."""
        return shard.tokens * np.dtype(self.dtype_of(shard)).itemsize

    @property
    def domain_names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)

    @property
    def training_domains(self) -> tuple[str, ...]:
        """Names of the domains that can be trained on; the others are validation sets alone."""
        return tuple(domain.name for domain in self.domains if domain.train)

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
        found = self.find_bytes_per_token(name)
        if found is None:
            raise ValueError(
                f"domain {name!r}: the bytes of its validation texts are not known, since its "
                "shards were adopted without their tokenizer; run prepare --from again with "
                "--tokenizer, or measure in nats"
            )
        return found

    def find_bytes_per_token(self, name: str) -> float | None:
        """The same, or None where the bytes of a validation shard are not known."""
        shards = self.domain(name).validation
        text_bytes = [shard.text_bytes for shard in shards if shard.text_bytes is not None]
        if len(text_bytes) < max(1, len(shards)):
            return None
        return sum(text_bytes) / sum(shard.tokens for shard in shards)

    def location(self, shard: Shard) -> str:
        """Path or URL of a shard, without the suffixes of a `.bin`/`.idx` pair."""
        return join(self.data_root or str(self.root), shard.path)

    def open_file(self, shard: Shard) -> TokenFile:
        """Open a shard; its dtype and number of tokens are those of the manifest.

        Raises:
            ValueError: it is missing or damaged, lies elsewhere, or is another one.
        """
        file = open_token_file(
            self.location(shard),
            shard.format,
            dtype=self.dtype_of(shard) if shard.format == "raw" else None,
            end_of_text_id=self.tokenizer.end_of_text_id,
        )
        self._require_inside(file.location)
        found, expected = (file.num_tokens, file.dtype), (shard.tokens, self.dtype_of(shard))
        if found != expected:
            raise ValueError(
                f"{file.location} holds {found[0]} {found[1]} tokens; the manifest expects "
                f"{expected[0]} {expected[1]} tokens: it is another file. Run prepare again"
            )
        return file

    def _require_inside(self, location: str) -> None:
        """Refuse a symbolic link out of the folder: the manifest's paths say where data lies."""
        if is_url(location):
            return
        root = os.path.realpath(self.data_root or self.root)
        found = os.path.realpath(location)
        if os.path.commonpath([root, found]) != root:
            raise ValueError(
                f"{location} is a symbolic link to {found}, which lies outside of {root}; put the "
                "file there, or run prepare --from on the folder that holds it"
            )

    def check(self) -> None:
        """Compare the manifest with sizes and headers of the files; reads no tokens.

        Raises:
            ValueError: a file is missing, damaged, of another dtype, or of other counts; two
                shards are one file; or the tokenizer is missing.
        """
        seen: dict[str, str] = {}
        for name, split, shard in self.all_shards():
            where = f"domain {name!r}, {split} shard {shard.path}"
            try:
                file = self.open_file(shard)
                if isinstance(file, IndexedFile):  # others would have to be read for it
                    require_documents(shard, IndexedShard(file.prefix).num_documents)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            real = file.location if is_url(file.location) else os.path.realpath(file.location)
            if real in seen:
                raise ValueError(
                    f"{where} is the same file as {seen[real]}; its windows would be drawn twice, "
                    "or be trained on and validated with: list it once"
                )
            seen[real] = shard.path
        folder = self.tokenizer_folder
        if folder is not None and not folder.is_dir():
            raise ValueError(f"the tokenizer's folder {folder} does not exist; run prepare again")

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder with the tokenizer's files; None where there are none."""
        return None if self.tokenizer.path is None else self.root / self.tokenizer.path

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder, e.g. that of an exported model."""
        if self.tokenizer_folder is None:
            logger.info(
                "no tokenizer is copied into %s: the manifest's shards were adopted without one",
                folder,
            )
            return
        shutil.copytree(self.tokenizer_folder, folder, dirs_exist_ok=True)

    def all_shards(self) -> Iterator[tuple[str, Split, Shard]]:
        """Domain name, split and shard, for all of them."""
        for domain in self.domains:
            for shard in domain.train:
                yield domain.name, "train", shard
            for shard in domain.validation:
                yield domain.name, "validation", shard


def require_documents(shard: Shard, found: int) -> None:
    """Raise ValueError where a file holds other documents than its manifest says."""
    if shard.documents is not None and found != shard.documents:
        raise ValueError(
            f"the index lists {found} documents; the manifest expects {shard.documents}: it is "
            "another index. Run prepare again"
        )


def first_problem(error: ValidationError) -> str:
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
