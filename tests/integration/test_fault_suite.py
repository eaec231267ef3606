"""A campaign under fire: job ranks and training children are killed with -9 at random moments,
and started again each time; the end is that of a campaign that nobody touched.

`AUTOSCALE_KILLS` (default 20) and `AUTOSCALE_KILL_SEED` choose another campaign.
"""

import json
import os
import random
import time

import psutil
import pytest

from autoscale.claims import read_claim
from tests.conftest import write_tiny
from tests.integration.jobs import DEADLINE, Launched, finished_at

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("AUTOSCALE_KILLS", "20"))
SEED = int(os.environ.get("AUTOSCALE_KILL_SEED", "2026"))
OVERRIDES = [
    "--set", "probe.budgets=['8K', '16K']",
    "--set", f"probe.reference_seeds={2 + KILLS // 10}",
    "--set", "train.budget='48K'",
    "--set", "train.baselines=['uniform']",
    "--set", "train.seeds=[0]",
    "--set", "checkpoint.save_every=7",
]  # fmt: skip
CHILDREN_A_START = 4


class Killer:
    """Kills `left` more processes, at moments and of kinds that a seed decides."""

    def __init__(self, seed: int, kills: int) -> None:
        self._random, self.left, self.killed = random.Random(seed), kills, 0
        self.ranks = self.children = 0

    def visit(self, job: Launched) -> None:
        """Strike until a job rank is dead, or the job at its end."""
        if self._random.random() < 0.2:  # while it starts up
            end = time.monotonic() + DEADLINE
            while not (job.ranks() or job.has_ended) and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(self._random.uniform(0, 8))
        else:
            for _ in range(min(CHILDREN_A_START, self.left)):
                self.children += self._kill_child(job)
        if self.left:
            ranks = list(job.ranks().values())
            self.ranks += bool(ranks) and self._kill(self._random.choice(ranks))

    def _kill_child(self, job: Launched) -> bool:
        """One of a moment's training children, a moment later."""
        end = time.monotonic() + DEADLINE
        while not job.has_ended and time.monotonic() < end:
            child = job.training_child(self._random.randrange(2))
            if child is not None:
                time.sleep(self._random.uniform(0, 1.0))
                return self._kill(child)
            time.sleep(0.02)
        return False

    def _kill(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:  # it was faster
                return False
            process.kill()  # not a process that has its number since
        except psutil.NoSuchProcess:
            return False
        self.left, self.killed = self.left - 1, self.killed + 1
        return True


@pytest.mark.timeout(1800 + 60 * KILLS)
def test_nothing_is_lost_or_repeated_under_fire(tiny_text, tiny_shards, tmp_path, capsys):
    shared_memory = set(os.listdir("/dev/shm"))
    calm, fired_at = (
        write_tiny(tmp_path / name, tiny_text, tiny_shards) for name in ("calm", "fired_at")
    )
    output, status = Launched(calm, *OVERRIDES).finish()
    assert status == 0, output

    killer, starts, finished = Killer(SEED, KILLS), 0, {}
    while status != 0 or not starts:
        starts += 1
        job = Launched(fired_at, *OVERRIDES)
        if killer.left:
            killer.visit(job)
        output, status = job.finish()
        assert starts <= 2 * KILLS, output
        assert finished.items() <= finished_at(fired_at).items(), "a finished run was run again"
        finished = finished_at(fired_at)
    assert killer.left == 0, f"the campaign was over after {killer.killed} kills"

    expected, found = calm.results(), fired_at.results()
    assert set(found) == set(expected)
    for run, result in found.items():
        assert result["evaluations"] == expected[run]["evaluations"], run
        assert result["tokens"] == expected[run]["tokens"], run
        assert result["checksum"] == expected[run]["checksum"], run
    for name in ("fit.json", "mixture-48K.json"):
        assert (fired_at.output / name).is_file()
    for path in fired_at.output.rglob("*.json"):
        json.loads(path.read_text())  # whole, or not there
    for folder in (fired_at.output / "runs").iterdir():
        claim = read_claim(folder)
        assert claim is not None and claim.is_given_up, folder
        assert not (folder / "failed.json").exists(), folder
    assert set(os.listdir("/dev/shm")) <= shared_memory
    with capsys.disabled():
        print(
            f"\nsurvived {killer.killed} kills (seed {SEED}): {killer.ranks} of job ranks, "
            f"{killer.children} of training children, {starts} starts, {len(found)} runs equal"
        )
