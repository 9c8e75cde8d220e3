"""What all ranks agree on once a step: go on, save and stop (code 75), or stop as diverged."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.errors import AbandonedError, StoppedError
from trainer.processes.distributed import Ranks
from trainer.processes.launchers import Launcher, is_abandoned

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAME_REQUEST = 1.0  # seconds in which no person repeats SIGINT


class Agreed(IntEnum):
    """The worst that a rank knows is what all ranks do."""

    GO_ON = 0
    ABANDONED = 1
    STOP = 2
    DIVERGED = 3


class StopRequest:
    """Collects the reasons of this rank to stop and asks the others once a step.

    A signal is one, and so is a launcher that is gone: `deepspeed` dies of SIGTERM without a word
    to its ranks. The question travels over the host (gloo), so that it never waits for a GPU.
    Schedulers and launchers send the same signal to one rank more than once, so a repeated one is
    the same request; only SIGINT again, a second later or more, is a person who does not want to
    wait for the save, and ends at once.

    Args:
        ranks: Who is asked.
        above: This process's launchers, as they were at its beginning.
    """

    def __init__(self, ranks: Ranks, above: Sequence[Launcher]) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._group: ProcessGroup | None = None
        if ranks.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        self._launchers = above
        self._previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._receive) for number in _SIGNALS
        }

    def error(self, agreed: Agreed, told: str) -> StoppedError:
        """What ends this rank, once all of them stop."""
        if agreed is Agreed.ABANDONED:
            return AbandonedError(f"the launcher is gone: {told}")
        who = self.received.name if self.received else "a signal to another rank"
        return StoppedError(f"{who}: {told}")

    @contextmanager
    def between_batches(self, model: nn.Module, told: str) -> Iterator[None]:
        """Ask the others before every forward pass, of which all ranks make the same number.

        Raises:
            StoppedError: The ranks stop, with what is told of it.
        """

        def ask(*_: object) -> None:
            if (agreed := self.agreed()) is not Agreed.GO_ON:
                raise self.error(agreed, told)

        handle = model.register_forward_pre_hook(ask)
        try:
            yield
        finally:
            handle.remove()

    def agreed(self, *, diverged: bool = False) -> Agreed:
        """What to do, equal on every rank; called by all ranks, once a step or more."""
        own = Agreed.DIVERGED if diverged else self._own()
        if self._group is None:
            return own
        code = torch.tensor(int(own))
        torch.distributed.all_reduce(code, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return Agreed(int(code))

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in the order of ranks; called by all."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self._group is None:
            return [own.tolist()]
        everyones = [torch.empty_like(own) for _ in range(self._group.size())]
        torch.distributed.all_gather(everyones, own, group=self._group)
        return [one.tolist() for one in everyones]

    def restore(self) -> None:
        """Give the signals back, unless one came: repeated, it must not end a rank that saved."""
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
