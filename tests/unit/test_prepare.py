"""Prepare: the same bytes whatever the processes and interruptions, no leaks, clear refusals."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from autoscale.config_data import PrepareConfig
from autoscale.manifest import Manifest
from autoscale.manifest_table import manifest_table
from autoscale.prepare import prepare
from autoscale.shard_formats.indexed import IndexedShard
from autoscale.tokenizer import END_OF_TEXT
from autoscale.verification import verify

WORDS = ["sun", "moon", "water", "stone", "walks", "sings", "under", "over", "blue", "old"]


def sentences(kind: str, count: int) -> list[str]:
    """Distinct documents of a few hundred characters."""
    rng = np.random.default_rng(len(kind))
    return [
        f"{kind} {number}: " + " ".join(rng.choice(WORDS, size=40).tolist())
        for number in range(count)
    ]


def write_lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def domains(tmp_path: Path) -> list[dict[str, Any]]:
    """Two domains: one splits its validation off, the other brings its own files."""
    shared = sentences("shared", 10)
    prose = sentences("prose", 300) + shared + [END_OF_TEXT + " spelled out", " \n"]
    verse = [*sentences("verse", 200), *shared, sentences("held", 5)[2], sentences("verse", 200)[7]]
    return [
        {"name": "prose", "train": [write_lines(tmp_path / "prose.jsonl", prose)]},
        {
            "name": "verse",
            "train": [write_lines(tmp_path / "verse.jsonl", verse)],
            "validation": [write_lines(tmp_path / "verse_held.jsonl", sentences("held", 5))],
        },
    ]


def configure(output: Path, domains: list[dict[str, Any]], **changes: Any) -> PrepareConfig:
    settings: dict[str, Any] = {
        "output": str(output),
        "domains": domains,
        "tokenizer": {"vocab_size": 300},
        "validation_fraction": 0.1,
        "shard_tokens": 6_000,
        "num_workers": 1,
    }
    return PrepareConfig.model_validate(settings | changes)


def files_of(output: Path) -> dict[str, str]:
    """Sha256 of every file, by relative path."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def texts_of(manifest: Manifest, split: str, name: str) -> list[str]:
    folder = manifest.root / manifest.tokenizer.path
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = []
    for shard in getattr(manifest.domain(name), split):
        for tokens in IndexedShard(manifest.root / shard.path).sequences():
            assert tokens[-1] == manifest.tokenizer.end_of_text_id
            assert manifest.tokenizer.end_of_text_id not in tokens[:-1]
            texts.append(backend.decode(tokens[:-1].tolist()))
    return texts


def counts_of(output: Path) -> dict[str, dict[str, int]]:
    content = json.loads((output / "prepare.json").read_text())
    return {name: domain["documents"] for name, domain in content["domains"].items()}


def test_every_text_is_found_once_where_it_belongs(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    path = prepare(configure(tmp_path / "out", domains))
    assert path == tmp_path / "out" / "manifest.json"
    manifest = Manifest.load(path)
    assert verify(manifest) == []
    assert manifest.dtype == "uint16"
    assert manifest.domain_names == ("prose", "verse")
    prose = texts_of(manifest, "train", "prose"), texts_of(manifest, "validation", "prose")
    verse = texts_of(manifest, "train", "verse"), texts_of(manifest, "validation", "verse")
    expected = {*sentences("prose", 300), *sentences("shared", 10), END_OF_TEXT + " spelled out"}
    assert sorted(prose[0] + prose[1]) == sorted(expected)
    assert len(prose[1]) > 10
    assert verse == (sentences("verse", 200), sentences("held", 5))
    assert len(manifest.domain("prose").train) > 1
    assert counts_of(tmp_path / "out")["verse"] == {
        "train": 200,
        "validation": 5,
        "duplicate_within_domain": 1,
        "in_validation": 1 + len(set(prose[1]) & set(sentences("shared", 10))),
        "duplicate_across_domains": len(set(prose[0]) & set(sentences("shared", 10))),
    }
    assert counts_of(tmp_path / "out")["prose"]["empty"] == 1
    text_bytes = sum(shard.text_bytes for shard in manifest.domain("prose").train)
    assert text_bytes == sum(len(text.encode()) for text in prose[0])


def test_transformers_loads_the_tokenizer_of_the_manifest(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    manifest = Manifest.load(prepare(configure(tmp_path / "out", domains)))
    loaded = AutoTokenizer.from_pretrained(manifest.root / manifest.tokenizer.path)
    assert len(loaded) == manifest.tokenizer.vocab_size == 300
    assert loaded.eos_token_id == manifest.tokenizer.end_of_text_id


def test_a_set_without_train_texts_is_held_out_whole(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    seen = sentences("prose", 300)[:2]  # of which those that prose holds out stay there
    far = sentences("far", 40)
    target = {"name": "target", "validation": [write_lines(tmp_path / "far.jsonl", far + seen)]}
    plain = Manifest.load(prepare(configure(tmp_path / "plain", domains)))
    manifest = Manifest.load(prepare(configure(tmp_path / "out", [*domains, target])))
    assert verify(manifest) == []
    assert manifest.training_domains == ("prose", "verse")
    assert manifest.domain("target").train == () and manifest.available_tokens("target") == 0
    held = texts_of(manifest, "validation", "target")
    kept = set(seen) - set(texts_of(plain, "validation", "prose"))
    assert kept and set(held) == {*far, *kept}
    assert not kept & set(texts_of(manifest, "train", "prose"))
    assert counts_of(tmp_path / "out")["target"]["validation"] == len(held)
    text_bytes = sum(len(text.encode()) for text in held)
    tokens = sum(shard.tokens for shard in manifest.domain("target").validation)
    assert manifest.bytes_per_token("target") == pytest.approx(text_bytes / tokens)
    console = Console(width=100, file=io.StringIO())
    console.print(manifest_table(manifest))
    assert re.search(r"target +0 \+ 1 +\d+ +none", console.file.getvalue())


def test_the_tokenizer_sees_nothing_of_a_set_without_train_texts(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    texts = write_lines(tmp_path / "far.jsonl", ["\u4e00\u4e8c\u4e09" * 30] * 3)
    target = {"name": "target", "validation": [texts]}
    plain = Manifest.load(prepare(configure(tmp_path / "plain", domains)))
    capped = configure(tmp_path / "out", [target, *domains], validation_tokens=3_000)
    manifest = Manifest.load(prepare(capped))
    assert manifest.tokenizer.sha256 == plain.tokenizer.sha256
    assert counts_of(tmp_path / "out")["target"] == {
        "validation": 1,
        "duplicate_within_domain": 2,
    }


def test_texts_to_train_on_are_needed(tmp_path: Path, domains: list[dict[str, Any]]) -> None:
    held = {"name": "held", "validation": domains[1]["validation"]}
    with pytest.raises(ValueError, match=r"prepare\.domains: none has 'train' texts; give some"):
        configure(tmp_path, [held])
    with pytest.raises(ValueError, match=r"domain 'none' has no texts; give 'train', or 'valid"):
        configure(tmp_path, [*domains, {"name": "none"}])


@pytest.mark.slow
def test_processes_do_not_change_a_byte(tmp_path: Path, domains: list[dict[str, Any]]) -> None:
    prepare(configure(tmp_path / "one", domains, validation_tokens=1_000))
    prepare(configure(tmp_path / "two", domains, validation_tokens=1_000, num_workers=2))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_second_call_finds_everything_finished(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    path = prepare(configure(tmp_path / "out", domains))
    before = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*.bin")}
    stages = []
    prepare(
        configure(tmp_path / "out", domains),
        progress=lambda stage, done, total, /: stages.append((stage, done, total)),
    )
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*.bin")} == before
    assert "train tokenizer" not in {stage for stage, _, _ in stages}
    assert stages[-1][1] == stages[-1][2]


def test_progress_rises_to_the_total_of_every_stage(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    heard: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int, /) -> None:
        heard.setdefault(stage, []).append((done, total))

    prepare(configure(tmp_path / "out", domains), progress=progress)
    assert list(heard) == ["read", "train tokenizer", "tokenize"]
    for steps in heard.values():
        done = [step for step, _ in steps]
        assert done[0] == 0
        assert done == sorted(done)
        assert {total for _, total in steps} == {done[-1]}


KILLED = """
import os, signal, sys
from autoscale.config_data import PrepareConfig
from autoscale.prepare import prepare

def progress(stage, done, total, /):
    if stage == sys.argv[2] and done >= float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    prepare(PrepareConfig.model_validate_json(sys.argv[1]), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "fraction", "num_workers"),
    [
        ("train tokenizer", 0.5, 1),
        ("tokenize", 0.0, 1),
        ("tokenize", 0.4, 1),
        ("tokenize", 0.7, 2),
        ("tokenize", 1.0, 1),
    ],
)
def test_a_killed_call_is_completed_to_the_same_bytes(
    tmp_path: Path,
    domains: list[dict[str, Any]],
    stage: str,
    fraction: float,
    num_workers: int,
) -> None:
    prepare(configure(tmp_path / "whole", domains))
    script = tmp_path / "killed.py"
    small_batches = "import autoscale.documents as documents\ndocuments.BATCH_BYTES = 2_000\n"
    script.write_text(small_batches + KILLED)
    config = configure(tmp_path / "killed", domains, num_workers=num_workers)
    done = subprocess.run(
        [sys.executable, str(script), config.model_dump_json(), stage, str(fraction)],
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    output = tmp_path / "killed"
    assert not (output / "manifest.json").exists()
    for index in output.rglob("*.idx"):
        IndexedShard(index.with_suffix("")).check()
    finished = {path: path.stat().st_mtime_ns for path in output.rglob("*.bin")}
    assert finished or stage != "tokenize" or fraction < 0.4
    prepare(config)
    assert files_of(output) == files_of(tmp_path / "whole")
    kept = [path for path, written in finished.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= len(finished) - 1  # at most the shard between its files and its record


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path, domains: list[dict[str, Any]]) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    config = configure(tmp_path / "killed", domains, num_workers=2)
    marker = f"AUTOSCALE_TEST_{os.getpid()}_{time.time_ns()}"
    subprocess.run(
        [sys.executable, str(script), config.model_dump_json(), "tokenize", "0.0"],
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), marker: "1"},
    )
    deadline = time.monotonic() + 20
    while living_with(marker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert living_with(marker) == []


def living_with(variable: str) -> list[int]:
    """Processes that were started with an environment variable."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_damaged_shard_and_a_damaged_tokenizer_are_written_again(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    config = configure(tmp_path / "out", domains)
    manifest = Manifest.load(prepare(config))
    before = files_of(tmp_path / "out")
    shard = manifest.root / f"{manifest.domain('prose').train[1].path}.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    tokenizer = manifest.root / manifest.tokenizer.path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text()[:-40])
    prepare(config)
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": {"vocab_size": 310}},
        {"tokenizer": {"vocab_size": 300, "sample_bytes": 20_000}},
        {"seed": 1},
        {"shard_tokens": 9_000},
        {"validation_fraction": 0.3},
        {"validation_tokens": 500},
        {"deduplicate": False},
    ],
)
def test_other_settings_never_mix_with_earlier_ones(
    tmp_path: Path, domains: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    first = Manifest.load(prepare(configure(tmp_path / "out", domains)))
    second = Manifest.load(prepare(configure(tmp_path / "out", domains, **changes)))
    assert verify(second) == []
    assert second.fingerprint != first.fingerprint
    prepare(configure(tmp_path / "fresh", domains, **changes))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_domain_whose_texts_stay_is_not_done_again(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    tokenizer = configure(tmp_path / "tokenizer", domains)
    folder = Manifest.load(prepare(tokenizer))
    settings = {"tokenizer": {"path": str(folder.root / folder.tokenizer.path)}}
    first = Manifest.load(prepare(configure(tmp_path / "out", domains, **settings)))
    with open(domains[1]["train"][0], "a") as file:
        file.write(json.dumps({"text": "one more verse"}) + "\n")
    Path(domains[0]["train"][0]).rename(tmp_path / "renamed.jsonl")
    domains[0]["train"] = [str(tmp_path / "renamed.jsonl")]
    second = Manifest.load(prepare(configure(tmp_path / "out", domains, **settings)))
    assert second.domain("prose") == first.domain("prose")
    assert "one more verse" in texts_of(second, "train", "verse")
    assert not (first.root / f"{first.domain('verse').train[0].path}.bin").exists()


def test_imported_and_trained_tokenizer_give_the_same_tokens(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    trained = Manifest.load(prepare(configure(tmp_path / "trained", domains)))
    settings = {"tokenizer": {"path": str(trained.root / trained.tokenizer.path)}}
    imported = Manifest.load(prepare(configure(tmp_path / "imported", domains, **settings)))
    assert imported.fingerprint == trained.fingerprint


def test_a_large_vocabulary_is_written_as_int32(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    trained = Manifest.load(prepare(configure(tmp_path / "trained", domains)))
    source = trained.root / trained.tokenizer.path
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"unused {number}": 300 + number for number in range(2**16)}
    (source / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer": {"path": str(source)}}
    manifest = Manifest.load(prepare(configure(tmp_path / "large", domains, **settings)))
    assert verify(manifest) == []
    assert manifest.dtype == "int32"
    assert manifest.tokenizer.vocab_size == 300 + 2**16
    assert texts_of(manifest, "train", "verse") == sentences("verse", 200)


def test_the_validation_cap_is_kept_and_the_rest_is_trained_on(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    manifest = Manifest.load(prepare(configure(tmp_path / "out", domains, validation_tokens=150)))
    for name in ("prose", "verse"):
        tokens = sum(shard.tokens for shard in manifest.domain(name).validation)
        assert 0 < tokens <= 150
    prose = texts_of(manifest, "train", "prose"), texts_of(manifest, "validation", "prose")
    assert len(prose[0] + prose[1]) == len({*prose[0], *prose[1]}) == 311
    counts = counts_of(tmp_path / "out")["verse"]
    assert counts["over_validation_cap"] + counts["validation"] == 5
    with pytest.raises(ValueError, match=r"domain 'prose': no validation document fits under"):
        prepare(configure(tmp_path / "out", domains, validation_tokens=3))


def test_the_split_does_not_move_when_documents_are_added(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    first = Manifest.load(prepare(configure(tmp_path / "first", domains)))
    lines = Path(domains[0]["train"][0]).read_text().splitlines(keepends=True)
    more = write_lines(tmp_path / "more.jsonl", sentences("more", 50))
    Path(domains[0]["train"][0]).write_text("".join(reversed(lines)))
    domains[0]["train"] = [more, *domains[0]["train"]]
    second = Manifest.load(prepare(configure(tmp_path / "second", domains)))
    held_out = set(texts_of(first, "validation", "prose"))
    added = set(sentences("more", 50))
    assert set(texts_of(second, "validation", "prose")) - added == held_out


def test_the_tokenizer_sees_the_same_bytes_of_every_domain(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    totals = []

    def progress(stage: str, done: int, total: int, /) -> None:
        if stage == "train tokenizer":
            totals.append((done, total))

    tokenizer = {"vocab_size": 300, "sample_bytes": 10_000}
    prepare(configure(tmp_path / "out", domains, tokenizer=tokenizer), progress=progress)
    assert totals[-1] == (20_000, 20_000)
    assert 10_000 in [done for done, _ in totals]


def test_prepare_loads_no_torch(tmp_path: Path, domains: list[dict[str, Any]]) -> None:
    code = (
        "import sys\n"
        "from autoscale.config_data import PrepareConfig\n"
        "from autoscale.prepare import prepare\n"
        "prepare(PrepareConfig.model_validate_json(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    config = configure(tmp_path / "out", domains).model_dump_json()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, config], check=True, env=environment, timeout=60)


def refuse(config: PrepareConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(config)
    assert not list(Path(config.output).rglob("*.bin"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, domains: list[dict[str, Any]], num_workers: int
) -> None:
    def with_train(*paths: str) -> PrepareConfig:
        changed = [domains[0], {"name": "verse", "train": list(paths)}]
        return configure(tmp_path / "out", changed, num_workers=num_workers)

    refuse(with_train(str(tmp_path / "no.jsonl")), r"domain 'verse': .*no.jsonl does not exist")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"body": "x"}\n')
    refuse(with_train(str(bad)), r"bad.jsonl, line 2: no field 'text'; found 'body'")
    blank = write_lines(tmp_path / "blank.jsonl", ["", " "])
    refuse(with_train(blank), r"blank.jsonl holds no document with text \(2 read\)")
    few = write_lines(tmp_path / "few.jsonl", ["a"])
    refuse(with_train(few), r"domain 'verse': validation_fraction 0.1 of 1 documents leaves none")
    same = [{"name": "prose", "train": [few], "validation": [few]}]
    refuse(configure(tmp_path / "out", same), r"is listed under train and under validation")


def test_tokenizers_that_do_not_fit_are_refused(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    large = configure(tmp_path / "out", domains, tokenizer={"vocab_size": 9_000})
    refuse(large, r"vocab_size is 9000, but the sampled text yields only \d+ tokens")
    missing = configure(tmp_path / "out", domains, tokenizer={"path": str(tmp_path / "none")})
    refuse(missing, r"tokenizer.path .* transformers cannot load it")


def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    def progress(stage: str, done: int, total: int, /) -> None:
        if stage == "tokenize" and done == 0:
            write_lines(Path(domains[1]["train"][0]), sentences("changed", 220))

    with pytest.raises(ValueError, match=r"verse.jsonl changed while it was being prepared"):
        prepare(configure(tmp_path / "out", domains), progress=progress)


def test_two_calls_into_one_folder_are_refused(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    refusals = []

    def progress(stage: str, done: int, total: int, /) -> None:
        if not refusals:
            with pytest.raises(ValueError, match=r"another prepare is writing into") as caught:
                prepare(configure(tmp_path / "out", domains))
            refusals.append(caught)

    prepare(configure(tmp_path / "out", domains), progress=progress)
    assert refusals


def test_a_variable_that_is_not_set_is_named(tmp_path):
    source = {"name": "prose", "train": ["${CORPUS_OF_NOBODY}/prose.jsonl"]}
    config = PrepareConfig.model_validate(
        {"output": str(tmp_path), "domains": [source], "tokenizer": {"vocab_size": 300}}
    )
    expected = r"domain 'prose': environment variable CORPUS_OF_NOBODY is not set"
    with pytest.raises(ValueError, match=expected):
        prepare(config)


def test_texts_behind_urls_give_the_same_shards(
    tmp_path: Path, domains: list[dict[str, Any]]
) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path), "/autoscale-prepare", recursive=True)
    remote = json.loads(json.dumps(domains).replace(str(tmp_path), "memory://autoscale-prepare"))
    remote[0]["train"] = ["memory://autoscale-prepare/pro*.jsonl"]
    try:
        prepare(configure(tmp_path / "remote", remote))
    finally:
        files.rm("/autoscale-prepare", recursive=True)
    prepare(configure(tmp_path / "local", domains))
    assert files_of(tmp_path / "remote") == files_of(tmp_path / "local")


def test_a_url_is_no_place_for_output(tmp_path: Path, domains: list[dict[str, Any]]) -> None:
    settings = {"output": "s3://bucket/data", "domains": domains, "tokenizer": {"vocab_size": 300}}
    with pytest.raises(ValueError, match="found the URL s3://bucket/data; expected a local path"):
        PrepareConfig.model_validate(settings)
