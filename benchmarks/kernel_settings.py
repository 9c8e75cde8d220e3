"""The settings of the fused loss on this GPU: block x warps of the row kernel, rows of a chunk.

    python benchmarks/kernel_settings.py --json settings.json

The fastest line of each table belongs into trainer/kernels/rows_triton.py (BLOCK, NUM_WARPS) and
trainer/kernels/chunks.py (BUDGET_BYTES) for this GPU.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.measure import machine, markdown, measure, write_json
from trainer.kernels.chunks import device_chunk
from trainer.kernels.linear_focal import LinearFocal

BLOCKS, WARPS = (4096, 8192, 16384, 32768), (8, 16, 32)
CHUNK_ROWS = (512, 1024, 2048, 4096)
HIDDEN_SIZES = (1024, 2048, 6144)
TOKENS, VOCAB, KERNEL_ROWS = 8192, 49152, 2048
REPEATS = 20
LOGITS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> int:
    """Measure, print two tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", help="file for the whole result")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernel_settings.py needs a GPU", file=sys.stderr)
        return 5
    device = torch.device("cuda")
    kernel = [row_kernel(*setting) for setting in product(LOGITS, BLOCKS, WARPS)]
    chunks = [whole_loss(*setting) for setting in product(HIDDEN_SIZES, LOGITS, CHUNK_ROWS)]
    print(show(kernel, "gb_per_second"))
    print(show(chunks, "tflops"))
    for size in HIDDEN_SIZES:
        rows = device_chunk(TOKENS, size, VOCAB, torch.bfloat16, device)
        print(f"planned now at D {size}: {rows} rows")
    write_json(arguments.json, {"machine": machine(device), "kernel": kernel, "chunks": chunks})
    return 0


def row_kernel(logits: str, block: int, num_warps: int) -> dict[str, Any]:
    """The row kernel alone: two reads and one write of the logits."""
    from trainer.kernels.rows_triton import nll_and_gradient

    source = torch.randn(KERNEL_ROWS, VOCAB, device="cuda").to(LOGITS[logits])
    target = torch.randint(VOCAB, (KERNEL_ROWS,), device="cuda")
    gradient = source if logits == "bf16" else torch.empty_like(source, dtype=torch.bfloat16)
    setting = {"logits": logits, "block": block, "num_warps": num_warps}

    def run() -> None:
        nll_and_gradient(source, target, gradient, block, num_warps)

    run()
    found = measure(run, source.device, REPEATS)
    moved = source.numel() * (2 * source.element_size() + 2)
    return setting | found | {"gb_per_second": moved / found["seconds"] / 1e9}


def whole_loss(hidden_size: int, logits: str, chunk_rows: int) -> dict[str, Any]:
    """Loss and dX with a frozen head."""
    hidden = torch.randn(TOKENS, hidden_size, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(VOCAB, hidden_size, device="cuda") * 3 / hidden_size**0.5).bfloat16()
    target = torch.randint(VOCAB, (TOKENS,), device="cuda")
    ones = torch.ones(TOKENS, device="cuda")
    # fp32 logits are the default of the loss, which plans its buffers by it.
    loss = LinearFocal(2.0, backend="triton", chunk_rows=chunk_rows, logits_dtype=LOGITS[logits])

    def run() -> None:
        hidden.grad = None
        loss.loss_sum(hidden, weight, None, target, ones).backward()

    for _ in range(2):
        run()
    hidden.grad = None
    found = measure(run, hidden.device, REPEATS)
    setting = {"hidden_size": hidden_size, "logits": logits, "chunk_rows": chunk_rows}
    flops = 4 * TOKENS * hidden_size * VOCAB
    return setting | found | {"tflops": flops / found["seconds"] / 1e12}


def show(rows: list[dict[str, Any]], rate: str) -> str:
    """Settings, time and rate, the fastest marked."""
    settings = [key for key in rows[0] if key not in ("seconds", "peak_bytes", rate)]
    # Per hidden size where there are several; bf16 logits are cheaper and less exact.
    groups = [(row.get("hidden_size"), row["logits"]) for row in rows]
    best = {
        group: min(
            row["seconds"] for row, other in zip(rows, groups, strict=True) if other == group
        )
        for group in groups
    }
    lines = [
        [
            *(str(row[key]) for key in settings),
            f"{row['seconds'] * 1000:.3f} ms",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row[rate]:,.0f}",
            "fastest" if row["seconds"] == best[group] else "",
        ]
        for row, group in zip(rows, groups, strict=True)
    ]
    return markdown([*settings, "time", "peak MiB", rate, ""], lines)


if __name__ == "__main__":
    sys.exit(main())
