"""Shards that exist become a manifest and stay as they are: domains, splits, counts, refusals."""

import json
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from autoscale.existing_shards import Adoption, adopt
from autoscale.manifest import Manifest
from autoscale.mixture_stream import MixtureStream
from autoscale.shard_formats.indexed_writer import IndexedShardWriter
from autoscale.shard_names import Naming, parse_domains, parse_validation
from autoscale.tokenizer import TextTokenizer, train_tokenizer
from autoscale.verification import verify

FOREIGN = Path(__file__).parents[1] / "fixtures" / "foreign_shards"
EXPECTED = json.loads((FOREIGN / "expected.json").read_text())
END_OF_TEXT = 1
NUMBERS: dict[str, Any] = {"vocab_size": 200_000, "end_of_text_id": END_OF_TEXT}


def foreign(name: str, folder: Path, stem: str) -> list[list[int]]:
    """Copy a shard that another project wrote; returns its documents."""
    folder.mkdir(parents=True, exist_ok=True)
    source = FOREIGN / name
    for found in source.parent.iterdir():
        if found.name.startswith(source.stem + "."):
            shutil.copy(found, folder / f"{stem}{found.name.removeprefix(source.stem)}")
    documents: list[list[int]] = EXPECTED[name]["documents"]
    return documents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three domains in three layouts of folders, of five writers, each with validation."""
    folder = tmp_path / "data"
    foreign("megatron/uint16.bin", folder / "code" / "train", "part-0")
    foreign("deepspeed/int32.bin", folder / "code" / "train", "part-1")
    foreign("datatrove/small.ds", folder / "code" / "validation", "part-0")
    foreign("layouts/llmc_gpt2.bin", folder / "web", "fineweb_train_000001")
    foreign("datatrove/large.ds", folder / "web", "fineweb_val_000000")
    foreign("layouts/saved.npy", folder / "train" / "books", "a.b")
    foreign("deepspeed/uint32.bin", folder / "test" / "books", "a")
    (folder / "code" / "README.md").write_text("no tokens")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def paths_of(manifest: Manifest) -> dict[str, tuple[list[str], list[str]]]:
    return {
        domain.name: ([s.path for s in domain.train], [s.path for s in domain.validation])
        for domain in manifest.domains
    }


def test_shards_of_every_writer_are_adopted_as_they_are(folder: Path) -> None:
    before = snapshot(folder)
    path = adopt(Adoption(folder=str(folder), **NUMBERS))
    assert path == folder / "manifest.json"
    assert snapshot(folder) == before
    manifest = Manifest.load(path)
    assert manifest.data_root == ""
    assert paths_of(manifest) == {
        "code": (["code/train/part-0", "code/train/part-1"], ["code/validation/part-0.ds"]),
        "books": (["train/books/a.b.npy"], ["test/books/a"]),
        "web": (["web/fineweb_train_000001.bin"], ["web/fineweb_val_000000.ds"]),
    }
    megatron = manifest.domain("code").train[0]
    documents = EXPECTED["megatron/uint16.bin"]["documents"]
    assert manifest.open_file(megatron).tokens().tolist() == list(chain(*documents))
    assert (megatron.documents, megatron.text_bytes) == (len(documents), None)
    assert {manifest.dtype_of(s) for _, _, s in manifest.all_shards()} == {
        "uint16",
        "int32",
        "uint32",
    }
    assert verify(manifest) == []


def test_the_manifest_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "manifest.json"
    adopt(Adoption(folder=str(folder), output=output, **NUMBERS))
    manifest = Manifest.load(output)
    assert manifest.data_root == str(folder)
    manifest.check()
    here = Manifest.load(adopt(Adoption(folder=str(folder), **NUMBERS)))
    assert here.fingerprint == manifest.fingerprint


@pytest.fixture
def bucket(folder: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/autoscale-adopt", recursive=True)
    yield "memory://autoscale-adopt"
    files.rm("/autoscale-adopt", recursive=True)


def test_shards_behind_a_url_are_adopted(bucket: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a URL, and a manifest is written locally; name it"):
        adopt(Adoption(folder=bucket, **NUMBERS))
    output = tmp_path / "manifest.json"
    remote = Manifest.load(adopt(Adoption(folder=bucket, output=output, **NUMBERS)))
    local = Manifest.load(adopt(Adoption(folder=str(folder), **NUMBERS)))
    assert paths_of(remote) == paths_of(local)
    assert remote.fingerprint == local.fingerprint
    assert verify(remote) == []


@pytest.mark.parametrize("where", ["local", "url"])
def test_a_stream_reads_every_format_in_place(
    where: str, bucket: str, folder: Path, tmp_path: Path
) -> None:
    """An epoch of windows is what the writers were given, whatever the format and the place."""
    source = str(folder) if where == "local" else bucket
    path = adopt(Adoption(folder=source, output=tmp_path / "manifest.json", **NUMBERS))
    written = {
        "code": ["megatron/uint16.bin", "deepspeed/int32.bin"],
        "books": ["layouts/saved.npy"],
        "web": ["layouts/llmc_gpt2.bin"],
    }
    for name, shards in written.items():
        streams = [list(chain(*EXPECTED[shard]["documents"])) for shard in shards]
        expected = [s[at : at + 6] for s in streams for at in range(0, len(s) - 5, 5)]
        stream = MixtureStream(
            path,
            sequence_length=5,
            batch_size=1,
            weights=[1],
            domains=[name],
            num_samples=len(expected),
        )
        rows = [batch.tokens[0].tolist() for batch in stream]
        assert sorted(rows) == sorted(expected)


def test_globs_name_domains_and_splits(folder: Path) -> None:
    naming = Naming(
        domains=parse_domains(["a=code/train/*", "b=web/*", "b=code/validation/*"]),
        validation=["*part-1.bin", "*val_0*"],
    )
    manifest = Manifest.load(adopt(Adoption(folder=str(folder), naming=naming, **NUMBERS)))
    assert paths_of(manifest) == {
        "a": (["code/train/part-0"], ["code/train/part-1"]),
        "b": (["code/validation/part-0.ds", "web/fineweb_train_000001.bin"],
              ["web/fineweb_val_000000.ds"]),
    }  # fmt: skip


def test_a_folder_of_validation_alone_is_a_set_that_nothing_is_trained_on(folder: Path) -> None:
    (folder / "web" / "fineweb_train_000001.bin").unlink()
    manifest = Manifest.load(adopt(Adoption(folder=str(folder), **NUMBERS)))
    assert manifest.training_domains == ("code", "books")
    assert paths_of(manifest)["web"] == ([], ["web/fineweb_val_000000.ds"])
    assert verify(manifest) == []


def write_pair(prefix: Path, documents: list[list[int]]) -> None:
    with IndexedShardWriter(prefix, "uint16") as writer:
        for document in documents:
            writer.add_document(np.array(document))


def test_a_fraction_is_held_out_in_whole_shards(tmp_path: Path) -> None:
    for number in range(10):
        write_pair(tmp_path / "code" / f"part-{number}", [[number + 2] * 9 + [1]])
    globs, fraction = parse_validation(["0.15"])
    assert globs == []
    manifest = Manifest.load(
        adopt(Adoption(folder=str(tmp_path), held_out_fraction=fraction, **NUMBERS))
    )
    assert [shard.path for shard in manifest.domain("code").validation] == [
        "code/part-8",
        "code/part-9",
    ]
    assert len(manifest.domain("code").train) == 8


def test_flat_files_need_their_dtype(tmp_path: Path) -> None:
    documents = foreign("layouts/nanogpt.bin", tmp_path / "web", "train")
    foreign("layouts/olmo-00000.npy", tmp_path / "web", "val")
    with pytest.raises(ValueError, match=r"train\.bin has no header .*--dtype uint16"):
        adopt(Adoption(folder=str(tmp_path), **NUMBERS))
    path = adopt(Adoption(folder=str(tmp_path), dtype="uint16", **NUMBERS))
    (train,) = Manifest.load(path).domain("web").train
    assert (train.format, train.documents, train.tokens) == (
        "raw",
        len(documents),
        sum(map(len, documents)),
    )


TEXTS = [f"text {number} of the prose, äöü, words and words" for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "own"
    return train_tokenizer(TEXTS, vocab_size=280, folder=folder)


def test_a_tokenizer_says_all_and_counts_the_bytes_of_validation_texts(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    for stem, texts in (("train", TEXTS[10:]), ("val", TEXTS[:10])):
        encoded = [each.tolist() for each in tokenizer.encode(texts).documents()]
        write_pair(tmp_path / "prose" / stem, encoded)
    adoption = Adoption(folder=str(tmp_path), tokenizer=str(tokenizer.folder))
    manifest = Manifest.load(adopt(adoption))
    assert manifest.tokenizer.vocab_size == tokenizer.vocab_size
    assert manifest.tokenizer.end_of_text_id == tokenizer.end_of_text_id
    (shard,) = manifest.domain("prose").validation
    assert shard.text_bytes == sum(len(text.encode()) for text in TEXTS[:10])
    assert manifest.bytes_per_token("prose") == shard.text_bytes / shard.tokens
    assert verify(manifest) == []
    again = Manifest.load(adopt(adoption))
    assert again == manifest


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    for stem in ("train", "val"):
        write_pair(tmp_path / "prose" / stem, [[5000, 1]])
    with pytest.raises(
        ValueError, match=r"prose/.*: token 0 is 5000; expected ids from 0 to 279, below"
    ):
        adopt(Adoption(folder=str(tmp_path), tokenizer=str(tokenizer.folder)))


# --- refusals -------------------------------------------------------------------------------------


def refuse(message: str, **question: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        adopt(Adoption(**question))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_adopted_is_named(folder: Path, tmp_path: Path) -> None:
    here = str(folder)
    refuse("nowhere is no folder; --from expects", folder=f"{here}/nowhere", **NUMBERS)
    (tmp_path / "empty").mkdir()
    refuse("empty holds no token files; expected", folder=str(tmp_path / "empty"), **NUMBERS)
    refuse("do not say which tokenizer made them; give", folder=here)
    refuse("do not say which tokenizer made them; give", folder=here, vocab_size=7)
    refuse("leave out --vocab-size", folder=here, tokenizer="gpt2", **NUMBERS)
    refuse(
        "--domain x=nothing/. matches no file; found code/train/part-0.bin",
        folder=here,
        naming=Naming(domains={"x": ["nothing/*"]}),
        **NUMBERS,
    )
    refuse(
        "part-0.bin is matched by --domain x and by --domain y; a file belongs to one",
        folder=here,
        naming=Naming(domains={"x": ["code/*"], "y": ["*/train/*"]}),
        **NUMBERS,
    )
    refuse(
        "no domain has training shards; give at least one text to train on",
        folder=here,
        naming=Naming(domains={"web": ["web/*"]}, validation=["web/*"]),
        **NUMBERS,
    )
    refuse(
        "domain 'web' has no validation shards; put some into a folder 'validation'",
        folder=here,
        naming=Naming(domains={"web": ["web/*train*"]}),
        **NUMBERS,
    )
    refuse(
        "domain 'web' has one shard, and shards are held out whole",
        folder=here,
        naming=Naming(domains={"web": ["web/*train*"]}),
        held_out_fraction=0.1,
        **NUMBERS,
    )
    refuse(
        "end_of_text_id 7 is not below vocab_size 7", folder=here, vocab_size=7, end_of_text_id=7
    )
    refuse(
        "expected the manifest's own path, e.g. out/manifest.json", folder=here, output=Path("out")
    )
    foreign("datatrove/small.ds", folder, "stray")
    refuse("stray.ds lies in no folder that names its domain", folder=here, **NUMBERS)


def test_links_are_not_left_out_silently(folder: Path, tmp_path: Path) -> None:
    here = str(folder)
    (folder / "web" / "lost.npy").symlink_to("nowhere.npy")
    refuse(r"lost\.npy cannot be read \(No such file", folder=here, **NUMBERS)
    (folder / "web" / "lost.npy").unlink()
    (folder / "web" / "again").symlink_to(folder)
    refuse("web/again is a symbolic link to a folder", folder=here, **NUMBERS)
    (folder / "web" / "again").unlink()
    (folder / "web").rename(tmp_path / "elsewhere")
    (folder / "web").symlink_to(tmp_path / "elsewhere")
    refuse("web is a symbolic link to a folder .*elsewhere.*not followed", folder=here, **NUMBERS)


def test_options_that_say_nothing_are_named() -> None:
    with pytest.raises(ValueError, match="--domain 'code': expected name=glob"):
        parse_domains(["code"])
    with pytest.raises(ValueError, match=r"--validation 1\.5: expected a fraction between 0 and 1"):
        parse_validation(["1.5"])
    assert parse_validation(["a/*", "0.5", "b/*"]) == (["a/*", "b/*"], 0.5)


@pytest.mark.parametrize(
    ("path", "domain", "split"),
    [
        ("code/a.bin", "code", "train"),
        ("code/deeper/still/a.bin", "code", "train"),
        ("train/code/a.bin", "code", "train"),
        ("code/validation/a.bin", "code", "validation"),
        ("val/code/a.bin", "code", "validation"),
        ("code/test/x/a.bin", "code", "validation"),
        ("code/val.bin", "code", "validation"),
        ("code/fineweb_val_000001.bin", "code", "validation"),
        ("code/Valid_text_document.bin", "code", "validation"),
        ("code/test-00001.npy", "code", "validation"),
        ("code/unit_test_00001.npy", "code", "train"),
        ("code/valley.bin", "code", "train"),
        ("latest/a.bin", "latest", "train"),
    ],
)
def test_paths_say_domain_and_split(path: str, domain: str, split: Any) -> None:
    assert Naming().place([path])[domain][split] == [path]
