"""Sets RANK and related variables from the launcher's own: Open MPI, Slurm, MPICH.

`deepspeed` and torchrun set them themselves. Without this, every rank that mpirun or srun starts
would train alone, as rank 0 of 1.
"""

import re
import socket
import subprocess
from collections.abc import Mapping, MutableMapping

from trainer.errors import MachineError

_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below the range kernels hand out


def adopt_launcher(environment: MutableMapping[str, str]) -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    An environment with RANK, or without a launcher's variables, stays as it is.

    Raises:
        MachineError: The launcher does not say how ranks find each other.
    """
    if "RANK" in environment:
        return
    found = _of_open_mpi(environment) or _of_slurm(environment) or _of_mpich(environment)
    if found is None:
        return
    for name, value in found.items():
        if name.startswith("MASTER_"):
            environment.setdefault(name, value)  # the user may know the right interface
        else:
            environment[name] = value


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
    # TASKS_PER_NODE reads "8(x2)" or "8,4"; no other variable holds this node's number of ranks.
    nodes = _counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = int(environment.get("SLURM_NODEID", "0"))
    job = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(nodes[node] if node < len(nodes) else nodes[-1]),
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(_FIRST_PORT + job % _NUM_PORTS),  # two jobs of a node differ
    }


def _of_open_mpi(environment: Mapping[str, str]) -> dict[str, str] | None:
    if "OMPI_COMM_WORLD_RANK" not in environment:
        return None
    size = int(environment["OMPI_COMM_WORLD_SIZE"])
    found = {
        "RANK": environment["OMPI_COMM_WORLD_RANK"],
        "LOCAL_RANK": environment["OMPI_COMM_WORLD_LOCAL_RANK"],
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": environment["OMPI_COMM_WORLD_LOCAL_SIZE"],
    }
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return found
    address, port = _master_over_mpi(size)
    return found | {"MASTER_ADDR": address, "MASTER_PORT": port}


def _of_mpich(environment: Mapping[str, str]) -> dict[str, str] | None:
    if int(environment.get("PMI_SIZE", "1")) < 2:
        return None
    if "MASTER_ADDR" not in environment or "MPI_LOCALRANKID" not in environment:
        raise MachineError(
            f"started as rank {environment['PMI_RANK']} of {environment['PMI_SIZE']} by MPICH's or"
            " Intel's mpirun, which does not say where rank 0 is: set MASTER_ADDR and MASTER_PORT,"
            " or take deepspeed, torchrun or Open MPI's mpirun"
        )
    return {
        "RANK": environment["PMI_RANK"],
        "LOCAL_RANK": environment["MPI_LOCALRANKID"],
        "WORLD_SIZE": environment["PMI_SIZE"],
        "LOCAL_WORLD_SIZE": environment["MPI_LOCALNRANKS"],
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


def own_address() -> str:
    """An address at which other nodes reach this one: the first of `hostname -I`, as DeepSpeed."""
    try:
        listed = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=False, timeout=5
        )
        addresses = listed.stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        addresses = []
    return addresses[0] if addresses else socket.gethostname()


def _counts(text: str) -> list[int]:
    """Ranks of each node: "8(x2),4" -> 8, 8, 4."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts
