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
from tests.integration.jobs import DEADLINE, Launched, campaign, finished_at

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("AUTOSCALE_KILLS", "20"))
SEED = int(os.environ.get("AUTOSCALE_KILL_SEED", "2026"))
CAMPAIGN = campaign(reference_seeds=max(2, KILLS // 10))
OVERRIDES = [*CAMPAIGN, "--set", "checkpoint.save_every=7"]
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
def test_nothing_is_lost_or_repeated_under_fire(undisturbed, tiny, capsys):
    calm = undisturbed(*CAMPAIGN)
    shared_memory = set(os.listdir("/dev/shm"))

    killer, starts, finished, status = Killer(SEED, KILLS), 0, {}, 1
    while status != 0:
        starts += 1
        job = Launched(tiny, *OVERRIDES)
        if killer.left:
            killer.visit(job)
        output, status = job.finish()
        assert starts <= 2 * KILLS, output
        assert finished.items() <= finished_at(tiny).items(), "a finished run was run again"
        finished = finished_at(tiny)
    assert killer.left == 0, f"the campaign was over after {killer.killed} kills"

    expected, found = calm.results(), tiny.results()
    assert set(found) == set(expected)
    for run, result in found.items():
        assert result["evaluations"] == expected[run]["evaluations"], run
        assert result["tokens"] == expected[run]["tokens"], run
        assert result["checksum"] == expected[run]["checksum"], run
    for name in ("fit.json", "mixture-96K.json"):
        assert (tiny.output / name).is_file()
    for path in tiny.output.rglob("*.json"):
        json.loads(path.read_text())  # whole, or not there
    for folder in (tiny.output / "runs").iterdir():
        claim = read_claim(folder)
        assert claim is not None and claim.is_given_up, folder
        assert not (folder / "failed.json").exists(), folder
    assert set(os.listdir("/dev/shm")) <= shared_memory
    with capsys.disabled():
        print(
            f"\nsurvived {killer.killed} kills (seed {SEED}): {killer.ranks} of job ranks, "
            f"{killer.children} of training children, {starts} starts, {len(found)} runs equal"
        )
