"""The batch scripts under a real Slurm of two nodes."""

import json
from collections.abc import Iterator

import pytest

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
