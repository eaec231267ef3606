"""MosaicML Streaming's MDS folders (version 2): the token rows of one column.

    index.json     {"shards": [...]}: files, samples, and name, encoding and size of each column
    shard.N.mds    number of samples n (u32), n + 1 offsets (u32), settings, then the samples
    a sample       sizes (u32) of the columns that have none in the index, then the columns' bytes

A column of tokens is encoded as `ndarray[:dtype[:shape]]`, where what is missing stands before the
values (one byte for the dtype; one for the rank, and the lengths of the axes), or as `bytes`, whose
dtype the folder does not say. A shard may be compressed as a whole (`shard.N.mds.zstd`).
"""

import bz2
import gzip
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, Self

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from ..locations import join, named_errors, open_location

INDEX_FILE: Final = "index.json"
TOKEN_COLUMNS: Final = ("input_ids", "tokens")
"""Names under which tokens are looked for."""

_DTYPE_OF_CODE: Final = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 32: "uint32", 33: "int32", 64: "uint64",
    65: "int64",
}  # fmt: skip
_AXIS_DTYPES: Final = ("u1", "<u2", "<u4", "<u8")
_DECOMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "zstd": lambda content: zstandard.ZstdDecompressor().decompressobj().decompress(content),
    "gz": gzip.decompress,
    "bz2": bz2.decompress,
}


class _File(BaseModel, frozen=True):
    basename: str = Field(pattern=r"^[^/\\]+$")
    bytes: int = Field(ge=0)
    hashes: dict[str, str] = {}


class _Shard(BaseModel, frozen=True):
    """One entry of the index."""

    format: Literal["mds"]
    version: Literal[2]
    column_names: tuple[str, ...]
    column_encodings: tuple[str, ...]
    column_sizes: tuple[int | None, ...]
    raw_data: _File
    zip_data: _File | None = None
    compression: str | None = None
    samples: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_encoding_and_size_a_column(self) -> Self:
        lengths = {len(self.column_names), len(self.column_encodings), len(self.column_sizes)}
        if len(lengths) > 1:
            raise ValueError("columns, encodings and sizes are not equally many")
        if any(size is not None and size < 0 for size in self.column_sizes):
            raise ValueError("a column has a negative size")
        return self

    @property
    def stored(self) -> _File:
        """The file that lies in the folder: the compressed one where there is one."""
        return self.zip_data or self.raw_data

    def encoding(self, column: str) -> str:
        return self.column_encodings[self.column_names.index(column)]


class _Index(BaseModel, frozen=True):
    shards: tuple[_Shard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MdsFolder:
    """One folder with an `index.json`.

    Attributes:
        location: path or URL of the folder.
        column: that holds the tokens.
        dtype: of tokens in `bytes` columns; None otherwise.
        shards: entries of the index.
    """

    location: str
    column: str
    dtype: str | None
    shards: tuple[_Shard, ...]

    @classmethod
    def open(cls, location: str, *, column: str | None, dtype: str | None) -> Self:
        """Read the index; `column` None looks for `TOKEN_COLUMNS`.

        Raises:
            ValueError: the index cannot be read, or has no such column of tokens.
        """
        path = join(location, INDEX_FILE)
        shards = _read_index(path)
        wanted = TOKEN_COLUMNS if column is None else (column,)
        for shard in shards:
            names = shard.column_names
            chosen = next((name for name in wanted if name in names), None)
            if chosen is None:
                raise ValueError(
                    f"{path}: no column {' or '.join(map(repr, wanted))}; found "
                    f"{', '.join(map(repr, names))}; name the one that holds the tokens by --column"
                )
            _check_encoding(path, shard.encoding(chosen), chosen, dtype)
        assert chosen is not None
        return cls(location=location, column=chosen, dtype=dtype, shards=shards)

    @property
    def num_rows(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def decoding(self) -> str:
        """What decides the rows apart from the files."""
        return f"{self.column} {self.dtype}"

    @property
    def files(self) -> tuple[str, ...]:
        """Locations of everything that decides the rows."""
        names = [shard.stored.basename for shard in self.shards if shard.samples]
        return tuple(join(self.location, name) for name in (INDEX_FILE, *names))

    def rows(self) -> Iterator[NDArray[np.integer]]:
        """The tokens of every sample, in order.

        Raises:
            ValueError: a shard is missing, damaged, or of another size than the index says.
        """
        for shard in self.shards:
            if shard.samples:
                yield from self._rows_of(shard)

    def _rows_of(self, shard: _Shard) -> Iterator[NDArray[np.integer]]:
        where = join(self.location, shard.raw_data.basename)
        content = _read_shard(self.location, shard)
        encoding = shard.encoding(self.column)
        for number, (begin, end) in enumerate(pairwise(_offsets(where, content, shard))):
            try:
                value = _column(memoryview(content)[begin:end], shard, self.column)
                yield _decode(value, encoding, self.dtype)
            except (ValueError, IndexError, KeyError) as error:
                raise ValueError(
                    f"{where}, sample {number}: its column {self.column!r} is no {encoding} of "
                    f"tokens ({error}); write the shard again"
                ) from error


def _read_index(path: str) -> tuple[_Shard, ...]:
    with named_errors(path), open_location(path) as file:
        content = file.read()
    try:
        shards = _Index.model_validate_json(content).shards
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(
            f"{path} is no index of an MDS folder ({where}: {problem['msg']}; found "
            f"{problem['input']!r:.60}); write it again"
        ) from error
    if sum(shard.samples for shard in shards) < 1:
        raise ValueError(f"{path} lists no samples; leave the folder out")
    return shards


def _check_encoding(path: str, encoding: str, column: str, dtype: str | None) -> None:
    kind, _, rest = encoding.partition(":")
    if encoding == "bytes" and dtype is None:
        raise ValueError(
            f"{path}: column {column!r} holds bytes, of a dtype that the folder does not say; give "
            "it by --dtype"
        )
    known = "" if encoding == "bytes" else rest.partition(":")[0]
    if kind not in ("ndarray", "bytes") or (known and known not in _DTYPE_OF_CODE.values()):
        raise ValueError(
            f"{path}: column {column!r} is encoded as {encoding!r}; expected ndarray of integers "
            "or bytes: name the column that holds the tokens by --column"
        )


def _read_shard(folder: str, shard: _Shard) -> bytes:
    """The uncompressed bytes of a shard, checked against sizes and hashes of the index."""
    path = join(folder, shard.stored.basename)
    with named_errors(path), open_location(path) as file:
        content = file.read()
    for name, expected in shard.stored.hashes.items():
        if name in hashlib.algorithms_available:
            found = hashlib.new(name, content, usedforsecurity=False).hexdigest()
            if found != expected:
                raise ValueError(
                    f"{path}: its {name} is {found}; the index expects {expected}: the file is "
                    "damaged; copy it again"
                )
    if shard.zip_data is not None:
        content = _decompress(path, content, str(shard.compression).partition(":")[0])
    expected_bytes = shard.raw_data.bytes
    if len(content) != expected_bytes:
        raise ValueError(
            f"{path} holds {len(content)} bytes; the index expects {expected_bytes}: the file is "
            "cut off or of another folder; copy it again"
        )
    return content


def _decompress(path: str, content: bytes, kind: str) -> bytes:
    if kind not in _DECOMPRESS:
        raise ValueError(
            f"{path} is compressed by {kind!r}; expected {', '.join(_DECOMPRESS)} or none: write "
            "the folder again with one of them"
        )
    try:
        return _DECOMPRESS[kind](content)
    except (OSError, EOFError, ValueError, zstandard.ZstdError) as error:
        raise ValueError(
            f"{path} cannot be decompressed ({error}); the file is cut off or damaged: copy it "
            "again"
        ) from error


def _offsets(where: str, content: bytes, shard: _Shard) -> list[int]:
    """Where every sample begins, and the end, in bytes; shape (samples + 1,)."""
    samples = shard.samples
    head = min(4 * (samples + 2), len(content) // 4 * 4)
    found = int.from_bytes(content[:4], "little")
    offsets = np.frombuffer(content[4:head], dtype="<u4").astype(np.int64)
    whole = found == samples and offsets.size == samples + 1
    if (
        not whole
        or offsets[0] < head
        or offsets[-1] != len(content)
        or np.any(np.diff(offsets) < 0)
    ):
        raise ValueError(
            f"{where}: expected {samples} samples that fill its {len(content)} bytes one after the "
            f"other, found {found} with other offsets: the file is damaged; write it again"
        )
    listed: list[int] = offsets.tolist()
    return listed


def _column(sample: memoryview, shard: _Shard, column: str) -> memoryview:
    """The bytes of one column."""
    sizes = [size or 0 for size in shard.column_sizes]
    place = 0
    for index, size in enumerate(shard.column_sizes):
        if not size:
            sizes[index] = int.from_bytes(sample[place : place + 4], "little")
            place += 4
    if place + sum(sizes) != len(sample):
        raise ValueError(f"columns of {sum(sizes)} bytes in {len(sample) - place}")
    index = shard.column_names.index(column)
    place += sum(sizes[:index])
    return sample[place : place + sizes[index]]


def _decode(value: memoryview, encoding: str, dtype: str | None) -> NDArray[np.integer]:
    """Token ids, shape (num_tokens,); arrays of several axes are read row by row."""
    if encoding == "bytes":
        return _integers(value, str(dtype))
    _, known, shape = (*encoding.split(":"), "", "")[:3]
    if not known:
        known = _DTYPE_OF_CODE[value[0]]
        value = value[1:]
    if shape:
        expected = int(np.prod([int(axis) for axis in shape.split(",")]))
    else:
        rank, width = value[0] >> 2, np.dtype(_AXIS_DTYPES[value[0] % 4])
        axes = np.frombuffer(value[1 : 1 + rank * width.itemsize], dtype=width)
        expected = int(axes.prod())
        value = value[1 + rank * width.itemsize :]
    tokens = _integers(value, known)
    if tokens.size != expected:
        raise ValueError(f"{tokens.size} values where the shape says {expected}")
    return tokens


def _integers(value: memoryview, dtype: str) -> NDArray[np.integer]:
    return np.frombuffer(value, dtype=np.dtype(dtype).newbyteorder("<"))
