"""Once a step all ranks agree: go on, save and stop (code 75), or stop as diverged."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainer.errors import AbandonedError, StoppedError
from trainer.processes.distributed import Ranks
from trainer.processes.launchers import Launcher, is_abandoned
from trainer.processes.signals import receive_stops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SAME_REQUEST = 1.0  # seconds in which no person repeats SIGINT


class Agreed(IntEnum):
    """What all ranks do: the most severe action that any rank requests."""

    GO_ON = 0
    ABANDONED = 1
    STOP = 2
    DIVERGED = 3


class StopRequest:
    """Collects this rank's reasons to stop and compares them with the other ranks once a step.

    A reason is a signal, or a launcher that has ended: SIGTERM ends `deepspeed` without notice to
    its ranks. Ranks compare over the host (gloo), so they never wait for a GPU. Schedulers and
    launchers send one signal several times, so a repeated signal is the same request. Only SIGINT
    repeated after a second or more ends the process at once: a person does not want to wait.
    """

    def __init__(self, ranks: Ranks, above: Sequence[Launcher]) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._group: ProcessGroup | None = None
        if ranks.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        self._launchers = above
        self._previous = receive_stops(self._receive)

    def error(self, agreed: Agreed, progress: str) -> StoppedError:
        """The error that ends this rank once all ranks stop; its message ends with `progress`."""
        if agreed is Agreed.ABANDONED:
            return AbandonedError(f"the launcher is gone: {progress}")
        who = self.received.name if self.received else "a signal to another rank"
        return StoppedError(f"{who}: {progress}")

    @contextmanager
    def between_batches(self, model: nn.Module, progress: str) -> Iterator[None]:
        """Let ranks agree before every forward pass; all ranks make the same number of passes.

        Raises:
            StoppedError: The ranks stop; its message ends with `progress`.
        """

        def ask(*_: object) -> None:
            if (agreed := self.agreed()) is not Agreed.GO_ON:
                raise self.error(agreed, progress)

        handle = model.register_forward_pre_hook(ask)
        try:
            yield
        finally:
            handle.remove()

    def agreed(self, *, diverged: bool = False) -> Agreed:
        """The action, equal on every rank; all ranks call this, once a step or more."""
        own = Agreed.DIVERGED if diverged else self._own()
        if self._group is None:
            return own
        code = torch.tensor(int(own))
        torch.distributed.all_reduce(code, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return Agreed(int(code))

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in order of rank; all ranks call this."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self._group is None:
            return [own.tolist()]
        everyones = [torch.empty_like(own) for _ in range(self._group.size())]
        torch.distributed.all_gather(everyones, own, group=self._group)
        return [one.tolist() for one in everyones]

    def restore(self) -> None:
        """Restore the signal handlers, unless a signal came: its repeat must not end the rank."""
        if self.received is None:
            self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _own(self) -> Agreed:
        if self.received is not None:
            return Agreed.STOP
        is_alone = bool(self._launchers) and is_abandoned(self._launchers)
        return Agreed.ABANDONED if is_alone else Agreed.GO_ON

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at > _SAME_REQUEST:
            self._give_back()
            signal.raise_signal(number)
