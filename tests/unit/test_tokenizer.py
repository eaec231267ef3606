"""Tokenizers: reversible, reproducible, loadable by transformers, and strict about end-of-text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from autoscale.tokenizer import (
    END_OF_TEXT,
    TextTokenizer,
    add_mask_token,
    import_tokenizer,
    mask_token_id,
    tokenizer_fingerprint,
    tokenizer_threads,
    train_tokenizer,
)

SAMPLE = [f"def function_{number}(argument): return argument * {number}\n" for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "trained"
    return train_tokenizer(SAMPLE, vocab_size=300, folder=folder)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8))
def test_every_text_can_be_recovered(tokenizer: TextTokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode(texts)
    backend = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    documents = list(encoded.documents())
    assert len(documents) == len(texts)
    for text, tokens in zip(texts, documents, strict=True):
        assert tokens[-1] == tokenizer.end_of_text_id
        assert tokenizer.end_of_text_id not in tokens[:-1]
        assert backend.decode(tokens[:-1].tolist()) == text


@pytest.mark.parametrize("text", [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT}\n" * 3])
def test_end_of_text_spelled_out_stays_text(tokenizer: TextTokenizer, text: str) -> None:
    (tokens,) = tokenizer.encode([text]).documents()
    assert np.flatnonzero(tokens == tokenizer.end_of_text_id).tolist() == [len(tokens) - 1]
    loaded = AutoTokenizer.from_pretrained(tokenizer.folder)
    assert loaded.decode(tokens[:-1]) == text


def test_a_copy_gets_a_mask_token_behind_all_others(tokenizer: TextTokenizer, tmp_path) -> None:
    assert mask_token_id(tokenizer.folder) is None
    folder = shutil.copytree(tokenizer.folder, tmp_path / "model")
    add_mask_token(folder, tokenizer.vocab_size)
    assert mask_token_id(folder) == tokenizer.vocab_size
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.mask_token_id == tokenizer.vocab_size == len(loaded) - 1
    (tokens,) = tokenizer.encode([SAMPLE[0]]).documents()
    ids = loaded(SAMPLE[0] + loaded.mask_token).input_ids
    assert ids == [*tokens[:-1].tolist(), tokenizer.vocab_size]
    add_mask_token(folder, 7)  # it has one
    assert mask_token_id(folder) == tokenizer.vocab_size
    other = shutil.copytree(tokenizer.folder, tmp_path / "other")
    add_mask_token(other, tokenizer.vocab_size + 9)  # ids in between are missing
    assert mask_token_id(other) is None


def test_transformers_loads_the_folder_and_agrees(tokenizer: TextTokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer.folder)
    assert loaded.is_fast
    assert loaded.eos_token == END_OF_TEXT
    assert loaded.eos_token_id == tokenizer.end_of_text_id
    assert len(loaded) == tokenizer.vocab_size == 300
    (tokens,) = tokenizer.encode([SAMPLE[0]]).documents()
    assert loaded(SAMPLE[0]).input_ids == tokens[:-1].tolist()


def test_training_again_gives_the_same_bytes(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    for threads in (False, True):
        with tokenizer_threads(enabled=threads):
            again = train_tokenizer(iter(SAMPLE), vocab_size=300, folder=tmp_path / str(threads))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            expected = (tokenizer.folder / name).read_bytes()
            assert (again.folder / name).read_bytes() == expected


def test_an_imported_tokenizer_encodes_alike(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    imported = import_tokenizer(str(tokenizer.folder), folder=tmp_path / "imported")
    assert imported.end_of_text_id == tokenizer.end_of_text_id
    assert imported.encode(SAMPLE).tokens.tolist() == tokenizer.encode(SAMPLE).tokens.tolist()
    assert tokenizer_fingerprint(imported.folder) == tokenizer_fingerprint(tokenizer.folder)


def test_the_fingerprint_knows_the_vocabulary_and_nothing_else(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tokenizer.folder, moved)
    content = json.loads((moved / "tokenizer.json").read_text())
    content["truncation"] = None
    (moved / "tokenizer.json").write_text(json.dumps(content, indent=4))
    assert tokenizer_fingerprint(moved) == tokenizer_fingerprint(tokenizer.folder)
    other = train_tokenizer(SAMPLE, vocab_size=301, folder=tmp_path / "other")
    assert tokenizer_fingerprint(other.folder) != tokenizer_fingerprint(tokenizer.folder)


def test_truncation_of_an_imported_tokenizer_is_ignored(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    backend = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    shutil.copytree(tokenizer.folder, tmp_path / "cut")
    backend.save(str(tmp_path / "cut" / "tokenizer.json"))
    imported = import_tokenizer(str(tmp_path / "cut"), folder=tmp_path / "imported")
    assert imported.encode(SAMPLE).tokens.tolist() == tokenizer.encode(SAMPLE).tokens.tolist()


def test_too_small_and_too_large_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 256; expected at least 257"):
        train_tokenizer(SAMPLE, vocab_size=256, folder=tmp_path)
    with pytest.raises(ValueError, match=r"vocab_size is 5000, but the sampled text yields only"):
        train_tokenizer(SAMPLE[:3], vocab_size=5000, folder=tmp_path)


def test_what_transformers_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.path .*empty.*transformers cannot load it"):
        import_tokenizer(str(tmp_path / "empty"), folder=tmp_path / "imported")


def save_backend(backend: Tokenizer, folder: Path, settings: dict[str, object]) -> str:
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_tokenizer_without_end_of_text_is_refused(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    backend = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    folder = save_backend(backend, tmp_path / "plain", {})
    with pytest.raises(ValueError, match=r"has no end-of-text token; set eos_token"):
        import_tokenizer(folder, folder=tmp_path / "imported")


def test_a_tokenizer_that_makes_end_of_text_of_plain_text_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "word": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>"])
    folder = save_backend(backend, tmp_path / "words", {"eos_token": "</s>"})
    with pytest.raises(ValueError, match=r"as plain text gives its end-of-text id 1"):
        import_tokenizer(folder, folder=tmp_path / "imported")
