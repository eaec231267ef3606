"""Experiments on random tokens for the cluster benchmark, and jobs of the launcher on them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from data_path_workload import write_manifest

from autoscale.config import load_config
from autoscale.distributed import free_port
from autoscale.planning import Experiment

ROOT: Final = Path(__file__).parents[1]
LIMIT: Final = 1200
VOCAB_SIZE: Final = 512
_TOKENS_OF_DOMAIN: Final = 2_000_000
_EXPERIMENT: Final = """
name = "cluster"
output_dir = "{output}"

[data]
manifest = "{manifest}"
sequence_length = 256

[model]
name = "gpt2-tiny"
overrides = {{ n_layer = {layers}, n_embd = {width}, n_head = 8 }}

[trainer]
deepspeed = "{root}/ds_configs/zero1.json"
global_batch_tokens = 1024
micro_batch_size = 4
precision = "fp32"
lr = 3e-4

[evaluation]
sequences_per_domain = 2
points = 1

[probe]
budgets = [{tokens}]
design = "one_at_a_time"
fixed_budget = true
factors = [1.5]
reference_seeds = 2

[fit]
draws = 2
folds = 2

[train]
budget = {tokens}
baselines = []
seeds = [0]
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How long the benchmark may take, and where it writes.

    Attributes:
        folder: for tokens and runs.
        rounds: of arms in turn.
        steps: of a run whose speed is measured.
        kills: of the restarts that are timed.
        faults: kills of the fault suite.
    """

    folder: Path
    rounds: int
    steps: int
    kills: int
    faults: int


def make_tokens(folder: Path) -> Path:
    """Two domains of random tokens, made once; returns their manifest's path."""
    path = folder / "manifest.json"
    if path.exists():
        return path
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    documents = {
        name: np.split(generator.integers(0, VOCAB_SIZE, _TOKENS_OF_DOMAIN, dtype=np.uint16), 100)
        for name in ("first", "second")
    }
    return write_manifest(folder, documents, vocab_size=VOCAB_SIZE, validation_tokens=2048)


@dataclass(frozen=True, slots=True)
class Bench:
    """One experiment file of the benchmark with its folder."""

    path: Path
    output: Path

    def labels(self, overrides: Sequence[str]) -> list[str]:
        """Of the reference runs, which differ in their seed alone."""
        experiment = Experiment(load_config(self.path, overrides[1::2]))
        labels = [planned.spec.label for planned in experiment.probes()]
        return [label for label in labels if "reference" in label]

    def records(self, kind: str) -> list[list[dict[str, Any]]]:
        """Records of a kind in the `metrics.jsonl` of each run."""
        found = []
        for path in sorted((self.output / "runs").glob("*/metrics.jsonl")):
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            found.append([line for line in lines if line["kind"] == kind])
        return found

    def results(self) -> list[dict[str, Any]]:
        paths = sorted((self.output / "runs").glob("*/result.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def make_bench(folder: Path, manifest: Path, *, steps: int, layers: int, width: int) -> Bench:
    """A new experiment in `folder`: runs of `steps` steps of 1024 tokens."""
    folder.mkdir(parents=True)
    path, output = folder / "cluster.toml", folder / "out"
    text = _EXPERIMENT.format(
        output=output, manifest=manifest, root=ROOT, tokens=steps * 1024, layers=layers, width=width
    )
    path.write_text(text, encoding="utf-8")
    return Bench(path, output)


def environment() -> dict[str, str]:
    """This interpreter's commands, CPU, one thread a rank."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def run_probes(bench: Bench, ranks: int, overrides: Sequence[str] = (), runs: int = 2) -> float:
    """`autoscale probe` on that many reference runs, by the local launcher; its seconds."""
    only = [part for label in bench.labels(overrides)[:runs] for part in ("--only", label)]
    command = [
        "deepspeed", "--quiet", "--hostfile", "/dev/null", "--num_gpus", str(ranks),
        "--master_port", str(free_port()), "--no_local_rank",
        "--module", "autoscale", "probe", str(bench.path), *only, *overrides,
    ]  # fmt: skip
    start = time.perf_counter()
    run_together([command], bench.path.with_suffix(".log"))
    return time.perf_counter() - start


def run_together(commands: Sequence[Sequence[str]], log: Path) -> list[str]:
    """Commands side by side; what each wrote. A failure of one ends the benchmark."""
    jobs = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log.open("ab"), text=True, cwd=ROOT,
            env=environment(), start_new_session=True,
        )
        for command in commands
    ]  # fmt: skip
    try:
        said = [job.communicate(timeout=LIMIT)[0] for job in jobs]
    finally:
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    for command, job, output in zip(commands, jobs, said, strict=True):
        if job.returncode:
            with log.open("a", encoding="utf-8") as file:
                file.write(output)
            raise RuntimeError(f"{' '.join(command)}: status {job.returncode}; see {log}")
    return said


def steady_rate(seconds: Sequence[float], tokens: Sequence[int]) -> float:
    """Tokens a second from a tenth to nine tenths of a run.

    Args:
        seconds: of each interval between two records.
        tokens: of each interval.
    """
    first, last = len(seconds) // 10, len(seconds) - len(seconds) // 10
    return sum(tokens[first:last]) / sum(seconds[first:last])


def logged_rate(records: Sequence[dict[str, Any]]) -> float:
    """Steady rate of a run of ours, from its log of the training loss."""
    ends = [record["tokens"] for record in records]
    tokens = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    seconds = [
        count / record["tokens_per_second"] for count, record in zip(tokens, records, strict=True)
    ]
    return steady_rate(seconds, tokens)
