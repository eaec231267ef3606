"""What a manifest lists: shards, the domains that they belong to, and their tokenizer."""

from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from .shard_formats.token_file import TOKEN_DTYPES, FormatName

RECORD: Final = ConfigDict(extra="forbid", strict=True)


def _inside_folder(path: str) -> str:
    """Refuse a path that leads out of the manifest's folder."""
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path:
        raise ValueError(
            f"path {path!r} leads out of the manifest's folder; expected a relative path with '/' "
            "and without '..'"
        )
    return path


def _token_dtype(dtype: str) -> str:
    """Refuse what is no integer type."""
    if dtype not in TOKEN_DTYPES:
        raise ValueError(
            f"{dtype!r} is no type of token ids; expected one of {', '.join(TOKEN_DTYPES)}"
        )
    return dtype


RelativePath = Annotated[str, AfterValidator(_inside_folder)]
Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TokenDtype = Annotated[str, AfterValidator(_token_dtype)]
Split = Literal["train", "validation"]


@dataclass(frozen=True, kw_only=True, slots=True, config=RECORD)
class Shard:
    """One file of tokens, with its index where its format has one.

    Attributes:
        path: relative to the manifest's `data_root`; of a `.bin`/`.idx` pair the prefix without
            either.
        tokens: number of tokens, end-of-text tokens included.
        documents: number of documents; None where nothing says where documents end.
        text_bytes: UTF-8 bytes of the texts, end-of-text excluded; None where they are not known.
        sha256: of the bytes of all its files, e.g. of `.bin`, then of `.idx`.
        format: how the tokens are stored.
        dtype: of a token; None for the manifest's.
    """

    path: RelativePath
    tokens: Count
    documents: Count | None
    text_bytes: Annotated[int, Field(ge=0)] | None
    sha256: Sha256
    format: FormatName = "indexed"
    dtype: TokenDtype | None = None


@dataclass(frozen=True, kw_only=True, slots=True, config=RECORD)
class DomainShards:
    """The shards of a domain, in the order in which their windows are numbered.

    One without training shards is a validation set that no run is trained on.
    """

    name: Annotated[str, Field(min_length=1)]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if not (self.train or self.validation):
            raise ValueError(f"domain {self.name!r} has no shards; give it text, or leave it out")


@dataclass(frozen=True, kw_only=True, slots=True, config=RECORD)
class TokenizerRecord:
    """The tokenizer that made the tokens.

    Attributes:
        path: folder with its files, relative to the manifest's folder; None where shards were
            adopted without their tokenizer.
        vocab_size: every token id is below it.
        end_of_text_id: last token of every document.
        sha256: of what decides the token ids; None without files.
    """

    path: RelativePath | None
    vocab_size: Count
    end_of_text_id: Annotated[int, Field(ge=0)]
    sha256: Sha256 | None

    def __post_init__(self) -> None:
        if (self.path is None) != (self.sha256 is None):
            raise ValueError("give path and sha256 of the tokenizer both, or null for both")
        if self.end_of_text_id >= self.vocab_size:
            raise ValueError(
                f"end_of_text_id {self.end_of_text_id} is not below vocab_size {self.vocab_size}"
            )
