"""Verification: data in order has no problems, and every overlap and damage is listed."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale import verification
from autoscale.config_data import PrepareConfig
from autoscale.existing_shards import Adoption, adopt
from autoscale.manifest import Manifest
from autoscale.overlap import document_keys, varied_windows, window_keys
from autoscale.prepare import prepare
from autoscale.shard_formats.indexed_writer import IndexedShardWriter
from autoscale.verification import verify

END_OF_TEXT = 1
VOCAB_SIZE = 50_000
RANDOM = np.random.default_rng(5)


def documents(count: int, seed: int, most: int = 60) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [
        [*random.integers(2, VOCAB_SIZE, int(size)).tolist(), END_OF_TEXT]
        for size in random.integers(1, most, count)
    ]


def write_pair(prefix: Path, texts: Sequence[Sequence[int]], dtype: str = "uint16") -> None:
    with IndexedShardWriter(prefix, dtype) as writer:
        for text in texts:
            writer.add_document(np.array(text))


def adopt_all(folder: Path, **changes: Any) -> Manifest:
    numbers = {"vocab_size": VOCAB_SIZE, "end_of_text_id": END_OF_TEXT, **changes}
    return Manifest.load(adopt(Adoption(folder=str(folder), **numbers)))


@pytest.fixture(params=[7, 1 << 20])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on how much is read at a time."""
    monkeypatch.setattr(verification, "BLOCK_TOKENS", request.param)


def test_prepared_data_is_in_order(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "text {n}, some words of it"}}\n' for n in range(400))
    (tmp_path / "a.jsonl").write_text(lines)
    config = PrepareConfig.model_validate(
        {
            "output": str(tmp_path / "data"),
            "domains": [{"name": "a", "train": [str(tmp_path / "a.jsonl")]}],
            "tokenizer": {"vocab_size": 270},
            "validation_fraction": 0.1,
            "num_workers": 1,
        }
    )
    heard: list[tuple[str, int, int]] = []
    manifest = Manifest.load(prepare(config))
    assert verify(manifest, progress=lambda *step: heard.append(step)) == []
    assert {stage for stage, _, _ in heard} == {"open", "read validation", "read train"}


@pytest.mark.usefixtures("_blocks")
def test_documents_that_are_held_out_and_trained_on_are_found(tmp_path: Path) -> None:
    held = documents(6, seed=1)
    train = documents(20, seed=2)
    train[7], train[13] = held[2][:], held[4][:-1]  # one of them without its end-of-text
    write_pair(tmp_path / "a" / "validation", held)
    write_pair(tmp_path / "a" / "train", documents(9, seed=3))
    write_pair(tmp_path / "b" / "validation", documents(5, seed=4), dtype="int32")
    write_pair(tmp_path / "b" / "train", train, dtype="int32")
    assert verify(adopt_all(tmp_path)) == [
        "domain 'b', train shard b/train: 2 of its documents are also held out, the first of them "
        "document 7 in domain 'a': losses on them would mean nothing; leave them out of one split"
    ]


@pytest.mark.usefixtures("_blocks")
def test_windows_are_compared_where_documents_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    held, train = RANDOM.integers(2, VOCAB_SIZE, (2, 3000))
    padding = np.full(100, 7)
    np.save(tmp_path / "a" / "validation.npy", np.concatenate([held, padding]).astype(np.uint16))
    np.save(tmp_path / "a" / "train.npy", np.concatenate([padding, train]).astype(np.uint16))
    assert verify(adopt_all(tmp_path)) == []
    train[901:2000] = held[1500:2599]
    np.save(tmp_path / "a" / "train.npy", np.concatenate([padding, train]).astype(np.uint16))
    (problem,) = verify(adopt_all(tmp_path))
    place = 100 + 901 + (1536 - 1500)  # where the first whole window of 512 begins
    assert "2 of its windows of 512 tokens are also held out" in problem
    assert f"the first of them at token {place} in domain 'a'" in problem


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path / name / "train", documents(9, seed=ord(name)))
        write_pair(tmp_path / name / "validation", documents(3, seed=ord(name) + 10))
    manifest = adopt_all(tmp_path)
    (tmp_path / "a" / "train.bin").unlink()
    content = bytearray((tmp_path / "b" / "train.bin").read_bytes())
    content[6:8] = b"\xff\xff"
    (tmp_path / "b" / "train.bin").write_bytes(content)
    problems = verify(manifest)
    assert len(problems) == 3
    assert "domain 'a', train shard a/train: " in problems[0]
    assert "train.bin cannot be read" in problems[0]
    assert "domain 'b', train shard b/train: sha256 is" in problems[1]
    assert "token 3 is 65535; expected ids from 0 to 49999" in problems[2]
    assert not any("\n" in problem for problem in problems)


# --- keys -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    window=st.integers(1, 8),
)
def test_window_keys_are_equal_where_windows_are(tokens: list[int], window: int) -> None:
    array = np.array(tokens)
    keys, varied = window_keys(array, window), varied_windows(array, window)
    windows = [tuple(tokens[at : at + window]) for at in range(len(tokens) - window + 1)]
    assert keys.size == varied.size == max(0, len(windows))
    for key, same in zip(keys.tolist(), windows, strict=True):
        assert [k == key for k in keys.tolist()] == [other == same for other in windows]
    assert varied.tolist() == [len(set(each)) > 1 for each in windows]


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=1, max_size=12))
def test_document_keys_leave_out_end_of_text_at_both_ends(texts: list[list[int]]) -> None:
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    keys, places = document_keys(np.array(list(chain(*texts)), dtype=np.int64), starts, 1)

    def content(text: list[int]) -> tuple[int, ...]:
        inside = [index for index, token in enumerate(text) if token != 1]
        return tuple(text[inside[0] : inside[-1] + 1]) if inside else ()

    kept = [number for number, text in enumerate(texts) if content(text)]
    assert places.tolist() == kept
    by_key: dict[int, tuple[int, ...]] = {}
    for key, number in zip(keys.tolist(), kept, strict=True):
        assert by_key.setdefault(key, content(texts[number])) == content(texts[number])
    assert len(by_key) == len({content(texts[number]) for number in kept})
