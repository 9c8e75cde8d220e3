"""Sets RANK and related variables from the launcher's own: Open MPI, Slurm, MPICH.

`deepspeed` and torchrun set them themselves. Without this, every rank that mpirun or srun starts
would train alone, as rank 0 of 1.
"""

import re
import socket
from collections.abc import Mapping, MutableMapping

from trainer.errors import MachineError
from trainer.processes.network import own_address

_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below the range kernels hand out
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MASTER = ("MASTER_ADDR", "MASTER_PORT")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE")
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
_MOST_DIGITS = 9


def adopt_launcher(environment: MutableMapping[str, str]) -> list[str]:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    A process without a launcher becomes rank 0 of 1. Empty variables count as unset.

    Returns:
        Lines that name the variables which are set and not obeyed; they are removed.

    Raises:
        MachineError: A variable is not a number, or the launcher does not say how ranks find each
            other.
    """
    for name in (*_NUMBERS, *_MASTER):
        if not environment.get(name, "x").strip():
            del environment[name]
    remarks = []
    for reason, names in _ignored(environment).items():
        if names:
            stated = ", ".join(f"{name}={environment.pop(name)}" for name in names)
            remarks.append(f"not obeyed, because {reason}: {stated}")
    if "RANK" not in environment:
        found = _of_open_mpi(environment) or _of_slurm(environment) or _of_mpich(environment)
        for name, value in (found or _ALONE).items():
            if name in _MASTER:
                environment.setdefault(name, value)  # the user may know the right interface
            else:
                environment[name] = value
    if "LOCAL_RANK" not in environment:  # one process a node, as in a pod
        environment.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    if local_size := environment.get("LOCAL_SIZE"):  # DeepSpeed's name
        environment.setdefault("LOCAL_WORLD_SIZE", local_size)
    _check(environment)
    return remarks


def claims(environment: Mapping[str, str]) -> list[str]:
    """The variables that say how many ranks there are, as NAME=VALUE."""
    names = (*_SIZES, "RANK", "WORLD_SIZE")
    return [f"{name}={environment[name]}" for name in names if name in environment]


def _ignored(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> variables that another program left here."""
    is_launched = {"RANK", "WORLD_SIZE"} <= set(environment)
    return {
        "accelerate's settings would change how transformers loads weights": [
            name for name in sorted(environment) if name.startswith(("ACCELERATE_", "FSDP_"))
        ],
        "a launcher sets both RANK and WORLD_SIZE": [
            name for name in _NUMBERS if name in environment and not is_launched
        ],
    }


def _check(environment: Mapping[str, str]) -> None:
    numbers = {name: _number(environment, name) for name in _NUMBERS if name in environment}
    rank, size, local_rank = (numbers[name] for name in _NUMBERS[:3])
    local_size = numbers.get("LOCAL_WORLD_SIZE", size)
    if not (rank < size and local_rank < local_size <= size):
        stated = ", ".join(f"{name}={value}" for name, value in numbers.items())
        raise MachineError(
            f"{stated} contradict each other: RANK is below WORLD_SIZE, LOCAL_RANK below"
            " LOCAL_WORLD_SIZE; unset them to train alone, or start through a launcher"
        )
    absent = [name for name in _MASTER if name not in environment]
    if size > 1 and absent:
        raise MachineError(
            f"WORLD_SIZE={size} without {' and '.join(absent)}: ranks cannot find each other; unset"
            " RANK and WORLD_SIZE to train alone, or start through a launcher"
        )
    if size > 1:
        _number(environment, "MASTER_PORT")


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = environment.get(name, default)
    if value is None or not value.strip().isdecimal() or len(value) > _MOST_DIGITS:
        raise MachineError(
            f"variable {name} is {value!r}, expected a number >= 0; unset it, or start through a"
            " launcher"
        )
    return int(value)


def _digits(environment: Mapping[str, str], name: str) -> str:
    return str(_number(environment, name))


def first_host(node_list: str) -> str:
    """The first name in Slurm's list: "gpu[003-010,12],login1" -> gpu003."""
    entry = re.match(r"(?:[^,\[]|\[\w[^\]]*\])+", node_list)  # commas in brackets are its own
    if entry is None:
        raise MachineError(f"SLURM_STEP_NODELIST {node_list!r} names no node; set MASTER_ADDR")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", entry.group())


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The variables of a process that srun started; a batch script's own process has no step."""
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    job = _number(environment, "SLURM_JOB_ID", "0") + _number(environment, "SLURM_STEP_ID", "0")
    found = {
        "RANK": _digits(environment, "SLURM_PROCID"),
        "LOCAL_RANK": _digits(environment, "SLURM_LOCALID"),
        "WORLD_SIZE": _digits(environment, "SLURM_STEP_NUM_TASKS"),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": str(_FIRST_PORT + job % _NUM_PORTS),  # two jobs of a node differ
    }
    # This reads "8(x2)" or "8,4"; no other variable holds this node's number of ranks.
    if counts := _counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        node = _number(environment, "SLURM_NODEID", "0")
        found["LOCAL_WORLD_SIZE"] = str(counts[min(node, len(counts) - 1)])
    return found


def _of_open_mpi(environment: Mapping[str, str]) -> dict[str, str] | None:
    if "OMPI_COMM_WORLD_RANK" not in environment:
        return None
    size = _number(environment, "OMPI_COMM_WORLD_SIZE")
    found = {
        "RANK": _digits(environment, "OMPI_COMM_WORLD_RANK"),
        "LOCAL_RANK": _digits(environment, "OMPI_COMM_WORLD_LOCAL_RANK"),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": _digits(environment, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    }
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return found
    address, port = _master_over_mpi(size)
    return found | {"MASTER_ADDR": address, "MASTER_PORT": port}


def _of_mpich(environment: Mapping[str, str]) -> dict[str, str] | None:
    if _number(environment, "PMI_SIZE", "1") < 2:
        return None
    if "MASTER_ADDR" not in environment or "MPI_LOCALRANKID" not in environment:
        raise MachineError(
            f"MPICH's or Intel's mpirun started this as rank {environment.get('PMI_RANK')} of"
            f" {environment['PMI_SIZE']}, but does not say where rank 0 is: set MASTER_ADDR and"
            " MASTER_PORT, or take deepspeed, torchrun or Open MPI's mpirun"
        )
    return {
        "RANK": _digits(environment, "PMI_RANK"),
        "LOCAL_RANK": _digits(environment, "MPI_LOCALRANKID"),
        "WORLD_SIZE": _digits(environment, "PMI_SIZE"),
        "LOCAL_WORLD_SIZE": _digits(environment, "MPI_LOCALNRANKS"),
        "MASTER_PORT": "29500",
    }


def _master_over_mpi(size: int) -> tuple[str, str]:
    """Broadcast the address and a free port of rank 0.

    MPI ends here: a rank that fails later must not wait for the others in MPI_Finalize. mpirun
    still ends the job when a process ends with a code above 0.
    """
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size != size:
        library = MPI.Get_library_version().split(",")[0]
        raise MachineError(
            f"mpirun started {size} ranks, mpi4py's {library} counts {world.size}: they belong"
            " to different MPIs; use the mpirun in this Python's folder"
        )
    answer = bytearray(64)
    if world.rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        answer[:] = f"{own_address()} {port}".encode().ljust(64)
    world.Bcast([answer, MPI.BYTE], root=0)
    MPI.Finalize()
    address, port = answer.decode().split()
    return address, port


def _counts(text: str) -> list[int]:
    """Ranks of each node: "8(x2),4" -> 8, 8, 4."""
    counts: list[int] = []
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"(\d{1,5})(?:\(x(\d{1,5})\))?", part)
        if found is None:
            raise MachineError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, expected e.g. 8(x2),4")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts
