"""Checks that the launcher started the ranks of its hostfile.

Without its hostfile DeepSpeed trains on this machine only, with one warning among many lines. The
launcher's command line is read from the processes above this one; under pdsh there is none.
"""

from collections.abc import Sequence
from pathlib import Path

from trainer.errors import ConfigError
from trainer.processes.hostfile import read_hostfile
from trainer.processes.launchers import ancestors, command_line, folder_of

_FLAGS = ("-H", "--hostfile", "-hostfile")
_FILTERS = ("--include", "-i", "--exclude", "-e", "--num_nodes", "--num_gpus")


def check_launch(world_size: int) -> None:
    """Refuse to train if the launcher's hostfile is wrong or does not have `world_size` slots.

    Raises:
        ConfigError: The hostfile's faults, or both counts.
    """
    for process in ancestors():
        words = command_line(process)
        given = hostfile_of(words)
        if given is None:
            continue
        path = folder_of(process) / given
        slots = sum(node.slots for node in read_hostfile(path))
        if slots != world_size and not is_filtered(words):
            raise ConfigError(
                f"hostfile {path} has {slots} slots, but {world_size} ranks were started; correct"
                " its slots or the launcher's arguments"
            )
        return


def hostfile_of(words: Sequence[str]) -> str | None:
    """The hostfile on the command line of `deepspeed`; None for any other command."""
    end = next((at for at, word in enumerate(words) if word.endswith("train.py")), len(words))
    own = words[:end]
    if not any("deepspeed" in Path(word).name for word in own[:5]):
        return None
    for at, word in enumerate(own):
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            return value if equals else (own[at + 1] if at + 1 < len(own) else None)
    return None


def is_filtered(words: Sequence[str]) -> bool:
    """Whether the command line selects a part of the slots."""
    return any(word.partition("=")[0] in _FILTERS for word in words)
