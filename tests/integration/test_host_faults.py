"""Faults of a host: its disk is full, its clock is wrong."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, TinyExperiment, environment, write_tiny
from tests.integration.jobs import finished_at

pytestmark = pytest.mark.slow
# Few runs, as short as they can be.
SHORT = ["--set", "probe.reference_seeds=1", "--set", "evaluation.points=1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    if os.geteuid() != 0:
        pytest.skip("a disk of its own needs root, to mount one")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Filler:
    """Takes all the room that is left on a disk, and whatever becomes free, until `remove`."""

    def __init__(self, folder: Path) -> None:
        self._path, self._ended = folder / "filler", threading.Event()
        self._thread = threading.Thread(target=self._fill)
        self._thread.start()

    def _fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            while not self._ended.wait(0.001):
                with suppress(OSError):
                    while True:
                        file.write(bytes(512))

    def remove(self) -> None:
        self._ended.set()
        self._thread.join()
        self._path.unlink()


def test_a_full_disk_loses_no_result_and_is_named(
    small_disk: Path, tiny_text: Path, tiny_shards: Path
) -> None:
    tiny = write_tiny(small_disk, tiny_text, tiny_shards)
    job = subprocess.Popen(
        tiny.command("probe", *SHORT, "--set", "checkpoint.save_every=1000"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(), cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    while len(finished_at(tiny)) < 2:
        assert job.poll() is None
    filler = Filler(small_disk)
    output, _ = job.communicate(timeout=240)
    finished = finished_at(tiny)
    filler.remove()
    assert job.returncode == 1, output
    assert "No space left on device" in output
    assert f"cannot write {tiny.output}" in output and "free space on that disk" in output
    assert len(finished) == len(tiny.results())  # each of them is whole
    assert not list(tiny.output.rglob("*.tmp"))

    tiny.autoscale("probe", *SHORT)
    assert finished.items() <= finished_at(tiny).items()
    assert not list(tiny.output.rglob("failed.json"))


def test_jobs_share_the_work_whatever_their_clocks_say(tiny: TinyExperiment) -> None:
    faults = ROOT / "tests" / "fixtures" / "faults"
    jobs = [
        subprocess.Popen(
            tiny.command("probe", *SHORT),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env=environment() | {"PYTHONPATH": f"{faults}", "CLOCK_SHIFT": str(shift)},
        )
        for shift in (-200_000, 0, 200_000)
    ]  # fmt: skip
    outputs = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], outputs
    claims = [json.loads(path.read_text()) for path in tiny.output.glob("runs/*/claim-*.json")]
    # Nobody took another's run for abandoned, nor trained what was finished.
    assert {claim["generation"] for claim in claims} == {1}
    assert len(claims) == len(tiny.results())
    days = {result["finished_at"][:10] for result in tiny.results().values()}
    assert len(days) > 1  # the clocks did differ
