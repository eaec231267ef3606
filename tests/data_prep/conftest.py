"""Small corpora in the layouts of the real ones, and a build of them in this process."""

import gzip
import json
import random
import string
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from autoscale.manifest import Manifest
from autoscale.tokenizer import train_tokenizer
from autoscale.verification import verify

if any(find_spec(name) is None for name in ("datatrove", "orjson", "sklearn")):
    collect_ignore_glob = ["test_*.py"]  # the extra autoscale[data-prep] is not installed

Records = Sequence[dict[str, Any]]


class TextSource:
    """Texts of random words, different every time it is asked."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        letters = string.ascii_lowercase
        self.words = ["".join(self._random.choices(letters, k=5)) for _ in range(500)]

    def text(self, words: int = 60) -> str:
        return " ".join(self._random.choices(self.words, k=words))

    def near_copy(self, text: str) -> str:
        """The text with one of its last words changed: a Jaccard similarity of at least 0.9."""
        words = text.split()
        words[-1] = "changed"
        return " ".join(words)

    def records(self, number: int, **fields: Any) -> list[dict[str, Any]]:
        return [{"text": self.text(), **fields} for _ in range(number)]


@pytest.fixture
def source_of_text() -> TextSource:
    return TextSource()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "of-a-user"
    texts = TextSource()
    train_tokenizer((texts.text() for _ in range(100)), vocab_size=300, folder=folder)
    return folder


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """JSON lines, packed as the name says."""
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        import zstandard

        content = zstandard.ZstdCompressor().compress(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


Build = Callable[..., tuple[Manifest, dict[str, Any]]]


@pytest.fixture
def build(tmp_path: Path, tokenizer_folder: Path) -> Build:
    """Run data_prep/build.py here: its manifest, verified, and its report."""
    from corpus_build.command import main
    from corpus_build.report import load_report
    from loguru import logger

    logger.remove()

    def run(
        *options: str,
        corpus: str = "jsonl",
        source: Path | str | None = None,
        output: Path = tmp_path / "shards",
        tasks: int = 2,
        workers: int = 1,
    ) -> tuple[Manifest, dict[str, Any]]:
        command = ["--corpus", f"{corpus}={source or tmp_path / 'text'}", "--output", str(output)]
        command += ["--tokenizer", str(tokenizer_folder), "--validation-fraction", "0.2"]
        command += ["--tasks", str(tasks), "--workers", str(workers), *options]
        assert main(command) == 0
        manifest = Manifest.load(output / "manifest.json")
        assert verify(manifest) == []
        report = load_report(output)
        for counts in report["domains"].values():
            assert_adds_up(counts)
        return manifest, report

    return run


def assert_adds_up(counts: dict[str, Any]) -> None:
    """read = dropped by reason + validation + train, in documents and in bytes."""
    parts = [*counts["dropped"].values(), counts["validation"], counts["train"]]
    for unit in ("documents", "text_bytes"):
        assert counts["read"][unit] == sum(part[unit] for part in parts)


def dropped(report: dict[str, Any], domain: str) -> dict[str, int]:
    """Documents of a domain that were dropped, by reason."""
    fates = report["domains"][domain]["dropped"]
    return {reason: count["documents"] for reason, count in fates.items()}


def texts_of(manifest: Manifest, domain: str, split: str) -> list[str]:
    """The documents of a domain, decoded, in the order of the shards."""
    from tokenizers import Tokenizer

    from autoscale.shard_formats.indexed import IndexedShard

    backend = Tokenizer.from_file(str(manifest.root / manifest.tokenizer.path / "tokenizer.json"))
    return [
        backend.decode(sequence[:-1].tolist())
        for shard in getattr(manifest.domain(domain), split)
        for sequence in IndexedShard(manifest.root / shard.path).sequences()
    ]


def all_texts(manifest: Manifest, domain: str) -> list[str]:
    return [text for split in ("train", "validation") for text in texts_of(manifest, domain, split)]
