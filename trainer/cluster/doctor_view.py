"""Examine, and print what was found."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.text.escaping import escaped, print_text
from trainer.cluster.checks import FAULT, NOTE, OK, WARNING, Check, gpu_kinds
from trainer.cluster.doctor import Examination, PlannedRun, examine_cluster, examine_machine
from trainer.errors import MachineError

_PRINTED_WIDTH = 110  # where there is no terminal
_STYLES = {OK: "green", NOTE: "", WARNING: "yellow", FAULT: "bold red"}


def show_examination(planned: PlannedRun, hostfile: Path | None) -> None:
    """Print every check of this machine, or a row for each node and every finding with its hosts.

    Raises:
        ConfigError: The hostfile is wrong.
        MachineError: A run would fail.
    """
    is_cluster = hostfile is not None
    found = examine_cluster(hostfile, planned) if hostfile else examine_machine(planned)
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = _PRINTED_WIDTH
    if is_cluster:
        console.print(_nodes_table(found))
    if found.checks:
        console.print(_checks_table(found.checks, has_hosts=is_cluster))
    print_text(console, [_verdict(found)])
    if any(check.verdict == FAULT for check in found.checks):
        raise MachineError("a run would fail: see the faults above")


def _verdict(found: Examination) -> str:
    is_whole = len(found.facts) == found.num_nodes
    answered = "" if is_whole else f"{len(found.facts)} of {found.num_nodes} nodes answered; "
    counts = {
        name: sum(check.verdict == name for check in found.checks) for name in (FAULT, WARNING)
    }
    words = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    return f"{answered}{', '.join(words) or 'all well'} ({found.seconds:.1f} s)"


def _nodes_table(found: Examination) -> Table:
    table = Table(title=f"Links measured by {found.links_by}" if found.links_by else None)
    for name in ("host", "GPUs", "torch", "code", "memory free", "clock", "latency", "rate"):
        table.add_column(name, justify="left" if name in ("host", "GPUs", "torch") else "right")
    for host, facts in found.facts.items():
        offset, milliseconds, mbit = found.links.get(host, (0.0, 0.0, 0.0))
        table.add_row(
            host,
            f"{len(facts.gpus)} x {gpu_kinds(facts)}" if facts.gpus else "none",
            f"{facts.versions.get('torch', '-')} CUDA {facts.cuda_build or 'none'}",
            facts.code,
            f"{facts.free_memory_bytes / 2**30:.0f} GiB",
            f"{offset:+.3f} s" if host in found.links else "-",
            f"{milliseconds:.2f} ms" if mbit else "-",
            f"{mbit:,.0f} Mbit/s" if mbit else "-",
        )
    return table


def _checks_table(checks: Sequence[Check], *, has_hosts: bool) -> Table:
    table = Table()
    names = ("check", *(["host"] if has_hosts else []), "found", "", "what to do")
    for name in names:
        table.add_column(name, overflow="fold")
    if has_hosts:
        checks = sorted(checks, key=lambda check: [FAULT, WARNING, NOTE].index(check.verdict))
    for check in checks:
        where = [", ".join(check.hosts)] if has_hosts else []
        cells = map(escaped, (check.name, *where, check.found, check.verdict, check.remedy))
        table.add_row(*cells, style=_STYLES[check.verdict])
    return table
