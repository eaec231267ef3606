"""D4 selection: planted near-duplicates go first, then the most prototypical documents.

The encoder is trained here, in seconds, on made-up topics: the tests are of the mechanism. Whether
a selection makes a better model is no subject of them.
"""

import json
import random
from pathlib import Path

import d4
import numpy as np
import pytest
from d4 import Kept, SentenceEncoder, duplicate_scores, parse_ratios, select

from .conftest import Build, dropped, write_lines

TOPICS = 4
WORDS_OF_TOPIC = 40


def word_of(topic: int, number: int) -> str:
    """A word without digits: MinHash takes all numbers for one."""
    return f"{'abcdefgh'[topic]}{'bcdfghklmn'[number // 10]}{'aeiouvwxyz'[number % 10]}"


class Topics:
    """Texts whose words are mostly of one topic."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    @property
    def vocabulary(self) -> list[str]:
        return [word_of(topic, word) for topic in range(TOPICS) for word in range(WORDS_OF_TOPIC)]

    def text(self, topic: int, purity: float = 0.8, words: int = 40) -> str:
        """`purity` of the words are of the topic, the others of any."""
        drawn = []
        for _ in range(words):
            of = topic if self._random.random() < purity else self._random.randrange(TOPICS)
            drawn.append(word_of(of, self._random.randrange(WORDS_OF_TOPIC)))
        return " ".join(drawn)

    def near_copy(self, text: str) -> str:
        words = text.split()
        words[self._random.randrange(len(words))] = word_of(0, 0)
        return " ".join(words)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that tells topics apart: texts of one topic are pulled together."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    topics = Topics(seed=1)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *topics.vocabulary])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    model = BertModel(config, add_pooling_layer=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        labels = torch.arange(TOPICS).repeat(8)
        texts = [topics.text(topic) for topic in labels.tolist()]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        vectors = torch.nn.functional.normalize(hidden.last_hidden_state.mean(1), dim=-1)
        same = labels[:, None] == labels
        logits = (10 * vectors @ vectors.T).masked_fill(torch.eye(len(labels)) == 1, -1e9)
        loss = -(torch.log_softmax(logits, -1) * same).sum() / same.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# --- the selection alone --------------------------------------------------------------------------


def test_of_every_planted_pair_one_goes() -> None:
    generator = np.random.default_rng(0)
    single = unit(generator.normal(size=(100, 32)))
    copies = unit(single[:20] + 1e-3 * generator.normal(size=(20, 32)))
    fates = select(np.concatenate([single, copies]), (100 / 120, 1.0), seed=0)
    gone = np.flatnonzero(fates == Kept.SEMANTIC_DUPLICATE)
    assert sorted(np.where(gone >= 100, gone - 100, gone).tolist()) == list(range(20))


def test_the_nearest_to_their_centre_go() -> None:
    generator = np.random.default_rng(0)
    centre = np.eye(1, 16)
    spread = np.linspace(0.05, 1, 50)[:, None] * unit(generator.normal(size=(50, 16)))
    fates = select(unit(centre + spread), (1.0, 0.4), clusters=1, seed=0)
    gone = np.flatnonzero(fates == Kept.PROTOTYPICAL)
    assert len(gone) == 30
    assert gone.mean() < 20  # numbers go up with the distance from the centre


def test_scores_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4, "ROWS", 7)
    generator = np.random.default_rng(0)
    vectors = unit(generator.normal(size=(60, 8)))
    labels = generator.integers(0, 3, size=60)
    nearness = generator.uniform(size=60).astype(np.float32)
    nearness[:10] = 0.5  # equally far: the earlier one comes first
    found = duplicate_scores(vectors, labels, nearness)
    for one in range(60):
        farther = [
            float(vectors[one] @ vectors[other])
            for other in range(60)
            if labels[other] == labels[one] and (nearness[other], other) < (nearness[one], one)
        ]
        assert found[one] == pytest.approx(max(farther, default=-1), abs=1e-6)


@pytest.mark.parametrize(
    ("number", "ratios", "seed"),
    [(0, (0.5, 0.5), 0), (1, (0.1, 0.1), 1), (7, (1.0, 0.3), 2), (40, (0.33, 0.77), 3)],
)
def test_the_ratios_are_met_and_nothing_else_decides(
    number: int, ratios: tuple[float, float], seed: int
) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(number, 4)) + 0.1)
    fates = select(vectors, ratios, seed=seed)
    left = max(1, round(ratios[0] * number)) if number else 0
    assert np.count_nonzero(fates != Kept.SEMANTIC_DUPLICATE) == left
    kept = max(1, round(ratios[1] * left)) if number else 0
    assert np.count_nonzero(fates == Kept.KEPT) == kept
    assert np.array_equal(fates, select(vectors, ratios, seed=seed))


@pytest.mark.parametrize("text", ["", "0.5", "0.5,x", "0,0.5", "0.5,1.1", "0.5,nan", "1,1,1"])
def test_two_fractions_are_needed(text: str) -> None:
    with pytest.raises(ValueError, match="two fractions"):
        parse_ratios(text)


# --- with an encoder ------------------------------------------------------------------------------


def test_an_embedding_is_the_mean_of_the_texts_own_tokens(encoder_folder: Path) -> None:
    texts = [Topics(2).text(0, words=5), Topics(3).text(1, words=60), ""]
    encoder = SentenceEncoder(encoder_folder, device="cpu")
    together = encoder.embed(texts)
    assert together.shape == (3, 32) and together.dtype == np.float32
    alone = np.concatenate([encoder.embed([text]) for text in texts[:2]])
    np.testing.assert_allclose(together[:2], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together[:2], axis=1), 1, atol=1e-5)
    long = Topics(4).text(2, words=100)
    short = SentenceEncoder(encoder_folder, device="cpu", max_tokens=10)
    np.testing.assert_allclose(
        short.embed([long]), encoder.embed([" ".join(long.split()[:10])]), atol=1e-5
    )


def test_planted_copies_go_first_and_then_the_plainest_texts(encoder_folder: Path) -> None:
    topics = Topics(seed=5)
    plain = [topics.text(number % TOPICS, purity=1.0) for number in range(60)]
    mixed = [topics.text(number % TOPICS, purity=0.2) for number in range(60)]
    copies = [topics.near_copy(text) for text in [*plain[:10], *mixed[:10]]]
    texts = [*plain, *mixed, *copies]
    vectors = SentenceEncoder(encoder_folder, device="cpu").embed(texts)
    fates = select(vectors, (120 / 140, 0.5), clusters=TOPICS, seed=0)
    gone = np.flatnonzero(fates == Kept.SEMANTIC_DUPLICATE).tolist()
    originals = {number: number for number in [*range(10), *range(60, 70)]}
    originals |= {120 + place: number for place, number in enumerate(originals)}
    pairs = [originals[number] for number in gone if number in originals]
    assert len(set(pairs)) >= 18, "of nearly every planted pair one goes"
    prototypes = np.flatnonzero(fates == Kept.PROTOTYPICAL)
    from_plain = np.count_nonzero((prototypes < 60) | ((prototypes >= 120) & (prototypes < 130)))
    assert from_plain / len(prototypes) > 0.7, "by chance it is a half"


def test_the_command_keeps_lines_as_they_are(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = Topics(seed=6)
    records = [{"content": topics.text(number % TOPICS), "n": number} for number in range(20)]
    path = write_lines(tmp_path / "in.jsonl", records)
    command = [
        "--input",
        str(path),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--encoder",
        str(encoder_folder),
    ]
    command += ["--select", "0.8,0.5", "--text-field", "content"]
    assert d4.main(command) == 0
    kept = (tmp_path / "out.jsonl").read_text().splitlines()
    lines = path.read_text().splitlines()
    assert len(kept) == 8
    assert kept == [line for line in lines if line in kept]
    assert [row.split() for row in capsys.readouterr().out.splitlines()] == [
        ["kept", "8"],
        ["semantic_duplicate", "4"],
        ["prototypical", "8"],
    ]


def test_a_build_selects_training_documents_within_every_domain(
    encoder_folder: Path, tmp_path: Path, build: Build
) -> None:
    topics = Topics(seed=7)
    for name, number in (("a", 60), ("b", 30)):
        texts = [topics.text(place % TOPICS) for place in range(number)]
        for part in range(2):
            records = [{"text": text} for text in texts[part::2]]
            write_lines(tmp_path / f"text/{name}/{part}.jsonl", records)
    _, everything = build(output=tmp_path / "all")
    options = ("--select", "0.8,0.5", "--encoder", str(encoder_folder))
    _, report = build(*options)
    for name in ("a", "b"):
        before, after = everything["domains"][name], report["domains"][name]
        assert after["validation"] == before["validation"]
        train = before["train"]["documents"]
        left = round(0.8 * train)
        assert dropped(report, name) == {
            "semantic_duplicate": train - left,
            "prototypical": left - round(0.5 * left),
        }
        assert after["train"]["documents"] == round(0.5 * left)
    chosen = json.loads((tmp_path / "shards/report.json").read_text())["settings"]["selection"]
    assert chosen["ratios"] == [0.8, 0.5]
    first = (tmp_path / "shards/manifest.json").read_bytes()
    build(*options, output=tmp_path / "again")
    assert (tmp_path / "again/manifest.json").read_bytes() == first
