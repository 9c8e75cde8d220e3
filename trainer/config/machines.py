"""GPUs the planner knows, and the machine that a recipe runs on."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import ConfigError

_AMPERE = (8, 0)


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        memory_gib: As nvidia-smi reports it, which is below the name's.
        peak_tflops: Dense 16-bit matrix products with fp32 sums, from the maker's data sheet; None
            where it is not known.
    """

    name: str
    memory_gib: float
    peak_tflops: float | None
    compute_capability: tuple[int, int]

    @property
    def precision(self) -> str:
        """The choice of engine.precision=auto on this GPU."""
        return "bf16" if self.compute_capability >= _AMPERE else "fp16"


@dataclass(frozen=True)
class Machine:
    """The machine that a recipe is resolved for.

    Attributes:
        device: A GPU; None is this machine's CPU.
        num_ranks: Over all nodes.
        num_nodes: The ranks are spread evenly over them.
        has_flash: flash_attn can be used; None on a machine that is only planned for.
        has_fp16: DeepSpeed computes in fp16 here.
        host_bytes: Memory of a node's host; None where it is not known.
    """

    device: Device | None
    num_ranks: int
    num_nodes: int = 1
    has_flash: bool | None = None
    has_triton: bool = True
    has_fp16: bool = True
    host_bytes: float | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        nodes = f" on {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        return f"{self.num_ranks} x {self.device.name if self.device else 'CPU'}{nodes}"

    @property
    def memory_bytes(self) -> float | None:
        """Memory of its GPU; None for a CPU."""
        return self.device.memory_gib * 2**30 if self.device else None


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("T4", 14.7, 65, (7, 5)),
        Device("RTX3060", 12.0, 25.5, (8, 6)),
        Device("RTX4080", 16.0, 97.5, (8, 9)),
        Device("RTX4090", 24.0, 165, (8, 9)),
        Device("V100-16", 15.8, 125, (7, 0)),
        Device("V100-32", 31.7, 125, (7, 0)),
        Device("A100-40", 39.6, 312, (8, 0)),
        Device("A100-80", 79.3, 312, (8, 0)),
        Device("H100", 79.6, 989, (9, 0)),
        Device("H200", 140.4, 989, (9, 0)),
    )
}


def device_named(name: str) -> Device:
    """A GPU of the table; case, blanks and hyphens of its name do not matter."""
    wanted = name.upper().replace("-", "").replace(" ", "").replace("_", "")
    by_key = {key.upper().replace("-", ""): device for key, device in DEVICES.items()}
    for key in (wanted, f"RTX{wanted}"):
        if key in by_key:
            return by_key[key]
    close = difflib.get_close_matches(wanted, by_key, n=1)
    hint = f"; did you mean {by_key[close[0]].name}?" if close else ""
    raise ConfigError(
        f"--device {name}: not in the table{hint}; it has {', '.join(DEVICES)}. For another give"
        " --memory GIB"
    )


def other_device(memory_gib: float) -> Device:
    """A GPU whose memory alone is known; it is taken as sm80 or newer."""
    return Device(f"{memory_gib:g} GiB", memory_gib, None, _AMPERE)
