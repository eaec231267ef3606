"""The manifest: round trip, identity, and every disagreement with the files."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from autoscale.manifest import DomainShards, Manifest, Shard, TokenizerRecord
from autoscale.shard_formats.indexed_writer import IndexedShardWriter

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
    loaded.check()


def test_a_moved_folder_is_the_same_data(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(manifest.root / "manifest.json")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    loaded = Manifest.load(moved / "manifest.json")
    loaded.check()
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
    (lambda d: d.update(dtype="float64"), "dtype: 'float64' is no type of token ids; expected one"),
    (change("dtype", "float32"), "domains.0.train.0.dtype: 'float32' is no type of token ids"),
    (change("format", "tar"), "domains.0.train.0.format: .*'indexed', 'npy'.*; found 'tar'"),
    (change("text_bytes", -1), "domains.0.train.0.text_bytes: .*greater than or equal to 0"),
    (lambda d: d.update(data_root="shards"), "data_root 'shards' is relative; expected the full"),
    (lambda d: d["tokenizer"].update(sha256=None), "tokenizer: give path and sha256 .* both"),
    (lambda d: d.pop("tokenizer"), "tokenizer: missing; run prepare again"),
    (lambda d: d["domains"].append(d["domains"][0]), "domain 'code' is listed more than once"),
    (lambda d: d["domains"][1].update(name=""), "domains.1.name: .* at least 1 character"),
    (
        lambda d: d["domains"][1].update(train=[], validation=[]),
        "domain 'prose' has no shards; give it text, or leave it out",
    ),
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
    (lambda d: d["tokenizer"].update(vocab_size=65537), "vocab_size 65537 needs a wider type"),
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
        match=r"domain 'prose', train shard shards/prose/train-0: .*train-0\.bin holds 25 uint16 "
        r"tokens; the manifest expects 20 uint16 tokens: it is another file\. Run prepare again",
    ):
        manifest.check()


def test_another_dtype_than_the_manifests_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="holds 20 uint16 tokens; the manifest expects 20 int32"):
        replace(manifest, dtype="int32").check()


def test_other_documents_than_the_manifests_are_refused(manifest: Manifest) -> None:
    with IndexedShardWriter(manifest.root / "shards/prose/train-0", "uint16") as writer:
        writer.add_document(np.arange(20))
    with pytest.raises(ValueError, match="the index lists 1 documents; the manifest expects 4"):
        manifest.check()


def test_one_file_under_two_names_is_refused(manifest: Manifest) -> None:
    for suffix in (".bin", ".idx"):
        path = manifest.root / f"shards/code/validation-0{suffix}"
        path.unlink()
        path.symlink_to(manifest.root / f"shards/code/train-0{suffix}")
    with pytest.raises(ValueError, match="is the same file as shards/code/train-0; its windows"):
        manifest.check()


def test_a_link_out_of_the_folder_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.bin"
    (manifest.root / "shards/prose/train-0.bin").rename(outside)
    (manifest.root / "shards/prose/train-0.bin").symlink_to(outside)
    with pytest.raises(ValueError, match=r"is a symbolic link to .*-outside\.bin, which lies outs"):
        manifest.check()


def test_a_missing_tokenizer_is_refused(manifest: Manifest) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer's folder .*/nowhere does not exist; run prepar"
    ):
        replace(manifest, tokenizer=replace(manifest.tokenizer, path="nowhere")).check()


# --- shards that were adopted ---------------------------------------------------------------------


def adopted(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest as `prepare --from` writes it without a tokenizer."""
    tokenizer = replace(manifest.tokenizer, path=None, sha256=None)
    domains = tuple(
        replace(
            domain,
            train=tuple(replace(shard, text_bytes=None) for shard in domain.train),
            validation=tuple(replace(shard, text_bytes=None) for shard in domain.validation),
        )
        for domain in manifest.domains
    )
    return replace(manifest, tokenizer=tokenizer, domains=domains, **changes)


def test_shards_may_lie_in_another_folder(manifest: Manifest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    moved = adopted(manifest, data_root=str(manifest.root), root=elsewhere)
    loaded = Manifest.load(moved.save(elsewhere / "manifest.json"))
    assert loaded == moved
    loaded.check()
    shard = loaded.domains[0].train[1]
    assert loaded.location(shard) == str(tmp_path / "shards/code/train-1")
    assert loaded.open_file(shard).tokens().tolist() == list(range(50, 90))


def test_shards_may_lie_behind_a_url(manifest: Manifest) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(manifest.root / "shards"), "/autoscale-manifest/shards", recursive=True)
    try:
        remote = adopted(manifest, data_root="memory://autoscale-manifest")
        remote.check()
        tokens = remote.open_file(remote.domains[1].train[0]).tokens()
        assert tokens.tolist() == list(range(130, 150))
    finally:
        files.rm("/autoscale-manifest", recursive=True)


def test_an_old_manifest_keeps_its_fingerprint(manifest: Manifest) -> None:
    """Written before shards had a format: the same identity of every run."""
    path = manifest.save(manifest.root / "manifest.json")
    document = json.loads(path.read_text())
    del document["data_root"]
    for domain in document["domains"]:
        for shard in domain["train"] + domain["validation"]:
            shard.pop("format")
            shard.pop("dtype")
    path.write_text(json.dumps(document))
    loaded = Manifest.load(path)
    assert loaded == manifest
    assert loaded.fingerprint == "c0b8d3262000e218854fbbb163a1c8b184c408935a466398194a31e36f1a8849"


def test_what_is_unlike_a_prepared_shard_changes_the_fingerprint(manifest: Manifest) -> None:
    code, prose = manifest.domains
    changed = [
        replace(manifest, domains=(code, replace(prose, train=(shard,))))
        for shard in (
            replace(prose.train[0], format="raw"),
            replace(prose.train[0], dtype="int16"),
            replace(prose.train[0], format="raw", dtype="int16"),
        )
    ]
    assert len({each.fingerprint for each in [manifest, *changed]}) == 4


def test_unknown_bytes_of_text_are_an_error_only_where_they_are_needed(manifest: Manifest) -> None:
    unknown = adopted(manifest)
    assert manifest.find_bytes_per_token("code") == manifest.bytes_per_token("code")
    assert unknown.find_bytes_per_token("code") is None
    with pytest.raises(ValueError, match=r"'code': the bytes .* not known.* --tokenizer, or measu"):
        unknown.bytes_per_token("code")


def test_without_a_tokenizer_none_is_copied(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        adopted(manifest).copy_tokenizer(tmp_path / "export")
    assert not (tmp_path / "export").exists()
    assert "no tokenizer is copied" in caplog.text


@pytest.mark.parametrize(("vocab_size", "expected"), [(300, "uint16"), (65_536, "uint16")])
def test_tokens_travel_in_the_narrowest_type(
    manifest: Manifest, vocab_size: int, expected: str
) -> None:
    tokenizer = replace(manifest.tokenizer, vocab_size=vocab_size)
    assert replace(manifest, tokenizer=tokenizer).wire_dtype == np.dtype(expected)
    wide = replace(manifest, dtype="int32", tokenizer=replace(tokenizer, vocab_size=65_537))
    assert wide.wire_dtype == np.dtype("uint32")
