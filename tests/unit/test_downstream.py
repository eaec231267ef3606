"""Zero-shot tasks and texts of an exported model, beside log-likelihoods computed by hand."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoscale import downstream
from autoscale.downstream import (
    TASK_FOLDER,
    TASKS,
    TaskScore,
    evaluate_downstream,
    evaluate_texts,
)
from autoscale.harness import score_parts
from autoscale.model import build_model
from autoscale.model_shape import resolve_model
from autoscale.tokenizer import train_tokenizer
from tests.unit.table_files import CommandLine

POSITIONS = 64
WORDS = "the small river ran under a stone bridge while nobody in town was looking at it".split()
QUESTIONS = ("Where did the river run", "What was nobody looking at", "Who ran", "Which stone")


def sentence(rng, length):
    return " ".join(rng.choice(WORDS, length))


def write_lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model and tokenizer as a run exports them, with weights large enough for clear choices."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer(
        [sentence(rng, 20) for _ in range(50)], vocab_size=280, folder=folder
    )
    fields = resolve_model(
        "gpt2-nano",
        {"n_layer": 1, "n_embd": 32, "n_head": 2},
        vocab_size=tokenizer.vocab_size,
        sequence_length=POSITIONS,
        end_of_text_id=tokenizer.end_of_text_id,
    )
    model = build_model(fields, seed=0, activation_checkpointing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def by_hand(model_folder):
    """Log-likelihoods by one forward pass each, of short requests."""
    return ByHand(model_folder)


class ByHand:
    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def predictions(self, tokens):
        """Log-probabilities of what follows each token, shape (tokens, vocabulary)."""
        with torch.no_grad():
            return log_softmax(self.model(torch.tensor([tokens])).logits[0].double(), dim=-1)

    def log_likelihood(self, context, continuation):
        given = self.encode(context) or [self.tokenizer.eos_token_id]
        scored = self.encode(context + continuation)[len(self.encode(context)) :]
        assert len(given) + len(scored) <= POSITIONS + 1
        table = self.predictions(given + scored)
        places = range(len(given) - 1, len(given) + len(scored) - 1)
        return sum(table[i, token].item() for i, token in zip(places, scored, strict=True))

    def next_word(self, context):
        """The word that greedy decoding gives, where it is one: a space, then the word."""
        tokens = self.encode(context)
        token = int(self.predictions(tokens)[-1].argmax())
        word = self.tokenizer.decode([token])
        return word.strip() if word == f" {word.strip()}" and word.strip() else None


@pytest.fixture(scope="module")
def eval_folder(tmp_path_factory, by_hand):
    """Examples of every task, of random words."""
    folder = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(1)

    def questions(count, num_choices):
        labels = list("ABCDEFGH")[:num_choices]
        return [
            {
                "question": f"{rng.choice(QUESTIONS)}?",
                "choices": [sentence(rng, int(rng.integers(1, 5))) for _ in labels],
                "labels": labels,
                "answer": str(rng.choice(labels)),
            }
            for _ in range(count)
        ]

    pairs = [
        {"sentence_good": sentence(rng, 6), "sentence_bad": sentence(rng, 6)} for _ in range(9)
    ]
    write_lines(folder / "blimp.jsonl.gz", pairs)
    endings = [
        {
            "ctx": sentence(rng, 5),
            "endings": [sentence(rng, n) for n in (1, 2, 4, 6)],
            "label": int(rng.integers(4)),
        }
        for _ in range(12)
    ]
    write_lines(folder / "hellaswag_val.jsonl.gz", endings)
    goals = [
        {
            "goal": sentence(rng, 3),
            "sol1": sentence(rng, 2),
            "sol2": sentence(rng, 6),
            "label": n % 2,
        }
        for n in range(6)
    ]
    write_lines(folder / "piqa_valid.jsonl", goals)
    for name, count, num_choices in (
        ("arc_easy_test", 6, 4),
        ("arc_challenge_test", 5, 3),
        ("openbookqa_test", 4, 4),
        ("qasc_dev", 4, 8),
        ("commonsenseqa_dev", 4, 5),
    ):
        write_lines(folder / f"{name}.jsonl.gz", questions(count, num_choices))
    return folder


def score(scores, name, metric="acc"):
    [found] = [each for each in scores if (each.name, each.metric) == (name, metric)]
    return found


@pytest.fixture(scope="module")
def scores(model_folder, eval_folder):
    return evaluate_downstream(model_folder, eval_folder)


def read(folder, name):
    path = next(folder.glob(f"{name}*"))
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def test_every_task_with_a_file_is_scored_beside_its_chance(scores):
    chances = {each.name: each.chance for each in scores}
    assert set(chances) == set(TASKS) - {"lambada_openai"}
    assert chances == pytest.approx(
        {
            "blimp": 1 / 2, "hellaswag": 1 / 4, "piqa": 1 / 2, "arc_easy": 1 / 4,
            "arc_challenge": 1 / 3, "openbookqa": 1 / 4, "qasc": 1 / 8, "commonsense_qa": 1 / 5,
        }
    )  # fmt: skip
    assert score(scores, "hellaswag").examples == 12
    assert {each.metric for each in scores if each.name == "blimp"} == {"acc"}


@pytest.mark.parametrize(
    ("task", "file", "context", "choices", "label"),
    [
        ("hellaswag", "hellaswag_val", "{ctx}", lambda e: e["endings"], lambda e: e["label"]),
        ("piqa", "piqa_valid", "Question: {goal}\nAnswer:", lambda e: [e["sol1"], e["sol2"]],
         lambda e: e["label"]),
        ("blimp", "blimp", "", lambda e: [e["sentence_good"], e["sentence_bad"]], lambda e: 0),
        ("qasc", "qasc_dev", "Question: {question}\nAnswer:", lambda e: e["choices"],
         lambda e: e["labels"].index(e["answer"])),
    ],
)  # fmt: skip
def test_choices_are_those_of_the_highest_log_likelihood(
    scores, by_hand, eval_folder, task, file, context, choices, label
):
    right, right_norm = [], []
    for example in read(eval_folder, file):
        texts = choices(example)
        found = [by_hand.log_likelihood(context.format(**example), f" {text}") for text in texts]
        lengths = np.array([len(text) for text in texts])
        right.append(np.argmax(found) == label(example))
        right_norm.append(np.argmax(np.array(found) / lengths) == label(example))
    found = score(scores, task)
    assert found.value == pytest.approx(np.mean(right))
    assert found.stderr == pytest.approx(np.std(right, ddof=1) / math.sqrt(len(right)))
    if task != "blimp":
        assert score(scores, task, "acc_norm").value == pytest.approx(np.mean(right_norm))


def test_the_last_word_counts_where_greedy_decoding_gives_it(model_folder, by_hand, tmp_path):
    rng = np.random.default_rng(2)
    examples, right = [], 0
    while len(examples) < 8:
        context = sentence(rng, 8)
        word = by_hand.next_word(context)
        if word is not None and len(by_hand.encode(f" {word}")) == 1:
            wrong = len(examples) % 4 == 3
            right += not wrong
            examples.append({"text": f"{context} {'zebra' if wrong else word}"})
    write_lines(tmp_path / "lambada_openai_test.jsonl", examples)
    [found] = evaluate_downstream(model_folder, tmp_path)
    assert (found.name, found.chance, found.examples) == ("lambada_openai", 0.0, 8)
    assert found.value == right / 8 == 6 / 8
    assert not found.is_near_chance


def test_only_and_limit(model_folder, eval_folder, by_hand, tmp_path):
    scores = evaluate_downstream(model_folder, eval_folder, only=["hellaswag"], limit=4)
    assert {each.name for each in scores} == {"hellaswag"}
    spread = [read(eval_folder, "hellaswag_val")[n] for n in (0, 3, 6, 9)]
    write_lines(tmp_path / "hellaswag_val.jsonl", spread)
    assert scores == evaluate_downstream(model_folder, tmp_path)


def test_long_continuations_are_scored_in_parts_and_long_contexts_are_cut(
    model_folder, by_hand, tmp_path
):
    rng = np.random.default_rng(3)
    long = [{"goal": sentence(rng, 60), "sol1": sentence(rng, 90), "sol2": "it", "label": 1}] * 2
    write_lines(tmp_path / "piqa_valid.jsonl", long)
    acc = score(evaluate_downstream(model_folder, tmp_path), "piqa")
    assert acc.cut == 4
    assert acc.value == 1.0  # ninety words are less likely than one


def test_parts_score_every_token_once_with_half_the_positions_before_it():
    context, continuation = list(range(30)), list(range(30, 130))
    parts = list(score_parts(context, continuation, 16))
    assert [token for _, scored in parts for token in scored] == continuation
    for given, scored in parts:
        assert len(given) + len(scored) <= 17
        assert len(given) >= 9
        assert given[-1] + 1 == scored[0]
    assert list(score_parts([1], [2, 3], 16)) == [([1], [2, 3])]
    assert list(score_parts([0, 1, 2, 3], [4, 5], 3)) == [([2, 3], [4, 5])]


def test_texts_give_nats_a_token_and_bits_a_byte(model_folder, by_hand, tmp_path):
    rng = np.random.default_rng(4)
    texts = [sentence(rng, int(length)) for length in rng.integers(2, 8, 6)]
    write_lines(tmp_path / "letters.jsonl.gz", [{"text": text} for text in texts])
    [found] = evaluate_texts(model_folder, tmp_path)
    nats = np.array([-by_hand.log_likelihood("", text) for text in texts])
    tokens = np.array([len(by_hand.encode(text)) for text in texts])
    assert (found.name, found.documents, found.tokens) == ("letters", 6, tokens.sum())
    ratio = nats.sum() / tokens.sum()
    assert found.nats_per_token == pytest.approx(ratio, rel=1e-5)
    size = sum(len(text.encode()) for text in texts)
    assert found.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / size, rel=1e-5)
    jackknife = [np.delete(nats, d).sum() / np.delete(tokens, d).sum() for d in range(len(texts))]
    expected = math.sqrt(5 / 6 * np.sum((jackknife - np.mean(jackknife)) ** 2))
    assert found.nats_stderr == pytest.approx(expected, rel=0.2)


def test_a_long_text_has_the_loss_of_its_parts(model_folder, by_hand, tmp_path):
    text = " ".join(WORDS * 6)
    write_lines(tmp_path / "long.jsonl", [{"text": text}] * 2)
    [found] = evaluate_texts(model_folder, tmp_path)
    tokens = [by_hand.tokenizer.eos_token_id, *by_hand.encode(text)]
    assert len(tokens) > 2 * POSITIONS
    nats, half = 0.0, POSITIONS // 2
    for start in range(1, len(tokens), half):
        end = min(start + half, len(tokens))
        first = max(0, end - POSITIONS - 1)
        table = by_hand.predictions(tokens[first:end][:-1])
        nats -= sum(table[i - first - 1, tokens[i]].item() for i in range(start, end))
    assert found.nats_per_token == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert found.nats_stderr == pytest.approx(0, abs=1e-9)


def test_the_command_shows_tables_and_writes_json(
    monkeypatch, capsys, model_folder, eval_folder, tmp_path
):
    autoscale = CommandLine(monkeypatch, capsys)
    (tmp_path / "ood").mkdir()
    write_lines(tmp_path / "ood" / "letters.jsonl", [{"text": "a stone"}, {"text": "the river"}])
    path = tmp_path / "scores.json"
    output = autoscale.succeed(
        "downstream", model_folder, "--tasks", eval_folder, "--only", "arc_easy,blimp",
        "--ood", tmp_path / "ood", "--limit", "4", "--batch-size", "3", "--json", path,
    )  # fmt: skip
    assert "chance" in output
    assert "0.2500" in output
    assert "letters" in output
    record = json.loads(path.read_text())
    assert record["kind"] == "downstream"
    assert {task["name"] for task in record["tasks"]} == {"arc_easy", "blimp"}
    assert record["texts"][0]["documents"] == 2
    whole = autoscale.succeed("downstream", model_folder, "--tasks", eval_folder, "--limit", "2")
    assert "No file in the folder for lambada_openai" in " ".join(whole.split())


def test_what_lies_near_chance_is_marked():
    common = {"name": "blimp", "metric": "acc", "chance": 0.5, "examples": 100, "cut": 0}
    assert TaskScore(value=0.59, stderr=0.05, **common).is_near_chance
    assert TaskScore(value=0.41, stderr=0.05, **common).is_near_chance
    assert not TaskScore(value=0.61, stderr=0.05, **common).is_near_chance


def test_mistakes_are_named(monkeypatch, capsys, model_folder, eval_folder, tmp_path):
    refuse = CommandLine(monkeypatch, capsys).refuse
    tasks = ("--tasks", eval_folder)
    assert "give --tasks" in refuse("downstream", model_folder)
    assert "--only names tasks" in refuse(
        "downstream", model_folder, "--ood", tmp_path, "--only", "piqa"
    )
    assert "holds no exported model" in refuse("downstream", tmp_path, *tasks)
    (tmp_path / "run" / "model").mkdir(parents=True)
    assert f"did you mean {tmp_path / 'run' / 'model'}?" in refuse(
        "downstream", tmp_path / "run", *tasks
    )
    assert "is no folder" in refuse("downstream", model_folder, "--tasks", tmp_path / "absent")
    assert "is no folder" in refuse("downstream", model_folder, "--ood", tmp_path / "absent")
    assert "has no file of any task" in refuse("downstream", model_folder, "--tasks", tmp_path)
    unknown = refuse("downstream", model_folder, *tasks, "--only", "helaswag")
    assert "task 'helaswag' is unknown; did you mean 'hellaswag'?" in unknown
    missing = refuse("downstream", model_folder, *tasks, "--only", "lambada_openai")
    assert "no file of task 'lambada_openai'; expected lambada_openai_test.jsonl" in missing
    write_lines(tmp_path / "piqa_valid.jsonl", [{"goal": "a", "sol1": "b", "label": 0}] * 2)
    wrong = refuse("downstream", model_folder, "--tasks", tmp_path)
    assert "example 1 has no sol2" in wrong
    example = {"goal": "a", "sol1": "b", "sol2": "c", "label": 0}
    write_lines(tmp_path / "piqa_valid.jsonl", [example, example | {"label": 2}])
    wrong = refuse("downstream", model_folder, "--tasks", tmp_path)
    assert "example 2 has the label 2; expected 0 to 1" in wrong
    example = {"question": "a", "choices": ["b", "c"], "labels": ["A", "B"], "answer": "C"}
    write_lines(tmp_path / "piqa_valid.jsonl", [example])
    (tmp_path / "piqa_valid.jsonl").rename(tmp_path / "qasc_dev.jsonl")
    wrong = refuse("downstream", model_folder, "--tasks", tmp_path)
    assert "example 1 has the answer 'C', which is none of its labels" in wrong
    monkeypatch.setattr(downstream, "find_spec", lambda name: None)
    assert "pip install 'autoscale[downstream]'" in refuse("downstream", model_folder, *tasks)


def test_masked_language_models_are_refused(model_folder, eval_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ValueError, match=r"masked language model \(BertForMaskedLM\)"):
        evaluate_downstream(tmp_path, eval_folder)


@pytest.mark.parametrize("name", set(TASKS) - {"qasc"})
def test_prompts_and_metrics_are_those_of_lm_eval(name):
    """Compared with the task files that lm-eval has, but for the names of fields."""
    import lm_eval
    import yaml

    theirs = {
        "blimp": "blimp/_template_yaml", "hellaswag": "hellaswag/hellaswag.yaml",
        "piqa": "piqa/piqa.yaml", "lambada_openai": "lambada/lambada_openai.yaml",
        "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_easy.yaml",
        "openbookqa": "openbookqa/openbookqa.yaml",
        "commonsense_qa": "commonsense_qa/default.yaml",
    }  # fmt: skip
    path = Path(lm_eval.__file__).parent / "tasks" / theirs[name]
    bundled = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    ours = yaml.load((TASK_FOLDER / f"{name}.yaml").read_text(), Loader=yaml.BaseLoader)
    assert ours["output_type"] == bundled["output_type"]
    own_fields = {"question_stem": "question", "choices['text']": "choices"}
    prompt = bundled["doc_to_text"]
    for theirs_field, our_field in own_fields.items():
        prompt = prompt.replace(theirs_field, our_field)
    if name != "hellaswag":  # theirs joins fields that the local copy has joined
        assert ours["doc_to_text"] == prompt
    metrics = [m["metric"] for m in bundled["metric_list"] if m["metric"] != "perplexity"]
    assert [m["metric"] for m in ours["metric_list"]] == metrics
