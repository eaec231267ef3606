"""Token data sets that must be converted: MDS of the real writer, Arrow and parquet."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.existing_shards import Adoption, adopt
from autoscale.manifest import Manifest
from autoscale.token_datasets import conversion
from autoscale.token_datasets.arrow import ArrowTable
from autoscale.token_datasets.conversion import ConversionSettings, convert_domain
from autoscale.token_datasets.mds import MdsFolder
from autoscale.verification import verify

FIXTURES = Path(__file__).parents[1] / "fixtures" / "foreign_shards_mds"
DOCUMENTS: list[list[int]] = json.loads((FIXTURES / "documents.json").read_text())
END_OF_TEXT = 0
STREAM = list(chain(*DOCUMENTS))
NUMBERS: dict[str, Any] = {"vocab_size": 60_000, "end_of_text_id": END_OF_TEXT}


def open_mds(folder: Path | str, **settings: Any) -> MdsFolder:
    return MdsFolder.open(str(folder), **{"column": None, "dtype": None, **settings})


@pytest.mark.parametrize("name", ["uint16", "int32_zstd", "any_ndarray", "bytes_uint16"])
def test_rows_of_the_real_writer_are_read(name: str) -> None:
    folder = open_mds(FIXTURES / name, dtype="uint16" if name == "bytes_uint16" else None)
    assert [row.tolist() for row in folder.rows()] == DOCUMENTS
    assert folder.num_rows == len(DOCUMENTS)


def test_windows_of_the_real_writer_are_read() -> None:
    rows = [row.tolist() for row in open_mds(FIXTURES / "windows").rows()]
    assert rows == [STREAM[at : at + 16] for at in range(0, 16 * len(rows), 16)]
    assert len(rows) == len(STREAM) // 16


def copy_mds(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "mds"))


def change_index(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index["shards"])
    path.write_text(json.dumps(index))


def first_file(folder: Path) -> Path:
    return sorted(folder.glob("shard.*"))[0]


MDS_DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("uint16", lambda f: (f / "index.json").unlink(), "index.json cannot be read (No such file"),
    ("uint16", lambda f: (f / "index.json").write_text("{"), "is no index of an MDS folder"),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s.clear()),
        "lists no samples; leave the fol",
    ),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s[0].update(format="xsv")),
        "shards.0.format: Input should be 'mds'; found 'xsv'",
    ),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s[0].update(version=3)),
        "shards.0.version: Input should be 2; found 3",
    ),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s[0].pop("column_sizes")),
        "shards.0.column_sizes: Field required",
    ),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s[0].update(samples=-1)),
        "greater than or equal to 0; found -1",
    ),
    ("uint16", lambda f: change_index(f, lambda s: s[0].update(samples=9)), "expected 9 samples"),
    ("uint16", lambda f: first_file(f).unlink(), ".mds cannot be read (No such file"),
    ("uint16", lambda f: os.truncate(first_file(f), 50), "holds 50 bytes; the index expects"),
    ("int32_zstd", lambda f: os.truncate(first_file(f), 50), "holds 0 bytes; the index expects"),
    ("int32_zstd", lambda f: first_file(f).write_bytes(b"x" * 99), "cannot be decompressed"),
    ("windows", lambda f: os.truncate(first_file(f), 50), "its sha1 is"),
    (
        "int32_zstd",
        lambda f: change_index(f, lambda s: s[0].update(compression="snappy")),
        "is compressed by 'snappy'; expected zstd, gz, bz2",
    ),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s[0].update(column_encodings=["int", "str", "pkl"])),
        "column 'tokens' is encoded as 'pkl'; expected ndarray of integers",
    ),
    (
        "uint16",
        lambda f: change_index(
            f, lambda s: s[0].update(column_encodings=["int", "str", "ndarray:float32"])
        ),
        "is encoded as 'ndarray:float32'; expected ndarray of integers",
    ),
    (
        "uint16",
        lambda f: change_index(f, lambda s: s[0].update(column_sizes=[4, None, None])),
        "sample 0: its column 'tokens' is no ndarray:uint16 of tokens (columns of",
    ),
    (
        "uint16",
        lambda f: change_index(
            f, lambda s: s[0].update(column_encodings=["int", "str", "ndarray:uint64"])
        ),
        "sample 0: its column 'tokens' is no ndarray:uint64 of tokens",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), MDS_DAMAGE)
def test_damaged_mds_folders_are_refused_in_one_line(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    folder = copy_mds(tmp_path, name)
    damage(folder)
    with pytest.raises(ValueError) as caught:
        list(open_mds(folder).rows())
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_is_found_or_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'x'; found 'id', 'note', 'tokens'; name the o"):
        open_mds(FIXTURES / "uint16", column="x")
    with pytest.raises(ValueError, match="holds bytes, of a dtype that the folder does not say"):
        open_mds(FIXTURES / "bytes_uint16")
    with pytest.raises(ValueError, match="column 'note' is encoded as 'str'; expected ndarray"):
        open_mds(FIXTURES / "uint16", column="note")


# --- Arrow ----------------------------------------------------------------------------------------


def table(rows: list[list[int]], kind: Any = None) -> pa.Table:
    return pa.table({"id": range(len(rows)), "input_ids": pa.array(rows, kind)})


def save_arrow(folder: Path, rows: list[list[int]]) -> str:
    datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(folder, num_shards=2)
    return str(folder)


def save_parquet(path: Path, rows: list[list[int]], kind: Any = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(rows, kind), path, row_group_size=5)
    return str(path)


def open_arrow(location: str, column: str | None = None) -> ArrowTable:
    return ArrowTable.open(location, column=column)


def test_saved_data_sets_and_parquet_files_are_read(tmp_path: Path) -> None:
    saved = open_arrow(save_arrow(tmp_path / "saved", DOCUMENTS))
    assert len(saved.files) == 2
    assert [row.tolist() for row in saved.rows()] == DOCUMENTS
    kinds = [pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int32())]
    for number, kind in enumerate(kinds):
        path = save_parquet(tmp_path / f"{number}.parquet", DOCUMENTS, kind)
        assert [row.tolist() for row in open_arrow(path).rows()] == DOCUMENTS
    rows = [STREAM[:8], STREAM[8:16]]
    path = save_parquet(tmp_path / "fixed.parquet", rows, pa.list_(pa.int32(), 8))
    assert [row.tolist() for row in open_arrow(path).rows()] == rows


def test_bad_tables_are_named(tmp_path: Path) -> None:
    def refuse(location: str, message: str, column: str | None = None) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            list(open_arrow(location, column).rows())
        assert "\n" not in str(caught.value)

    good = save_parquet(tmp_path / "good.parquet", DOCUMENTS)
    refuse(good, "no column 'x'; found 'id', 'input_ids'; name the one", "x")
    refuse(good, "column 'id' is of type int64; expected lists of integers", "id")
    kind = pa.list_(pa.float32())
    refuse(save_parquet(tmp_path / "f.parquet", [[1, 2]], kind), "is of type list<.*float>; expec")
    rows: Any = [[1, 2], None]
    refuse(save_parquet(tmp_path / "n.parquet", rows), "column 'input_ids' holds nulls")
    (tmp_path / "cut.parquet").write_bytes(Path(good).read_bytes()[:-30])
    refuse(str(tmp_path / "cut.parquet"), "is not a readable Arrow or parquet file")
    saved = Path(save_arrow(tmp_path / "saved", DOCUMENTS))
    arrow = sorted(saved.glob("*.arrow"))[0]
    content = arrow.read_bytes()
    arrow.write_bytes(content[: len(content) // 2])
    refuse(str(saved), r"\.arrow")
    arrow.unlink()
    refuse(str(saved), r"\.arrow cannot be read \(No such file")
    (saved / "state.json").write_text('{"_data_files": []}')
    refuse(str(saved), "lists no files: the data set is empty")
    (saved / "state.json").write_text("[]")
    refuse(str(saved), "does not list the files of a data set")


# --- conversion -----------------------------------------------------------------------------------


def documents_of(manifest: Manifest, name: str, split: str) -> list[list[int]]:
    found = []
    for shard in getattr(manifest.domain(name), split):
        file = manifest.open_file(shard)
        starts = file.document_starts()
        assert starts is not None
        found += [part.tolist() for part in np.split(file.tokens(), starts[1:-1])]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three domains: MDS, Arrow and parquet, each with its own validation."""
    folder = tmp_path / "sets"
    shutil.copytree(FIXTURES / "int32_zstd", folder / "mds" / "train")
    save_parquet(folder / "mds" / "val" / "a.parquet", [[7, 8, 9], [7, 9]])
    save = datasets.Dataset.from_dict
    datasets.DatasetDict(
        {"train": save({"input_ids": DOCUMENTS}), "test": save({"input_ids": [[5, 6, 0], [6]]})}
    ).save_to_disk(folder / "arrow")
    save_parquet(folder / "rows" / "a.parquet", [[*row[:-1]] for row in DOCUMENTS])
    save_parquet(folder / "rows" / "val.parquet", [[3, 3, 3], [3]])
    return folder


def test_data_sets_become_shards(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be read in place .* name another folder .* by -o"
    ):
        adopt(Adoption(folder=str(folder), **NUMBERS))
    output = tmp_path / "out" / "manifest.json"
    manifest = Manifest.load(adopt(Adoption(folder=str(folder), output=output, **NUMBERS)))
    assert manifest.domain_names == ("arrow", "mds", "rows")
    for name in manifest.domain_names:
        assert documents_of(manifest, name, "train") == DOCUMENTS
    assert documents_of(manifest, "mds", "validation") == [[7, 8, 9, 0], [7, 9, 0]]
    assert documents_of(manifest, "arrow", "validation") == [[5, 6, 0], [6, 0]]
    assert documents_of(manifest, "rows", "validation") == [[3, 3, 3, 0], [3, 0]]
    assert verify(manifest) == []


def test_data_sets_behind_a_url_become_shards(folder: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/autoscale-sets", recursive=True)
    try:
        manifests = [
            Manifest.load(adopt(Adoption(folder=source, output=tmp_path / number, **NUMBERS)))
            for number, source in (
                ("1/manifest.json", str(folder)),
                ("2/manifest.json", "memory://autoscale-sets"),
            )
        ]
    finally:
        files.rm("/autoscale-sets", recursive=True)
    assert manifests[0].fingerprint == manifests[1].fingerprint


def test_windows_are_put_together_again(tmp_path: Path) -> None:
    """Rows of equal lengths: the documents are those of the stream that was cut."""
    folder = tmp_path / "sets"
    shutil.copytree(FIXTURES / "windows", folder / "web" / "train")
    save_parquet(folder / "web" / "validation" / "a.parquet", [[7, 0]])
    output = tmp_path / "out" / "manifest.json"
    manifest = Manifest.load(adopt(Adoption(folder=str(folder), output=output, **NUMBERS)))
    documents = documents_of(manifest, "web", "train")
    assert list(chain(*documents)) == STREAM[: sum(map(len, documents))]
    assert documents[:-1] == DOCUMENTS[: len(documents) - 1]
    assert len(STREAM) - sum(map(len, documents)) < 16


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(root: Path) -> None:
        settings = ConversionSettings(root=root, shard_tokens=60, **NUMBERS)
        parts = {"train": [open_mds(FIXTURES / "uint16")], "validation": []}
        convert_domain("web", parts, settings, lambda stage, done, total, /: None)

    convert(tmp_path / "once")
    real, written = conversion.ShardRecord.add, 0

    def add(record: Any, split: Any, shard: Any) -> None:
        nonlocal written
        if written == kept:
            (record.folder / ".train-9.bin.1.tmp").write_text("half of a shard")
            raise InterruptedError
        written += 1
        real(record, split, shard)

    monkeypatch.setattr(conversion.ShardRecord, "add", add)
    with pytest.raises(InterruptedError):
        convert(tmp_path / "twice")
    monkeypatch.undo()
    convert(tmp_path / "twice")
    assert files_of(tmp_path / "twice") == files_of(tmp_path / "once")
    assert len([name for name in files_of(tmp_path / "once") if name.endswith(".bin")]) > 3


def test_changed_rows_are_converted_anew(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "manifest.json"
    adoption = Adoption(folder=str(folder), output=output, **NUMBERS)
    first = Manifest.load(adopt(adoption))
    save_parquet(folder / "rows" / "a.parquet", [[9, 9], [8, 8, 8]])
    second = Manifest.load(adopt(adoption))
    assert documents_of(second, "rows", "train") == [[9, 9, 0], [8, 8, 8, 0]]
    assert second.domain("mds") == first.domain("mds")


def test_bytes_of_another_dtype_are_converted_anew(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    shutil.copytree(FIXTURES / "bytes_uint16", folder / "web" / "train")
    save_parquet(folder / "web" / "val" / "a.parquet", [[7, 8], [9]])
    output = tmp_path / "out" / "manifest.json"
    found = []
    for dtype in ("uint8", "uint16"):
        adoption = Adoption(folder=str(folder), output=output, dtype=dtype, **NUMBERS)
        found.append(Manifest.load(adopt(adoption)))
    assert documents_of(found[1], "web", "train") == DOCUMENTS
    assert found[0].available_tokens("web") > found[1].available_tokens("web")


def test_rows_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    for rows, message in (
        ([[1, 2], [3, 300]], "row 1: it holds token id 300; expected ids from 0 to 299"),
        ([[-1, 2], [3]], "row 0: it holds token id -1; expected ids"),
        ([[2], [], [3]], "row 1: it holds no tokens; expected at least one"),
    ):
        save_parquet(tmp_path / "sets" / "web" / "a.parquet", rows)
        with pytest.raises(ValueError, match=message):
            adopt(
                Adoption(
                    folder=str(tmp_path / "sets"),
                    output=tmp_path / "out" / "manifest.json",
                    vocab_size=300,
                    end_of_text_id=0,
                )
            )


def test_files_and_data_sets_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "mds" / "a.npy", np.arange(9, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"holds token files \(.*a\.npy\) and data sets to con"):
        adopt(Adoption(folder=str(folder), output=tmp_path / "out" / "manifest.json", **NUMBERS))


@pytest.fixture(autouse=True)
def _small_peek(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(conversion, "PEEKED_ROWS", 4)
    yield


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 2000), value=st.binary(min_size=1, max_size=9), cut=st.booleans())
def test_no_damage_to_an_mds_folder_is_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: bytes, cut: bool
) -> None:
    """Bytes overwritten anywhere in the index or a shard: rows, or a ValueError of one line."""
    folder = tmp_path_factory.mktemp("mds") / "uint16"
    shutil.copytree(FIXTURES / "uint16", folder)
    files = [folder / "index.json", *sorted(folder.glob("*.mds"))]
    path = files[place % len(files)]
    content = path.read_bytes()
    at = place * 7919 % len(content)
    rest = b"" if cut else content[at + len(value) :]
    path.write_bytes(content[:at] + value + rest)
    try:
        assert all(row.dtype.kind in "iu" for row in open_mds(folder).rows())
    except ValueError as error:
        assert "\n" not in str(error)


KEYS = ("column_encodings", "column_names", "column_sizes", "compression", "format", "hashes",
        "raw_data", "samples", "version", "zip_data")  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**40) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["basename", "bytes", "hashes", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(KEYS), value=JSON_VALUES, drop=st.booleans())
def test_no_index_of_an_mds_folder_is_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, drop: bool
) -> None:
    folder = tmp_path_factory.mktemp("mds") / "int32_zstd"
    shutil.copytree(FIXTURES / "int32_zstd", folder)
    change_index(folder, lambda shards: shards[0].pop(key) if drop else None)
    change_index(folder, lambda shards: None if drop else shards[0].update({key: value}))
    try:
        list(open_mds(folder).rows())
    except ValueError as error:
        assert "\n" not in str(error)
