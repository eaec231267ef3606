"""Every way in which data can be wrong has its own one-line error before anything is trained.

Four ways to look at data: load the manifest (every command does), check it (`plan`, and all that
comes after it), verify it (`prepare --verify`), open a stream of it (training). The table says
which of the first three finds a corruption; the stream finds what check finds.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from autoscale.existing_shards import Adoption, adopt
from autoscale.manifest import Manifest
from autoscale.mixture_stream import MixtureStream
from autoscale.shard_formats.indexed_writer import IndexedShardWriter
from autoscale.tokenizer import train_tokenizer
from autoscale.verification import verify

VOCAB_SIZE = 300
TEXTS = [f"{number} words and other words, written {number * 7} times" for number in range(60)]
DOCUMENTS, LENGTH = 10, 8
TOKENS = DOCUMENTS * LENGTH
HEADER, LENGTHS = 34, 4 * DOCUMENTS
OFFSETS = HEADER + LENGTHS
BOUNDARIES = OFFSETS + 8 * DOCUMENTS

Stage = Literal["load", "check", "verify"]


def tokens_of(seed: int) -> np.ndarray:
    """Ten documents of eight tokens."""
    tokens = np.random.default_rng(seed).integers(1, 250, TOKENS)
    tokens[LENGTH - 1 :: LENGTH] = 0
    return tokens


def write_pair(prefix: Path, tokens: np.ndarray, dtype: str = "uint16", parts: int = 10) -> None:
    with IndexedShardWriter(prefix, dtype) as writer:
        for document in np.split(tokens, parts):
            writer.add_document(document)


def write_llmc(path: Path, announced: int = TOKENS, version: int = 1) -> None:
    header = np.zeros(256, dtype=np.int32)
    header[:3] = 20240520, version, announced
    path.write_bytes(header.tobytes() + tokens_of(5).astype(np.uint16).tobytes())


def write_all(folder: Path) -> None:
    """A domain for every format; all shards but one hold as many tokens."""
    for number, name in enumerate(("pair", "npy", "llmc", "raw", "ds")):
        (folder / name).mkdir(parents=True)
        write_pair(folder / name / "val", tokens_of(number + 20), "int32")
    write_pair(folder / "pair" / "train", tokens_of(0))
    write_pair(folder / "pair" / "twin", tokens_of(1))
    write_pair(folder / "pair" / "short", tokens_of(2)[:40], parts=5)
    np.save(folder / "npy" / "train.npy", tokens_of(3).astype(np.uint16))
    write_llmc(folder / "llmc" / "train.bin")
    tokens_of(7).astype(np.uint16).tofile(folder / "raw" / "train.npy")
    tokens_of(9).astype(np.uint16).tofile(folder / "ds" / "train.ds")
    ends = np.arange(LENGTH, TOKENS + 1, LENGTH)
    ends.astype(np.uint64).tofile(folder / "ds" / "train.ds.index")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and nothing wrong."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    write_all(folder)
    made = train_tokenizer(TEXTS, vocab_size=VOCAB_SIZE, folder=folder.parent / "tokenizer")
    adopt(Adoption(folder=str(folder), tokenizer=str(made.folder), dtype="uint16"))
    return folder


# --- corruptions ----------------------------------------------------------------------------------

Corrupt = Callable[[Path], Any]


def patch(path: str, offset: int, content: bytes) -> Corrupt:
    """Overwrite some bytes of a file."""

    def corrupt(folder: Path) -> None:
        with open(folder / path, "r+b") as file:
            file.seek(offset)
            file.write(content)

    return corrupt


def integer(path: str, offset: int, value: int, size: int = 8) -> Corrupt:
    return patch(path, offset, value.to_bytes(size, "little", signed=True))


def cut(path: str, size: int) -> Corrupt:
    return lambda folder: os.truncate(folder / path, size)


def swap(one: str, other: str) -> Corrupt:
    def corrupt(folder: Path) -> None:
        for source, target in ((one, "kept"), (other, one), ("kept", other)):
            (folder / source).rename(folder / target)

    return corrupt


def remove(path: str) -> Corrupt:
    return lambda folder: (folder / path).unlink()


def instead(path: str, put: Callable[[Path], Any]) -> Corrupt:
    """Something else in the place of a file."""

    def corrupt(folder: Path) -> None:
        (folder / path).unlink()
        put(folder / path)

    return corrupt


def outside(path: Path) -> None:
    shutil.copy(path.parent / "twin.bin", path.parents[2] / "outside.bin")
    path.symlink_to(path.parents[2] / "outside.bin")


def save_npy(array: np.ndarray) -> Corrupt:
    return lambda folder: np.save(folder / "npy" / "train.npy", array)


def edit(change: Callable[[Any], Any]) -> Corrupt:
    """Change the manifest."""

    def corrupt(folder: Path) -> None:
        path = folder / "manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return corrupt


def domain(document: Any, name: str) -> Any:
    return next(each for each in document["domains"] if each["name"] == name)


def shard(name: str, **changes: Any) -> Corrupt:
    """Change the first training shard of a domain in the manifest."""
    return edit(lambda document: domain(document, name)["train"][0].update(changes))


def rehash(corrupt: Corrupt) -> Corrupt:
    """A corruption that the manifest was written after: sizes and hashes are those of the files."""

    def both(folder: Path) -> None:
        corrupt(folder)
        path = folder / "manifest.json"
        document = json.loads(path.read_text())
        manifest = Manifest.load(path)
        for entry, known in zip(document["domains"], manifest.domains, strict=True):
            for split in ("train", "validation"):
                for record, each in zip(entry[split], getattr(known, split), strict=True):
                    record["sha256"] = manifest.open_file(each).hash()
        path.write_text(json.dumps(document))

    return both


def other_tokenizer(folder: Path) -> None:
    target = tokenizer_of(folder)
    shutil.rmtree(target)
    train_tokenizer([text[::-1] for text in TEXTS], vocab_size=VOCAB_SIZE, folder=target)


def tokenizer_of(folder: Path) -> Path:
    return next(folder.glob("tokenizer-*"))


def link_twice(folder: Path) -> None:
    for suffix in (".bin", ".idx"):
        (folder / f"pair/twin{suffix}").unlink()
        (folder / f"pair/twin{suffix}").symlink_to(f"train{suffix}")


def zero_documents(folder: Path) -> None:
    """The second document gives its tokens to the first."""
    integer("pair/train.idx", HEADER, 2 * LENGTH, 4)(folder)
    integer("pair/train.idx", HEADER + 4, 0, 4)(folder)
    integer("pair/train.idx", OFFSETS + 8, 4 * LENGTH)(folder)


def held_out_document(folder: Path) -> None:
    document = tokens_of(20)[:LENGTH].astype(np.uint16).tobytes()
    patch("pair/train.bin", 2 * LENGTH * 3, document)(folder)


TABLE: list[tuple[str, Stage, Corrupt, str]] = [
    # pairs of .bin and .idx
    (
        "bin cut",
        "check",
        cut("pair/train.bin", 158),
        "train.bin has 158 bytes; train.idx expects 160",
    ),
    (
        "bin empty",
        "check",
        cut("pair/train.bin", 0),
        "train.bin has 0 bytes; train.idx expects 160",
    ),
    (
        "bin missing",
        "check",
        remove("pair/train.bin"),
        "train.bin cannot be read (No such file or dir",
    ),
    (
        "idx missing",
        "check",
        remove("pair/train.idx"),
        "train.idx cannot be read (No such file or dir",
    ),
    (
        "idx cut",
        "check",
        cut("pair/train.idx", 200),
        "train.idx has 200 bytes; expected 242 for 10 seq",
    ),
    (
        "header cut",
        "check",
        cut("pair/train.idx", 20),
        "train.idx has 20 bytes; expected at least 34",
    ),
    (
        "indices swapped",
        "check",
        swap("pair/train.idx", "pair/short.idx"),
        "short.bin has 80 bytes; short.idx expects 160",
    ),
    ("shards swapped", "verify", swap("pair/train.bin", "pair/twin.bin"), "pair/twin: sha256 is"),
    ("magic", "check", patch("pair/train.idx", 0, b"XX"), "train.idx begins with b'XXIDIDX"),
    (
        "version",
        "check",
        integer("pair/train.idx", 9, 2),
        "train.idx has format version 2; autoscale",
    ),
    ("unknown dtype", "check", integer("pair/train.idx", 17, 99, 1), "has dtype code 99; expected"),
    (
        "other dtype",
        "check",
        integer("pair/train.idx", 17, 3, 1),
        "holds 80 int16 tokens; the manifest",
    ),
    (
        "wide dtype",
        "check",
        integer("pair/train.idx", 17, 4, 1),
        "has 160 bytes; train.idx expects 176",
    ),
    (
        "no sequences",
        "check",
        integer("pair/train.idx", 18, 0),
        "lists 0 sequences and 11 document",
    ),
    (
        "huge count",
        "check",
        integer("pair/train.idx", 18, 2**40),
        "for 1099511627776 sequences and",
    ),
    (
        "negative length",
        "verify",
        integer("pair/train.idx", HEADER, -3, 4),
        "sequence 0 has length -3",
    ),
    (
        "moved sequence",
        "verify",
        integer("pair/train.idx", OFFSETS + 8, 6),
        "sequence 1 begins at byte",
    ),
    (
        "documents past end",
        "verify",
        integer("pair/train.idx", 234, 15),
        "boundaries run from 0 to 15",
    ),
    (
        "documents go down",
        "verify",
        integer("pair/train.idx", BOUNDARIES + 8, 9),
        "run from 0 to 10; ex",
    ),
    (
        "empty document",
        "verify",
        rehash(zero_documents),
        "1 documents are empty, the first of them docum",
    ),
    # what stands in the place of a file
    (
        "folder",
        "check",
        instead("pair/train.bin", Path.mkdir),
        "train.bin is a folder; expected a file",
    ),
    (
        "special file",
        "check",
        instead("pair/train.bin", lambda path: os.mknod(path, stat.S_IFSOCK)),
        "train.bin is no regular file; expected a file",
    ),
    (
        "link in a circle",
        "check",
        instead("pair/train.bin", lambda path: path.symlink_to("train.bin")),
        "train.bin cannot be read (Too many levels of symbolic links)",
    ),
    ("link out", "check", instead("pair/train.bin", outside), "outside.bin, which lies outside of"),
    (
        "one file twice",
        "check",
        link_twice,
        "pair/twin is the same file as pair/train; its windows",
    ),
    # flat formats
    (
        "npy 2-d",
        "check",
        save_npy(np.zeros((8, 10), np.uint16)),
        "uint16 array of shape (8, 10); exp",
    ),
    (
        "npy fortran",
        "check",
        save_npy(np.asfortranarray(np.zeros((2, 40), np.uint16))),
        "uint16 array of shape (2, 40); expected one row",
    ),
    (
        "npy float",
        "check",
        save_npy(np.zeros(TOKENS)),
        "has items of type 'float64'; expected token ids",
    ),
    (
        "npy big-endian",
        "check",
        save_npy(np.zeros(TOKENS, ">u2")),
        "holds a >u2 array of shape (80,)",
    ),
    ("npy objects", "check", save_npy(np.array([None] * 3)), "holds a object array of shape (3,)"),
    (
        "npy longer",
        "check",
        save_npy(np.zeros(81, np.uint16)),
        "holds 81 uint16 tokens; the manifest",
    ),
    (
        "npy cut",
        "check",
        cut("npy/train.npy", 200),
        "200 bytes; its header of 128 bytes announces 80",
    ),
    ("npy header", "check", patch("npy/train.npy", 10, b"(" * 20), "has no readable numpy header"),
    (
        "llm.c count",
        "check",
        lambda f: write_llmc(f / "llmc/train.bin", 81),
        "announces 81 uint16 tok",
    ),
    (
        "llm.c negative",
        "check",
        lambda f: write_llmc(f / "llmc/train.bin", -1),
        "announces -1 uint16",
    ),
    (
        "llm.c version",
        "check",
        lambda f: write_llmc(f / "llmc/train.bin", version=3),
        "(version 3); ex",
    ),
    (
        "llm.c cut",
        "check",
        cut("llmc/train.bin", 900),
        "at least llm.c's header of 1024: the file is",
    ),
    (
        "raw of odd size",
        "check",
        cut("raw/train.npy", 159),
        "159 bytes; expected a multiple of 2 above",
    ),
    (
        "raw empty",
        "check",
        cut("raw/train.npy", 0),
        "train.npy has 0 bytes; expected a multiple of 2",
    ),
    (
        "raw shorter",
        "check",
        cut("raw/train.npy", 158),
        "holds 79 uint16 tokens; the manifest expects",
    ),
    (
        "ds index past end",
        "check",
        integer("ds/train.ds.index", 72, 99),
        "train.ds.index ends at token 99",
    ),
    (
        "ds index goes down",
        "verify",
        integer("ds/train.ds.index", 0, 50),
        "document 1 ends out of order",
    ),
    (
        "ds index cut",
        "check",
        cut("ds/train.ds.index", 77),
        "train.ds.index has 77 bytes; expected 8",
    ),
    (
        "ds index missing",
        "check",
        remove("ds/train.ds.index"),
        "train.ds.index cannot be read (No such",
    ),
    # the manifest
    (
        "no manifest",
        "load",
        remove("manifest.json"),
        "manifest.json does not exist; expected the man",
    ),
    ("half a manifest", "load", cut("manifest.json", 300), "manifest.json is not readable JSON"),
    ("kind", "load", edit(lambda d: d.update(kind="fit")), "is of kind 'fit'; expected 'manifest'"),
    (
        "future",
        "load",
        edit(lambda d: d.update(schema_version=9)),
        "has schema version 9; this version",
    ),
    (
        "unknown key",
        "load",
        edit(lambda d: d.update(domians=[])),
        "domians: unknown key; remove it",
    ),
    ("unknown shard key", "load", shard("npy", size=3), "train.0.size: unknown key; remove it"),
    (
        "no domains",
        "load",
        edit(lambda d: d.update(domains=[])),
        "domains: Tuple should have at least 1",
    ),
    (
        "relative root",
        "load",
        edit(lambda d: d.update(data_root="x")),
        "data_root 'x' is relative; exp",
    ),
    (
        "path outside",
        "load",
        shard("npy", path="../x.npy"),
        "path '../x.npy' leads out of the manifest's",
    ),
    (
        "absolute path",
        "load",
        shard("npy", path="/x.npy"),
        "path '/x.npy' leads out of the manifest's",
    ),
    ("format", "load", shard("npy", format="tar"), "'datatrove'; found 'tar'"),
    (
        "dtype",
        "load",
        shard("npy", dtype="float16"),
        "'float16' is no type of token ids; expected one",
    ),
    ("hash", "load", shard("npy", sha256="12ab"), "train.0.sha256: String should match pattern"),
    ("no tokens", "load", shard("npy", tokens=0), "greater than or equal to 1; found 0"),
    ("negative tokens", "load", shard("npy", tokens=-7), "greater than or equal to 1; found -7"),
    (
        "NaN tokens",
        "load",
        shard("npy", tokens=float("nan")),
        "train.0.tokens: Input should be a valid",
    ),
    (
        "domain without shards",
        "load",
        edit(lambda d: domain(d, "npy").update(train=[], validation=[])),
        "domain 'npy' has no shards; give it text, or leave it out",
    ),
    (
        "nothing to train on",
        "load",
        edit(lambda d: [each.update(train=[]) for each in d["domains"]]),
        "no domain has training shards; give at least one text to train on",
    ),
    (
        "domain twice",
        "load",
        edit(lambda d: d["domains"].append(d["domains"][0])),
        "domain 'ds' is listed more than once; name each only once",
    ),
    (
        "shard twice",
        "load",
        edit(lambda d: domain(d, "npy")["train"].append(domain(d, "npy")["train"][0])),
        "shard 'npy/train.npy' is listed more than once; its windows would be drawn twice",
    ),
    (
        "vocabulary too large",
        "load",
        edit(lambda d: d.update(dtype="uint8")),
        "vocab_size 300 needs a wider type",
    ),
    (
        "end-of-text id",
        "load",
        edit(lambda d: d["tokenizer"].update(end_of_text_id=300)),
        "end_of_text_id 300 is not below vocab_size 300",
    ),
    (
        "other counts",
        "check",
        shard("raw", tokens=81),
        "expects 81 uint16 tokens: it is another file",
    ),
    (
        "other documents",
        "check",
        shard("pair", documents=3),
        "the manifest expects 3: it is another ind",
    ),
    # tokenizer and contents
    (
        "tokenizer missing",
        "check",
        lambda f: shutil.rmtree(tokenizer_of(f)),
        " does not exist; run prepare again",
    ),
    (
        "other tokenizer",
        "verify",
        other_tokenizer,
        "it is another tokenizer than the one of the shards",
    ),
    (
        "damaged tokenizer",
        "verify",
        lambda f: os.truncate(tokenizer_of(f) / "tokenizer.json", 99),
        "cannot be loaded (",
    ),
    ("fingerprint", "verify", shard("npy", sha256="0" * 64), f"the manifest expects {'0' * 64}"),
    (
        "token past the vocabulary",
        "verify",
        rehash(integer("pair/train.bin", 6, 300, 2)),
        "token 3 is 300; expected ids from 0 to 299",
    ),
    (
        "negative token",
        "verify",
        rehash(integer("pair/val.bin", 8, -2, 4)),
        "token 2 is -2; expected ids from 0 to 299",
    ),
    (
        "held out and trained on",
        "verify",
        rehash(held_out_document),
        "1 of its documents are also held out, the first of them document 3 in domain 'pair'",
    ),
]


GOOD: dict[str, Any] = {"sequence_length": 8, "batch_size": 2, "weights": [1, 1, 1, 1, 1]}
UNSEEN_BY_A_STREAM = ("one file twice", "other documents", "tokenizer missing")


def look(folder: Path, stage: Stage) -> None:
    """Look at the data in the given way; the ways before it must find nothing.

    Raises:
        ValueError: something is wrong.
    """
    path = folder / "manifest.json"
    manifest = Manifest.load(path)
    if stage == "load":
        return
    manifest.check()
    if stage == "verify":
        problems = verify(manifest)
        if problems:
            raise ValueError("\n".join(problems))


EARLIER: dict[Stage, Stage] = {"check": "load", "verify": "check"}


@pytest.fixture(scope="module")
def messages(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each corruption."""
    found = {}
    for name, stage, corrupt, _ in TABLE:
        folder = tmp_path_factory.mktemp("corrupt") / "data"
        shutil.copytree(whole, folder)
        corrupt(folder)
        if stage in EARLIER:
            look(folder, EARLIER[stage])
        with pytest.raises(ValueError) as caught:
            look(folder, stage)
        found[name] = str(caught.value)
        if stage != "verify" and name not in UNSEEN_BY_A_STREAM:
            with pytest.raises(ValueError) as met:
                MixtureStream(folder / "manifest.json", **GOOD)
            found[f"{name}, stream"] = str(met.value)
    return found


@pytest.mark.parametrize(("name", "message"), [(name, message) for name, *_, message in TABLE])
def test_every_corruption_is_named_in_one_line(
    messages: dict[str, str], name: str, message: str
) -> None:
    assert message in messages[name]
    lines = messages[name].splitlines()
    assert len(lines) == (2 if name == "shards swapped" else 1)  # one for each of the two
    assert all(len(line) > 40 for line in lines)


def test_each_error_is_of_one_corruption(messages: dict[str, str]) -> None:
    """No error text of the table fits another corruption."""
    assert len(TABLE) >= 30
    for name, *_, message in TABLE:
        fits = {each.removesuffix(", stream") for each, text in messages.items() if message in text}
        assert fits == {name}


def test_a_stream_refuses_what_check_refuses(messages: dict[str, str]) -> None:
    """Training without `plan` meets a damaged file when it opens the stream."""
    for name, stage, _, message in TABLE:
        if stage != "verify" and name not in UNSEEN_BY_A_STREAM:
            assert message in messages[f"{name}, stream"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "data"))
    (folder / "pair/train.idx").chmod(0)
    with pytest.raises(ValueError, match=r"train\.idx cannot be read \(Permission denied\)"):
        look(folder, "check")


def test_nothing_is_wrong_with_the_data_before(whole: Path) -> None:
    look(whole, "verify")
    stream = MixtureStream(
        whole / "manifest.json", sequence_length=8, batch_size=2, weights=[1, 1, 1, 1, 1]
    )
    assert stream.batch(0).tokens.shape == (2, 9)


# --- what is asked of the data --------------------------------------------------------------------

NAN, INFINITE = float("nan"), float("inf")
QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"weights": [1, NAN, 1, 1, 1]}, "weight .* is nan; expected a finite number"),
    ({"weights": [1, 1, -0.5, 1, 1]}, "weight .* is -0.5; expected a finite number"),
    ({"weights": [1, 1, 1, 1, INFINITE]}, "weight .* is inf; expected a finite number"),
    ({"weights": [0, 0, 0, 0, 0]}, "all weights are 0"),
    ({"weights": {"ds": 1, "tar": 2}}, "domain 'tar'"),
    ({"weights": [1, 2]}, "2 weights|weights .* 5"),
    ({"domains": ["ds", "ds"], "weights": [1, 1]}, "'ds' .* more than once|'ds' .*twice"),
    ({"domains": ["ds", "dss"], "weights": [1, 1]}, "no domain 'dss'; did you mean 'ds'"),
    ({"sequence_length": 4000}, "no window|not one window|shorten|too short"),
    ({"split": "test"}, "split is 'test'; expected 'train' or 'validation'"),
    ({"packing": "tight"}, "packing is 'tight'; expected"),
]


@pytest.mark.parametrize(("changes", "message"), QUESTIONS)
def test_impossible_questions_are_refused_in_one_line(
    whole: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        MixtureStream(whole / "manifest.json", **{**GOOD, **changes})
    assert "\n" not in str(caught.value)
