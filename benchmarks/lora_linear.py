"""A linear layer with LoRA: ours against PEFT's, forward and backward, time and peak memory.

    python benchmarks/lora_linear.py                   # CPU: 1024 x 1024, 4,096 tokens
    python benchmarks/lora_linear.py --device cuda     # GPU: 4096 x 4096, 8,192 tokens

The base is frozen, r is 16. "mixed" has fp32 adapters over a 16-bit base, which PEFT computes in
fp32; "nf4" has 16-bit adapters over a 4-bit base (fp32 on a CPU). Ours and PEFT's have a process
each.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from benchmarks.measure import in_own_process, machine, markdown, measure, write_json

RANK = 16
BACKENDS = ("fused", "peft")
# Speed-ups by arithmetic for a GPU; a CPU has none promised, so ours may not be slower.
GOALS = {
    "cuda": {"16 bit": 1.09, "mixed": 1.3, "nf4": 1.1},
    "cpu": {"fp32": 1.0, "mixed": 1.0, "nf4": 1.0},
}


@dataclass(frozen=True)
class Case:
    """A layer and what runs through it."""

    precision: str
    dropout: float
    num_tokens: int
    size: int


def main() -> int:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--json", help="file for the whole result")
    parser.add_argument("--child", choices=BACKENDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    tokens, size = (8192, 4096) if device.type == "cuda" else (4096, 1024)
    tokens, size = arguments.tokens or tokens, arguments.size or size
    cases = [Case(p, d, tokens, size) for p in GOALS[device.type] for d in (0.0, 0.05)]
    if arguments.child:
        found = [measure_layer(arguments.child, case, device) for case in cases]
        print(json.dumps({"cases": found}))
        return 0
    by_backend = {
        backend: in_own_process("lora_linear.py", [*sys.argv[1:], "--child", backend])
        for backend in BACKENDS
    }
    absent = [
        f"{name} {found['absent']}" for name, found in by_backend.items() if "absent" in found
    ]
    if absent:
        print("\n".join(absent), file=sys.stderr)
        return 5
    rows = [
        asdict(case) | {name: found["cases"][index] for name, found in by_backend.items()}
        for index, case in enumerate(cases)
    ]
    print(table(rows, device))
    write_json(arguments.json, {"machine": machine(device), "rows": rows})
    return 0


def measure_layer(backend: str, case: Case, device: torch.device) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass."""
    torch.set_num_threads(1)
    layer = build_layer(backend, case, device).to(device)
    dtype = _dtype(case, device)
    x = torch.randn(case.num_tokens, case.size, device=device).to(dtype).requires_grad_()
    upstream = torch.randn(case.num_tokens, case.size, device=device).to(dtype)

    def run() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(upstream)

    for _ in range(3):
        run()
    layer.zero_grad()
    x.grad = None
    return measure(run, device, 50 if device.type == "cuda" else 10)


def build_layer(backend: str, case: Case, device: torch.device) -> Any:
    """The layer of a backend over the same frozen base."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    from trainer.tuning.fused_lora import FusedLoraLinear

    torch.manual_seed(0)
    dtype = _dtype(case, device)
    base: Any = nn.Linear(case.size, case.size).to(dtype).requires_grad_(False)
    ours, theirs = FusedLoraLinear, Linear
    if case.precision == "nf4":
        from bitsandbytes.nn import Linear4bit
        from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

        from trainer.models.quantized import prepare_layers
        from trainer.tuning.fused_lora_4bit import FusedLora4bit

        weights = base.state_dict()
        base = Linear4bit(case.size, case.size, compute_dtype=dtype, quant_type="nf4")
        base.load_state_dict(weights)
        base = base.to(device).requires_grad_(False)
        prepare_layers(nn.Sequential(base))
        ours, theirs = FusedLora4bit, PeftLinear4bit
    settings = LoraConfig(r=RANK, lora_dropout=case.dropout, init_lora_weights=False)
    kind = ours if backend == "fused" else theirs
    layer = kind(base, "default", config=settings, r=RANK, lora_alpha=2 * RANK)
    for adapter in (layer.lora_A, layer.lora_B):
        adapter.to(torch.float32 if case.precision == "mixed" else dtype)
    return layer.train()


def _dtype(case: Case, device: torch.device) -> torch.dtype:
    is_wide = case.precision == "fp32" or (case.precision == "nf4" and device.type == "cpu")
    return torch.float32 if is_wide else torch.bfloat16


def table(rows: list[dict[str, Any]], device: torch.device) -> str:
    """Ours and PEFT's side by side, with the goal."""
    lines = []
    for row in rows:
        case = f"{row['precision']}, dropout {row['dropout']:g}"
        speed = row["peft"]["seconds"] / row["fused"]["seconds"]
        goal = GOALS[device.type][row["precision"]]
        lines.append(
            [
                case,
                *(f"{row[backend]['seconds'] * 1000:,.2f} ms" for backend in BACKENDS),
                " / ".join(f"{row[backend]['peak_bytes'] / 2**20:,.0f}" for backend in BACKENDS),
                f"{speed:.2f}x",
                f">= {goal:g}x: {'met' if speed >= goal else 'not met'}",
            ]
        )
    return markdown(["case", "ours", "PEFT", "peak MiB", "speed-up", "goal"], lines)


if __name__ == "__main__":
    sys.exit(main())
