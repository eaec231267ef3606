"""Read documents: the texts of a domain, one at a time and in a fixed order.

`resolve_sources` turns the paths, globs, folders and data-set names of a domain into a tuple of
`TextSource`s, and fails before anything is read when one of them is missing or empty. `read_texts`
iterates over the documents of one source. The formats:

    .jsonl .ndjson .json   one JSON object a line; the text is in `text_field`
    .txt                   the whole file is one document
    .parquet               one row a document; the text is in the column `text_field`
    hf://name[:config][@split]   a data set, by hub name or local folder, through `datasets`
    a folder               one saved by `datasets`, or every file in it of the formats above

Files, globs and folders may be local or URLs that fsspec reads, such as s3://bucket/web/*.jsonl.gz.
JSON lines and .txt may be compressed (.gz, .zst). Text must be UTF-8, and is never repaired: what
is wrong with a file is a ValueError that names file and line.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

import zstandard

from .locations import (
    HUB_PREFIX,
    file_size,
    file_system,
    find_files,
    is_url,
    named_errors,
    open_location,
)

if TYPE_CHECKING:
    from datasets import Dataset

Format = Literal["json lines", "txt", "parquet", "dataset"]

FORMATS: dict[str, Format] = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".txt": "txt",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst")
SUPPORTED = "expected .jsonl, .ndjson, .json (lines), .txt, each also .gz or .zst, or .parquet"
SAVED_DATASET_FILES = ("dataset_dict.json", "state.json")
READ_BYTES = 1 << 20
ROWS_PER_BATCH = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSource:
    """One place from which documents are read in a fixed order."""

    location: str
    """Path or URL of a file or saved data set, or `hf://name[:config]`."""
    format: Format
    size: int
    """Bytes to read: on disk for a file, in memory for a data set. The unit of progress."""
    compression: str = ""
    split: str = "train"
    """For data sets only."""


def resolve_sources(
    locations: tuple[str, ...], *, domain: str, split: str = "train"
) -> tuple[TextSource, ...]:
    """Find every source that `locations` name, sorted within each of them.

    Raises:
        ValueError: a location does not exist, matches nothing, is empty, is of an unknown
            format, or is named twice.
    """
    sources = [
        source for location in locations for source in _resolve(location, domain, split=split)
    ]
    seen: set[tuple[str, str]] = set()
    for source in sources:
        identity = (source.location, source.split)
        if identity in seen:
            raise ValueError(
                f"domain {domain!r}: {source.location} is named twice; a text is read once, "
                "so list every file in one entry only"
            )
        seen.add(identity)
    return tuple(sources)


def read_texts(source: TextSource, text_field: str = "text") -> Iterator[tuple[str, int]]:
    """Yield (text, how many of `source.size` bytes have been read) for every document.

    Raises:
        ValueError: the source cannot be decoded, or a document lacks the text; names file and line.
    """
    if source.format == "dataset":
        return _read_dataset(source, text_field)
    if source.format == "parquet":
        return _read_parquet(source, text_field)
    if source.format == "txt":
        return _read_txt(source)
    return _read_json_lines(source, text_field)


# --- finding sources ------------------------------------------------------------------------------


def _resolve(location: str, domain: str, *, split: str) -> list[TextSource]:
    if location.startswith(HUB_PREFIX):
        name, _, own_split = location.partition("@")
        return [_dataset_source(name, domain, split=own_split or split)]
    if is_url(location):
        return _resolve_url(location, domain, split=split)
    path = Path(location)
    if path.is_dir():
        if _is_saved_dataset(path):
            return [_dataset_source(location, domain, split=split)]
        return _folder_sources(location, domain)
    if path.exists():
        return [_file_source(str(path), domain)]
    if not has_magic(location):
        raise ValueError(
            f"domain {domain!r}: {location} does not exist; expected a file, a glob, a folder or "
            f"{HUB_PREFIX}name (relative paths start at the experiment file)"
        )
    matches = sorted(Path(match) for match in glob(location, recursive=True))
    paths = [match for match in matches if match.is_file()]
    if not paths:
        raise ValueError(f"domain {domain!r}: no file matches {location}; correct the pattern")
    return [_file_source(str(file), domain) for file in paths]


def _resolve_url(url: str, domain: str, *, split: str) -> list[TextSource]:
    files, path = file_system(url)
    if has_magic(path):
        matches = find_files(url)
        if not matches:
            raise ValueError(f"domain {domain!r}: no file matches {url}; correct the pattern")
        return [_file_source(match, domain) for match in matches]
    if files.isfile(path):
        return [_file_source(str(files.unstrip_protocol(path)), domain)]
    if not files.isdir(path):
        raise ValueError(
            f"domain {domain!r}: {url} does not exist; expected a file, a glob or a folder, and "
            "the right to read it"
        )
    if any(files.isfile(f"{path}/{name}") for name in SAVED_DATASET_FILES):
        return [_dataset_source(url, domain, split=split)]
    return _folder_sources(url, domain)


def _folder_sources(location: str, domain: str) -> list[TextSource]:
    files = [file for file in find_files(location) if _format_of(file)]
    if not files:
        raise ValueError(
            f"domain {domain!r}: folder {location} holds no text files; {SUPPORTED}, "
            f"or a folder saved by datasets ({HUB_PREFIX}{location} loads any other data set)"
        )
    return [_file_source(file, domain) for file in files]


def _format_of(location: str) -> tuple[Format, str] | None:
    """Format and compression by name, or None when the name is of neither."""
    path = PurePosixPath(location)
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    suffix = Path(path.stem).suffix if compression else path.suffix
    file_format = FORMATS.get(suffix)
    if file_format is None or (compression and file_format == "parquet"):
        return None
    return file_format, compression


def _file_source(location: str, domain: str) -> TextSource:
    found = _format_of(location)
    if found is None:
        suffixes = "".join(PurePosixPath(location).suffixes)
        raise ValueError(
            f"domain {domain!r}: {location} is of an unknown format {suffixes!r}; {SUPPORTED}"
        )
    size = file_size(location)
    if size == 0:
        raise ValueError(
            f"domain {domain!r}: {location} is empty (0 bytes); remove it from the domain or "
            "write it again"
        )
    file_format, compression = found
    return TextSource(
        location=location,
        format=file_format,
        size=size or 1,  # storage that does not say how long a file is: progress is coarse there
        compression=compression,
    )


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED_DATASET_FILES)


def _dataset_source(location: str, domain: str, *, split: str) -> TextSource:
    try:
        dataset = _load_dataset(location, split)
    except Exception as error:  # datasets raises nearly anything for data it cannot load
        raise ValueError(
            f"domain {domain!r}: datasets cannot load {location} (split {split!r}): {error}; "
            f"expected {HUB_PREFIX}name[:config][@split], reachable or in the cache, or a folder "
            "saved by datasets"
        ) from error
    if len(dataset) == 0:
        raise ValueError(
            f"domain {domain!r}: data set {location} has no rows in split {split!r}; "
            "choose another split"
        )
    return TextSource(
        location=location, format="dataset", size=max(1, dataset.data.nbytes), split=split
    )


@lru_cache(maxsize=8)
def _load_dataset(location: str, split: str) -> "Dataset":
    """Memory-mapped data set; code that a data set brings along is never run."""
    import datasets  # only where a data set is asked for: it takes a second to import

    if location.startswith(HUB_PREFIX):
        name, _, config = location.removeprefix(HUB_PREFIX).partition(":")
        loaded = datasets.load_dataset(name, config or None, split=split)
    else:
        loaded = datasets.load_from_disk(location)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(f"it has the splits {sorted(map(str, loaded))}, not {split!r}")
        loaded = loaded[split]
    assert isinstance(loaded, datasets.Dataset)
    return loaded


# --- reading --------------------------------------------------------------------------------------


def _read_json_lines(source: TextSource, text_field: str) -> Iterator[tuple[str, int]]:
    with _open(source) as file:
        lines = _decompressed(file, source)
        number = 0
        while True:
            number += 1
            line = _guarded_read(lines.readline, source, f"line {number}")
            if not line:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                where = f"{source.location}, line {number}"
                yield _text_of_line(line, text_field, where), file.tell()


def _text_of_line(line: bytes, text_field: str, where: str) -> str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(where, error)) from error
    except (json.JSONDecodeError, RecursionError) as error:
        hint = " (an array over many lines: jq -c '.[]' makes lines)" if line[:1] == b"[" else ""
        start = line[:60].decode("utf-8", "replace")
        raise ValueError(
            f"{where}: expected one JSON object a line, found {start!r} ({error}){hint}; "
            "correct or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected a JSON object with a field {text_field!r}, found "
            f"{_json_type(row)}; write one object a line"
        )
    if text_field not in row:
        raise ValueError(
            f"{where}: no field {text_field!r}; found {_listed(row)}; set text_field to the one "
            "that holds the text"
        )
    return _checked_text(row[text_field], text_field, where)


def _read_txt(source: TextSource) -> Iterator[tuple[str, int]]:
    with _open(source) as file:
        content = _guarded_read(_decompressed(file, source).read, source, "")
    try:
        yield content.decode("utf-8-sig"), source.size
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(_not_utf8(f"{source.location}, line {line}", error)) from error


def _read_parquet(source: TextSource, text_field: str) -> Iterator[tuple[str, int]]:
    import pyarrow as pa  # only where a parquet file is read
    import pyarrow.parquet as parquet

    opened = _open(source)
    try:
        file = parquet.ParquetFile(opened)
    except (pa.ArrowException, OSError) as error:
        opened.close()
        raise ValueError(
            f"{source.location} is not a readable parquet file ({error}); write it again"
        ) from error
    with opened, file:
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise ValueError(
                f"{source.location}: no column {text_field!r}; found {_listed(columns)}; set "
                "text_field to the one that holds the text"
            )
        batches = file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[text_field])
        yield from _read_rows(batches, source, text_field, num_rows=file.metadata.num_rows)


def _read_dataset(source: TextSource, text_field: str) -> Iterator[tuple[str, int]]:
    dataset = _load_dataset(source.location, source.split)
    if text_field not in dataset.column_names:
        raise ValueError(
            f"data set {source.location} (split {source.split!r}): no column {text_field!r}; "
            f"found {_listed(dataset.column_names)}; set text_field to the one that holds the text"
        )
    texts = dataset.select_columns([text_field]).with_format("arrow")
    yield from _read_rows(texts.iter(ROWS_PER_BATCH), source, text_field, num_rows=dataset.num_rows)


def _read_rows(
    batches: Iterator[Any], source: TextSource, text_field: str, *, num_rows: int
) -> Iterator[tuple[str, int]]:
    """Texts of Arrow tables or record batches with the one column `text_field`."""
    row = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            values = batch.column(0).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(f"{source.location}, after row {row}", error)) from error
        except OSError as error:
            raise ValueError(
                f"{source.location}, after row {row}: cannot be read on ({error}); write it again"
            ) from error
        for value in values:
            row += 1
            text = _checked_text(value, text_field, f"{source.location}, row {row}")
            yield text, source.size * row // num_rows


def _checked_text(value: object, text_field: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: field {text_field!r} should hold text, found {_json_type(value)}; correct "
            "or remove this document, or set text_field to the field that holds the text"
        )
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: field {text_field!r} holds half a surrogate pair "
                f"(\\u{ord(value[error.start]):04x}), which is no Unicode text; correct or remove "
                "this document"
            ) from error
    return value


def _open(source: TextSource) -> IO[bytes]:
    with named_errors(source.location):
        return open_location(source.location)


def _guarded_read(read: Any, source: TextSource, where: str) -> bytes:
    try:
        content: bytes = read()
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        place = f"{source.location}, {where}" if where else source.location
        raise ValueError(
            f"{place}: cannot be decompressed or read ({error}); the file is cut off or damaged: "
            "copy or write it again"
        ) from error
    return content


def _decompressed(file: IO[bytes], source: TextSource) -> IO[bytes]:
    if source.compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), READ_BYTES)
    if source.compression == ".zst":
        return io.BufferedReader(_ZstdFrames(file), READ_BYTES)
    return file


class _ZstdFrames(io.RawIOBase):
    """All frames of a zstd file; unlike zstandard's own reader, it refuses a file cut short."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._decompressor.decompressobj()
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = self._file.read(READ_BYTES // 8)
                if not self._compressed:
                    if not self._frame.eof:
                        raise EOFError("the last zstd frame is incomplete")
                    return 0
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(self._compressed))
            self._compressed = self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    found = error.object[error.start : error.start + 1].hex()
    return (
        f"{where}: expected UTF-8, found byte 0x{found} ({error.reason}); convert the file, "
        "e.g. with iconv"
    )


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, int | float) else repr(value))


def _listed(names: Any) -> str:
    listed = [repr(str(name)) for name in names]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return (", ".join(listed[:8]) + more) or "nothing"
