"""Everything that only a GPU shows, in one command of limited time.

    python benchmarks/gpu_campaign.py --minutes 9 --out FILE [--only STAGE ...] [--dry-run]
    python benchmarks/gpu_campaign.py --report FILE

Every stage is a process of its own with a time limit; FILE is rewritten after each, and a stage
that fails is recorded and never ends the others. The most important come first, the longest last.
--report prints FILE as tables for RESULTS.md, with what it says of the planner's constants.
--dry-run runs the same stages on a CPU with tiny sizes. benchmarks/GPU.md says how to carry it to
a machine without a network.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import markdown
from benchmarks.runs import REPOSITORY, SAMPLES

_TAIL = 2000  # characters of a stage's output that are kept
_LEAST_SECONDS = 10.0  # below that no further stage begins
_RECIPES = REPOSITORY / "recipes"
_TINY = SAMPLES / "model" / "config.json"


@dataclass(frozen=True)
class Stage:
    """A process of the campaign.

    Attributes:
        seconds: It is ended after these.
        command: Arguments of Python, of a module or a file; {out}, {device} are filled in.
        keys: Of a training: the recipe's; the stage then ends with what its run folder says.
        tiny: Other arguments for --dry-run; () leaves the stage out there.
    """

    seconds: float
    command: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tiny: tuple[str, ...] | None = None


def _training(config: str, method: str, seq_length: int, *more: str, seconds: float) -> Stage:
    """Ten steps of a model of random weights on the embedded functions."""
    keys = (
        f"model.config={_RECIPES / config}", f"data.tokenizer={_TINY.parent}",
        f"tuning.method={method}",
        f"data.seq_length={seq_length}", "tuning.lora_r=16", "optim.max_steps=10",
        "model.gradient_checkpointing=true", "optim.global_batch_size=32", *more,
    )  # fmt: skip
    tiny = (f"model.config={_TINY}", "optim.max_steps=2", "optim.global_batch_size=2")
    return Stage(seconds, keys=keys, tiny=(*keys, *tiny))


def _peer(name: str, *, seconds: float = 240) -> Stage:
    """Another trainer on the shape and texts of the stage `_TEXT`."""
    shape = ("--model", str(_RECIPES / "qwen2_5_coder_7b.json"), "--quantised", "--steps", "10")
    tiny = ("--model", str(_TINY), "--steps", "3", "--rows", "1", "--seq-length", "128")
    start = ("benchmarks/gpu_peers.py", name, "--device", "{device}")
    return Stage(seconds, (*start, *shape), tiny=(*start, *tiny))


_TEXT = "7B QLoRA 512 text"
STAGES: dict[str, Stage] = {
    "facts": Stage(60, ("benchmarks/gpu_stages.py", "facts", "--device", "{device}")),
    "kernels": Stage(120, ("-m", "pytest", "-q", "tests/gpu/test_kernels.py"), tiny=()),
    "quickstart": Stage(90, keys=("engine.precision=auto", "optim.max_steps=40")),
    "resume": Stage(120, ("benchmarks/gpu_stages.py", "resume", "--device", "{device}")),
    "attention": Stage(60, ("benchmarks/gpu_stages.py", "attention", "--device", "{device}")),
    "steps": Stage(60, ("benchmarks/gpu_stages.py", "steps", "--device", "{device}")),
    "1B LoRA 512": _training("starcoderbase_1b.json", "lora", 512, seconds=90),
    "7B QLoRA 512": _training("qwen2_5_coder_7b.json", "qlora", 512, seconds=150),
    "loss": Stage(
        90, ("benchmarks/loss.py", "--device", "{device}", "--json", "{out}.loss.json"), tiny=()
    ),
    "LoRA layer": Stage(
        60,
        ("benchmarks/lora_linear.py", "--device", "{device}", "--json", "{out}.lora.json"),
        tiny=(),
    ),
    "1B LoRA 2048": _training("starcoderbase_1b.json", "lora", 2048, seconds=90),
    "7B QLoRA 2048": _training("qwen2_5_coder_7b.json", "qlora", 2048, seconds=150),
    "15.5B QLoRA 512": _training("starcoder_15b.json", "qlora", 512, seconds=240),
    _TEXT: _training(
        "qwen2_5_coder_7b.json",
        "qlora",
        512,
        "task.name=instruction",
        f"data.path={SAMPLES / 'instructions'}",
        "optim.micro_batch_size=4",
        seconds=150,
    ),
    "peer trl": _peer("trl"),
    "peer trainer": _peer("trainer"),
    "peer unsloth": _peer("unsloth"),
    "peer liger": _peer("liger"),
    "tests": Stage(400, ("-m", "pytest", "-q", "tests/gpu"), tiny=()),
}


def run_stage(name: str, stage: Stage, seconds: float, out: Path, *, dry: bool) -> dict[str, Any]:
    """The record of a stage: its command, code, time, result or the end of what it printed."""
    fill = {"out": str(out), "device": "cpu" if dry else "cuda"}
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if stage.keys:
            command = ["launcher/train.py", str(_RECIPES / "quickstart.yaml")]
            command += [*_common(run, name), *(stage.tiny if dry and stage.tiny else stage.keys)]
        else:
            chosen = stage.tiny if dry and stage.tiny else stage.command
            command = [part.format(**fill) for part in chosen]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if dry else {})
        record: dict[str, Any] = {"name": name, "command": command, "limit_seconds": seconds}
        started = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True,
                timeout=seconds, env=environment, check=False,
            )  # fmt: skip
            record["code"], printed = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            record["code"] = None
            printed = "".join(
                part.decode(errors="replace") for part in (late.stdout, late.stderr) if part
            )
        record["seconds"] = time.perf_counter() - started
        record["printed"] = printed[-_TAIL:]
        if stage.keys:
            record["result"] = _of_run(run, printed)
        elif record["code"] == 0 and command[0].endswith(("gpu_stages.py", "gpu_peers.py")):
            record["result"] = json.loads(done.stdout.strip().splitlines()[-1])
    return record


def _common(run: Path, name: str) -> list[str]:
    """Keys of every training: nothing is scored, and a step is logged by itself."""
    own = () if name == "quickstart" else ("model.path=null",)
    return [
        f"run.output_dir={run}", f"data.cache_dir={run.parent / 'cache'}", "optim.epochs=null",
        "optim.warmup_steps=0", "eval.interval=never", "eval.before=none", "log.interval=1",
        "data.sample=512", *own,
    ]  # fmt: skip


def _of_run(run: Path, printed: str) -> dict[str, Any]:
    """Speed after the first steps, peak and plan, and the proof, as far as there are."""
    found: dict[str, Any] = {}
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    if rows:
        settled = [row["tokens_per_second"] for row in rows[len(rows) // 3 :]]
        found |= {"steps": len(rows), "losses": [row["loss"] for row in rows]}
        found["tokens_per_second"] = sorted(settled)[len(settled) // 2]
        found["peak_gib"] = max(row["memory_gib"] for row in rows)
    if (run / "plan.json").exists():
        plan = json.loads((run / "plan.json").read_text())
        beside = plan["memory"]["context"] + plan["memory"]["fragmentation"]
        found["planned_gib"] = (plan["memory"]["total"] - beside) / 2**30
        examples = yaml.safe_load((run / "config.yaml").read_text())["optim"]["global_batch_size"]
        tokens = plan["data"]["tokens_mean"] * examples * plan["num_steps"]
        found["flops_a_token"] = plan["flops"] / tokens
    for line in printed.splitlines():
        if match := re.match(r"\s+(records|attention|precision|preset)\s+(.*)", line):
            found[match[1]] = match[2]
    return found


def report(content: dict[str, Any]) -> str:
    """The tables of a campaign, in Markdown."""
    records = {record["name"]: record for record in content["stages"]}
    facts = records.get("facts", {}).get("result", {})
    device = facts.get("machine", {}).get("device", "unknown device")
    parts = [f"## GPU campaign on {device} ({content['date']})", ""]
    parts.append(", ".join(f"{k} {v}" for k, v in facts.get("machine", {}).items()))
    ceilings = [f"{k} {facts[k]:.1f}" for k in facts if k.startswith(("tflops", "copy"))]
    parts += [f"Reached here: {', '.join(ceilings)}.", ""]
    peak = facts.get("tflops_bf16")
    rows = []
    for name, record in records.items():
        found = record.get("result", {})
        if "tokens_per_second" not in found or name.startswith("peer "):
            continue
        tflops = found["tokens_per_second"] * found.get("flops_a_token", 0) / 1e12
        rows.append([
            name, f"{found['tokens_per_second']:,.0f}", f"{tflops:.1f}",
            f"{tflops / peak:.2f}" if peak else "-", f"{found['peak_gib']:.2f}",
            f"{found['planned_gib']:.2f}", f"{found['peak_gib'] / found['planned_gib']:.2f}",
        ])  # fmt: skip
    header = ["training", "tokens/s", "TFLOP/s", "of the ceiling", "peak GiB", "planned", "ratio"]
    parts += [markdown(header, rows), ""] if rows else []
    if ours := [float(row[3]) for row in rows if row[3] != "-"]:
        parts += [
            f"The planner assumes an MFU of 0.25 to 0.45 (quantised 0.15 to 0.35) of the maker's"
            f" peak; here {min(ours):.2f} to {max(ours):.2f} of the ceiling"
            " (planning/plan.py: MFU, QUANTISED_MFU).", "",
        ]  # fmt: skip
    cases = records.get("attention", {}).get("result", {})
    if cases:
        shown = [
            [name, case["refused"], "", ""] if "refused" in case
            else [name, f"{1e3 * case['seconds']:.3f}", f"{case['error']:.1e}",
                  next(iter(case.get("kernels", {})), "-")]
            for name, case in cases.items()
        ]  # fmt: skip
        parts += [markdown(["attention", "ms", "error", "longest kernel"], shown), ""]
    parts += _peer_table(records)
    if again := records.get("resume", {}).get("result"):
        equal = "equal to the last bit" if again["is_equal"] else f"NOT equal: {again}"
        parts += [f"Losses of a continued run in {again['precision']}: {equal}.", ""]
    waits = records.get("steps", {}).get("result")
    if waits:
        parts += [f"A step waits {waits['waits_a_step']:.1f} times: {waits['where']}", ""]
    outcome = [
        [name, "-" if record["code"] is None else str(record["code"]), f"{record['seconds']:.0f}",
         "time limit" if record["code"] is None else ""]
        for name, record in records.items()
    ]  # fmt: skip
    return "\n".join([*parts, markdown(["stage", "code", "seconds", ""], outcome)])


def _peer_table(records: dict[str, dict[str, Any]]) -> list[str]:
    """Others on the same shape and texts; above 1 ours is faster."""
    ours = records.get(_TEXT, {}).get("result", {}).get("tokens_per_second")
    rows = []
    for name, record in records.items():
        found = record.get("result", {})
        if not name.startswith("peer "):
            continue
        speed = found.get("tokens_per_second")
        rows.append([
            name.removeprefix("peer "), f"{speed:,.0f}" if speed else found.get("absent", "failed"),
            f"{ours / speed:.2f}" if ours and speed else "-",
            f"{found['peak_gib']:.2f}" if "peak_gib" in found else "-",
            f"{found['padding']:.0%}, {found['packing']}" if speed else "-",
        ])  # fmt: skip
    header = [f"peer, {_TEXT}", "tokens/s", "ours / it", "peak GiB", "padding, packing"]
    return [markdown(header, rows), ""] if rows else []


def main() -> None:
    """Run the stages, or print a file of theirs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_campaign.json"))
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, tiny")
    parser.add_argument("--report", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.report:
        print(report(json.loads(given.report.read_text())))
        return
    campaign(given.only, 60 * given.minutes, given.out.resolve(), dry=given.dry_run)


def campaign(names: Sequence[str], seconds: float, out: Path, *, dry: bool) -> dict[str, Any]:
    """Run stages in their order while time is left; the file holds every one that ended."""
    content: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "dry": dry, "stages": []}
    deadline = time.monotonic() + seconds
    for name in names:
        stage, left = STAGES[name], deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            break
        if dry and stage.tiny == ():
            continue
        record = run_stage(name, stage, min(stage.seconds, left), out, dry=dry)
        content["stages"].append(record)
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)
        print(f"{name}: code {record['code']} after {record['seconds']:.0f} s", flush=True)
    return content


if __name__ == "__main__":
    main()
