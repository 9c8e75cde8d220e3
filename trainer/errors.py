"""Errors that end a run, each with the exit code a scheduler sees."""

INTERRUPTED = 130  # by Ctrl-C with nothing to save: a shell's 128 + SIGINT


class ConfigError(ValueError):
    """The recipe or the command line cannot be run as written."""

    exit_code = 2


class ModelError(ValueError):
    """The base model or a checkpoint cannot be used."""

    exit_code = 4


class MachineError(ValueError):
    """The machine lacks what the run needs."""

    exit_code = 5


class MemoryExceededError(MachineError):
    """The device's memory does not hold a step."""


class NoProgressError(ValueError):
    """The run cannot make progress."""

    exit_code = 6


class DivergedError(NoProgressError):
    """Loss or gradients are no longer finite."""


class LostRankError(MachineError):
    """The connection to another rank or its node is lost."""


class HungError(NoProgressError):
    """Other ranks did not answer in time."""


class StoppedError(ValueError):
    """A signal stopped the run; everything is saved and the same command continues it."""

    exit_code = 75  # BSD's EX_TEMPFAIL


class AbandonedError(StoppedError):
    """The launcher has ended without a signal to the run; everything is saved."""


class CellsFailedError(ValueError):
    """Cells of a sweep did not finish; the exit code is that of the first, or that of a machine."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if 0 < code < 128 else MachineError.exit_code  # killed, or no report


class SandboxError(ValueError):
    """Programs that a model wrote cannot be run in a sandbox here."""

    exit_code = 7
