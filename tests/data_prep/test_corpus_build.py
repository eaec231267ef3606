"""Parts of a build on their own: groups of near-duplicates, n-grams, words, counts."""

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from corpus_build.contamination import EvaluationIndex, split
from corpus_build.ledger import Ledger
from corpus_build.near_duplicates import DROPPED, KeepFirst
from corpus_build.report import check_sum
from corpus_build.splitting import Split
from corpus_build.words import WORDS
from hypothesis import given
from hypothesis import strategies as st

from autoscale.selection import DomainDocuments, Fate, hash_text, split_domains

PLACES = st.tuples(st.integers(0, 5), st.integers(0, 3))


@given(pairs=st.lists(st.tuples(PLACES, PLACES), max_size=40), across_domains=st.booleans())
def test_the_first_of_every_group_stays(
    pairs: list[tuple[tuple[int, int], tuple[int, int]]], across_domains: bool
) -> None:
    """Against groups grown until nothing changes; ranks 0 and 1 are domain 0, and so on."""
    counted = [
        (one, other)
        for one, other in pairs
        if one != other and (across_domains or one[0] // 2 == other[0] // 2)
    ]
    smallest = {place: place for pair in counted for place in pair}
    for _ in range(len(smallest)):
        for one, other in counted:
            smallest[one] = smallest[other] = min(smallest[one], smallest[other])
    expected = {
        place: int(place[0] // 2 != head[0] // 2)
        for place, head in smallest.items()
        if place != head
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pairs").mkdir()
        packed = [struct.pack("<4I", *one, *other) for one, other in pairs]
        (folder / "pairs/00000_00.dups").write_bytes(b"".join(packed[::2]))
        (folder / "pairs/00001_00.dups").write_bytes(b"".join(packed[1::2]))
        KeepFirst(folder, 2, across_domains=across_domains).run()
        found = {
            (int(path.stem), place): reason
            for path in (folder / DROPPED).glob("*.npy")
            for place, reason in np.load(path).tolist()
        }
    assert found == expected


WORD_LISTS = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=12)


@given(entries=st.lists(WORD_LISTS, max_size=4), words=WORD_LISTS, ngram=st.integers(1, 4))
def test_exactly_the_entries_with_a_common_ngram_are_found(
    entries: list[list[str]], words: list[str], ngram: int
) -> None:
    def ngrams(of: list[str]) -> set[tuple[str, ...]]:
        return {tuple(of[at : at + ngram]) for at in range(len(of) - ngram + 1)}

    with TemporaryDirectory() as name:
        file = Path(name) / "set.txt"
        lines = [" ".join(entry) for entry in entries if entry]
        file.write_text("".join(line + "\n" for line in lines))
        index = EvaluationIndex([str(file)], ngram)
        found = index.find(" ".join(words))
    known: set[tuple[str, ...]] = set()
    first_owners = {}
    for number, line in enumerate(lines):
        for each in ngrams(line.split()) - known:
            first_owners[each] = number
        known |= ngrams(line.split())
    assert {match.entry for match in found} == {
        first_owners[each] for each in ngrams(words) & known
    }
    assert all(tuple(match.ngram.split()) in known for match in found)
    assert index.too_short[str(file)] == sum(len(line.split()) < ngram for line in lines)


def test_texts_are_compared_without_case_punctuation_and_accents() -> None:
    assert split("Die  Straße, é — 3.14!") == split("die straße e 0")


def test_words_of_scripts_without_spaces() -> None:
    assert WORDS.word_tokenize("an apple, 12 pears") == ["an", "apple,", "12", "pears"]
    assert WORDS.word_tokenize("日本語 text") == ["日", "本", "語", "text"]
    assert WORDS.sent_tokenize("One. Two! Three") == ["One.", "Two!", "Three"]


@given(texts=st.lists(st.text(min_size=1), min_size=1, unique=True), seed=st.integers(0, 2**32))
def test_the_split_is_that_of_prepare(texts: list[str], seed: int) -> None:
    encoded = [text.encode("utf-8", "ignore") for text in texts]
    texts = [text.decode("utf-8") for text in encoded if text]
    hashes = np.array([hash_text(text.encode()) for text in texts], dtype=np.uint64)
    sizes = np.ones(len(texts), dtype=np.int64)
    documents = DomainDocuments("a", hashes, sizes, np.zeros(len(texts), dtype=bool))
    found = [Split(fraction=0.5, seed=seed).holds_out(text) for text in texts]
    if any(found):
        fates = split_domains([documents], fraction=0.5, seed=seed, deduplicate=False)
        assert found == (fates[0] == Fate.VALIDATION).tolist()


def test_counts_that_do_not_add_up_are_refused() -> None:
    check_sum("a", [3, 30], {"train": [2, 20], "empty": [1, 10]})
    with pytest.raises(ValueError, match="domain 'a': 3 documents were read, but 2 were dropped"):
        check_sum("a", [3, 30], {"train": [2, 30]})
    with pytest.raises(ValueError, match="30 bytes were read, but 29"):
        check_sum("a", [3, 30], {"train": [3, 29]})


def test_counts_of_tasks_are_added(tmp_path: Path) -> None:
    for task in range(2):
        ledger = Ledger()
        ledger.add("a", "read", 5)
        ledger.add("b", "read", task)
        ledger.save(tmp_path / f"{task:05d}.json")
    assert Ledger.load_all(tmp_path, 2).counts == {"a": {"read": [2, 10]}, "b": {"read": [2, 1]}}
