"""Facts of this machine, found in a second, without torch unless it has a GPU."""

import configparser
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import TypeAdapter

from trainer.config.sections import RunConfig
from trainer.planning.host import host_bytes

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (  # they decide a run's numbers
    "torch", "triton", "deepspeed", "transformers", "tokenizers", "peft", "bitsandbytes",
    "safetensors", "numpy", "mpi4py",
)  # fmt: skip
_CODE = ("launcher", "trainer", "data")
_QUERY = "name,memory.total,memory.free,compute_cap,driver_version"
_SMI_SECONDS = 20  # a driver that does not answer


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi reports it; MiB as it counts them."""

    name: str
    memory_mib: int
    free_mib: int
    compute_capability: tuple[int, int]
    driver: str


@dataclass(frozen=True)
class NodeFacts:
    """Facts of one machine; a field is empty where its fact is unknown.

    Attributes:
        machine: Identifies the machine, whichever of its names was used.
        versions: Package -> version; "-" where it is not installed.
        code: Digest of the project's sources and presets.
        cuda_build: CUDA version of the torch build; "" for a build without CUDA.
        architectures: GPU architectures of the torch build; read only where there is a GPU.
        gpus: All GPUs, whatever CUDA_VISIBLE_DEVICES says.
        num_cores: Cores that this process may use.
        free_disk_bytes: On the disk of the run folder.
        locked_memory_bytes: Soft limit; -1, RLIM_INFINITY, is none.
    """

    host: str = ""
    machine: str = ""
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    cuda_build: str = ""
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    num_cores: int = 0
    free_memory_bytes: int = 0
    memory_bytes: int = 0
    free_shm_bytes: int = 0
    free_disk_bytes: int = 0
    open_files: int = 0
    locked_memory_bytes: int = -1
    has_infiniband: bool = False
    has_compiler: bool = False
    has_flash_attention: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NodeFacts":
        """Facts from another machine; its code may be newer, so unknown keys are ignored."""
        return TypeAdapter(cls).validate_python(values)


def node_facts(run_folder: Path | None = None) -> NodeFacts:
    """Everything about this machine.

    Args:
        run_folder: Free space is measured on its disk; it need not exist. None: the repository.
    """
    gpus = read_gpus()
    return NodeFacts(
        **common_facts(),
        cuda_build=torch_cuda_build(),
        architectures=_architectures() if gpus else (),
        gpus=gpus,
        num_cores=len(os.sched_getaffinity(0)),
        free_memory_bytes=psutil.virtual_memory().available,
        memory_bytes=host_bytes(),
        free_shm_bytes=_free_bytes(Path("/dev/shm")),
        free_disk_bytes=_free_bytes(nearest_folder(run_folder or ROOT)),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        has_infiniband=any(Path("/sys/class/infiniband").glob("*")),
        has_compiler=any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))),
        has_flash_attention=importlib.util.find_spec("flash_attn") is not None,
    )


def common_facts() -> dict[str, Any]:
    """Name of the machine, and what must be equal on all nodes."""
    versions = dict.fromkeys(PACKAGES, "-")
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "host": socket.gethostname(),
        "machine": machine_id(),
        "python": platform.python_version(),
        "versions": versions,
        "code": code_digest(),
    }


@functools.cache
def own_revision() -> dict[str, Any]:
    """The revision of this process, asked once."""
    return revision()


def revision(root: Path = ROOT) -> dict[str, Any]:
    """Version in setup.cfg and, in a git checkout, its commit and whether files were changed."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(root / "setup.cfg", encoding="utf-8")
    found: dict[str, Any] = {"version": settings["metadata"]["version"]}
    if not (root / ".git").exists():  # git would describe a repository around this folder
        return found
    command = ["git", "describe", "--tags", "--always", "--dirty"]
    with suppress(OSError, subprocess.SubprocessError):  # no git, or a checkout of another user
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
        described = done.stdout.strip()
        found["commit"] = described.removesuffix("-dirty")
        found["is_changed"] = described.endswith("-dirty")
    return found


def machine_id() -> str:
    """Identifies a machine whichever of its names is used; no two machines share it."""
    return f"{_text('/proc/sys/kernel/random/boot_id')} {socket.gethostname()}"


def recipe_digest(config: RunConfig) -> str:
    """The first 12 digits of the sha256 of a recipe with every default filled in."""
    text = json.dumps(config.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def code_digest() -> str:
    """The first 12 digits of the sha256 of every source and preset, and their names."""
    paths = [path for room in _CODE for path in (ROOT / room).rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted([*paths, *(ROOT / "ds_configs").glob("*.json")]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def read_gpus() -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi, which needs neither torch nor a CUDA context; () where it is absent."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answered = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SMI_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(answered.stdout) if answered.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's comma-separated lines; a line it cannot read is left out."""
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            name, total, free, capability, driver = parts
            major, minor = capability.split(".")
            gpus.append(Gpu(name, int(total), int(free), (int(major), int(minor)), driver))
        except ValueError:
            continue
    return tuple(gpus)


def torch_cuda_build() -> str:
    """The CUDA version torch was built for, read from its sources without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    text = _text(Path(spec.origin).with_name("version.py"))
    found = re.search(r"^cuda\b[^=]*= '([^']*)'", text, re.MULTILINE)
    return found[1] if found else ""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def shows_text(path: Path, text: str, seconds: float) -> bool:
    """Whether a file holds a text within a time: a network file system may show a file late."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            os.listdir(path.parent)  # asks the server again where a client has cached the folder
            if path.read_text(encoding="utf-8") == text:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _architectures() -> tuple[str, ...]:
    """Read in a separate process: torch must not open a CUDA context here."""
    code = "import torch; print(*torch.cuda.get_arch_list())"
    answered = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    return tuple(answered.stdout.split())


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
