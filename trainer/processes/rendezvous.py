"""How ranks find each other, who is missing, and which port is open meanwhile.

One process needs no port. Ranks of one machine meet on its loopback interface; only ranks of
several nodes need a port that other machines reach.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore
from torch.distributed import DistError
from torch.distributed.rendezvous import register_rendezvous_handler

from data.errors import first_line
from trainer.errors import LostRankError, MachineError
from trainer.processes.ranks import claims

METHOD = "focaltune://"  # of init_process_group
_ALL, _HEARD = "all ranks are here", "has heard of all"
_RETRY = timedelta(seconds=1)  # Ctrl-C is heard between two attempts
_SILENT_SECONDS = 10.0  # ranks of a healthy start differ by less


def register(store: Store, timeout: timedelta) -> None:
    """Make `METHOD` start the process group of the ranks that have met at a store."""

    def rendezvous(url: str, *_: Any, **__: Any) -> Iterator[tuple[Store, int, int]]:
        store.set_timeout(timeout)
        yield store, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    register_rendezvous_handler(  # type: ignore[no-untyped-call]
        METHOD.partition(":")[0], rendezvous
    )


def meet(join_seconds: float) -> Store:
    """The store that all ranks share, once all have come and know it.

    Rank 0 keeps the store, so it goes last: it may end soon, of wrong data for example, and ranks
    that still asked would then blame the connection.

    Args:
        join_seconds: How long the first rank waits for the last.

    Raises:
        LostRankError: Ranks are missing; it names them and the variables that announce them. Or the
            rank that keeps the store has ended.
        MachineError: The port is in use.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        return HashStore()
    wait = _Wait(rank, world_size, join_seconds)
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt {restart}", _connected(wait))
    others = [f"rank {other}" for other in range(1, world_size)]
    try:
        if rank:
            store.set(f"rank {rank}", "")
            _until(store, [_ALL], wait)
            store.set(f"rank {rank} {_HEARD}", "")
        else:
            _until(store, others, wait)
            store.set(_ALL, "")
            _until(store, [f"{other} {_HEARD}" for other in others], wait)
    except DistError as error:
        raise LostRankError(
            f"{wait.who} lost rank 0 while ranks gathered ({first_line(error)}): look for the error"
            " that rank 0 or its launcher ended with"
        ) from error
    return store


def _until(store: Store, wanted: Sequence[str], wait: "_Wait") -> None:
    while not store.check(list(wanted)):
        wait.for_ranks([name for name in wanted if not store.check([name])])


def is_one_machine() -> bool:
    """Whether all ranks run on this machine."""
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]


class _Wait:
    """The wait of one rank for others: it says soon whom it waits for, and ends in time."""

    def __init__(self, rank: int, world_size: int, join_seconds: float) -> None:
        self.rank = rank
        self.who = f"rank {rank} of {world_size} on {socket.gethostname()}"
        self._seconds = join_seconds
        self._start = time.monotonic()
        self._is_silent = rank == 0

    def for_ranks(self, missing: Sequence[str]) -> None:
        """Wait a moment."""
        waited = time.monotonic() - self._start
        absent = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        claimed = f"announced by {', '.join(claims(os.environ))}"
        if waited > self._seconds:
            raise LostRankError(
                f"{self.who} waited {waited:.0f} s for {absent}, {claimed}. If this process is"
                " alone, unset these variables (srun: --ntasks=1). If a host did not start,"
                " launcher/doctor.py --hostfile FILE finds it. If one starts slowly, raise"
                " engine.join_seconds"
            )
        if self._is_silent and waited > _SILENT_SECONDS:
            self._is_silent = False
            sys.stderr.write(f"{self.who} waits for {absent}, {claimed}\n")
        time.sleep(0.05)


def _connected(wait: _Wait) -> TCPStore:
    """The store of rank 0, or of torchrun's agent."""
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_local = is_one_machine() and not has_agent
    address = "127.0.0.1" if is_local else os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    is_server = wait.rank == 0 and not has_agent
    while True:
        try:
            with _listening(port, is_used=is_local and is_server) as descriptor:
                return TCPStore(
                    address, port, is_master=is_server, timeout=_RETRY,
                    wait_for_workers=False, master_listen_fd=descriptor,
                )  # fmt: skip
        except DistError as error:
            if is_server:
                raise _no_port(port, error) from error
        wait.for_ranks([f"rank 0 at {address}:{port}"])


@contextmanager
def _listening(port: int, *, is_used: bool) -> Iterator[int | None]:
    """A socket that listens on loopback alone: the store would listen on every interface."""
    if not is_used:
        yield None
        return
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
            server.listen(1024)  # another run that has bound the port too may listen first
        except OSError as error:
            raise _no_port(port, error) from error
        yield server.fileno()
        server.detach()  # the store closes it


def _no_port(port: int, error: Exception) -> MachineError:
    reason = str(error).partition("\n")[0]
    return MachineError(
        f"rank 0 cannot listen on port {port} of {socket.gethostname()} ({reason}): another run or"
        " program has it; give this run another, e.g. deepspeed --master_port 29501 (torchrun:"
        " --master-port), or MASTER_PORT=29501"
    )
