"""The launchers over several hosts."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import Hosts
from tests.conftest import ROOT, TinyExperiment, environment

pytestmark = pytest.mark.cluster
SHORT = ["--set", "train.seeds=[0]", "--set", "train.baselines=['uniform']"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("hosts") / "two", 2)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def launch(hosts: Hosts, script: str, *arguments: str, **variables: str) -> str:
    """Run a launch script on the first host; what it said."""
    done = subprocess.run(
        hosts.hosts[0].command(str(ROOT / "launch" / script), *arguments),
        capture_output=True, text=True, timeout=400, cwd=ROOT,
        env={**environment(), **hosts.environment(), **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_trained_by_two(tiny: TinyExperiment) -> None:
    assert (tiny.output / "report.html").is_file()
    targets = [result for name, result in tiny.results().items() if name.startswith("train-")]
    assert len(targets) == 2 and all(result["world_size"] == 2 for result in targets)


def test_the_deepspeed_launcher_over_pdsh(hosts: Hosts, tiny: TinyExperiment) -> None:
    said = launch(
        hosts, "hostfile.sh", str(tiny.path), str(hosts.hostfile()), *SHORT,
        DEEPSPEED_ARGS=f"--master_addr {hosts.hosts[0].address}",
    )  # fmt: skip
    check_trained_by_two(tiny)
    assert said.count("wrote ") == 1  # one rank speaks


def test_open_mpi(hosts: Hosts, tiny: TinyExperiment) -> None:
    interfaces = "--mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0"
    launch(
        hosts, "mpirun.sh", str(tiny.path), "2", *SHORT,
        MPIRUN_ARGS=f"--hostfile {hosts.hostfile()} {interfaces} -x PATH -x DS_ACCELERATOR "
        "-x GLOO_SOCKET_IFNAME",
    )  # fmt: skip
    check_trained_by_two(tiny)
