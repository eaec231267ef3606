"""A tiny experiment on real text, shared by the tests that train."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Deadlines would be timed tests: how fast an example runs is no property of the code.
settings.register_profile("autoscale", deadline=None)
settings.load_profile("autoscale")
sys.path.insert(0, str(ROOT / "data_prep"))

TINY = """
name = "tiny"
output_dir = "{output}"

[prepare]
output = "{shards}"
validation_fraction = 0.1
num_workers = 1
tokenizer = {{ vocab_size = 320, sample_bytes = 60_000 }}
domains = [
    {{ name = "python_code", train = ["{text}/python_code.jsonl"] }},
    {{ name = "english_docs", train = ["{text}/english_docs.jsonl"] }},
    {{ name = "cpp_headers", train = ["{text}/cpp_headers.jsonl"] }},
]

[data]
sequence_length = 32

[model]
name = "gpt2-nano"
overrides = {{ n_layer = 1, n_embd = 32 }}

[trainer]
deepspeed = "{root}/ds_configs/zero1.json"
global_batch_tokens = 256
micro_batch_size = 4
precision = "fp32"
lr = 1e-2
warmup_fraction = 0.1

[checkpoint]
save_every = 12

[evaluation]
sequences_per_domain = 21
points = 4

[probe]
budgets = ["4K", "8K"]
reference_seeds = 2

[train]
budget = "12K"
baselines = ["uniform", "full"]
seeds = [0, 1]
"""


@dataclass(frozen=True)
class TinyExperiment:
    """An experiment file with its folders, and the command line on it."""

    path: Path
    output: Path

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "autoscale", name, str(self.path), *arguments]

    def autoscale(
        self, name: str, *arguments: str, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run one command in one process; fails the test unless it succeeds."""
        done = self.try_autoscale(name, *arguments, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def try_autoscale(
        self, name: str, *arguments: str, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, *arguments),
            capture_output=True, text=True, timeout=timeout, env=environment(), cwd=ROOT,
        )  # fmt: skip

    def results(self) -> dict[str, dict]:
        """Finished runs by run id."""
        paths = sorted((self.output / "runs").glob("*/result.json"))
        return {path.parent.name: json.loads(path.read_text()) for path in paths}


def environment() -> dict[str, str]:
    """Variables for a launched program: this interpreter's commands, CPU, one thread a rank, and
    nothing from another launcher."""
    launchers = ("SLURM_", "OMPI_", "PMI", "PRTE_", "TORCHELASTIC_", "MASTER_", "CUDA_VISIBLE_")
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in dropped and not key.startswith(launchers)
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """Real text of this installation, about 150 kB a domain."""
    from installation_text import harvest

    folder = tmp_path_factory.mktemp("text")
    harvest(folder, max_bytes_per_domain=150_000)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tiny_text, tmp_path_factory) -> Path:
    """The text as shards, prepared once through the command line."""
    folder = tmp_path_factory.mktemp("shards")
    write_tiny(folder / "unused", tiny_text, folder / "shards").autoscale("prepare")
    return folder / "shards"


@pytest.fixture
def tiny(tiny_text, tiny_shards, tmp_path) -> TinyExperiment:
    """A fresh experiment on the shared shards."""
    return write_tiny(tmp_path, tiny_text, tiny_shards)


def write_tiny(folder: Path, text: Path, shards: Path) -> TinyExperiment:
    folder.mkdir(parents=True, exist_ok=True)
    path, output = folder / "tiny.toml", folder / "out"
    path.write_text(TINY.format(output=output, shards=shards, text=text, root=ROOT))
    return TinyExperiment(path=path, output=output)
