"""data_prep/build.py on small corpora: what is dropped, where documents go, and restarts."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus_build.command import main
from corpus_build.executors import run_locally
from corpus_build.reading import ReadSources
from corpus_build.shards import TextTokenizer, WriteShards
from corpus_build.splitting import Split
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature

from .conftest import Build, TextSource, all_texts, dropped, texts_of, write_lines


def write_domains(root: Path, texts: TextSource, documents: int = 24) -> dict[str, list[str]]:
    """Two domains of two files each; returns their texts."""
    written = {}
    for name in ("a", "b"):
        records = texts.records(documents)
        for part in range(2):
            write_lines(root / f"text/{name}/{part}.jsonl", records[part::2])
        written[name] = [record["text"] for record in records]
    return written


def bytes_of(output: Path) -> dict[str, bytes]:
    """Everything a later step reads: manifest, shards, tokenizer."""
    files = [output / "manifest.json", *output.glob("tokenizer-*/*"), *output.glob("shards/*/*/*")]
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in files
        if path.is_file() and ".build" not in path.parts
    }


# --- near-duplicates ------------------------------------------------------------------------------


def test_copies_go_within_a_domain_and_across_domains(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    texts = write_domains(tmp_path, source_of_text)
    first, other = texts["a"][0], texts["a"][1]
    again = [{"text": first}, {"text": source_of_text.near_copy(first)}]
    write_lines(tmp_path / "text/a/9-again.jsonl", again)
    write_lines(tmp_path / "text/b/9-again.jsonl", [{"text": source_of_text.near_copy(other)}])

    manifest, report = build()
    assert dropped(report, "a") == {"near_duplicate_within_domain": 2}
    assert dropped(report, "b") == {}
    assert sorted(all_texts(manifest, "a")) == sorted(texts["a"])

    manifest, report = build("--across-domains")
    assert dropped(report, "a") == {"near_duplicate_within_domain": 2}
    assert dropped(report, "b") == {"near_duplicate_across_domains": 1}
    assert sorted(all_texts(manifest, "b")) == sorted(texts["b"])

    manifest, report = build("--across-domains", "--domains", "b,a")
    assert dropped(report, "a") == {
        "near_duplicate_within_domain": 2,
        "near_duplicate_across_domains": 1,
    }
    assert source_of_text.near_copy(other) in all_texts(manifest, "b")

    _, report = build("--no-minhash")
    assert dropped(report, "a") == dropped(report, "b") == {}


# --- contamination --------------------------------------------------------------------------------


def test_documents_that_overlap_evaluation_sets_go(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    write_domains(tmp_path, source_of_text)
    question = [f"q{letter}" for letter in "abcdefghijklmnopq"]
    entries = [
        {"question": " ".join(question), "choices": {"text": ["yes", "no"]}},
        {"question": "too short to be found"},
    ]
    evaluation = write_lines(tmp_path / "evaluation.jsonl.gz", entries)
    other = tmp_path / "lines.txt"
    other.write_text(source_of_text.text(20) + "\n")
    loud = ", ".join(question[2:15]).upper() + "!"
    planted = f"{source_of_text.text()} {loud} {source_of_text.text()}"
    spared = f"{source_of_text.text()} {' '.join(question[:12])} {source_of_text.text()}"
    write_lines(tmp_path / "text/b/9.jsonl", [{"text": planted, "id": "x"}, {"text": spared}])

    manifest, report = build("--no-minhash", "--decontaminate", str(evaluation), str(other))
    assert dropped(report, "b") == {"contaminated": 1}
    texts = all_texts(manifest, "b")
    assert spared in texts and planted not in texts
    assert report["contamination"] == {
        str(evaluation): {
            "entries": 2,
            "entries_too_short": 1,
            "entries_found": 1,
            "documents_dropped": 1,
        },
        str(other): {
            "entries": 1,
            "entries_too_short": 0,
            "entries_found": 0,
            "documents_dropped": 0,
        },
    }
    found = [
        json.loads(line)
        for path in (tmp_path / "shards").glob("shards/*/.build/contamination/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert found == [
        {
            "domain": "b",
            "document": "x",
            "evaluation": str(evaluation),
            "entry": 0,
            "ngram": " ".join(question[2:15]),
        }
    ]
    _, report = build("--no-minhash", "--decontaminate", str(evaluation), "--ngram", "12")
    assert dropped(report, "b") == {"contaminated": 2}


# --- filters and counts ---------------------------------------------------------------------------


def test_the_report_names_every_reason(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    prose = [{"text": f"the end of {source_of_text.text(80)} and that is to be"} for _ in range(20)]
    short = [{"text": "the end of this and that"}]
    empty: list[dict[str, Any]] = [{"text": ""}, {"text": "  \n"}, {"text": None}]
    write_lines(tmp_path / "text/a/0.jsonl", [*prose, *short, *empty])
    write_lines(tmp_path / "text/b/0.jsonl", [*short, *source_of_text.records(20)])
    with (tmp_path / "text/b/0.jsonl").open("ab") as file:
        file.write(b'{"text": "cut off\n[1]\n\xff\xfe\n')

    manifest, report = build("--filters", "quality", "--filter-domains", "a")
    assert dropped(report, "a") == {"empty": 3, "gopher_short_doc": 1}
    assert dropped(report, "b") == {}
    assert report["unreadable_lines"] == {f"{tmp_path}/text/b/0.jsonl": 3}
    for domain in manifest.domains:
        counts = report["domains"][domain.name]
        for split in ("train", "validation"):
            shards = getattr(domain, split)
            assert counts[split] == {
                "documents": sum(shard.documents for shard in shards),
                "tokens": sum(shard.tokens for shard in shards),
                "text_bytes": sum(shard.text_bytes for shard in shards),
            }
            texts = texts_of(manifest, domain.name, split)
            assert counts[split]["text_bytes"] == sum(len(text.encode()) for text in texts)


# --- split ----------------------------------------------------------------------------------------


def test_a_document_stays_on_its_side_when_others_come(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    texts = write_domains(tmp_path, source_of_text, documents=40)
    split = Split(fraction=0.2, seed=0)
    before, _ = build()
    write_lines(tmp_path / "text/a/00-new.jsonl", source_of_text.records(20))
    write_lines(tmp_path / "text/c/0.jsonl", [*source_of_text.records(20), {"text": texts["a"][0]}])
    after, _ = build(output=tmp_path / "after")
    for manifest in (before, after):
        for name, known in texts.items():
            for side, held_out in (("train", False), ("validation", True)):
                expected = [text for text in known if split.holds_out(text) == held_out]
                found = set(texts_of(manifest, name, side))
                assert [text for text in known if text in found] == expected
    side = "validation" if split.holds_out(texts["a"][0]) else "train"
    assert texts["a"][0] in texts_of(after, "c", side)


# --- restarts -------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for the end of a process."""


def stop_after(step: type, method: str, documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rank 1 of a step fail when it has seen some documents."""
    original = getattr(step, method)

    def stopping(data: Iterator[Document]) -> Iterator[Document]:
        for number, document in enumerate(data):
            if number == documents:
                raise StoppedError
            yield document

    def run(self: Any, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        if step is ReadSources:
            result = original(self, data, rank, world_size)
            return stopping(result) if rank == 1 else result
        return original(self, stopping(data) if rank == 1 else data, rank, world_size)

    monkeypatch.setattr(step, method, run)


@pytest.mark.parametrize("step", [ReadSources, MinhashDedupSignature, WriteShards])
def test_an_interrupted_build_goes_on_to_the_same_bytes(
    step: type,
    tmp_path: Path,
    source_of_text: TextSource,
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = write_domains(tmp_path, source_of_text)
    write_lines(tmp_path / "text/b/9.jsonl", [{"text": texts["a"][0]}])
    build("--across-domains", output=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("corpus_build.shards.BATCH_BYTES", 1)
        stop_after(step, "run", 5, patched)
        with pytest.raises(StoppedError):
            build("--across-domains")
    assert not (tmp_path / "shards/manifest.json").exists()
    for folder in (tmp_path / "shards/shards").glob("*/a"):
        (folder / ".train-00001.bin.123.tmp").write_bytes(b"of a process that was killed")
    build("--across-domains")
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "whole")
    assert not list((tmp_path / "shards").rglob("*.tmp"))
    assert (
        json.loads((tmp_path / "shards/report.json").read_text())["domains"]
        == (json.loads((tmp_path / "whole/report.json").read_text())["domains"])
    )


def test_other_settings_keep_what_they_do_not_change(
    tmp_path: Path, source_of_text: TextSource, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domains(tmp_path, source_of_text)
    build("--across-domains")
    first = bytes_of(tmp_path / "shards")
    with monkeypatch.context() as patched:
        stop_after(ReadSources, "run", 0, patched)  # it must not read again
        build("--across-domains", "--seed", "1")
        assert set(bytes_of(tmp_path / "shards")).isdisjoint(
            name for name in first if name.startswith("shards/")
        )
        build("--across-domains")
    assert bytes_of(tmp_path / "shards") == first


def test_a_finished_build_encodes_nothing_again(
    tmp_path: Path, source_of_text: TextSource, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domains(tmp_path, source_of_text)
    build("--no-minhash")
    monkeypatch.setattr(TextTokenizer, "encode", None)
    build("--no-minhash")


def test_two_workers_write_the_bytes_of_one(
    tmp_path: Path, source_of_text: TextSource, build: Build
) -> None:
    write_domains(tmp_path, source_of_text)
    build("--no-minhash", output=tmp_path / "one")
    build("--no-minhash", output=tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


# --- Slurm ----------------------------------------------------------------------------------------


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_slurm_jobs_wait_for_one_another_and_run(
    tmp_path: Path,
    source_of_text: TextSource,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_domains(tmp_path, source_of_text)
    calls = tmp_path / "calls"
    write_program(
        tmp_path / "bin/sbatch",
        f'echo "$@" >> {calls}; echo Submitted batch job $(wc -l < {calls})',
    )
    write_program(
        tmp_path / "bin/srun", 'while [ "$1" != launch_pickled_pipeline ]; do shift; done; "$@"'
    )
    write_program(tmp_path / "bin/scontrol", "echo node1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    command = ["--corpus", "jsonl", "--source", str(tmp_path / "text"), "--tasks", "2"]
    command += ["--output", "out", "--tokenizer", str(tokenizer_folder), "--executor", "slurm"]
    command += [
        "--slurm-partition",
        "cpu",
        "--slurm-time",
        "01:30:00",
        "--slurm-setup",
        "true here",
    ]
    assert main([*command, "--workers", "3"]) == 0
    assert "submitted; the last job is 11" in capsys.readouterr().out

    # A stage is submitted, and after it datatrove's merge of its statistics.
    jobs = calls.read_text().splitlines()[::2]
    assert len(jobs) == 6
    assert ["dependency" in job for job in jobs] == [False, True, True, True, True, True]
    assert [f"afterok:{2 * number - 1}" in jobs[number] for number in range(1, 6)] == [True] * 5

    logs = next((tmp_path / "out/work").glob("documents-*/logs"))
    script = (logs / "launch_script.slurm").read_text()
    for line in ("partition=cpu", "time=01:30:00", "array=0-1%3", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "\ntrue here && export PATH=" in script and "qos" not in script
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in script

    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1", "SLURM_NODELIST": "node1"}
    subprocess.run(
        ["bash", str(logs / "launch_script.slurm")],
        env=environment,
        check=True,
        capture_output=True,
    )
    assert [path.name for path in (logs / "completions").iterdir()] == ["00001"]
    assert len(list(logs.parent.glob("documents/*/00001.jsonl.gz"))) == 2


def test_slurm_needs_sbatch(
    tmp_path: Path,
    source_of_text: TextSource,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_domains(tmp_path, source_of_text)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["--corpus", "jsonl", "--source", str(tmp_path / "text"), "--output", "out"]
    command += ["--tokenizer", str(tokenizer_folder), "--executor", "slurm"]
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert "needs --slurm-partition" in capsys.readouterr().err
    assert main([*command, "--slurm-partition", "cpu"]) == 2
    assert "has no sbatch" in capsys.readouterr().err


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "jsonl=text", "pile"], "--source is for one corpus, found 2"),
        (["--select", "0.8,0.5"], "--select and --encoder belong together"),
        (["--select", "0.8", "--encoder", "x"], "expected two fractions"),
        (["--select", "0,1", "--encoder", "x"], "expected two fractions"),
        (["--filters", "quality", "--filter-domains", "web"], "the domains are a, b"),
        (["--tasks", "0"], "expected 1 to 99999"),
        (["--tasks", "50000"], "makes 100000 ranks"),
        (["--validation-fraction", "1"], "expected a fraction between 0 and 1"),
        (["--ngram", "0"], "expected at least 1 word"),
        (["--tokenizer", "text"], "transformers cannot load it"),
        (["--decontaminate", "missing.jsonl"], "evaluation set missing.jsonl cannot be read"),
        (["--source", "missing"], "no file below .*missing matches"),
        (["--text-field", "content"], "has no 'content', only text; give the field with"),
        (["--validation-fraction", "1e-9"], "domain 'a': no document is left to hold out"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    source_of_text: TextSource,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_domains(tmp_path, source_of_text)
    monkeypatch.chdir(tmp_path)
    command = ["--corpus", "jsonl", "--source", "text", "--output", "out", "--no-minhash"]
    command += ["--tokenizer", str(tokenizer_folder), "--tasks", "1", "--workers", "1"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error)


def test_a_second_build_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    program = """
import pathlib, sys
from corpus_build.executors import _only_writer
with _only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another build is writing into"):
            run_locally([], tmp_path, workers=1)
    run_locally([], tmp_path, workers=1)
