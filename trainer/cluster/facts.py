"""What a machine can say about itself in a second, without torch unless it has a GPU."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
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
    """What one machine says; empty where it cannot tell.

    Attributes:
        host: Its own name for itself.
        machine: The same for two names of one machine.
        python: Version.
        versions: Package -> version; "-" where it is not installed.
        code: Digest of the project's sources and presets.
        cuda_build: CUDA version torch was built for; "" of a build without.
        architectures: GPU architectures torch was built for; asked only where there is a GPU.
        gpus: All of them, whatever CUDA_VISIBLE_DEVICES says.
        num_cores: This process may use.
        free_memory_bytes, free_shm_bytes, free_disk_bytes: Disk of the run folder.
        open_files: Soft limit.
        locked_memory_bytes: Soft limit; -1 is none.
        has_infiniband, has_compiler, has_flash_attention: What they say.
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
    free_shm_bytes: int = 0
    free_disk_bytes: int = 0
    open_files: int = 0
    locked_memory_bytes: int = -1
    has_infiniband: bool = False
    has_compiler: bool = False
    has_flash_attention: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NodeFacts":
        """Of another machine, whose code may be older or newer than this one's."""
        known = {item.name for item in fields(cls)}
        taken = {name: value for name, value in values.items() if name in known}
        gpus = [
            Gpu(**gpu | {"compute_capability": tuple(gpu["compute_capability"])})
            for gpu in taken.get("gpus", [])
        ]
        taken["architectures"] = tuple(taken.get("architectures", ()))
        return cls(**taken | {"gpus": tuple(gpus)})


def node_facts(run_folder: Path | None = None) -> NodeFacts:
    """Everything about this machine.

    Args:
        run_folder: Whose disk is asked for free space; it need not exist. None: the repository.
    """
    gpus = read_gpus()
    return NodeFacts(
        host=socket.gethostname(),
        machine=machine_id(),
        python=platform.python_version(),
        versions=package_versions(),
        code=code_digest(),
        cuda_build=torch_cuda_build(),
        architectures=_architectures() if gpus else (),
        gpus=gpus,
        num_cores=len(os.sched_getaffinity(0)),
        free_memory_bytes=_available_memory(),
        free_shm_bytes=_free_bytes(Path("/dev/shm")),
        free_disk_bytes=_free_bytes(nearest_folder(run_folder or ROOT)),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory_bytes=_limit(resource.RLIMIT_MEMLOCK),
        has_infiniband=any(Path("/sys/class/infiniband").glob("*")),
        has_compiler=any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))),
        has_flash_attention=importlib.util.find_spec("flash_attn") is not None,
    )


def machine_id() -> str:
    """The same for two names of one machine, and for no two machines."""
    return f"{_text('/proc/sys/kernel/random/boot_id')} {socket.gethostname()}"


def package_versions() -> dict[str, str]:
    """Package -> version of what decides a run's numbers."""
    return {name: _version(name) for name in PACKAGES}


def code_digest() -> str:
    """The first 12 digits of the sha256 of every source and preset, and their names."""
    paths = [path for room in _CODE for path in (ROOT / room).rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted([*paths, *(ROOT / "ds_configs").glob("*.json")]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def read_gpus() -> tuple[Gpu, ...]:
    """GPUs by nvidia-smi, which needs neither torch nor a CUDA context; none where it is absent."""
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


def _architectures() -> tuple[str, ...]:
    """Asked of a process of its own: torch must not open a CUDA context here."""
    code = "import torch; print(*torch.cuda.get_arch_list())"
    answered = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    return tuple(answered.stdout.split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _available_memory() -> int:
    for line in _text("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _limit(kind: int) -> int:
    soft = resource.getrlimit(kind)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft
