"""The manifest: round trip, identity, and every disagreement with the files."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoscale.manifest import DomainShards, Manifest, Shard, TokenizerRecord
from autoscale.shards import IndexedShardWriter

TEXT_BYTES = 31


def make_shard(root: Path, path: str, *, num_tokens: int = 20, first: int = 1) -> Shard:
    with IndexedShardWriter(root / path, "uint16") as writer:
        for begin in range(first, first + num_tokens, 5):
            writer.add_document(np.arange(begin, begin + 5))
        tokens, documents, sha256 = writer.close()
    return Shard(
        path=path, tokens=tokens, documents=documents, text_bytes=TEXT_BYTES, sha256=sha256
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    return Manifest(
        dtype="uint16",
        tokenizer=TokenizerRecord(
            path="tokenizer", vocab_size=300, end_of_text_id=0, sha256="0" * 64
        ),
        domains=(
            DomainShards(
                name="code",
                train=(
                    make_shard(tmp_path, "shards/code/train-0"),
                    make_shard(tmp_path, "shards/code/train-1", num_tokens=40, first=50),
                ),
                validation=(make_shard(tmp_path, "shards/code/validation-0", first=100),),
            ),
            DomainShards(
                name="prose",
                train=(make_shard(tmp_path, "shards/prose/train-0", first=130),),
                validation=(),
            ),
        ),
        root=tmp_path,
    )


def test_a_saved_manifest_is_loaded_unchanged(manifest: Manifest) -> None:
    path = manifest.save(manifest.root / "manifest.json")
    loaded = Manifest.load(str(path))
    assert loaded == manifest
    assert loaded.root == manifest.root
    assert loaded.fingerprint == manifest.fingerprint
    document = json.loads(path.read_text())
    assert (document["kind"], document["schema_version"]) == ("manifest", 1)
    assert "root" not in document
    loaded.verify()


def test_a_moved_folder_is_the_same_data(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(manifest.root / "manifest.json")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    loaded = Manifest.load(moved / "manifest.json")
    loaded.verify()
    assert loaded.fingerprint == manifest.fingerprint


def test_what_the_domains_hold(manifest: Manifest) -> None:
    assert manifest.domain_names == ("code", "prose")
    assert manifest.domain("code").train[1].tokens == 40
    assert manifest.available_tokens("code") == 60
    assert manifest.bytes_per_token("code") == TEXT_BYTES / 20
    with pytest.raises(ValueError, match="has no domain 'coda'; did you mean 'code'"):
        manifest.domain("coda")
    with pytest.raises(ValueError, match="has no domain 'xyz'; it has code, prose"):
        manifest.available_tokens("xyz")
    with pytest.raises(ValueError, match="domain 'prose' has no validation shards; hold out some"):
        manifest.bytes_per_token("prose")


def test_the_fingerprint_is_of_the_tokens_alone(manifest: Manifest) -> None:
    code, prose = manifest.domains
    moved = replace(code, train=tuple(replace(s, path=f"x/{s.path}") for s in code.train))
    other_tokens = replace(prose, train=(replace(prose.train[0], sha256="1" * 64),))
    swapped = replace(code, train=code.train[::-1])
    same = [
        replace(manifest, domains=(moved, prose)),
        replace(manifest, domains=(prose, code)),
        replace(manifest, tokenizer=replace(manifest.tokenizer, path="elsewhere")),
    ]
    other = [
        replace(manifest, domains=(code, other_tokens)),
        replace(manifest, domains=(swapped, prose)),
        replace(manifest, domains=(code,)),
        replace(manifest, domains=(code, replace(prose, name="text"))),
        replace(manifest, dtype="int32"),
        replace(manifest, tokenizer=replace(manifest.tokenizer, sha256="1" * 64)),
        replace(manifest, tokenizer=replace(manifest.tokenizer, end_of_text_id=1)),
    ]
    assert {each.fingerprint for each in same} == {manifest.fingerprint}
    assert len({each.fingerprint for each in [manifest, *other]}) == 1 + len(other)


def test_records_become_plain_dictionaries_and_come_back(manifest: Manifest) -> None:
    shard = manifest.domains[0].train[0]
    assert Shard(**json.loads(json.dumps(asdict(shard)))) == shard


def test_the_tokenizer_is_copied(manifest: Manifest, tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / "config.json").write_text("{}")
    manifest.copy_tokenizer(target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "tokenizer.json"]


# --- errors in the file ---------------------------------------------------------------------------


def first_shard(document: Any) -> Any:
    return document["domains"][0]["train"][0]


def change(path: str, value: Any) -> Callable[[Any], None]:
    """Set an entry of the first training shard."""

    def apply(document: Any) -> None:
        first_shard(document)[path] = value

    return apply


ERRORS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda d: d.update(schema_version=7), "schema version 7; this version of autoscale reads 1"),
    (lambda d: d.update(kind="fit"), "is of kind 'fit'; expected 'manifest'"),
    (lambda d: d.update(domian=[]), "domian: unknown key; remove it"),
    (lambda d: d.update(root="/etc"), "root: unknown key; remove it"),
    (lambda d: d.update(domains=[]), "domains: .* at least 1 item"),
    (lambda d: d.update(dtype="float64"), "dtype: .*'uint16' or 'int32'; found 'float64'"),
    (lambda d: d.pop("tokenizer"), "tokenizer: missing; run prepare again"),
    (lambda d: d["domains"].append(d["domains"][0]), "domain 'code' is listed more than once"),
    (lambda d: d["domains"][1].update(name=""), "domains.1.name: .* at least 1 character"),
    (lambda d: d["domains"][1].update(train=[]), "domain 'prose' has no training shards; give it"),
    (
        lambda d: d["domains"][1]["validation"].append(first_shard(d)),
        "shard 'shards/code/train-0' is listed more than once; its windows would be drawn twice",
    ),
    (change("path", "../secret"), "domains.0.train.0.path: path '../secret' leads out of the man"),
    (change("path", "a/../../b"), "path 'a/../../b' leads out of the manifest's folder"),
    (change("path", "/etc/passwd"), "path '/etc/passwd' leads out of the manifest's folder"),
    (change("path", ""), "path '' leads out of the manifest's folder"),
    (change("path", "..\\b"), "leads out of the manifest's folder"),
    (change("tokens", 0), "domains.0.train.0.tokens: .*greater than or equal to 1; found 0"),
    (change("tokens", -5), "domains.0.train.0.tokens: .*greater than or equal to 1; found -5"),
    (change("tokens", "20"), "domains.0.train.0.tokens: .*valid integer; found '20'"),
    (change("tokens", float("nan")), "domains.0.train.0.tokens: .*valid integer"),
    (change("documents", 2.5), "domains.0.train.0.documents: .*valid integer"),
    (change("sha256", "abc"), "domains.0.train.0.sha256: .*; found 'abc'"),
    (change("size", 3), "domains.0.train.0.size: unknown key; remove it"),
    (lambda d: first_shard(d).pop("tokens"), "domains.0.train.0.tokens: missing; run prepare aga"),
    (lambda d: d["tokenizer"].update(path="/tmp"), "tokenizer.path: path '/tmp' leads out of"),
    (
        lambda d: d["tokenizer"].update(end_of_text_id=300),
        "end_of_text_id 300 is not below vocab_size 300",
    ),
    (lambda d: d["tokenizer"].update(vocab_size=65537), "vocab_size 65537 needs int32"),
]


@pytest.mark.parametrize(("damage", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_impossible_manifests_are_refused_in_one_line(
    manifest: Manifest, damage: Callable[[Any], Any], message: str
) -> None:
    path = manifest.save(manifest.root / "manifest.json")
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json does not exist; expected the manifest"):
        Manifest.load(tmp_path / "manifest.json")


def test_a_manifest_is_written_into_its_own_folder(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paths are relative to its folder; write it there"):
        manifest.save(tmp_path / "elsewhere" / "manifest.json")


# --- disagreements with the shards ----------------------------------------------------------------


def test_a_missing_shard_names_domain_split_and_file(manifest: Manifest) -> None:
    (manifest.root / "shards/code/validation-0.bin").unlink()
    with pytest.raises(
        ValueError,
        match=r"domain 'code', validation shard shards/code/validation-0: .*\.bin cannot be read",
    ):
        manifest.check()


def test_counts_other_than_the_manifests_are_refused(manifest: Manifest) -> None:
    make_shard(manifest.root, "shards/prose/train-0", num_tokens=25)
    with pytest.raises(
        ValueError,
        match=r"manifest expects 20 uint16 tokens in 4 documents; the files hold 25 uint16 tokens "
        r"in 5\. Run prepare again",
    ):
        manifest.check()


def test_another_dtype_than_the_manifests_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="expects 20 int32 tokens in 4 documents; the files hold"):
        replace(manifest, dtype="int32").check()


def test_swapped_shards_are_found_by_their_content(manifest: Manifest) -> None:
    make_shard(manifest.root, "shards/prose/train-0", first=7)
    manifest.check()
    with pytest.raises(
        ValueError, match=r"domain 'prose', train shard .*: sha256 is .* the content"
    ):
        manifest.verify()


def test_a_damaged_index_is_found_by_verify(manifest: Manifest) -> None:
    path = manifest.root / "shards/prose/train-0.idx"
    content = bytearray(path.read_bytes())
    content[34] = 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="sequence 1 begins at byte 10; expected 8, right after"):
        manifest.verify()


def test_a_missing_tokenizer_is_refused(manifest: Manifest) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer's folder .*/nowhere does not exist; run prepar"
    ):
        replace(manifest, tokenizer=replace(manifest.tokenizer, path="nowhere")).check()
