"""From 1 to 64 GPUs on paper: memory, bytes and step time under each preset, by the planner.

    python benchmarks/scaling.py [--device A100-80] [--network GBIT]

Nothing is measured here. A step is 128 rows of 2,048 tokens (LoRA r 16, bf16 or fp16,
recomputation), one row a micro-batch, so more GPUs share the same work. Its time is the work at the
middle of the planner's MFU, then the bytes that a rank sends over the slowest link of the ring:
NVLink inside a node of eight, the network between nodes. Overlap is left out: LoRA's gradients are
sent after the backward pass, and how much of ZeRO 3's gathers is hidden is not known.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS, TOKENS, GPUS_A_NODE = 128, 2048, 8
NVLINK_BYTES = {"V100-16": 100e9, "V100-32": 100e9, "A100-40": 200e9, "A100-80": 200e9,
                "H100": 350e9, "H200": 350e9}  # fmt: skip
"""Bytes a second each way that rings reach, about two thirds of the data sheet."""
PCIE_BYTES = 12e9
"""Bytes a second to the host and back, for the offloaded optimizer."""
WORTH_IT = 1.5
"""Twice the GPUs must bring at least this."""
_FAMILY = {"model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh",
           "attn_pdrop": 0.1, "resid_pdrop": 0.1, "vocab_size": 49152, "n_positions": 8192,
           "multi_query": True}  # fmt: skip
MODELS = {  # StarCoderBase's own configurations
    "1B": _FAMILY | {"n_embd": 2048, "n_layer": 24, "n_head": 16, "n_inner": 8192},
    "7B": _FAMILY | {"n_embd": 4096, "n_layer": 42, "n_head": 32, "n_inner": 16384},
    "16B": _FAMILY | {"n_embd": 6144, "n_layer": 40, "n_head": 48, "n_inner": 24576},
}
STAGES = ("zero1", "zero1_offload", "zero2", "zero3", "zero3_offload")


@dataclass(frozen=True)
class Line:
    """One model, preset and number of GPUs."""

    gpus: int
    memory_bytes: float
    fits: bool
    sent_bytes: float
    step_seconds: float


def lines_of(
    values: dict[str, object], stage: str, device_name: str, network_bytes: float, folder: Path
) -> list[Line]:
    """1, 2, 4 ... 64 GPUs."""
    from trainer.config.machines import DEVICES, Machine
    from trainer.config.recipe import load_run_config
    from trainer.planning.data_facts import DataFacts
    from trainer.planning.memory import memory_of
    from trainer.planning.plan import MFU, communication_bytes, flops_of_step, read_shape
    from trainer.planning.resolve import preset_family, resolve

    (folder / "config.json").write_text(json.dumps(values))
    device = DEVICES[device_name]
    lines = []
    for power in range(7):
        gpus = 2**power
        machine = Machine(device, gpus, max(1, gpus // GPUS_A_NODE))
        config = load_run_config(
            REPOSITORY / "recipes" / "quickstart.yaml",
            ["model.path=null", f"model.config={folder}", f"data.seq_length={TOKENS}",
             "tuning.lora_r=16", "model.gradient_checkpointing=true",
             "optim.batch_unit=rows", f"optim.global_batch_size={ROWS}",
             "optim.micro_batch_size=1", f"engine.preset={preset_family(machine)}_{stage}"],
        )  # fmt: skip
        data = DataFacts(100 * ROWS, TOKENS - 1.0, "full rows", is_assumed=True)
        recipe = resolve(config, read_shape(config), machine)
        recipe = replace(recipe, accumulation=ROWS // gpus)
        sent = communication_bytes(recipe, ROWS // gpus)
        memory = memory_of(recipe).total
        assert device.peak_tflops is not None
        steps = data.steps(config.data, config.optim, gpus)
        work = flops_of_step(recipe, steps) / (device.peak_tflops * 1e12 * gpus * sum(MFU) / 2)
        link = NVLINK_BYTES[device_name] if machine.num_nodes == 1 else network_bytes
        host = 4 * recipe.num_trained / gpus / PCIE_BYTES if recipe.preset.is_offloaded else 0.0
        fits = memory <= device.memory_gib * 2**30
        lines.append(Line(gpus, memory, fits, sent, work + sent / link + host))
    return lines


def last_that_pays(lines: list[Line]) -> int:
    """The number of GPUs up to which every doubling is worth it."""
    last = lines[0].gpus
    for before, after in pairwise(lines):
        if before.step_seconds / after.step_seconds < WORTH_IT:
            break
        last = after.gpus
    return last


def table(device: str, network_gbit: float) -> str:
    """Markdown."""
    rows = [
        f"| {device}, {network_gbit:g} Gbit/s | "
        + " | ".join(f"{2**power} GPU{'s' if power else ''}" for power in range(7))
        + " | pays up to |",
        "|---|" + "---|" * 8,
    ]
    with tempfile.TemporaryDirectory() as folder:
        for model, values in MODELS.items():
            for stage in STAGES:
                lines = lines_of(values, stage, device, network_gbit * 1e9 / 8, Path(folder))
                cells = [_cell(line) for line in lines]
                rows.append(f"| {model} {stage} | {' | '.join(cells)} | {last_that_pays(lines)} |")
    return "\n".join(rows)


def _cell(line: Line) -> str:
    memory = f"{line.memory_bytes / 2**30:.0f} GiB{'' if line.fits else ' (no)'}"
    seconds = line.step_seconds
    shown = f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"
    return f"{memory}, {_size(line.sent_bytes)}, {shown} s"


def _size(sent: float) -> str:
    if not sent:
        return "0"
    unit, name = (1e9, "GB") if sent >= 1e9 else (1e6, "MB")
    return f"{sent / unit:,.0f} {name}" if sent >= 100 * unit else f"{sent / unit:.3g} {name}"


def main(arguments: list[str]) -> int:
    """Print a table of one device and network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="A100-80", choices=sorted(NVLINK_BYTES))
    parser.add_argument("--network", type=float, default=200, help="Gbit/s of a node")
    given = parser.parse_args(arguments)
    print(table(given.device, given.network))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
