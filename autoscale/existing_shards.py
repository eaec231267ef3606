"""Adopt tokens that exist: a manifest for a folder of shards, which stay where and as they are.

    find      token files and token data sets in a folder (shard_formats, token_datasets)
    name      their domains and splits                    (shard_names)
    hold out  whole shards, where a fraction is asked for
    count     tokens, documents, sha256 of every file, several at a time
    write     manifest.json, with the folder as its `data_root` where it lies elsewhere

Shards are never copied. Token data sets that cannot be read in place (MDS, Arrow, parquet) are
converted into shards beside the manifest first.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from .documents import Progress
from .locations import is_url, path_from
from .manifest import DomainShards, Manifest, Shard, Split, TokenizerRecord, first_problem
from .shard_formats.registry import detect_format, find_token_files, open_token_file
from .shard_formats.token_file import TokenFile
from .shard_names import Naming, hold_out
from .text_bytes import with_text_bytes
from .token_datasets.conversion import (
    ConversionSettings,
    convert_domain,
    find_datasets,
    open_dataset,
)
from .tokenizer import import_tokenizer, tokenizer_fingerprint
from .verification import valid_blocks

logger = logging.getLogger(__name__)

THREADS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """What to adopt, and what its files do not say.

    Attributes:
        folder: path or URL.
        output: path of the manifest; None for `manifest.json` in the folder.
        naming: how files are given to domains and splits.
        held_out_fraction: of the tokens of a domain without validation shards, held out as whole
            shards; None refuses such a domain.
        tokenizer: folder or name of the tokenizer; None with the two numbers instead.
        vocab_size, end_of_text_id: of the tokenizer, where it is not at hand.
        dtype: of a token in files that do not say.
        column: with the tokens, of data sets; None looks for the usual names.
    """

    folder: str
    output: Path | None = None
    naming: Naming = field(default_factory=Naming)
    held_out_fraction: float | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    end_of_text_id: int | None = None
    dtype: str | None = None
    column: str | None = None

    @property
    def manifest_path(self) -> Path:
        if self.output is not None:
            if self.output.suffix != ".json":
                raise ValueError(
                    f"-o {self.output}: expected the manifest's own path, e.g. "
                    f"{self.output}/manifest.json"
                )
            return self.output
        if is_url(self.folder):
            raise ValueError(
                f"{self.folder} is a URL, and a manifest is written locally; name it by -o, e.g. "
                "-o data/manifest.json"
            )
        return Path(self.folder, "manifest.json")


def adopt(adoption: Adoption, *, progress: Progress | None = None) -> Path:
    """Write the manifest of a folder of shards.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: the folder holds no tokens, a file is no shard, there is nothing to train on, a
            domain has nothing to validate with, or the tokenizer is not known.
    """
    try:
        return _adopt(adoption, progress or (lambda stage, done, total, /: None))
    except ValidationError as error:  # a record of the manifest refuses what it is given
        raise ValueError(first_problem(error)) from error


def _adopt(adoption: Adoption, report: Progress) -> Path:
    path = adoption.manifest_path
    tokens, datasets = _find(adoption)
    root = path.parent
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(adoption, root)
    if datasets:
        domains, data_root = _convert(adoption, datasets, tokenizer, root, report), ""
    else:
        domains = _count(adoption, tokens, tokenizer, report)
        data_root = _data_root(adoption.folder, root)
    manifest = _manifest(hold_out(domains, adoption.held_out_fraction), tokenizer, data_root, root)
    manifest.check()
    if tokenizer.path is not None:
        manifest = with_text_bytes(manifest, report)
    return manifest.save(path)


def _find(adoption: Adoption) -> tuple[list[str], list[str]]:
    """Locations of the token files and of the data sets to convert; never both."""
    if not is_url(adoption.folder) and not Path(adoption.folder).is_dir():
        raise ValueError(
            f"{adoption.folder} is no folder; --from expects the folder or URL that holds the "
            "shards of all domains"
        )
    _refuse_linked_folders(adoption.folder)
    tokens, datasets = find_token_files(adoption.folder), find_datasets(adoption.folder)
    if not tokens and not datasets:
        raise ValueError(
            f"{adoption.folder} holds no token files; expected .bin with .idx, .npy, .bin, or .ds "
            "files, or MDS, Arrow or parquet data sets of token ids (texts: write an experiment "
            "file with a [prepare] section)"
        )
    if tokens and datasets:
        raise ValueError(
            f"{adoption.folder} holds token files ({tokens[0]}) and data sets to convert "
            f"({datasets[0]}); a manifest has one folder of shards: adopt the one or the other, or "
            "convert the data sets apart and put the shards beside the files"
        )
    if datasets and (adoption.output is None or _is_below(adoption.output, adoption.folder)):
        raise ValueError(
            f"{datasets[0]} cannot be read in place and is converted into shards; name another "
            "folder for them by -o, e.g. -o data/manifest.json"
        )
    return tokens, datasets


def _refuse_linked_folders(folder: str) -> None:
    """What lies behind a link would be left out silently, or belong to no manifest's folder."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_symlink():
                raise ValueError(
                    f"{path} is a symbolic link to a folder ({os.readlink(path)}), and links are "
                    "not followed; put the folder itself there, or adopt the one that holds all"
                )


def _tokenizer(adoption: Adoption, root: Path) -> TokenizerRecord:
    """The record of the tokenizer, whose files are copied beside the manifest if there are any."""
    numbers = (adoption.vocab_size, adoption.end_of_text_id)
    if adoption.tokenizer is not None:
        if numbers != (None, None):
            raise ValueError(
                "--tokenizer says the vocabulary's size and the end-of-text id; leave out "
                "--vocab-size and --end-of-text-id"
            )
        return _import_beside(adoption.tokenizer, root)
    vocab_size, end_of_text_id = numbers
    if vocab_size is None or end_of_text_id is None:
        raise ValueError(
            "shards do not say which tokenizer made them; give it by --tokenizer FOLDER, or its "
            "numbers by --vocab-size and --end-of-text-id"
        )
    return TokenizerRecord(
        path=None, vocab_size=vocab_size, end_of_text_id=end_of_text_id, sha256=None
    )


def _import_beside(name: str, root: Path) -> TokenizerRecord:
    """Copy a tokenizer into a folder beside the manifest, named by what decides its token ids."""
    temporary = root / ".tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer = import_tokenizer(name, folder=temporary)
    sha256 = tokenizer_fingerprint(temporary)
    folder = root / f"tokenizer-{sha256[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return TokenizerRecord(
        path=folder.name,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        sha256=sha256,
    )


# --- token files ----------------------------------------------------------------------------------


def _count(
    adoption: Adoption, locations: Sequence[str], tokenizer: TokenizerRecord, report: Progress
) -> list[DomainShards]:
    """Open and hash every file that a domain has."""
    paths = {path_from(adoption.folder, location): location for location in locations}
    placed = adoption.naming.place(sorted(paths))
    wanted = [path for splits in placed.values() for split in splits.values() for path in split]
    _report_left_out(len(paths) - len(wanted))
    files = {path: _open(paths[path], adoption, tokenizer) for path in wanted}
    shards = dict(zip(files, _hashed(files, tokenizer.vocab_size, report), strict=True))
    return [
        _domain(name, {split: [shards[path] for path in listed] for split, listed in each.items()})
        for name, each in placed.items()
    ]


def _open(location: str, adoption: Adoption, tokenizer: TokenizerRecord) -> TokenFile:
    format = detect_format(location)
    return open_token_file(
        location,
        format,
        dtype=adoption.dtype if format == "raw" else None,  # the others say it themselves
        end_of_text_id=tokenizer.end_of_text_id,
    )


def _hashed(files: Mapping[str, TokenFile], vocab_size: int, report: Progress) -> Iterator[Shard]:
    """The shards of the files, in their order."""
    total = sum(file.file_bytes for file in files.values())
    done = 0
    report("hash", done, total)
    with ThreadPoolExecutor(THREADS) as pool:
        counted = pool.map(partial(_shard, vocab_size=vocab_size), files.keys(), files.values())
        for file, shard in zip(files.values(), counted, strict=True):
            done += file.file_bytes
            report("hash", done, total)
            yield shard


def _shard(path: str, file: TokenFile, vocab_size: int) -> Shard:
    try:
        for _ in valid_blocks(file, vocab_size):
            pass
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    starts = file.document_starts()
    return Shard(
        path=path.removesuffix(".bin") if file.format == "indexed" else path,
        tokens=file.num_tokens,
        documents=None if starts is None else starts.size - 1,
        text_bytes=None,
        sha256=file.hash(),
        format=file.format,
        dtype=file.dtype,
    )


def _domain(name: str, splits: Mapping[Split, Sequence[Shard]]) -> DomainShards:
    return DomainShards(
        name=name, train=tuple(splits["train"]), validation=tuple(splits["validation"])
    )


# --- data sets ------------------------------------------------------------------------------------


def _convert(
    adoption: Adoption,
    locations: Sequence[str],
    tokenizer: TokenizerRecord,
    root: Path,
    report: Progress,
) -> list[DomainShards]:
    """Write the shards of every domain of data sets."""
    paths = {path_from(adoption.folder, location): location for location in locations}
    placed = adoption.naming.place(sorted(paths))
    _report_left_out(len(paths) - sum(len(p) for each in placed.values() for p in each.values()))
    settings = ConversionSettings(
        root=root, vocab_size=tokenizer.vocab_size, end_of_text_id=tokenizer.end_of_text_id
    )
    opened = {
        name: {
            split: [
                open_dataset(paths[path], column=adoption.column, dtype=adoption.dtype)
                for path in listed
            ]
            for split, listed in splits.items()
        }
        for name, splits in placed.items()
    }
    return [
        _with_dtype(convert_domain(name, each, settings, report), None, settings.dtype)
        for name, each in opened.items()
    ]


# --- the manifest ---------------------------------------------------------------------------------


def _manifest(
    domains: Sequence[DomainShards], tokenizer: TokenizerRecord, data_root: str, root: Path
) -> Manifest:
    """The manifest; its dtype is that of most shards, and only the others name theirs."""
    dtypes = Counter(
        shard.dtype for domain in domains for shard in (*domain.train, *domain.validation)
    )
    dtype = dtypes.most_common(1)[0][0]
    assert dtype is not None
    return Manifest(
        dtype=dtype,
        tokenizer=tokenizer,
        domains=tuple(_with_dtype(domain, dtype, None) for domain in domains),
        data_root=data_root,
        root=root,
    )


def _with_dtype(domain: DomainShards, old: str | None, new: str | None) -> DomainShards:
    """The domain with another name for the dtype of some of its shards."""

    def renamed(shards: Sequence[Shard]) -> tuple[Shard, ...]:
        return tuple(replace(each, dtype=new) if each.dtype == old else each for each in shards)

    return replace(domain, train=renamed(domain.train), validation=renamed(domain.validation))


def _data_root(folder: str, root: Path) -> str:
    """What the manifest says of where the shards lie: nothing if they lie in its own folder."""
    if is_url(folder):
        return folder.rstrip("/")
    return "" if os.path.realpath(folder) == os.path.realpath(root) else os.path.abspath(folder)


def _is_below(path: Path, folder: str) -> bool:
    if is_url(folder):
        return False
    real = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), real]) == real


def _report_left_out(count: int) -> None:
    if count:
        logger.info("%d files are matched by no --domain glob and left out", count)
