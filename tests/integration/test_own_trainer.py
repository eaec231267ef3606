"""The README's examples of other trainers run, stop, and go on with the same losses."""

import ast
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, environment
from tests.unit.token_data import write_data

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Use the mixture stream in your own trainer\n")[1].split("\n## ")[0]
PLAIN, ACCELERATE, LIGHTNING = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
LOSS = re.compile(r"^(\d+) (\d+\.\d+)$", flags=re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    """A working directory with the data that the examples read."""
    rng = np.random.default_rng(0)
    domains = {name: [rng.integers(2, 200, 60).tolist()] for name in ("web", "code", "books")}
    write_data(tmp_path / "shards", domains, vocab_size=512)
    return tmp_path


def run(folder, script: str, *launcher: str) -> str:
    """What the script prints."""
    (folder / "train.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *launcher, "train.py"],
        capture_output=True, text=True, timeout=200, cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(printed: str) -> list[tuple[int, float]]:
    """Step and loss of every line that has them."""
    return [(int(step), float(loss)) for step, loss in LOSS.findall(printed)]


@pytest.mark.slow
def test_a_loop_of_ones_own(folder):
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    script = PLAIN.replace(
        "        if stream.step == 10:\n",
        "        if dist.get_rank() == 0:\n"
        "            print(stream.step, loss.item())\n"
        "        if stream.step == 10:\n",
    )
    assert script != PLAIN
    whole = run(folder, script, *torchrun, "--nproc-per-node=2")
    assert [step for step, _ in losses(whole)] == [*range(1, 21)]
    assert (folder / "checkpoint.pt").is_file()
    resumed = run(folder, script, *torchrun, "--nproc-per-node=2")
    assert losses(resumed) == losses(whole)[10:]
    # The same batches go to one rank, in twice as few batches of twice the size.
    bigger = script.replace("batch_size=8", "batch_size=16").replace("step == 20", "step == 10")
    alone = run(folder, bigger, *torchrun, "--nproc-per-node=1")
    expected = {"web": 88, "code": 56, "books": 16}
    for printed in (whole, resumed, alone):
        drawn = [ast.literal_eval(line) for line in printed.splitlines() if line.startswith("{")]
        assert drawn and all(counts == expected for counts in drawn)


@pytest.mark.slow
def test_accelerate(folder):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    whole = losses(run(folder, ACCELERATE, *launch))
    assert [step for step, _ in whole] == [*range(1, 21)]
    assert losses(run(folder, ACCELERATE, *launch)) == whole[10:]


@pytest.mark.slow
def test_lightning(folder):
    whole = losses(run(folder, LIGHTNING))
    assert [step for step, _ in whole] == [*range(20)]
    (last,) = (folder / "checkpoints").glob("*20.ckpt")
    last.unlink()
    assert losses(run(folder, LIGHTNING)) == whole[10:]
