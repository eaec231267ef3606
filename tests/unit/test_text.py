"""Readers: every format gives the same texts, and every defect is named with file and line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.text import TextSource, read_texts, resolve_sources

TEXTS = ["one", "two\nlines \u2028 \x85 and\r\n", "drei äöü 漢字 🙂", '{"json": "inside"}', " "]


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()


def resolve_one(path: Path | str) -> TextSource:
    (source,) = resolve_sources((str(path),), domain="web")
    return source


def read_all(path: Path | str, text_field: str = "text") -> list[str]:
    return [text for text, _ in read_texts(resolve_one(path), text_field)]


def write(path: Path, texts: list[str]) -> None:
    content = lines_of(texts)
    name = path.name
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        half = content.index(b"\n") + 3  # two frames, the first of which ends inside a line
        compress = zstandard.ZstdCompressor().compress
        content = compress(content[:half]) + compress(content[half:])
    if name.endswith(".parquet"):
        parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_format_gives_the_same_texts(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", TEXTS)
    assert read_all(tmp_path / f"a{suffix}") == TEXTS


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_json_lines_keep_every_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.jsonl.zst"
    write(path, texts)
    assert read_all(path) == texts


def test_positions_rise_to_the_size(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".jsonl.gz", ".parquet"):
        path = tmp_path / f"a{suffix}"
        write(path, TEXTS * 50)
        source = resolve_one(path)
        positions = [position for _, position in read_texts(source)]
        assert positions == sorted(positions)
        assert positions[-1] == source.size


def test_txt_is_one_document_and_a_folder_holds_many(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfsecond\n\nparagraph")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"third"))
    (tmp_path / "notes.md").write_text("not text of the domain")
    expected = ["first", "second\n\nparagraph", "third"]
    for location in (str(tmp_path), f"{tmp_path}/*.txt*"):
        sources = resolve_sources((location,), domain="web")
        assert [text for source in sources for text, _ in read_texts(source)] == expected


def test_json_lines_may_begin_with_a_byte_order_mark_and_hold_blank_lines(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines_of(["x"]) + b'\n  \n{"text": "y"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    assert read_all(tmp_path / "a.jsonl") == ["x", "y"]


def test_saved_data_set_and_data_set_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = datasets.Dataset.from_dict({"body": TEXTS, "id": range(len(TEXTS))})
    dataset.save_to_disk(tmp_path / "one")
    assert read_all(tmp_path / "one", "body") == TEXTS
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(
        tmp_path / "splits"
    )
    assert read_all(tmp_path / "splits", "body") == TEXTS
    (test,) = resolve_sources((str(tmp_path / "splits"),), domain="web", split="test")
    assert [text for text, _ in read_texts(test, "body")] == TEXTS[:1]
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl", TEXTS)
    write(tmp_path / "hub" / "validation.jsonl", ["held out"])
    assert read_all(f"hf://{tmp_path}/hub") == TEXTS
    assert read_all(f"hf://{tmp_path}/hub@validation") == ["held out"]


def refuse(path: Path | str, *parts: str, text_field: str = "text") -> None:
    with pytest.raises(ValueError) as caught:
        read_all(path, text_field)
    for part in parts:
        assert part in str(caught.value)


def test_missing_sources_are_named(tmp_path: Path) -> None:
    refuse(tmp_path / "no.jsonl", "domain 'web'", "no.jsonl does not exist")
    refuse(f"{tmp_path}/*.jsonl", "domain 'web'", "no file matches")
    refuse(tmp_path, "holds no text files", "expected .jsonl")
    (tmp_path / "a.csv").write_text("a,b")
    refuse(tmp_path / "a.csv", "a.csv is of an unknown format '.csv'", "expected .jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    refuse(tmp_path / "empty.jsonl", "empty.jsonl is empty (0 bytes)", "remove it")
    (tmp_path / "twice.txt").write_text("x")
    with pytest.raises(ValueError, match=r"twice.txt is named twice"):
        resolve_sources((f"{tmp_path}/twice.txt", f"{tmp_path}/*.txt"), domain="web")


def test_missing_data_set_and_split_are_named(tmp_path: Path) -> None:
    refuse(f"hf://{tmp_path}/nothing", "domain 'web'", "datasets cannot load hf://")
    datasets.DatasetDict(
        {"test": datasets.Dataset.from_dict({"text": ["x"]})},
    ).save_to_disk(tmp_path / "saved")
    refuse(tmp_path / "saved", "it has the splits ['test'], not 'train'")
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "none")
    refuse(tmp_path / "none", "domain 'web'", "none (split 'train')")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"text": "\xff"}', ["expected UTF-8, found byte 0xff", "iconv"]),
        (b'{"text": "x"', ["expected one JSON object a line", "correct or remove"]),
        (b"[1, 2]", ["expected a JSON object with a field 'text', found an array"]),
        (b"[", ["an array over many lines: jq -c '.[]'"]),
        (b'{"body": "x", "id": 1}', ["no field 'text'; found 'body', 'id'", "set text_field"]),
        (b'{"text": null}', ["field 'text' should hold text, found null"]),
        (b'{"text": 3}', ["found a number"]),
        (b'{"text": {"a": 1}}', ["found an object"]),
        (b'{"text": "\\ud800"}', ["half a surrogate pair (\\ud800)"]),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, parts: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["good"]) + line + b"\n")
    refuse(path, f"{path}, line 2: ", *parts)


def test_a_bad_txt_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nfine\nnot \xe9 fine\n")
    refuse(path, f"{path}, line 3: expected UTF-8, found byte 0xe9")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, [f"{number * 7919}" for number in range(1000)])
    path.write_bytes(path.read_bytes()[:-9])
    refuse(path, str(path), "cut off or damaged")
    path.write_bytes(b"not compressed at all")
    refuse(path, str(path), "line 1: cannot be decompressed")


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense")
    refuse(path, "is not a readable parquet file")
    parquet.write_table(pa.table({"body": ["x"]}), path)
    refuse(path, "no column 'text'; found 'body'")
    parquet.write_table(pa.table({"text": ["x", None]}), path)
    refuse(path, f"{path}, row 2: field 'text' should hold text, found null")
    parquet.write_table(pa.table({"text": [1]}), path)
    refuse(path, "found a number")


@pytest.fixture
def storage() -> Iterator[str]:
    """A folder in memory, reached by URL, with files of two formats."""
    url = "memory:///autoscale-texts/web"
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path)
    files.pipe(f"{path}/a.jsonl.zst", zstandard.ZstdCompressor().compress(lines_of(TEXTS)))
    with files.open(f"{path}/deeper/b.parquet", "wb") as file:
        parquet.write_table(pa.table({"text": TEXTS}), file)
    files.pipe(f"{path}/notes.md", b"not text of the domain")
    files.pipe(f"{path}/deeper/empty.txt", b"")
    yield url
    files.rm("/autoscale-texts", recursive=True)


def test_texts_are_read_by_url(storage: str) -> None:
    assert read_all(f"{storage}/a.jsonl.zst") == TEXTS
    assert read_all(f"{storage}/deeper/b.parquet") == TEXTS
    assert read_all(f"{storage}/*.zst") == TEXTS
    fsspec.filesystem("memory").rm("/autoscale-texts/web/deeper/empty.txt")
    found = resolve_sources((storage,), domain="web")
    assert [source.location.removeprefix(storage) for source in found] == [
        "/a.jsonl.zst",
        "/deeper/b.parquet",
    ]
    positions = [position for _, position in read_texts(found[0])]
    assert positions == sorted(positions)
    assert positions[-1] == found[0].size


def test_a_data_set_saved_to_a_url_is_read(storage: str) -> None:
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    dataset.save_to_disk(f"{storage}/saved")
    assert read_all(f"{storage}/saved") == TEXTS


def test_urls_without_text_are_named(storage: str) -> None:
    refuse(f"{storage}/none.jsonl", "domain 'web'", f"{storage}/none.jsonl does not exist")
    refuse(f"{storage}/*.json", "domain 'web'", f"no file matches {storage}/*.json")
    refuse(f"{storage}/deeper/empty.txt", "empty.txt is empty (0 bytes)")
    refuse(f"{storage}/notes.md", "notes.md is of an unknown format '.md'")
    twice = (f"{storage}/a.jsonl.zst", f"{storage}/*.zst".replace(":///", "://"))
    with pytest.raises(ValueError, match=r"a.jsonl.zst is named twice"):
        resolve_sources(twice, domain="web")
    refuse("nowhere://bucket/a.jsonl", "nowhere://bucket/a.jsonl cannot be read", "install fsspec")
