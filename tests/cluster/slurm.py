"""A real Slurm of two nodes on this machine, with its own munge, ports and folders."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

CONFIG = """
ClusterName=autoscale
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_seconds}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=w1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=w2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


# How long a requeued job waits; Slurm's own 120 s are for nodes that answer slowly.
REQUEUE_SECONDS = 15


class SlurmCluster:
    """Started and stopped by its own commands; ends nothing that it did not start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._host = socket.gethostname()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "state").mkdir()
        self._start_munge()
        ports = _free_ports(3)
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=self._host, ports=ports, user=getpass.getuser(), folder=self.folder,
                requeue_seconds=REQUEUE_SECONDS,
            )
        )  # fmt: skip
        self._spawn("slurmctld", "-D")
        for node in ("w1", "w2"):
            (self.folder / f"spool-{node}").mkdir()
            self._spawn("slurmd", "-D", "-N", node)
        self._wait_for_nodes()

    def stop(self) -> None:
        """Cancel what is left, then end the daemons, the last started first."""
        self.run("scancel", "--user", getpass.getuser(), check=False)
        end = time.monotonic() + 30
        while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < end:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True, **options: object) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.environment},
            **options,
        )  # type: ignore[call-overload]
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return str(done.stdout)

    def wait(self, job: str, *, timeout: float) -> None:
        """Until no task of the job is in the queue any more."""
        end = time.monotonic() + timeout
        while self.run("squeue", "--noheader", "--jobs", job, check=False).strip():
            assert time.monotonic() < end, f"job {job} is not done after {timeout} s"
            time.sleep(0.3)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        _wait(lambda: (self.folder / "munge.socket").exists(), "munged", self.folder)

    def _spawn(self, *command: str) -> None:
        path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert path is not None, command
        log = (self.folder / f"{Path(path).name}.out").open("ab")
        self._daemons.append(
            subprocess.Popen(
                [path, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment}, start_new_session=True,
            )
        )  # fmt: skip

    def _wait_for_nodes(self) -> None:
        def idle() -> bool:
            states = self.run("sinfo", "--noheader", "--Node", "--format=%t", check=False).split()
            return states == ["idle", "idle"]

        _wait(idle, "the nodes", self.folder)


def _wait(condition, what: str, folder: Path) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            logs = "\n".join(
                f"--- {path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.log"))
            )
            raise RuntimeError(f"{what} did not come up within 60 s\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
