"""Ranks and the few collectives of the project.

Heavy imports happen inside functions, so the launcher can import this module and still report a
wrong recipe at once.
"""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.text.terminal import show_cursor
from trainer.errors import LostRankError, MachineError

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from torch.distributed.distributed_c10d import Store

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        local_rank: Among the processes of this node.
        hosts: Name of every rank's machine, once the ranks have exchanged them.
        devices: What every rank computes on, exchanged with the hosts.
    """

    rank: int
    local_rank: int
    world_size: int
    device: "Device"
    hosts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0


def start(timeout_seconds: int, store: "Store | None" = None) -> Ranks:
    """Join the process group through DeepSpeed, alone or as one rank of many.

    The variables are those of `adopt_launcher`. The timeout holds for every collective, also for
    those of ZeRO's own groups. Without a store where the ranks have met, they meet now.

    Raises:
        LostRankError: Ranks are missing, or cannot connect to each other.
        MachineError: More ranks on this node than GPUs; GPUs that torch does not see; a port in
            use.
    """
    import torch

    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available():
        refuse_unseen_gpus(os.environ)
        os.environ["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR") or "cpu"
        if "OMP_NUM_THREADS" not in os.environ:
            # Ranks share the cores this process may use; a thread too many costs a factor of 40.
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    _check_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = _device(local_rank)
    _join(timeout_seconds, store, device)
    return Ranks(
        rank=torch.distributed.get_rank(),
        local_rank=local_rank,
        world_size=torch.distributed.get_world_size(),
        device=device,
    )


def stop() -> None:
    """Leave the process group; all ranks call this, because it waits for the others."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def is_member() -> bool:
    """True while this process is one rank of a group."""
    if "torch" not in sys.modules:  # a wrong recipe is reported without torch
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def end_now(exit_code: int) -> None:
    """End this process without waiting for other ranks.

    Python's normal exit leaves the group in order, which waits for ranks that may have ended.
    """
    show_cursor()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def all_reduce_sum(tensor: "Tensor") -> "Tensor":
    """Sum a tensor over all ranks, in place; a single process returns it as it is."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def of_main(tensor: "Tensor") -> "Tensor":
    """Copy rank 0's tensor to every rank, in place; a single process returns it as it is."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.broadcast(tensor, src=0)
    return tensor


def is_equal_everywhere(text: str, ranks: Ranks) -> bool:
    """Whether every rank holds the same text."""
    import torch
    import torch.distributed as dist

    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    extremes = torch.tensor([number, -number], device=ranks.device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool(extremes[0] == -extremes[1])


def agreed(ranks: Ranks, action: Callable[[], Result]) -> Result:
    """Run an action; if it fails on one rank, all ranks fail.

    Raises:
        ValueError: The action's own error; on the other ranks one with the same exit code.
    """
    import torch
    import torch.distributed as dist

    result, failure = None, None
    try:
        result = action()
    except ValueError as error:
        failure = error
    except OSError as error:
        failure = MachineError(f"{error}; make room or correct the path, then repeat the command")
    code = torch.tensor(getattr(failure, "exit_code", 1) if failure else 0, device=ranks.device)
    dist.all_reduce(code, op=dist.ReduceOp.MAX)
    if failure is not None:
        raise failure
    if code.item():
        elsewhere = MachineError("another rank failed; see its message above")
        elsewhere.exit_code = int(code.item())
        raise elsewhere
    return result  # type: ignore[return-value]


def device_name(device: "Device") -> str:
    """A GPU's name, or the processor's with the kernels that torch takes there."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{names[0] if names else 'CPU'} ({torch.backends.cpu.get_cpu_capability()})"


def gather(values: Mapping[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """Every rank's plain values, in order of rank, on every rank; as JSON, never pickle."""
    import torch
    import torch.distributed as dist

    own = json.dumps(values).encode()
    longest = torch.tensor(len(own), device=ranks.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    padded = torch.tensor(list(own.ljust(int(longest))), dtype=torch.uint8, device=ranks.device)
    everyone: list[Tensor] = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(everyone, padded)
    return [json.loads(bytes(row.tolist())) for row in everyone]


def refuse_unseen_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> None:
    """Where torch sees no GPU, refuse to train on the CPU beside one that nobody has hidden."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if hidden or environment.get("DS_ACCELERATOR"):
        return
    if unseen := sorted(map(str, devices.glob("nvidia[0-9]*"))):
        raise MachineError(
            f"torch does not see this machine's GPUs ({', '.join(unseen)}): launcher/doctor.py says"
            " whether its build or the driver is the cause; DS_ACCELERATOR=cpu trains on the CPU"
        )


def _check_accelerator() -> None:
    from deepspeed.accelerator import get_accelerator

    try:
        if get_accelerator().is_available():
            return
        reason = "torch sees no such device"
    except Exception as error:
        reason = str(error)
    chosen = os.environ.get("DS_ACCELERATOR")
    raise MachineError(f"DS_ACCELERATOR={chosen}: {reason}; unset it, or set cpu or cuda")


def _join(timeout_seconds: int, store: "Store | None", device: "Device") -> None:
    import deepspeed
    import deepspeed.ops
    from torch.distributed import DistError
    from torch.distributed import distributed_c10d as c10d

    from trainer.processes import rendezvous

    # The shared-memory operator compiles for 24 s and leaks in /dev/shm; only inference gains. A
    # dict of our own also saves DeepSpeed's search for operators, which starts compilers.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    timeout = timedelta(seconds=timeout_seconds)
    store = store or rendezvous.meet(timeout_seconds)
    if device.type == "cuda":
        _refuse_shared_gpus(store, _name_of(device))
        # NCCL ends a late process itself, by SIGABRT and without a code: the watchdog comes first.
        timeout *= 2
    # ZeRO makes groups of its own, which init_distributed(timeout=) does not reach.
    c10d.default_pg_timeout = timeout
    c10d.default_pg_nccl_timeout = timeout  # type: ignore[attr-defined]
    rendezvous.register(store, timeout)
    if rendezvous.is_one_machine():  # nothing listens on an interface that others reach
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    try:
        deepspeed.init_distributed(
            verbose=False,
            auto_mpi_discovery=False,
            timeout=timeout,
            init_method=rendezvous.METHOD,
        )
    except DistError as error:
        reason = str(error).partition("\n")[0]
        raise LostRankError(
            f"rank {os.environ['RANK']} on {socket.gethostname()}: not all"
            f" {os.environ['WORLD_SIZE']} ranks could connect to each other within"
            f" engine.timeout_seconds; try launcher/doctor.py --hostfile FILE. torch says: {reason}"
        ) from error


def _device(local_rank: int) -> "Device":
    """The device of this rank, chosen before ranks talk: they refuse what is wrong by name.

    The only GPU that a process sees is its own, as under Slurm's --gpus-per-task=1: its index is 0
    whatever the rank, for DeepSpeed too.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus > 1:
        raise MachineError(
            f"local rank {local_rank} has no GPU: this node has {num_gpus}; lower --num_gpus or the"
            " slots of the hostfile"
        )
    index = 0 if num_gpus == 1 else local_rank
    os.environ["LOCAL_RANK"] = str(index)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _name_of(device: "Device") -> str:
    import torch

    return f"{socket.gethostname()} GPU {torch.cuda.get_device_properties(device).uuid}"


def _refuse_shared_gpus(store: "Store", own: str) -> None:
    """Refuse two ranks on one GPU, on every rank alike; NCCL would fail with a line of its own.

    Args:
        own: The name of this rank's GPU, which differs from every other.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store.set(f"GPU of rank {rank}", own)
    first: dict[str, int] = {}
    for other in range(world_size):
        name = store.get(f"GPU of rank {other}").decode()
        if name in first:
            raise MachineError(
                f"ranks {first[name]} and {other} have one GPU between them ({name}); give each its"
                " own: lower --num_gpus or the slots of the hostfile, or let Slurm bind them"
                " (--gpus-per-task=1)"
            )
        first[name] = other
