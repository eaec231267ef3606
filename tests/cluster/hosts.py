"""Hosts on this machine: network namespaces with their own names, addresses and ssh servers.

They share files, as the hosts of a cluster with a shared file system do. Everything has a name of
this process, so that two test runs do not meet; nothing is ended by name.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/{name}.pid
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
"""
SSH = """
Host *
    IdentityFile {folder}/user_key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


class Host:
    """One namespace.

    Attributes:
        server: its ssh server, whose view of the files all that it starts shares.
    """

    def __init__(self, name: str, link: str, address: str) -> None:
        self.name, self.link, self.address = name, link, address
        self.server: subprocess.Popen[bytes] | None = None

    def command(self, *command: str) -> list[str]:
        """The command as it is run on this host, under its name."""
        rename = 'hostname "$0" && exec "$@"'
        return [
            "ip", "netns", "exec", self.name,
            "unshare", "--uts", "sh", "-c", rename, self.name, *command,
        ]  # fmt: skip

    @contextmanager
    def showing(self, path: Path, other: Path) -> Iterator[None]:
        """What is started over ssh here sees `other`, a file or folder, in the place of `path`."""
        assert self.server is not None
        inside = ("nsenter", f"--mount=/proc/{self.server.pid}/ns/mnt")
        run(*inside, "mount", "--bind", str(other), str(path))
        try:
            yield
        finally:
            run(*inside, "umount", "--lazy", str(path))

    def unplug(self) -> None:
        """Take the host off the network, without a word to anybody."""
        run("ip", "link", "set", self.link, "down")

    def plug(self) -> None:
        """Connect it again."""
        run("ip", "link", "set", self.link, "up")


class Hosts:
    """`count` hosts on one bridge."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        tag = f"{os.getpid() % 46656:x}"
        self._bridge = f"as{tag}br"
        subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._gateway = f"{subnet}.254"
        self.hosts = [
            Host(f"as{tag}h{number}", f"as{tag}v{number}", f"{subnet}.{number}")
            for number in range(1, count + 1)
        ]

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        for key in ("host_key", "user_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd drops its privileges into it
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self._gateway}/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        for host in self.hosts:
            self._add(host, f"127.0.0.1 localhost\n{names}")

    def stop(self) -> None:
        for host in self.hosts:
            if host.server is not None:
                os.killpg(host.server.pid, signal.SIGKILL)
                host.server.wait()
            subprocess.run(["ip", "netns", "del", host.name], check=False)
            subprocess.run(["ip", "link", "del", host.link], check=False, capture_output=True)
            shutil.rmtree(f"/etc/netns/{host.name}", ignore_errors=True)
        subprocess.run(["ip", "link", "del", self._bridge], check=False)

    def hostfile(self, count: int) -> Path:
        """A hostfile of the first `count` hosts, with one rank each."""
        path = self.folder / f"hostfile-{count}"
        path.write_text("".join(f"{host.name} slots=1\n" for host in self.hosts[:count]))
        return path

    def environment(self) -> dict[str, str]:
        """What a launcher on one of the hosts needs to reach the others."""
        return {"GLOO_SOCKET_IFNAME": "eth0", "PDSH_RCMD_TYPE": "ssh"}

    def _add(self, host: Host, names: str) -> None:
        known = Path("/etc/netns") / host.name
        known.mkdir(parents=True)
        (known / "hosts").write_text(names)  # `ip netns exec` shows these as /etc/hosts, /etc/ssh
        (known / "ssh").mkdir()
        (known / "ssh" / "ssh_config").write_text(SSH.format(folder=self.folder))
        run("ip", "netns", "add", host.name)
        ends = ("type", "veth", "peer", "name", "eth0", "netns", host.name)
        run("ip", "link", "add", host.link, *ends)
        run("ip", "link", "set", host.link, "master", self._bridge, "up")
        inside = ("ip", "-n", host.name)
        run(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        config = self.folder / f"{host.name}.conf"
        config.write_text(SSHD.format(address=host.address, folder=self.folder, name=host.name))
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin")
        assert sshd is not None
        log = (self.folder / f"{host.name}.log").open("wb")
        host.server = subprocess.Popen(
            host.command(sshd, "-D", "-e", "-f", str(config)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 20
        while not (self.folder / f"{host.name}.pid").exists():
            assert time.monotonic() < end, (self.folder / f"{host.name}.log").read_text()
            time.sleep(0.05)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
