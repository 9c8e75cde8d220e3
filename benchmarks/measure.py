"""Time and peak memory of one contender, each in a process of its own; tables and JSON."""

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
STACK = ("torch", "triton", "deepspeed", "peft", "trl", "liger-kernel")


def resident_bytes(field: str = "VmRSS") -> int:
    """Memory of this process now (VmRSS) or at its highest (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(run: Callable[[], object], device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds, and peak bytes above the memory in use before.

    A CPU: process time of the fastest run, which other users of the machine disturb least. A GPU:
    the median by CUDA events.
    """
    gc.collect()
    return (_measure_gpu if device.type == "cuda" else _measure_cpu)(run, repeats)


def _measure_cpu(run: Callable[[], object], repeats: int) -> dict[str, float]:
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins here
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return {"seconds": min(seconds), "peak_bytes": float(resident_bytes("VmHWM") - before)}


def _measure_gpu(run: Callable[[], object], repeats: int) -> dict[str, float]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    peak = torch.cuda.max_memory_allocated() - before
    seconds = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return {"seconds": statistics.median(seconds), "peak_bytes": float(peak)}


def in_own_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script of this folder; its last line, {"cases": ...}, or {"absent": reason}."""
    child = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
        # Freed tensors then leave the process, and do not count as memory in use before.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )  # fmt: skip
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        error = (child.stderr.strip().splitlines() or ["no output"])[-1]
        return {"absent": f"failed: {error[:160]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def machine(device: torch.device) -> dict[str, str]:
    """Where the numbers come from."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = model[1] if model else name
    return {"device": name, "python": platform.python_version()} | {
        package: installed_version(package) for package in STACK
    }


def installed_version(package: str) -> str:
    """Version of a distribution, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal and for RESULTS.md."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def write_json(path: str | None, value: object) -> None:
    """Write the whole result where --json says."""
    if path:
        Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
