"""Measurements of benchmarks/gpu_campaign.py, each in a process of its own: its last line is JSON.

    python benchmarks/gpu_stages.py STAGE [--device cpu]

B rows, T tokens a row, H heads, D head size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import machine, measure
from benchmarks.runs import QUICKSTART, REPOSITORY

_PEAKS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_STEPS_WATCHED = (4, 9)  # of the run whose synchronisations are counted: first, last


def facts(device: torch.device) -> dict[str, Any]:
    """The device, the software, and the most that matrix products and copies reach here."""
    is_gpu = device.type == "cuda"
    size = 8192 if is_gpu else 256
    found: dict[str, Any] = {"machine": machine(device), "cuda": torch.version.cuda}
    if is_gpu:
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(device)),
            "memory_gib": properties.total_memory / 2**30,
        }
    for name, dtype in _PEAKS.items():
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = measure(partial(torch.matmul, a, a), device, 5)["seconds"]
        found[f"tflops_{name}"] = 2 * size**3 / seconds / 1e12
    words = torch.empty(2**28 if is_gpu else 2**20, dtype=torch.float32, device=device)
    seconds = measure(lambda: words.clone(), device, 5)["seconds"]
    found["copy_gb_per_second"] = 2 * words.nbytes / seconds / 1e9
    return found


def attention(device: torch.device) -> dict[str, Any]:
    """Forward and backward of each back end on a row of packed functions, and its error in fp64.

    A function has 144 tokens on average, as in the embedded data; a long one ends each row.
    """
    import torch.nn.functional as F

    from trainer.models.packed_attention import _segment_sdpa, causal_segment_mask

    is_gpu = device.type == "cuda"
    heads, width = (32, 128) if is_gpu else (2, 16)
    draw = torch.Generator().manual_seed(0)
    results = {}
    for tokens in (512, 2048) if is_gpu else (64,):
        lengths = _lengths(tokens)
        ends = torch.tensor(lengths).cumsum(0)
        segment_BT = torch.bucketize(torch.arange(tokens), ends, right=True)[None].to(device)
        q, k, v = torch.randn(3, 1, heads, tokens, width, generator=draw).to(device)

        def by_mask(q: Any, k: Any, v: Any, segment_BT: Any = segment_BT) -> Any:
            mask = causal_segment_mask(segment_BT, q.dtype)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

        def by_segment(q: Any, k: Any, v: Any, lengths: Any = tuple(lengths)) -> Any:
            layer: Any = SimpleNamespace(num_key_value_groups=1, is_causal=True, training=False)
            return _segment_sdpa(layer, q, k, v, None, segment_lengths=lengths)[0]

        backends: dict[str, Callable[..., Any]] = {"mask": by_mask, "segments": by_segment}
        for name in ("torch_varlen", "torch_efficient") if is_gpu else ():
            backends[name] = _varlen(name, ends.to(device), max(lengths))
        exact = by_mask(q.double(), k.double(), v.double())
        for name, function in backends.items():
            results[f"{tokens} {name}"] = _timed(function, (q, k, v), exact, device)
    return results


def _lengths(tokens: int) -> list[int]:
    """Lengths that fill a row."""
    mean = 144 if tokens > 144 else 16
    lengths = [mean // 2, mean, 3 * mean // 2] * tokens
    taken, total = [], 0
    for length in lengths:
        taken.append(min(length, tokens - total))
        total += taken[-1]
        if total == tokens:
            break
    return taken


def _varlen(name: str, ends: torch.Tensor, longest: int) -> Callable[..., Any]:
    """A back end that gets the boundaries."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from trainer.models import varlen_kernels  # noqa: F401  # makes its back ends known

    bounds = torch.cat([ends.new_zeros(1), ends]).int()

    def attend(q: Any, k: Any, v: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS[name](
            torch.nn.Module(), q, k, v, None, cu_seq_lens_q=bounds, max_length_q=longest
        )[0]

    return attend


def _timed(
    function: Callable[..., Any], inputs: Any, exact: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    """Times and error of a back end in 16 bit, or the reason why it does not run."""
    half = [x.to(torch.bfloat16).requires_grad_() for x in inputs]
    try:
        error = (function(*half).double() - exact).abs().max() / exact.abs().max()
        found: dict[str, Any] = {"error": float(error.detach())}
        found |= measure(lambda: function(*half).sum().backward(), device, 20)
        if device.type == "cuda":
            found["kernels"] = _kernels(lambda: function(*half).sum().backward())
    except (RuntimeError, TypeError, NotImplementedError) as error_:
        return {"refused": str(error_).partition("\n")[0]}
    return found


def _kernels(run: Callable[[], Any], most: int = 5) -> dict[str, float]:
    """The kernels that take longest, in microseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    events = sorted(recorded.key_averages(), key=lambda e: -e.device_time_total)
    return {event.key[:80]: event.device_time_total for event in events[:most]}


def steps(device: torch.device) -> dict[str, Any]:
    """Where a step waits for the device, by CUDA's own warnings, and its kernels.

    On a CPU nothing waits; the run shows that the stage works.
    """
    from launcher.train import main
    from trainer.run import loop

    is_gpu = device.type == "cuda"
    waits: Counter[str] = Counter()
    own, number, seen = loop.optimizer_step, 0, 0

    def step(*arguments: Any) -> Any:
        nonlocal number, seen
        number += 1
        is_watched = _STEPS_WATCHED[0] <= number <= _STEPS_WATCHED[1]
        seen += is_watched
        if is_gpu:
            torch.cuda.set_sync_debug_mode("warn" if is_watched else "default")
        return own(*arguments)

    def note(message: Any, category: Any, filename: str, line: int, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            waits["/".join(Path(filename).parts[-3:]) + f":{line}"] += 1

    loop.optimizer_step = step  # type: ignore[assignment]
    warnings.showwarning = note  # type: ignore[assignment]
    warnings.simplefilter("always")
    with tempfile.TemporaryDirectory() as folder:
        code = main([
            str(QUICKSTART), f"run.output_dir={folder}/run",
            f"data.cache_dir={folder}/cache", "optim.epochs=null", "optim.max_steps=10",
            "optim.warmup_steps=0", "log.interval=100", "eval.interval=never", "eval.before=none",
            "data.sample=64",
        ])  # fmt: skip
    if code or not seen:
        sys.exit(f"the run ended with {code} after {number} steps")
    return {"steps": seen, "waits_a_step": sum(waits.values()) / seen, "where": dict(waits)}


def resume(device: torch.device) -> dict[str, Any]:
    """Losses of a run that is stopped halfway and continued, beside those of one in one piece."""
    with tempfile.TemporaryDirectory() as folder:
        common = [
            "recipes/quickstart.yaml", f"data.cache_dir={folder}/cache", "optim.epochs=null",
            "optim.warmup_steps=0", "optim.schedule=constant", "log.interval=1", "data.sample=64",
            "eval.interval=never", "eval.before=none", "run.accept_changes=true",
        ]  # fmt: skip
        losses: dict[str, list[float]] = {}
        for name, steps_ in (("whole", 12), ("parts", 6), ("parts", 12)):
            own = [f"run.output_dir={folder}/{name}", f"optim.max_steps={steps_}"]
            command = [sys.executable, "launcher/train.py", *common, *own]
            subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
            lines = (Path(folder) / name / "log.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
            losses[name] = [row["loss"] for row in rows]
    precision = "the precision of this GPU" if device.type == "cuda" else "fp32"
    return {"is_equal": losses["whole"] == losses["parts"], "precision": precision, **losses}


STAGES: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "facts": facts,
    "resume": resume,
    "attention": attention,
    "steps": steps,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    given = parser.parse_args()
    print(json.dumps(STAGES[given.stage](torch.device(given.device))))


if __name__ == "__main__":
    main()
