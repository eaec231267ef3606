"""Layouts of known corpora: which files are read, and which domain a document is of."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from corpora import LAYOUTS, domain_name, find_files

from .conftest import Build, Records, TextSource, all_texts, dropped, write_lines


def write_parquet(path: Path, records: Records) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)


def write_redpajama(root: Path, texts: TextSource) -> dict[str, int]:
    book = texts.records(15, meta={"short_book_title": "A"}, red_pajama_subset="book")
    write_lines(root / "book/book.jsonl", book)
    crawl = texts.records(15, meta={"url": "u"}, red_pajama_subset="common_crawl")
    for part in range(3):
        name = f"en_head_000{part}.json.gz.dedup.classifier.jsonl.zst"
        write_lines(root / "common_crawl/2023-06" / name, crawl[part::3])
    write_lines(root / "arxiv/arxiv_024de5df.jsonl", texts.records(15, meta={"arxiv_id": "1"}))
    (root / "urls.txt").write_text("https://example.org/book/book.jsonl\n")
    return {"book": 15, "arxiv": 15, "common_crawl": 15}


def write_slimpajama(root: Path, texts: TextSource) -> dict[str, int]:
    for number in range(4):
        records = [
            *texts.records(5, meta={"redpajama_set_name": "RedPajamaC4"}),
            *texts.records(4, meta={"redpajama_set_name": "RedPajamaStackExchange"}),
        ]
        chunk = root / f"train/chunk{1 + number % 2}"
        write_lines(chunk / f"example_train_{number}.jsonl.zst", records)
    held_out = texts.records(9, meta={"redpajama_set_name": "RedPajamaBook"})
    write_lines(root / "validation/chunk1/example_holdout_0.jsonl.zst", held_out)
    return {"stackexchange": 16, "c4": 20}


def write_pile(root: Path, texts: TextSource) -> dict[str, int]:
    for number in range(3):
        records = [
            *texts.records(7, meta={"pile_set_name": "Wikipedia (en)"}),
            *texts.records(6, meta={"pile_set_name": "Pile-CC"}),
        ]
        write_lines(root / f"train/{number:02d}.jsonl.zst", records)
    write_lines(root / "val.jsonl.zst", texts.records(3, meta={"pile_set_name": "Github"}))
    return {"wikipedia_en": 21, "pile-cc": 18}


def write_dolma(root: Path, texts: TextSource) -> dict[str, int]:
    for name in ("books", "cc_en_head"):
        for number in range(2):
            records = texts.records(10, id=f"{name}{number}", source=name, added="2024-04-15")
            write_lines(root / name / f"{name}-{number:04d}.json.gz", records)
    return {"books": 20, "cc_en_head": 20}


def write_fineweb(root: Path, texts: TextSource) -> dict[str, int]:
    for dump in ("CC-MAIN-2013-20", "CC-MAIN-2024-10"):
        records = texts.records(10, id="<urn:uuid:1>", dump=dump, token_count=60)
        write_parquet(root / f"data/{dump}/000_00000.parquet", records)
    write_parquet(root / "sample/10BT/000_00000.parquet", texts.records(5, id="1", dump="x"))
    return {"fineweb": 20}


WRITERS = {
    "redpajama": write_redpajama,
    "slimpajama": write_slimpajama,
    "pile": write_pile,
    "dolma": write_dolma,
    "fineweb": write_fineweb,
}


@pytest.mark.parametrize("corpus", WRITERS)
def test_a_corpus_in_its_own_layout_becomes_shards(
    corpus: str, tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    expected = WRITERS[corpus](tmp_path / "text", source_of_text)
    manifest, report = build("--no-minhash", corpus=corpus)
    assert dict.fromkeys(manifest.domain_names) == dict.fromkeys(expected)
    assert list(manifest.domain_names) == list(expected)
    for name, number in expected.items():
        assert report["domains"][name]["read"]["documents"] == number
        assert len(all_texts(manifest, name)) == number


def test_a_domain_that_a_corpus_has_no_document_of_is_reported(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    write_pile(tmp_path / "text", source_of_text)
    _, report = build("--no-minhash", "--domains", "pile-cc,github", corpus="pile")
    assert report["absent_domains"] == ["github"]
    assert list(report["domains"]) == ["pile-cc"]


def test_a_source_may_be_an_fsspec_url(source_of_text: TextSource, build: Build) -> None:
    files = fsspec.filesystem("memory")
    for name in ("a", "b"):
        lines = "".join(f'{{"text": "{source_of_text.text()}"}}\n' for _ in range(20))
        files.pipe(f"/corpus/{name}/0.jsonl", lines.encode())
    try:
        manifest, _ = build("--no-minhash", source="memory://corpus")
    finally:
        files.rm("/corpus", recursive=True)
    assert manifest.domain_names == ("a", "b")


def test_several_corpora_are_built_as_one(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    write_dolma(tmp_path / "dolma", source_of_text)
    write_slimpajama(tmp_path / "slim", source_of_text)
    copied = (tmp_path / "dolma/books/books-0000.json.gz").read_bytes()
    write_fineweb(tmp_path / "fineweb", source_of_text)
    again = tmp_path / "fineweb/data/CC-MAIN-2024-10/000_00001.parquet"
    records = [json.loads(line) for line in gzip.decompress(copied).splitlines()]
    write_parquet(again, records)
    folders = {"dolma": "dolma", "slimpajama": "slim", "fineweb": "fineweb"}
    names = [f"{name}={tmp_path / folder}" for name, folder in folders.items()]
    manifest, report = build("--across-domains", "--corpus", *names)
    assert manifest.domain_names == ("books", "cc_en_head", "stackexchange", "c4", "fineweb")
    assert dropped(report, "fineweb") == {"near_duplicate_across_domains": 10}


def test_domains_by_a_field(tmp_path: Path, source_of_text: TextSource, build: Build) -> None:
    records: list[dict[str, Any]] = []
    for name in ("News", "Forum", "Spam"):
        records += source_of_text.records(20, meta={"source": name})
    write_lines(tmp_path / "text/all.jsonl", records)
    options = ("--no-minhash", "--domain-field", "meta.source", "--domains", "Forum,News")
    manifest, report = build(*options)
    assert manifest.domain_names == ("forum", "news")
    assert {name: counts["read"]["documents"] for name, counts in report["domains"].items()} == {
        "forum": 20,
        "news": 20,
    }


def test_folders_can_be_chosen_and_put_in_order(tmp_path: Path, source_of_text: TextSource) -> None:
    write_dolma(tmp_path, source_of_text)
    assert find_files("dolma", str(tmp_path)).domains == ("books", "cc_en_head")
    chosen = find_files("dolma", str(tmp_path), domains=["cc_en_head"])
    assert chosen.domains == ("cc_en_head",)
    assert {file.domain for file in chosen.files} == {"cc_en_head"}
    sample = find_files("dolma", str(tmp_path), files=["books/*-0001.json.gz"])
    assert [file.path for file in sample.files] == ["books/books-0001.json.gz"]


def test_names_of_domains_are_names_of_folders() -> None:
    for layout in LAYOUTS.values():
        names = list(layout.domains.values())
        assert len(set(names)) == len(names)
        assert all(domain_name(name) == name for name in names)
    assert domain_name("Gutenberg (PG-19)") == "gutenberg_pg-19"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corpus": "c5"}, "corpus 'c5' is not known; expected one of redpajama"),
        ({"corpus": "dolma"}, "has no text on the hub; download it"),
        ({"corpus": "pile", "source": "ROOT"}, r"no file below .* matches train/\*.jsonl.zst"),
        ({"corpus": "dolma", "source": "ROOT", "domains": ["wiki"]}, "no folder 'wiki'"),
        ({"corpus": "pile", "source": "ROOT", "domains": ["wiki"]}, "has no domain 'wiki'; it has"),
        ({"corpus": "redpajama", "source": "ROOT"}, "matches"),
        ({"corpus": "jsonl", "source": "ROOT", "domain_field": "m"}, "needs --domains"),
        ({"corpus": "jsonl", "source": "ROOT/books"}, "lies in no folder"),
    ],
)
def test_what_does_not_fit_is_named(
    arguments: dict[str, Any], message: str, tmp_path: Path, source_of_text: TextSource
) -> None:
    write_dolma(tmp_path, source_of_text)
    if "source" in arguments:
        arguments = arguments | {"source": arguments["source"].replace("ROOT", str(tmp_path))}
    with pytest.raises(ValueError, match=message) as caught:
        find_files(**arguments)
    assert "\n" not in str(caught.value)
