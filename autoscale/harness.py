"""lm-eval on an exported model: its tasks, and the log-likelihood of whole texts.

lm-eval (EleutherAI) truncates contexts on the left and refuses continuations that are longer than
the model's positions. Small models have few positions, so that here such a continuation is scored
in parts, each given as much of what stands before it as fits.
"""

import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

Tokens = list[int]

logger = logging.getLogger("lm_eval")
disable_progress_bar()
datasets.disable_progress_bars()


class ExportedModel(HFLM):
    """A folder as `save_pretrained` writes it, with its tokenizer.

    Attributes:
        cut: by task, how many requests were longer than the model's positions.
    """

    def __init__(self, folder: Path, batch_size: int) -> None:
        # Loaded here: lm-eval's own loading joins a process group wherever it finds one.
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        logger.setLevel(logging.ERROR)  # it warns of a model that is loaded already
        super().__init__(pretrained=model.to(device), tokenizer=tokenizer, batch_size=batch_size)
        logger.setLevel(logging.WARNING)
        self.cut: Counter[str] = Counter()
        self._askers: list[str] = []

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """As lm-eval has it: (log-likelihood, greedy) of every request."""
        self._askers = [request.task_name for request in requests]
        return super().loglikelihood(requests, disable_tqdm=True)

    def text_nats(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Total loss in nats, and number of tokens, of every text after an end of text."""
        encoded = [self.tok_encode(text, add_special_tokens=False) for text in texts]
        self._askers = [""] * len(texts)
        requests = [(("", ""), [self.prefix_token_id], tokens) for tokens in encoded]
        found = self._loglikelihood_tokens(requests)
        return [(-answer[0], len(tokens)) for answer, tokens in zip(found, encoded, strict=True)]

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        parts, owners = [], []
        for number, (texts, context, continuation) in enumerate(requests):
            self.cut[self._askers[number]] += len(context + continuation) > self.max_length + 1
            for given, scored in score_parts(context, continuation, self.max_length):
                parts.append((texts, given, scored))
                owners.append(number)
        found = super()._loglikelihood_tokens(
            parts, disable_tqdm=not sys.stderr.isatty(), override_bs=override_bs
        )
        answers = [(0.0, True)] * len(requests)
        for owner, (value, greedy) in zip(owners, found, strict=True):
            total, all_greedy = answers[owner]
            answers[owner] = (total + value, all_greedy and greedy)
        return answers


def score_parts(
    context: Tokens, continuation: Tokens, max_length: int
) -> Iterator[tuple[Tokens, Tokens]]:
    """Split a request into (given, scored) that fit the positions: together max_length + 1.

    Every token of the continuation is scored once. One that fits is scored at once; a longer one in
    parts of half the positions, so that the rest holds what stands before.
    """
    step = len(continuation) if len(continuation) <= max_length else math.ceil(max_length / 2)
    tokens = context + continuation
    for start in range(len(context), len(tokens), step):
        end = min(start + step, len(tokens))
        yield tokens[max(0, end - max_length - 1) : start], tokens[start:end]


def read_task(path: Path) -> dict[str, Any]:
    """One of lm-eval's task files."""
    task: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return task


def run_tasks(model: ExportedModel, configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluate tasks of local files; a dict for each task and metric.

    Its keys are the fields of `TaskScore`. Chance is the mean of 1 / number of choices over the
    examples, and 0 where a text must be predicted.
    """
    loaded = TaskManager(include_defaults=False).load([dict(config) for config in configs])
    # One draw of the bootstrap: means, the only metrics here, have standard errors in closed form.
    found = lm_eval.evaluate(model, loaded, bootstrap_iters=1, log_samples=False)
    return [
        {
            "name": config["task"],
            "metric": metric["metric"],
            "value": found["results"][config["task"]][f"{metric['metric']},none"],
            "stderr": found["results"][config["task"]][f"{metric['metric']}_stderr,none"],
            "chance": _chance(loaded["tasks"][config["task"]]),
            "examples": found["n-samples"][config["task"]]["effective"],
            "cut": model.cut[config["task"]],
        }
        for config in configs
        for metric in config["metric_list"]
    ]


def _chance(task: Any) -> float:
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    shares = [1 / len(task.doc_to_choice(example)) for example in task.eval_docs]
    return sum(shares) / len(shares)
