"""Arrow tables of token rows: a folder saved by `datasets`, or a parquet file.

    state.json      of a saved data set: the names of its Arrow files, in order
    *.arrow         an Arrow stream of record batches
    *.parquet       one row a document

The tokens of a row are the list of integers in one column.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..locations import is_url, join, named_errors, open_location
from .mds import TOKEN_COLUMNS

STATE_FILE: Final = "state.json"
ROWS_PER_BATCH: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrowTable:
    """Rows of tokens in Arrow files.

    Attributes:
        location: path or URL of the folder or the parquet file.
        column: that holds the tokens.
        files: locations of the Arrow files, in order.
    """

    location: str
    column: str
    files: tuple[str, ...]

    @classmethod
    def open(cls, location: str, *, column: str | None) -> Self:
        """Find the files and the column; `column` None looks for `TOKEN_COLUMNS`.

        Raises:
            ValueError: a file cannot be read, or has no such column of lists of integers.
        """
        files = (location,) if location.endswith(".parquet") else _saved_files(location)
        with ExitStack() as stack:
            schema = _open_table(files[0], stack).schema_arrow
        wanted = TOKEN_COLUMNS if column is None else (column,)
        chosen = next((name for name in wanted if name in schema.names), None)
        if chosen is None:
            raise ValueError(
                f"{location}: no column {' or '.join(map(repr, wanted))}; found "
                f"{', '.join(map(repr, schema.names))}; name the one that holds the tokens by "
                "--column"
            )
        _require_integers(location, chosen, schema.field(chosen).type)
        return cls(location=location, column=chosen, files=files)

    @property
    def decoding(self) -> str:
        """What decides the rows apart from the files."""
        return self.column

    def rows(self) -> Iterator[NDArray[np.integer]]:
        """The tokens of every row, in order.

        Raises:
            ValueError: a file is damaged, or a row holds no tokens or a null.
        """
        import pyarrow as pa  # only where a table is read

        for path in self.files:
            row = 0
            with ExitStack() as stack:
                try:
                    for array in _open_table(path, stack).lists(self.column):
                        yield from _split(array, f"{path}, after row {row}", self.column)
                        row += len(array)
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(
                        f"{path}, after row {row}: cannot be read on ({error}); write it again"
                    ) from error


class _Stream:
    """An Arrow stream, as `datasets` saves it."""

    def __init__(self, source: Any) -> None:
        import pyarrow as pa

        self._reader = pa.ipc.open_stream(source)
        self.schema_arrow = self._reader.schema

    def lists(self, column: str) -> Iterator[Any]:
        for batch in self._reader:
            yield batch.column(column)


class _Parquet:
    """A parquet file."""

    def __init__(self, source: Any) -> None:
        import pyarrow.parquet as parquet

        self._file = parquet.ParquetFile(source)
        self.schema_arrow = self._file.schema_arrow

    def lists(self, column: str) -> Iterator[Any]:
        for batch in self._file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[column]):
            yield batch.column(0)


def _open_table(path: str, stack: ExitStack) -> _Stream | _Parquet:
    import pyarrow as pa

    with named_errors(path):
        source: Any = stack.enter_context(open_location(path))
    try:
        if path.endswith(".parquet"):
            return _Parquet(source)
        if not is_url(path):
            source = stack.enter_context(pa.memory_map(path))
        return _Stream(source)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a readable Arrow or parquet file ({error}); write it again"
        ) from error


def _saved_files(folder: str) -> tuple[str, ...]:
    path = join(folder, STATE_FILE)
    with named_errors(path), open_location(path) as file:
        content = file.read()
    try:
        names = [str(each["filename"]) for each in json.loads(content)["_data_files"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not list the files of a data set ({type(error).__name__}: {error}); save "
            "it again with save_to_disk"
        ) from error
    if not names:
        raise ValueError(f"{path} lists no files: the data set is empty; leave it out")
    return tuple(join(folder, name) for name in names)


def _require_integers(location: str, column: str, kind: Any) -> None:
    import pyarrow.types as types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not (lists and types.is_integer(kind.value_type)):
        raise ValueError(
            f"{location}: column {column!r} is of type {kind}; expected lists of integers: name "
            "the column that holds the tokens by --column, or prepare the texts"
        )


def _split(array: Any, where: str, column: str) -> Iterator[NDArray[np.integer]]:
    """The tokens of each row of a list array."""
    import pyarrow.compute as compute

    values = array.flatten()
    if array.null_count or values.null_count:
        raise ValueError(
            f"{where}: column {column!r} holds nulls; expected a list of token ids in every row: "
            "leave such rows out"
        )
    lengths = compute.list_value_length(array).to_numpy(zero_copy_only=False)
    tokens = values.to_numpy(zero_copy_only=False)
    yield from np.split(tokens, np.cumsum(lengths)[:-1])
