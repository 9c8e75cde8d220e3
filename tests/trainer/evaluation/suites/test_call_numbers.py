"""The numbers of the sandbox's filter are the kernel's, of both machines, by its own headers."""

import ast
import re
from pathlib import Path

import pytest

from trainer.evaluation.suites import sandbox

INCLUDE = Path("/usr/include")
TABLES = {  # machine -> its table of calls, as Debian's linux-libc-dev has them
    "x86_64": INCLUDE / "x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": INCLUDE / "asm-generic/unistd.h",
}
NAMES = (
    "add_key", "request_key", "keyctl", "shmget", "msgget", "semget", "io_uring_setup", "bpf",
    "perf_event_open", "userfaultfd", "memfd_create",
)  # fmt: skip


def defined(path):
    found = re.findall(r"^#define\s+(\w+)\s+(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def filtered():
    """CALLS of inside.py, which runs when it is imported."""
    for node in ast.parse(sandbox._INSIDE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "CALLS":
            return ast.literal_eval(node.value)
    raise AssertionError("no CALLS")


@pytest.mark.parametrize("machine", TABLES)
def test_every_call_of_the_filter_has_the_kernels_number(machine):
    table, audit = TABLES[machine], INCLUDE / "linux/audit.h"
    if not (table.is_file() and audit.is_file()):
        pytest.skip(f"no headers of the kernel here: {table}")
    numbers = defined(table)
    assert len(numbers) > 300  # or the table was not read
    machine_audit, socket, calls = filtered()[machine]
    assert socket == int(numbers["__NR_socket"])
    assert dict(zip(NAMES, calls, strict=True)) == {
        name: int(numbers[f"__NR_{name}"]) for name in NAMES
    }
    flags = defined(audit)
    bits = int(flags["__AUDIT_ARCH_64BIT"], 16) | int(flags["__AUDIT_ARCH_LE"], 16)
    kind = defined(INCLUDE / "linux/elf-em.h")[f"EM_{machine.upper()}"]
    assert machine_audit == int(kind) | bits
