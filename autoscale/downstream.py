"""What an exported model can do beyond its training: zero-shot tasks, and texts of other kinds.

Tasks are lm-eval's, with its prompts and metrics (`downstream_tasks/*.yaml`), on local files of one
JSON object a line. Nothing is fetched. Needs the extra `autoscale[downstream]`.
"""

# D documents

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .text import read_texts, resolve_sources

if TYPE_CHECKING:
    from .harness import ExportedModel

TASK_FOLDER = Path(__file__).parent / "downstream_tasks"
TASKS = tuple(sorted(path.stem for path in TASK_FOLDER.glob("*.yaml")))
BATCH_SIZE = 16
FEWEST = 2  # examples or documents that have a standard error


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        name: of the task.
        metric: "acc", the share of right answers by log-likelihood, or "acc_norm", by
            log-likelihood per character of the choice.
        value: of the metric.
        stderr: its standard error over the examples.
        chance: what guessing gives.
        examples: how many.
        cut: requests that did not fit the model's positions; their beginnings were cut off.
    """

    name: str
    metric: str
    value: float
    stderr: float
    chance: float
    examples: int
    cut: int

    @property
    def is_near_chance(self) -> bool:
        """Whether the value lies within two standard errors of guessing."""
        return abs(self.value - self.chance) <= 2 * self.stderr


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScore:
    """The loss on one set of texts, each text by itself.

    Attributes:
        name: of the set.
        documents: how many.
        tokens: of all documents.
        nats_per_token: total loss by total tokens.
        nats_stderr: its standard error over documents.
        bits_per_byte: total loss by bytes of text.
        bits_stderr: likewise.
    """

    name: str
    documents: int
    tokens: int
    nats_per_token: float
    nats_stderr: float
    bits_per_byte: float
    bits_stderr: float


def evaluate_downstream(
    model_folder: Path,
    tasks_folder: Path,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[TaskScore]:
    """Evaluate an exported model on local tasks, zero-shot.

    Args:
        model_folder: as a run exports it: weights, config and tokenizer.
        tasks_folder: with the files that the task files name, plain or `.gz`.
        only: names of tasks; all that the folder has files of by default.
        limit: most examples of a task, taken at even distances through its file.
        batch_size: sequences a forward pass.

    Raises:
        ValueError: a folder, a file or lm-eval is missing, a task is unknown, examples are not of
            the form that their task needs, or the model is not causal.
    """
    _require_model(model_folder)
    files = _task_files(tasks_folder, only)
    _require_lm_eval()
    from . import harness

    with TemporaryDirectory() as workspace:
        configs = []
        for name, path in files.items():
            config = harness.read_task(TASK_FOLDER / f"{name}.yaml")
            chosen = Path(workspace) / f"{name}.jsonl"
            chosen.write_bytes(b"".join(_examples(path, config["metadata"]["fields"], limit)))
            cache = str(Path(workspace) / "cache")
            config["dataset_kwargs"] = {"data_files": str(chosen), "cache_dir": cache}
            configs.append(config)
        found = harness.run_tasks(harness.ExportedModel(model_folder, batch_size), configs)
    return [TaskScore(**score) for score in found]


def evaluate_texts(
    model_folder: Path,
    texts_folder: Path,
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[TextScore]:
    """The loss of an exported model on a folder of texts, one set a file.

    A document is scored from its first token on, after an end of text; where it is longer than the
    model's positions, in parts that each see at least half the positions before them.

    Raises:
        ValueError: a folder or lm-eval is missing, a file cannot be read or has fewer than two
            documents, or the model is not causal.
    """
    _require_model(model_folder)
    if not texts_folder.is_dir():
        raise ValueError(f"{texts_folder} is no folder; expected one with files of texts")
    sources = resolve_sources((str(texts_folder),), domain="out of domain")
    _require_lm_eval()
    from .harness import ExportedModel

    model = ExportedModel(model_folder, batch_size)
    found = []
    for source in sources:
        texts = _spread([text for text, _ in read_texts(source) if text], limit)
        if len(texts) < FEWEST:
            raise ValueError(
                f"{source.location} has {len(texts)} document(s) with text; expected {FEWEST} or "
                "more, for a standard error"
            )
        found.append(_text_score(Path(source.location).name.partition(".")[0], model, texts))
    return found


def left_out(tasks_folder: Path) -> tuple[str, ...]:
    """The tasks that the folder has no file of."""
    return tuple(name for name in TASKS if _task_file(tasks_folder, name) is None)


def _text_score(name: str, model: "ExportedModel", texts: Sequence[str]) -> TextScore:
    nats_D, tokens_D = np.array(model.text_nats(texts), dtype=np.float64).T
    bits_D = nats_D / math.log(2)
    bytes_D = np.array([len(text.encode("utf-8")) for text in texts], dtype=np.float64)
    nats, nats_stderr = _ratio(nats_D, tokens_D)
    bits, bits_stderr = _ratio(bits_D, bytes_D)
    return TextScore(
        name=name,
        documents=len(texts),
        tokens=int(tokens_D.sum()),
        nats_per_token=nats,
        nats_stderr=nats_stderr,
        bits_per_byte=bits,
        bits_stderr=bits_stderr,
    )


def _ratio(
    numerator_D: NDArray[np.float64], denominator_D: NDArray[np.float64]
) -> tuple[float, float]:
    """A ratio of totals, and its standard error over documents (the linearised one)."""
    ratio = numerator_D.sum() / denominator_D.sum()
    residual_D = (numerator_D - ratio * denominator_D) / denominator_D.mean()
    return float(ratio), float(residual_D.std(ddof=1) / math.sqrt(len(residual_D)))


def _require_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise ValueError(
            "downstream tasks need lm-eval, which is not installed: "
            "pip install 'autoscale[downstream]'"
        )


def _require_model(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        near = folder / "model"
        hint = f"did you mean {near}?" if near.is_dir() else "a run exports it into its model/"
        raise ValueError(f"{folder} holds no exported model (no config.json); {hint}")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} holds no tokenizer (no tokenizer.json); copy that of the training data there"
        )
    names: list[str] = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    if any("MaskedLM" in name for name in names):
        raise ValueError(
            f"{folder} holds a masked language model ({', '.join(names)}), which gives no "
            "likelihood of a text; these tasks need a causal one"
        )


def _task_files(folder: Path, only: Sequence[str]) -> dict[str, Path]:
    """The file of every task asked for, in the order of their names."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected one with files of tasks")
    for name in only:
        if name not in TASKS:
            near = get_close_matches(name, TASKS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"task {name!r} is unknown; {hint}Known are {', '.join(TASKS)}")
        if _task_file(folder, name) is None:
            raise ValueError(
                f"{folder} has no file of task {name!r}; expected {_file_name(name)}, or that with "
                ".gz"
            )
    found = {name: _task_file(folder, name) for name in sorted(set(only) or TASKS)}
    files = {name: path for name, path in found.items() if path is not None}
    if not files:
        raise ValueError(
            f"{folder} has no file of any task; expected, plain or as .gz, some of "
            f"{', '.join(map(_file_name, TASKS))}"
        )
    return files


def _file_name(task: str) -> str:
    """The file that a task file names, without reading the rest of it."""
    lines = (TASK_FOLDER / f"{task}.yaml").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.strip().startswith("data_files: ")]
    return line.split(": ")[1]


def _task_file(folder: Path, task: str) -> Path | None:
    paths = [folder / (_file_name(task) + suffix) for suffix in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def _examples(path: Path, fields: Sequence[str], limit: int | None) -> list[bytes]:
    """Lines of a file of examples, at even distances where there are more than the limit."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = [line.rstrip(b"\r\n") + b"\n" for line in file if line.strip()]
        for number, line in enumerate(lines, start=1):
            if fault := _fault(json.loads(line), fields):
                raise ValueError(f"example {number} {fault}")
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not readable as examples: {error}; expected one JSON object a line with "
            f"{', '.join(fields)}"
        ) from error
    chosen = _spread(lines, limit)
    if len(chosen) < FEWEST:
        raise ValueError(f"{path} has {len(chosen)} example(s); expected {FEWEST} or more")
    return chosen


def _fault(example: Mapping[str, Any], fields: Sequence[str]) -> str | None:
    """What is wrong with an example: a field that is missing, or a right answer that is."""
    missing = [name for name in fields if name not in example]
    if missing:
        return f"has no {', '.join(missing)}"
    if "answer" in fields and example["answer"] not in example["labels"]:
        return f"has the answer {example['answer']!r}, which is none of its labels"
    if "label" in fields:
        num_choices = len(example["endings"]) if "endings" in fields else 2
        if example["label"] not in range(num_choices):
            return f"has the label {example['label']!r}; expected 0 to {num_choices - 1}"
    return None


def _spread(items: list[Any], limit: int | None) -> list[Any]:
    """At most so many items, at even distances: files are often ordered by kind."""
    if limit is None or limit >= len(items):
        return items
    return [items[number * len(items) // limit] for number in range(limit)]
