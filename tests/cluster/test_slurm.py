"""The batch scripts under a real Slurm of two nodes."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoscale.manifest import Manifest
from autoscale.verification import verify
from tests.cluster.slurm import SlurmCluster
from tests.conftest import ROOT, TinyExperiment, environment

pytestmark = pytest.mark.cluster
LIMIT = 400
SHORT = ["--set", "train.seeds=[0]", "--set", "train.baselines=['uniform']"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def submit(slurm: SlurmCluster, script: str, *options: str, arguments: list[str]) -> str:
    """Submit a batch script from the repository; the number of the job."""
    exports = {
        "PATH": environment()["PATH"],
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",  # both nodes are this machine
        "GLOO_SOCKET_IFNAME": "lo",
    }
    output = slurm.folder / "slurm-%A_%a.out"
    answer = slurm.run(
        "sbatch", "--parsable", f"--output={output}", *options,
        "--export=" + ",".join(f"{name}={value}" for name, value in exports.items()),
        str(ROOT / "launch" / script), *arguments, cwd=ROOT,
    )  # fmt: skip
    return answer.strip()


def said(slurm: SlurmCluster) -> str:
    return "\n".join(path.read_text() for path in sorted(slurm.folder.glob("slurm-*.out")))


def claims(tiny: TinyExperiment) -> dict[str, dict]:
    folders = sorted((tiny.output / "runs").glob("*"))
    return {
        folder.name: json.loads(max(folder.glob("claim-*.json")).read_text()) for folder in folders
    }


def test_an_experiment_over_two_nodes(slurm: SlurmCluster, tiny: TinyExperiment) -> None:
    job = submit(
        slurm, "slurm.sbatch", "--nodes=2", "--ntasks-per-node=1",
        arguments=[str(tiny.path), *SHORT],
    )  # fmt: skip
    slurm.wait(job, timeout=LIMIT)
    assert (tiny.output / "report.html").is_file(), said(slurm)
    targets = [result for name, result in tiny.results().items() if name.startswith("train-")]
    assert len(targets) == 2 and all(result["world_size"] == 2 for result in targets)


def test_an_array_shares_the_probes(slurm: SlurmCluster, tiny: TinyExperiment) -> None:
    job = submit(slurm, "slurm_probes.sbatch", "--array=0-2%2", arguments=[str(tiny.path)])
    slurm.wait(job, timeout=LIMIT)
    held = claims(tiny)
    assert set(held) == set(tiny.results()) and held, said(slurm)
    assert {claim["generation"] for claim in held.values()} == {1}
    assert len({claim["owner"]["pid"] for claim in held.values()}) >= 2


LONG = [
    "--set", "train.budget='192K'", "--set", "train.seeds=[0]", "--set", "train.baselines=[]",
    "--set", "checkpoint.save_every=100_000",
]  # fmt: skip


def until(slurm: SlurmCluster, job: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert slurm.run("squeue", "--noheader", "--jobs", job).strip(), said(slurm)
        assert time.monotonic() < end, said(slurm)
        time.sleep(0.1)


def test_a_warned_job_goes_back_into_the_queue_and_continues(
    slurm: SlurmCluster, tiny: TinyExperiment
) -> None:
    tiny.autoscale("probe")
    for command in ("fit", "project"):
        tiny.autoscale(command, *LONG)
    job = submit(
        slurm, "slurm.sbatch", "--nodes=2", "--ntasks-per-node=1",
        arguments=[str(tiny.path), *LONG],
    )  # fmt: skip
    runs = tiny.output / "runs"
    until(slurm, job, lambda: any(p.stat().st_size for p in runs.glob("train-*/metrics.jsonl")))
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # what Slurm sends before the end
    until(slurm, job, lambda: "PENDING" in slurm.run("squeue", "-h", "-o", "%T", "-j", job))
    (folder,) = runs.glob("train-*")
    assert list(folder.glob("checkpoints/step-*.json")), said(slurm)
    assert not (folder / "failed.json").exists() and not (folder / "result.json").exists()
    slurm.wait(job, timeout=LIMIT)
    assert (tiny.output / "report.html").is_file(), said(slurm)
    assert "resumed from" in (folder / "log-rank0.txt").read_text()
    stopped = json.loads((folder / "result.json").read_text())
    shutil.rmtree(folder)
    job = submit(
        slurm, "slurm.sbatch", "--nodes=2", "--ntasks-per-node=1",
        arguments=[str(tiny.path), *LONG],
    )  # fmt: skip
    slurm.wait(job, timeout=LIMIT)
    never_stopped = json.loads((folder / "result.json").read_text())
    assert stopped["evaluations"] == never_stopped["evaluations"]


def test_a_job_stops_before_its_time_is_up(slurm: SlurmCluster, tiny: TinyExperiment) -> None:
    """Slurm's warning is far off here: the job itself asks when it ends."""
    job = submit(
        slurm, "slurm_probes.sbatch", "--time=2", "--signal=B:USR1@0",
        arguments=[str(tiny.path), *LONG, "--set", "limits.stop_before_end_minutes=3"],
    )  # fmt: skip
    slurm.wait(job, timeout=LIMIT)
    assert "which leaves no time to train" in said(slurm)
    assert not tiny.results()


def test_a_corpus_is_built_as_job_arrays(
    slurm: SlurmCluster, tiny_text: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    """data_prep/build.py submits its stages; what it leaves is what the local executor leaves."""
    corpus = tmp_path / "corpus"
    for name in ("english_docs", "licences_metadata"):
        lines = (tiny_text / f"{name}.jsonl").read_text().splitlines(keepends=True)
        for part in range(2):
            path = corpus / name / f"{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines[part::2]))
    (tokenizer,) = tiny_shards.glob("tokenizer-*/")
    command = [
        sys.executable, str(ROOT / "data_prep" / "build.py"), "--corpus", "jsonl",
        "--source", str(corpus), "--tokenizer", str(tokenizer), "--tasks", "2",
        "--across-domains", "--validation-fraction", "0.2",
    ]  # fmt: skip
    on_slurm = ["--executor", "slurm", "--slurm-partition", "main", "--slurm-time", "00:10:00"]
    on_slurm += ["--slurm-mem-per-cpu-gb", "1"]
    slurm.run(*command, "--output", str(tmp_path / "slurm"), *on_slurm)
    slurm.run(*command, "--output", str(tmp_path / "local"))
    last = slurm.run("squeue", "--noheader", "--format=%A").split()
    for job in last:
        slurm.wait(job, timeout=LIMIT)
    built, expected = (
        Manifest.load(tmp_path / name / "manifest.json") for name in ("slurm", "local")
    )
    assert verify(built) == []
    assert built.fingerprint == expected.fingerprint
