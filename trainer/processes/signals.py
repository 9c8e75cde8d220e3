"""The signals that ask a run to save and stop with code 75."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

# Ctrl-C, `kill`, a closed terminal or lost ssh, what schedulers send ahead of the end, and the
# CPU time of `ulimit -t`.
STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)


def receive_stops(
    receive: Callable[[int, FrameType | None], Any],
) -> dict[signal.Signals, Any]:
    """Call `receive` on each of them; returns the handlers before.

    An ignored signal stays ignored: the run is to outlive its terminal under `nohup`.
    """
    return {
        number: signal.signal(number, receive)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
