"""Which format a file has, and what it holds: every format is opened here."""

import os
import struct
from collections.abc import Callable
from pathlib import PurePosixPath

from ..locations import file_system, find_files, is_url, named_errors
from .datatrove import open_datatrove
from .indexed import open_indexed
from .llm_c import is_llm_c, open_llm_c
from .npy import MAGIC, open_npy
from .raw import open_raw
from .token_file import FormatName, TokenFile, read_head

_TABLE = ".csv.gz"


def open_token_file(
    location: str,
    format: FormatName | None = None,
    *,
    dtype: str | None = None,
    end_of_text_id: int | None = None,
) -> TokenFile:
    """The tokens of one shard, whatever wrote it.

    Args:
        location: path or URL of the file with the tokens; of a `.bin`/`.idx` pair the prefix or
            either file.
        format: by default told from name and first bytes.
        dtype: of the tokens of a file without a header, or what the header must say.
        end_of_text_id: by which documents of formats without an index are found.

    Raises:
        ValueError: the file is missing or damaged, of an unknown format, or of another type.
    """
    chosen = detect_format(location) if format is None else format
    openers: dict[FormatName, Callable[[], TokenFile]] = {
        "indexed": lambda: open_indexed(location),
        "npy": lambda: open_npy(location, end_of_text_id=end_of_text_id),
        "raw": lambda: open_raw(
            location, dtype=dtype, table=_table_of(location), end_of_text_id=end_of_text_id
        ),
        "llm.c": lambda: open_llm_c(location, end_of_text_id=end_of_text_id),
        "datatrove": lambda: open_datatrove(location),
    }
    if chosen not in openers:
        raise ValueError(
            f"{location}: format {chosen!r} is unknown; expected one of {', '.join(openers)}"
        )
    opened = openers[chosen]()
    if dtype is not None and opened.dtype != dtype:
        raise ValueError(
            f"{location} holds {opened.dtype} tokens; expected {dtype}: it belongs to other data, "
            "or the type given is wrong"
        )
    return opened


def detect_format(location: str) -> FormatName:
    """The format of a file by its name and first bytes.

    Raises:
        ValueError: it is of none that is known, or cannot be read.
    """
    suffix = PurePosixPath(location).suffix
    if suffix == ".ds":
        return "datatrove"
    if suffix == ".npy":
        return "npy" if read_head(location, len(MAGIC)) == MAGIC else "raw"
    if suffix == ".bin" and not _is_file(f"{location.removesuffix('.bin')}.idx"):
        return "llm.c" if is_llm_c(read_head(location, struct.calcsize("<i"))) else "raw"
    if suffix in (".bin", ".idx") or _is_file(f"{location}.idx"):
        return "indexed"
    raise ValueError(
        f"{location} is no token shard that autoscale knows; expected .bin with .idx (Megatron, "
        "DeepSpeed), .npy (numpy, OLMo), .bin (nanoGPT, llm.c) or .ds (datatrove)"
    )


def find_token_files(folder: str) -> list[str]:
    """The shards below a folder, given by path or URL, sorted; of a pair the `.bin`.

    Raises:
        ValueError: an index has lost the file that it belongs to.
    """
    found = set(find_files(folder))
    for location in sorted(found):
        owner = _owner(location)
        if owner is not None and owner not in found:
            raise ValueError(
                f"{location} is there but {owner} is not; copy the missing file, or remove this one"
            )
    return sorted(each for each in found if PurePosixPath(each).suffix in (".bin", ".npy", ".ds"))


def _owner(location: str) -> str | None:
    """The file with the tokens that an index belongs to."""
    if location.endswith(".idx"):
        return f"{location.removesuffix('.idx')}.bin"
    return location.removesuffix(".index") if location.endswith(".ds.index") else None


def _table_of(location: str) -> str | None:
    """dolma's table of documents beside a file, if it is there."""
    table = location.removesuffix(".npy") + _TABLE
    return table if location.endswith(".npy") and _is_file(table) else None


def _is_file(location: str) -> bool:
    if not is_url(location):
        return os.path.isfile(location)
    files, path = file_system(location)
    with named_errors(location):
        return bool(files.isfile(path))
