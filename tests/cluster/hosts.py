"""Several real hosts on this machine, for root: what a fault does to them is what it does to nodes.

Each host has namespaces of its own (network, process ids, host name, IPC, mounts), a root file
system of its own over this one's, an sshd, and a cable to a switch that nothing else is on. Nothing
is installed, no address of this machine is used, and all of it is gone with the hosts' first
processes. Names and namespaces carry this process's id, so that two labs do not meet.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NEEDS = ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "pdsh")
SSHD = "/usr/sbin/sshd"
_NETWORK = "10.79.46"


def missing() -> str:
    """Why no hosts can be made here; "" where they can."""
    if os.geteuid():
        return "needs root"
    lacking = [name for name in NEEDS if shutil.which(name) is None]
    if not Path(SSHD).exists():
        lacking.append("sshd")
    return f"needs {', '.join(lacking)}" if lacking else ""


def run(*words: object) -> None:
    """A command that must succeed."""
    ended = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"


class Hosts:
    """node0, node1, ... with a folder that all of them share.

    Args:
        folder: For keys and logs.
        shared: An existing folder, at the same path on every host; elsewhere writes are private.
        count: Hosts.
    """

    def __init__(self, folder: Path, shared: Path, count: int) -> None:
        self.folder, self.shared = folder, shared
        self.names = [f"node{index}" for index in range(count)]
        self._prefix = f"focaltune{os.getpid()}"
        self._first: dict[str, int] = {}  # name -> process id of its first process
        self._outer: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("login", "host"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        self._write_names()
        run("ip", "netns", "add", self._switch)
        run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for name in self.names:
            self.boot(name)

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def boot(self, name: str) -> None:
        """Bring a host up, for the first time or after power_off."""
        space, port = f"{self._prefix}-{name}", self._port(name)
        run("ip", "netns", "add", space)
        run("ip", "-n", self._switch, "link", "add", port, "type", "veth",
            "peer", "name", "eth0", "address", f"02:00:00:00:00:{10 + self.names.index(name)}",
            "netns", space)  # fmt: skip
        run("ip", "-n", self._switch, "link", "set", port, "master", "bridge", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", space, "addr", "add", f"{self._address(name)}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        ready = self.folder / f"{name}.up"
        ready.unlink(missing_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self._outer[name] = subprocess.Popen(
                ["ip", "netns", "exec", space, "unshare", "--uts", "--pid", "--ipc", "--mount",
                 "--fork", "--kill-child", sys.executable, __file__, name, str(self.folder),
                 str(self.shared)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()
            time.sleep(0.02)
        outer = self._outer[name].pid
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        self._first[name] = int(children[0])

    def start(self, name: str, command: Sequence[object], log: Path, **environment: str
    ) -> "subprocess.Popen[bytes]":  # fmt: skip
        """A command on a host; what it prints goes to a file."""
        names = ["OMP_NUM_THREADS=1", "DS_ACCELERATOR=cpu", "HOME=/root"]
        names += [f"{key}={value}" for key, value in environment.items()]
        words = ["nsenter", "-t", self._first[name], "-n", "-u", "-i", "-p", "-m", "-r",
                 f"--wdns={self.shared}", "env", "-i", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}",
                 *names, *command]  # fmt: skip
        with log.open("wb") as output:
            return subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def processes(self, name: str) -> dict[int, str]:
        """Command lines on a host but for those of the host itself; empty where it is down."""
        first, found = self._first[name], {}
        try:
            space = os.readlink(f"/proc/{first}/ns/pid")
        except OSError:
            return {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns" / "pid") != space or int(process.name) == first:
                    continue
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if command and "sshd" not in command:
                found[int(process.name)] = command
        return found

    def left(self) -> dict[str, list[str]]:
        """What runs on any host."""
        return {name: list(ran.values()) for name in self.names if (ran := self.processes(name))}

    def kill_rank(self, name: str, rank: int) -> None:
        """SIGKILL to a rank that runs on a host."""
        wanted = f"RANK={rank}".encode()
        for process, command in self.processes(name).items():
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if wanted in environment and "train.py" in command:
                os.kill(process, signal.SIGKILL)
                return
        raise AssertionError(f"no rank {rank} on {name}: {self.processes(name)}")

    def cut(self, name: str) -> None:
        """Pull the cable: packets are lost, nothing is told."""
        run("ip", "-n", self._switch, "link", "set", self._port(name), "down")

    def restore(self, name: str) -> None:
        """Plug it in again."""
        run("ip", "-n", self._switch, "link", "set", self._port(name), "up")

    def refuse_ssh(self, name: str) -> None:
        """End the host's sshd; connections are refused from now on."""
        space = os.readlink(f"/proc/{self._first[name]}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_here = os.readlink(process / "ns" / "pid") == space
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if is_here and SSHD.encode() in command:
                os.kill(int(process.name), signal.SIGKILL)

    def power_off(self, name: str) -> None:
        """Silence: no process says goodbye and no kernel answers for it."""
        self.cut(name)
        self._end(name)

    def down(self) -> None:
        """End everything."""
        for name in self.names:
            self._end(name)
        run("ip", "netns", "del", self._switch)

    def _end(self, name: str) -> None:
        outer = self._outer.pop(name, None)
        if outer is None:
            return
        outer.kill()  # and with it the first process, and with that all others
        outer.wait()
        deadline = time.monotonic() + 10
        while self.processes(name) and time.monotonic() < deadline:
            time.sleep(0.02)
        run("ip", "-n", self._switch, "link", "del", self._port(name))
        run("ip", "netns", "del", f"{self._prefix}-{name}")

    def _address(self, name: str) -> str:
        return f"{_NETWORK}.{10 + self.names.index(name)}"

    def _port(self, name: str) -> str:
        return f"port{self.names.index(name)}"

    def _write_names(self) -> None:
        key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        lines = [f"{self._address(name)} {name}\n" for name in self.names]
        lines.append(f"{_NETWORK}.99 node{len(self.names)}\n")  # a name without a machine
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        known = [f"{name},{self._address(name)} {key}\n" for name in self.names]
        (self.folder / "known_hosts").write_text("".join(known))


SSHD_CONFIG = """Port 22
ListenAddress 0.0.0.0
HostKey /etc/ssh/lab_host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100:30:200
PidFile none
"""


def become_host(name: str, folder: Path, shared: Path) -> None:
    """The first process of a host, inside its namespaces: mounts, sshd, then wait for orphans."""
    run("hostname", name)
    run("mount", "--make-rprivate", "/")
    private = Path("/mnt")  # of this mount namespace alone
    run("mount", "-t", "tmpfs", "-o", "size=4g", f"disk-{name}", private)
    upper, work, root = (private / part for part in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir()
    run("mount", "-t", "overlay", f"root-{name}",
        "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)  # fmt: skip
    run("mount", "-t", "proc", "proc", root / "proc")
    run("mount", "--rbind", "/sys", root / "sys")
    run("mount", "--rbind", "/dev", root / "dev")
    run("mount", "-t", "tmpfs", f"shm-{name}", root / "dev/shm")
    run("mount", "-t", "tmpfs", f"run-{name}", root / "run")
    (root / "run/sshd").mkdir()
    repository = Path(__file__).resolve().parents[2]
    for path in {shared, folder, repository, (repository / ".venv").resolve()}:
        target = root / path.relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        run("mount", "--rbind", path, target)
    _write_root(root, name, folder)
    os.chdir(root)
    (root / "oldroot").mkdir()
    run("pivot_root", ".", "oldroot")
    os.chroot(".")
    run("umount", "-l", "/oldroot")
    run(SSHD, "-f", "/etc/ssh/lab_sshd_config")
    (folder / f"{name}.up").touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


def _write_root(root: Path, name: str, folder: Path) -> None:
    """/etc and the home folder of a host."""
    shutil.copy(folder / "hosts", root / "etc/hosts")
    (root / "etc/hostname").write_text(f"{name}\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").touch()
    ssh = root / "root/.ssh"
    shutil.rmtree(ssh, ignore_errors=True)
    ssh.mkdir(parents=True)
    for source, target in (
        ("login", ssh / "id_ed25519"), ("login.pub", ssh / "authorized_keys"),
        ("known_hosts", ssh / "known_hosts"), ("host", root / "etc/ssh/lab_host_key"),
    ):  # fmt: skip
        shutil.copy(folder / source, target)
        target.chmod(0o600)
    for path in (root / "root", ssh):
        path.chmod(0o700)
    (root / "root/.deepspeed_env").write_text(
        "OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\nHF_HUB_OFFLINE=1\n"
    )
    (root / "etc/ssh/lab_sshd_config").write_text(SSHD_CONFIG)


if __name__ == "__main__":
    become_host(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
