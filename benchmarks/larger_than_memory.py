"""Millions of functions prepared and trained on within a few GB.

    python benchmarks/larger_than_memory.py --functions 5000000 --folder FOLDER [--json FILE]

Writes that many synthetic functions, prepares them, trains 100 steps of a tiny model, and prints
the peak memory of both commands. It compares the speed of prepare and of the tokenizer alone, in
tokens a CPU second of all cores; the tokenizer is measured before and after, as speeds drift.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "data" / "samples" / "model"
RAW_FUNCTIONS = 200_000  # for measuring the tokenizer alone
STEPS = 100
GOAL_GIB, GOAL_RATIO = 4.0, 0.9

_TYPES = ("int", "long", "size_t", "char *", "unsigned", "struct node *")
_WORDS = ("len", "buffer", "index", "node", "count", "total", "src", "dst", "offset", "next", "key")


def functions(count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Code and target; a vulnerable one misses its bounds check."""
    draw = random.Random(seed)
    for number in range(count):
        kind, name = draw.choice(_TYPES), f"{draw.choice(_WORDS)}_{draw.choice(_WORDS)}_{number}"
        a, b = draw.sample(_WORDS, 2)
        target = number % 2
        check = "" if target else f"    if ({a} >= {b}) {{\n        return 0;\n    }}\n"
        lines = "".join(
            f"    {draw.choice(_WORDS)}[{a} + {draw.randrange(64)}] = {b} {draw.choice('+-*')}"
            f" {draw.randrange(4096)};\n"
            for _ in range(1 + int(draw.expovariate(0.5)))
        )
        yield (
            f"{kind} {name}({kind} {a}, {kind} {b})\n{{\n{check}{lines}    return {a};\n}}\n",
            target,
        )


def write(folder: Path, split: str, count: int, seed: int) -> None:
    """One split as .jsonl."""
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
        for number, (code, target) in enumerate(functions(count, seed)):
            row = {"id": f"{split}{number}", "code": code, "target": target}
            stream.write(json.dumps(row) + "\n")


def raw_speed(folder: Path) -> float:
    """Tokens a CPU second of the tokenizer alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    codes = []
    with (folder / "train.jsonl").open(encoding="utf-8") as stream:
        for line, _ in zip(stream, range(RAW_FUNCTIONS), strict=False):
            codes.append(json.loads(line)["code"])
    started, tokens = time.process_time(), 0
    for first in range(0, len(codes), 1024):
        chunk = codes[first : first + 1024]
        tokens += sum(map(len, tokenizer.encode_batch_fast(chunk, add_special_tokens=False)))
    return tokens / (time.process_time() - started)


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak GiB of a command; exits if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed: {status}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started, cpu_seconds, usage.ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--functions", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="new folder, ~10 GB for 5 M")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = given.folder / "data"
    data.mkdir(parents=True)
    for seed, (split, count) in enumerate(
        (("train", given.functions), ("valid", 2000), ("test", 2000))
    ):
        write(data, split, count, seed)
    recipe = [
        "recipes/quickstart.yaml",
        f"data.path={data}",
        f"data.cache_dir={given.folder / 'cache'}",
        f"run.output_dir={given.folder / 'run'}",
        f"optim.max_steps={STEPS}",
        "optim.epochs=null",
        "eval.interval=never",
        "data.seq_length=512",
    ]
    raw = [raw_speed(data)]
    prepare_seconds, cpu_seconds, prepare_gib = run(["launcher/prepare.py", *recipe])
    raw.append(raw_speed(data))
    train_seconds, _, train_gib = run(["launcher/train.py", *recipe])
    [facts] = (given.folder / "cache").glob("*/*/facts.json")
    lengths = json.loads(facts.read_text())["splits"]
    tokens = sum(
        s["tokens"]["tokens_mean"] * s["tokens"]["num_functions"] for s in lengths.values()
    )
    speed = tokens / cpu_seconds
    result = {
        "functions": given.functions,
        "tokens": round(tokens),
        "prepare_seconds": prepare_seconds,
        "prepare_cpu_seconds": cpu_seconds,
        "prepare_peak_gib": prepare_gib,
        "train_seconds": train_seconds,
        "train_peak_gib": train_gib,
        "prepare_tokens_per_cpu_second": speed,
        "raw_tokens_per_cpu_second": raw,
        "ratio": speed / (sum(raw) / 2),
        "this_process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "memory_goal_met": max(prepare_gib, train_gib) <= GOAL_GIB,
        "speed_goal_met": speed / (sum(raw) / 2) >= GOAL_RATIO,
    }
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
