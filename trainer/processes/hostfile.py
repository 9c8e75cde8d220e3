"""Hostfiles, read more strictly than DeepSpeed reads them.

DeepSpeed accepts slots=0, slots=4abc, a byte-order mark as part of a name, and `$(id)` as a host,
which a shell then runs. Without the hostfile it silently trains on one machine. Here each is an
error, and all faults of a file are reported before anything starts.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import file_text
from trainer.errors import ConfigError

HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_BYTES = 1 << 20
_MOST_SLOTS = 1024  # of one node; more is a typing error
_SLOTS = re.compile(r"slots=(\S*)")
_FORMAT = "NAME slots=GPUS"
_ONCE = "name a machine once, with all its slots"


@dataclass(frozen=True)
class Node:
    """A line of a hostfile; its host is safe to pass on: letters, digits and ._- only."""

    host: str
    slots: int
    line: int


def read_hostfile(path: Path) -> list[Node]:
    """The nodes of a hostfile, in its order: the first is the master.

    Comments (# to the end of a line), empty lines, CRLF and a last line without an end are fine.

    Raises:
        ConfigError: It lists every fault with the number of its line.
    """
    text = file_text(path, ConfigError, "give a hostfile in UTF-8: NAME slots=GPUS", _MOST_BYTES)
    nodes: list[Node] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        node = _node(content, number)
        if isinstance(node, str):
            faults.append(f"line {number}: {node}")
        else:
            nodes.append(node)
    faults += [
        f"line {node.line}: {node.host} is already on line {other.line}; {_ONCE}"
        for node, other in _same(nodes, lambda host: [host.lower()])
    ]
    if not nodes and not faults:
        faults.append(f"it names no node; a line reads {_FORMAT}")
    _refuse(path, faults)
    return nodes


def refuse_aliases(path: Path, nodes: Sequence[Node]) -> None:
    """Refuse two names of one machine; names that are not known are left to the doctor."""
    faults = [
        f"line {node.line}: {node.host} is the same machine as {other.host}, at"
        f" {', '.join(sorted(addresses(node.host)))}; {_ONCE}"
        for node, other in _same(nodes, addresses)
    ]
    _refuse(path, faults)


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError("\n".join(f"hostfile {path}: {fault}" for fault in faults))


def _same(
    nodes: Sequence[Node], names_of: Callable[[str], Collection[str]]
) -> Iterator[tuple[Node, Node]]:
    """Each node with the earlier ones that share one of its names."""
    first: dict[str, Node] = {}
    for node in nodes:
        names = names_of(node.host)
        others = {first[name].host: first[name] for name in names if name in first}
        yield from ((node, others[host]) for host in sorted(others))
        for name in names:
            first.setdefault(name, node)


def addresses(host: str) -> set[str]:
    """The addresses of a name; all loopback addresses count as one, an unknown name has none."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
    return {
        "this machine" if ipaddress.ip_address(item.split("%")[0]).is_loopback else item
        for item in found
    }


def _node(content: str, line: int) -> Node | str:
    """A node, or what is wrong with its line."""
    host, *rest = content.split()
    if not HOST.fullmatch(host):
        return (
            f"host {host!r} must begin with a letter or digit and hold only letters, digits, '.',"
            f" '_' and '-'{_why_not(host)}"
        )
    if len(rest) != 1 or not (found := _SLOTS.fullmatch(rest[0])):
        return f"found {' '.join(rest)!r} after {host}; a line reads {_FORMAT}"
    slots = found[1]
    if not re.fullmatch(r"[0-9]{1,9}", slots) or not 1 <= int(slots) <= _MOST_SLOTS:
        return f"slots={slots} of {host} must be a whole number from 1 to {_MOST_SLOTS}"
    return Node(host, int(slots), line)


def _why_not(host: str) -> str:
    if host.startswith("\ufeff"):
        return "; the file begins with a byte-order mark: save it as UTF-8 without one"
    if host.startswith("-"):
        return "; ssh would read it as an option"
    return "; one node a line" if "," in host else ""
