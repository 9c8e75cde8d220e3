"""A signal asks, all ranks agree at the next step, the run saves and ends with code 75."""

import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from trainer.distributed import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Collects the signals of this rank and asks the others once a step.

    The question travels over the host (gloo), so that it never waits for a GPU.

    Args:
        ranks: Who is asked.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.received: signal.Signals | None = None
        self._group: ProcessGroup | None = None
        if ranks.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        self._previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._receive) for number in _SIGNALS
        }

    def agreed(self) -> bool:
        """True on every rank once a signal reached one; called by all ranks, once a step."""
        if self._group is None:
            return self.received is not None
        flag = torch.tensor(int(self.received is not None))
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._previous[self.received])  # a second one ends at once
