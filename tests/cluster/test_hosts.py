"""The launchers over several hosts."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.conftest import REMOVED, SHORT
from tests.cluster.hosts import Hosts
from tests.conftest import ROOT, TinyExperiment, environment

pytestmark = pytest.mark.cluster
LIMIT = 400
# What launchers say: deepspeed's log, pdsh at its end.
OF_LAUNCHERS = re.compile(r"\[\d{4}-\d\d-\d\d |pdsh@")


def launch(
    hosts: Hosts, script: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a launch script on the first host; its output holds both streams."""
    job = subprocess.Popen(
        hosts.hosts[0].command(str(ROOT / "launch" / script), *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**environment(), **hosts.environment(), **variables}, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = job.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(job.args, job.returncode, said)


def mpirun_arguments(hosts: Hosts, num_hosts: int) -> str:
    interfaces = "--mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0"
    variables = "-x PATH -x DS_ACCELERATOR -x GLOO_SOCKET_IFNAME"
    return f"--hostfile {hosts.hostfile(num_hosts)} {interfaces} {variables}"


def spoken(said: str) -> list[str]:
    """The lines of our own in a job's output, without pdsh's `host: `."""
    lines = [re.sub(r"^as\w+h\d: ", "", line).strip() for line in said.splitlines()]
    return [line for line in lines if line and not OF_LAUNCHERS.match(line)]


def check_done_by_two(nearly: TinyExperiment, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout
    assert (nearly.output / "report.html").is_file()
    ranks = {name: result["world_size"] for name, result in nearly.results().items()}
    assert [ranks[name] for name in ranks if name.startswith(REMOVED)] == [1, 1]
    assert [ranks[name] for name in ranks if name.startswith("train-")] == [2]
    repeated = [line for line, count in Counter(spoken(done.stdout)).items() if count > 1]
    assert not repeated, done.stdout  # one rank speaks
    assert any(line.startswith("wrote ") for line in spoken(done.stdout))


def test_the_deepspeed_launcher_over_pdsh(hosts: Hosts, nearly: TinyExperiment) -> None:
    done = launch(
        hosts, "hostfile.sh", str(nearly.path), str(hosts.hostfile(2)), *SHORT,
        DEEPSPEED_ARGS=f"--master_addr {hosts.hosts[0].address}",
    )  # fmt: skip
    check_done_by_two(nearly, done)


def test_the_deepspeed_launcher_over_open_mpi(hosts: Hosts, nearly: TinyExperiment) -> None:
    done = launch(
        hosts, "hostfile.sh", str(nearly.path), str(hosts.hostfile(2)), *SHORT,
        DEEPSPEED_ARGS="--launcher openmpi",
    )  # fmt: skip
    check_done_by_two(nearly, done)


def test_mpirun(hosts: Hosts, nearly: TinyExperiment) -> None:
    arguments = mpirun_arguments(hosts, 2)
    done = launch(hosts, "mpirun.sh", str(nearly.path), "2", *SHORT, MPIRUN_ARGS=arguments)
    check_done_by_two(nearly, done)


def expect_refusal(done: subprocess.CompletedProcess[str], message: str) -> None:
    """The job failed with this message of one rank, and nothing else."""
    assert done.returncode != 0, done.stdout
    told = [line for line in spoken(done.stdout) if "error" in line.lower() or "rank " in line]
    assert len([line for line in told if re.search(message, line)]) == 1, done.stdout
    assert "Traceback" not in done.stdout
    assert not [line for line in told if re.match(r"(rank \d+: )?error: ", line)][1:], done.stdout


def altered(folder: Path, path: Path, old: str, new: str) -> Path:
    """A copy of a text file with a change."""
    text = path.read_text()
    assert old in text
    copy = folder / f"altered-{path.name}"
    copy.write_text(text.replace(old, new))
    return copy


def mpirun_on_three(hosts: Hosts, tiny: TinyExperiment) -> subprocess.CompletedProcess[str]:
    arguments = mpirun_arguments(hosts, 3)
    one = ("--set", "train.ranks_per_run=1")  # three do not divide the batch
    return launch(hosts, "mpirun.sh", str(tiny.path), "3", *SHORT, *one, MPIRUN_ARGS=arguments)


def test_another_experiment_file_on_one_host(
    hosts: Hosts, tiny: TinyExperiment, tmp_path: Path
) -> None:
    last = hosts.hosts[2]
    with last.showing(tiny.path, altered(tmp_path, tiny.path, "lr = 1e-2", "lr = 2e-2")):
        done = mpirun_on_three(hosts, tiny)
    first = hosts.hosts[0].name
    expect_refusal(
        done,
        rf"^error: rank 2 on {last.name} has experiment hash \w+ but rank 0 on {first} has \w+; "
        "all ranks must see the same files and code$",
    )


def test_other_data_on_one_host(
    hosts: Hosts, tiny: TinyExperiment, tiny_shards: Path, tmp_path: Path
) -> None:
    manifest = tiny_shards / "manifest.json"
    # Without [prepare], which writes the manifest anew and takes the mount along.
    before, rest = tiny.path.read_text().split("[prepare]")
    settings = rest.split("[data]")[1]
    tiny.path.write_text(f'{before}[data]\nmanifest = "{manifest}"{settings}')
    digest = re.findall(r'"sha256": "(\w+)"', manifest.read_text())[1]  # of the first shard
    last = hosts.hosts[2]
    with last.showing(manifest, altered(tmp_path, manifest, digest, digest[::-1])):
        done = mpirun_on_three(hosts, tiny)
    expect_refusal(done, rf"^error: rank 2 on {last.name} has data fingerprint \w+ but rank 0 on ")


def test_other_code_on_one_host(hosts: Hosts, tiny: TinyExperiment, tmp_path: Path) -> None:
    """The launcher's own rank 0 is the one that differs here, from the two others."""
    source = ROOT / "autoscale" / "wording.py"
    first = hosts.hosts[0]
    with first.showing(source, altered(tmp_path, source, "sentences", "phrases")):
        done = launch(
            hosts, "hostfile.sh", str(tiny.path), str(hosts.hostfile(3)), *SHORT,
            DEEPSPEED_ARGS=f"--master_addr {first.address}",
        )  # fmt: skip
    expect_refusal(
        done,
        rf"^error: rank 0 on {first.name} has code version .*\(sources \w+\) but rank 1 on "
        rf"{hosts.hosts[1].name} has ",
    )


def test_a_file_that_one_host_lacks(hosts: Hosts, tiny: TinyExperiment, tmp_path: Path) -> None:
    folder = tmp_path / "only-here"
    folder.mkdir()
    shutil.copy(tiny.path, folder / "tiny.toml")
    (tmp_path / "empty").mkdir()
    last = hosts.hosts[2]
    here = TinyExperiment(path=folder / "tiny.toml", output=tiny.output)
    with last.showing(folder, tmp_path / "empty"):
        done = mpirun_on_three(hosts, here)
    expect_refusal(
        done, rf"^error: rank 2 on {last.name}: experiment file {here.path} does not exist$"
    )
