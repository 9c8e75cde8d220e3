"""Focal loss over an output layer: time, peak memory and error of ours and its peers, in one run.

    python benchmarks/loss.py                   # CPU: fp32, D 512
    python benchmarks/loss.py --device cuda     # GPU: bf16, D 2048 and 6144; gamma 0, 70% ignored
    python benchmarks/loss.py --peers FOLDER    # where `pip install --target FOLDER` put peers

Every contender has a process of its own. T 8,192 tokens, V 49,152, frozen head, gamma 2.
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

from benchmarks.loss_goals import cpu_goals, gpu_goals
from benchmarks.loss_peers import CONTENDERS, Absent, Loss, know_valid
from benchmarks.measure import in_own_process, machine, markdown, measure, write_json
from trainer.losses.loss import IGNORE_INDEX, linear_focal_loss

CHECKED_ROWS = 256  # of dX, against float64: a row's gradient depends on its own token alone
GPU_REPEATS = 50


@dataclass(frozen=True)
class Case:
    """One problem; frozen head, inputs drawn from a fixed seed."""

    hidden_size: int
    num_tokens: int = 8192
    vocab_size: int = 49152
    gamma: float = 2.0
    ignored: float = 0.0


def main() -> int:
    """Measure, print the table and the goals, write JSON."""
    arguments = _arguments()
    if arguments.peers:
        sys.path.append(arguments.peers)
    device = torch.device(arguments.device)
    if arguments.child:
        print(json.dumps(_measure_child(arguments, device)))
        return 0
    cases = _cases(arguments)
    names = arguments.only or _names(device)
    rows = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = in_own_process("loss.py", [*sys.argv[1:], "--child", name])
        rows += [{"contender": name} | row for row in found.get("cases", [found])]
    goals = (gpu_goals if device.type == "cuda" else cpu_goals)(rows)
    print(_table(rows, goals))
    print(markdown(["goal", "wanted", "found", ""], [goal.cells() for goal in goals]))
    result = {"machine": machine(device), "cases": [asdict(case) for case in cases], "rows": rows}
    write_json(arguments.json, result | {"goals": [asdict(goal) for goal in goals]})
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, nargs="*", help="D; default 512, GPU 2048 6144")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--repeats", type=int, default=2, help="on a CPU")
    parser.add_argument("--only", nargs="*", help=f"of {list(CONTENDERS)}")
    parser.add_argument("--peers", help="folder of packages that are not in the environment")
    parser.add_argument("--json", help="file for the whole result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(device: torch.device) -> list[str]:
    """On a CPU the Triton back end does not run."""
    return [name for name in CONTENDERS if device.type == "cuda" or name != "ours, triton"]


def _cases(arguments: argparse.Namespace) -> list[Case]:
    sizes = arguments.hidden or ([2048, 6144] if arguments.device == "cuda" else [512])
    cases = [Case(size, arguments.tokens, arguments.vocab) for size in sizes]
    if arguments.device == "cuda":
        for size in sizes:
            cases.append(Case(size, arguments.tokens, arguments.vocab, gamma=0.0))
            cases.append(Case(size, arguments.tokens, arguments.vocab, ignored=0.7))
    return cases


def _measure_child(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    try:
        loss = CONTENDERS[arguments.child]()
    except Absent as reason:
        return {"absent": str(reason)}
    return {"cases": [_measure_case(loss, case, device, arguments) for case in _cases(arguments)]}


def _measure_case(
    loss: Loss, case: Case, device: torch.device, arguments: argparse.Namespace
) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    settings: dict[str, Any] = {"generator": generator, "device": device}
    hidden = torch.randn(case.num_tokens, case.hidden_size, **settings).to(dtype)
    weight = torch.randn(case.vocab_size, case.hidden_size, **settings) / case.hidden_size**0.5
    weight = (3 * weight).to(dtype)  # logits of about 3, as a trained model has
    target = torch.randint(case.vocab_size, (case.num_tokens,), **settings)
    is_ignored = torch.rand(case.num_tokens, **settings) < case.ignored
    target = target.masked_fill(is_ignored, IGNORE_INDEX)
    know_valid(target)
    hidden.requires_grad_()

    def run() -> None:
        hidden.grad = None
        loss(hidden, weight, target, case.gamma).backward()

    def warm_up() -> None:
        few = hidden.detach()[:1024].requires_grad_()  # several chunks of every contender
        loss(few, weight, target[:1024], case.gamma).backward()

    is_small = device.type == "cpu" and not arguments.child.startswith("torch.compile")
    for _ in range(2):
        (warm_up if is_small else run)()
    hidden.grad = None
    repeats = GPU_REPEATS if device.type == "cuda" else arguments.repeats
    found = measure(run, device, repeats)
    assert hidden.grad is not None
    return asdict(case) | found | {"error": _error(hidden, weight, target, case.gamma)}


def _error(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, gamma: float) -> float:
    """Frobenius error of dX against the reference in float64, on the first rows."""
    assert hidden.grad is not None
    x = hidden.detach()[:CHECKED_ROWS].double().requires_grad_()
    exact = (
        linear_focal_loss(x, weight.double(), target[:CHECKED_ROWS], gamma, backend="reference").sum
        / (target != IGNORE_INDEX).sum()
    )
    (gradient,) = torch.autograd.grad(exact, x)
    difference = hidden.grad[:CHECKED_ROWS].double() - gradient
    return float(difference.norm() / gradient.norm())


def _table(rows: list[dict[str, Any]], goals: list[Any]) -> str:
    lines = []
    for row in rows:
        name = str(row["contender"])
        if "absent" in row:
            lines.append([name, "", row["absent"], "", "", ""])
            continue
        case = f"D {row['hidden_size']}, gamma {row['gamma']:g}"
        case += f", {row['ignored']:.0%} ignored" if row["ignored"] else ""
        verdicts = [f"{g.name}: {g.verdict}" for g in goals if g.is_about(row)]
        lines.append(
            [
                name, case, f"{row['seconds'] * 1000:,.1f} ms", f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{row['error']:.1e}", "; ".join(verdicts),
            ]
        )  # fmt: skip
    return markdown(["contender", "case", "time", "peak MiB", "error of dX", "goal"], lines)


if __name__ == "__main__":
    sys.exit(main())
