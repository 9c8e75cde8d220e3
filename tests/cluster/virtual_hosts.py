"""Several real hosts on this machine: network, process, mount and name spaces, each with an sshd.

Each host has its own name, process table, files (an overlay over this machine's) and /dev/shm; they
share one folder, as a cluster shares a file system, and a switch of their own without a way out.
Needs root with CAP_SYS_ADMIN, iproute2, util-linux and openssh-server.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]
_PROGRAMS = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "pdsh")


def missing() -> str:
    """Why there can be no virtual hosts here; empty where there can."""
    if os.geteuid():
        return "needs root"
    paths = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in _PROGRAMS if shutil.which(name, path=paths) is None]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install iproute2 openssh-server pdsh)"
    probe = ["unshare", "--mount", "--pid", "--net", "--fork", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


class VirtualHosts:
    """Hosts node0, node1, ...; a context manager.

    Args:
        state: New folder for keys and logs; state/shared is the file system all hosts share.
        num_hosts: How many.
    """

    def __init__(self, state: Path, num_hosts: int = 2) -> None:
        self.state, self.shared = state, state / "shared"
        self.names = [f"node{index}" for index in range(num_hosts)]
        self._prefix = f"f{os.getpid()}"  # several test runs side by side
        self._outer: dict[str, subprocess.Popen[str]] = {}
        self._inner: dict[str, int] = {}
        self._carriers: list[subprocess.Popen[str]] = []
        self._slowed: set[str] = set()

    def __enter__(self) -> "VirtualHosts":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for carrier in self._carriers:
            carrier.kill()
            carrier.communicate()
        for name in list(self._outer):
            self.power_off(name, is_silent=False)
        spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
        for line in spaces.stdout.splitlines():
            if line.startswith(f"{self._prefix}-"):
                _sh("ip", "netns", "del", line.split()[0])

    def command(self, host: str, arguments: Sequence[str | Path], folder: Path) -> list[str]:
        """What runs a command on a host, in a folder, with this Python's programs first."""
        binaries = Path(sys.executable).parent
        return [
            "nsenter", "-t", str(self._inner[host]), "-n", "-u", "-i", "-p", "-m", "-r",
            "-w", "env", f"--chdir={folder}", "-i", "HOME=/root", "LANG=C.UTF-8",
            "OMP_NUM_THREADS=1", "DS_ACCELERATOR=cpu",
            f"PATH={binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *map(str, arguments),
        ]  # fmt: skip

    def run(
        self,
        host: str,
        arguments: Sequence[str | Path],
        folder: Path = REPOSITORY,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; what it prints is of one stream."""
        return subprocess.run(
            self.command(host, arguments, folder), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip

    def start(
        self,
        host: str,
        arguments: Sequence[str | Path],
        output: IO[str],
        folder: Path = REPOSITORY,
    ) -> subprocess.Popen[str]:
        """Start and return at once; end it with stop, which reaches inside the host."""
        return subprocess.Popen(
            self.command(host, arguments, folder), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def stop(self, process: subprocess.Popen[str]) -> None:
        """Kill what start started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def cut(self, host: str) -> None:
        """Pull the cable."""
        _sh("ip", "-n", self._switch, "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        """Plug it in again."""
        _sh("ip", "-n", self._switch, "link", "set", self._port(host), "up")

    def slow(self, host: str, milliseconds: float, mbit: float) -> None:
        """Make the way to a host slow and long, both ways, until the hosts are closed."""
        arguments = [
            sys.executable, str(Path(__file__).with_name("slow_link.py")), self._switch,
            self._port(host), f"{self._prefix}-{host}", f"{self._address(host)}/24",
            str(milliseconds), str(mbit),
        ]  # fmt: skip
        self._slowed.add(host)
        self._carriers.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        if self._carriers[-1].stdout is None or self._carriers[-1].stdout.readline() != "up\n":
            raise RuntimeError(f"the slow link of {host} did not come up")

    def power_off(self, host: str, *, is_silent: bool = True) -> None:
        """End every process of a host; silent as a power cut, or with its last packets."""
        if is_silent:
            self.cut(host)
        outer = self._outer.pop(host)
        outer.send_signal(signal.SIGKILL)  # unshare --kill-child takes the host with it
        outer.wait()
        self._inner.pop(host, None)
        if host not in self._slowed:  # whose port is its carrier's, and goes with it
            _sh("ip", "-n", self._switch, "link", "del", self._port(host))
        _sh("ip", "netns", "del", f"{self._prefix}-{host}")

    def power_on(self, host: str) -> None:
        """Start a host again, with a clean disk."""
        (self.state / f"{host}.log").unlink()
        self._start_host(host)
        self._wait_until_up(host)

    def process_ids(self, host: str) -> list[int]:
        """Of every process of a host, its first one left out, as this machine counts them."""
        if host not in self._inner:
            return []
        first, found = self._inner[host], []
        space = os.readlink(f"/proc/{first}/ns/pid")
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                if os.readlink(folder / "ns" / "pid") == space and int(folder.name) != first:
                    found.append(int(folder.name))
        return found

    def processes(self, host: str) -> list[str]:
        """Commands that run on a host besides its init and its ssh server."""
        listed = self.run(host, ["ps", "-eo", "args", "--no-headers"]).stdout.splitlines()
        own = ("bash ", "/bin/bash ", "sshd", "/usr/sbin/sshd", "sleep 1", "ps ", "[")
        return [line for line in listed if not line.startswith(own)]

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def _port(self, host: str) -> str:
        return f"p{self.names.index(host)}"

    def _address(self, host: str) -> str:
        return f"10.77.0.{10 + self.names.index(host)}"

    def _start(self) -> None:
        self.shared.mkdir(parents=True)
        for key in ("user", "host"):
            _sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.state / key))
        addresses = {name: self._address(name) for name in self.names}
        lines = [f"{address} {name}" for name, address in addresses.items()]
        lines.append("10.77.0.99 absent")  # a name without a machine
        (self.state / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        host_key = " ".join((self.state / "host.pub").read_text().split()[:2])
        known = [f"{name},{address} {host_key}" for name, address in addresses.items()]
        (self.state / "known_hosts").write_text("\n".join([*known, ""]))
        (self.state / "others").write_text("".join(f"{path}\n" for path in _other_folders()))
        _sh("ip", "netns", "add", self._switch)
        _sh("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        _sh("ip", "-n", self._switch, "link", "set", "br0", "up")
        for name in self.names:
            self._start_host(name)
        for name in self.names:
            self._wait_until_up(name)

    def _address(self, name: str) -> str:
        return f"10.77.0.{10 + self.names.index(name)}"

    def _start_host(self, name: str) -> None:
        space = f"{self._prefix}-{name}"
        _sh("ip", "netns", "add", space)
        port = self._port(name)
        card = f"02:00:00:00:00:{10 + self.names.index(name)}"  # neighbours remember it
        peer = ("peer", "name", "eth0", "address", card, "netns", space)
        _sh("ip", "-n", self._switch, "link", "add", port, "type", "veth", *peer)
        _sh("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        _sh("ip", "-n", space, "link", "set", "lo", "up")
        _sh("ip", "-n", space, "addr", "add", f"{self._address(name)}/24", "dev", "eth0")
        _sh("ip", "-n", space, "link", "set", "eth0", "up")
        init = Path(__file__).with_name("node_init.sh")
        with (self.state / f"{name}.log").open("w") as log:
            self._outer[name] = subprocess.Popen(
                ["ip", "netns", "exec", space, "unshare", "--uts", "--pid", "--ipc", "--mount",
                 "--fork", "--kill-child", "bash", str(init), name, str(self.state)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip

    def _wait_until_up(self, name: str) -> None:
        outer, log = self._outer[name], self.state / f"{name}.log"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and outer.poll() is None:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            if children and "up\n" in log.read_text():
                self._inner[name] = int(children[0])
                return
            time.sleep(0.02)
        raise RuntimeError(f"{name} did not start:\n{log.read_text()}")


def _other_folders() -> list[Path]:
    """What an overlay over the root file system would not hold."""
    needed = [REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    return [path for path in needed if os.stat(path).st_dev != os.stat("/").st_dev]


def _sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
