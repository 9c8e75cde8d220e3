"""Collation, tokenisation and balance over ranks, each compared with what it replaces.

.venv/bin/python benchmarks/input_pipeline.py --data ARCHIVE.tar.gz --tokenizer TOKENIZER.json
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.lengths import (
    Ints,
    length_parser,
    random_examples,
    read_codes,
    read_lengths,
    resampled,
)
from benchmarks.tables import Goal, print_goals, print_table
from data.batches import order
from data.batches.batch import collate
from data.batches.packing import Rows, pack
from data.text.tokenization import ExampleSet
from data.text.tokenizer import CodeTokenizer

SEQ_LENGTH, ROWS_A_BATCH = 2048, 8
SHAPES = ((8, 8, 1), (8, 16, 1), (8, 8, 2), (4, 8, 4), (2, 8, 1), (64, 8, 1), (8, 1, 1))
Collator = Callable[[list[Ints]], Any]


def collators(examples: ExampleSet, folder: Path) -> dict[str, Collator]:
    """Example indices of rows -> a batch: ours from memory maps, others from lists of ints."""
    found: dict[str, Collator] = {}
    for dtype in (np.uint16, np.int32):
        path = folder / np.dtype(dtype).name
        examples.tokens.astype(dtype).tofile(path)
        tokens = np.memmap(path, dtype=dtype, mode="r")
        found[f"focaltune, map of {path.name}"] = partial(collate, replace(examples, tokens=tokens))

    from transformers import DataCollatorWithFlattening

    flattening = DataCollatorWithFlattening()
    ids = [part.tolist() for part in np.split(examples.tokens, examples.starts[1:-1])]
    found["Hugging Face flattening"] = lambda rows: flattening(
        [{"input_ids": ids[example]} for row in rows for example in row]
    )
    if find_spec("trl"):
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        packing = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        found["TRL padding-free, packed"] = lambda rows: packing(rows)
    return found


def trl_features(examples: ExampleSet, rows: list[Ints]) -> list[dict[str, list[int]]]:
    """Rows as TRL's packing stores them, made before so that only collation is measured."""
    return [
        {
            "input_ids": np.concatenate(
                [examples.tokens[examples.starts[e] : examples.starts[e + 1]] for e in row]
            ).tolist(),
            "seq_lengths": examples.lengths[row].tolist(),
        }
        for row in rows
    ]


def measure_collation(lengths: Ints, num_batches: int) -> dict[str, float]:
    """Median CPU milliseconds of a batch of 8 rows of 2,048; every collator on the same rows."""
    examples = random_examples(resampled(lengths, 20_000, SEQ_LENGTH), vocabulary=49_152)
    packed = pack(examples.lengths, SEQ_LENGTH, order.epoch_rng(0, 0))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, collator in collators(examples, Path(folder)).items():
            seconds[name] = []
            for batch in range(-3, num_batches):  # the first ones warm up
                first = (max(batch, 0) * ROWS_A_BATCH) % (len(packed) - ROWS_A_BATCH)
                rows: Any = [packed.row(first + place) for place in range(ROWS_A_BATCH)]
                if name.startswith("TRL"):
                    rows = trl_features(examples, rows)
                started = time.process_time()
                collator(rows)
                if batch >= 0:
                    seconds[name].append(time.process_time() - started)
    return {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}


def measure_tokenisation(codes: list[str], tokenizer: Path) -> dict[str, float]:
    """Tokens a CPU second of one thread: the library alone, ours, datasets.map; best of three."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datasets import Dataset, disable_caching, disable_progress_bars
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    disable_caching()
    disable_progress_bars()
    raw, ours = Tokenizer.from_file(str(tokenizer)), CodeTokenizer(tokenizer.parent)
    wrapped = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    dataset = Dataset.from_dict({"code": codes})
    ways: dict[str, Callable[[], Any]] = {
        "tokenizers, encode_batch_fast": lambda: raw.encode_batch_fast(
            codes, add_special_tokens=False
        ),
        "focaltune, to int32 arrays": lambda: list(ours.encode(codes)),
        "datasets.map with transformers": lambda: dataset.map(
            lambda batch: wrapped(batch["code"]), batched=True
        ),
    }
    num_tokens = sum(len(ids) for ids in ours.encode(codes))
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(3):
        for name, way in ways.items():
            started = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - started)
    return {name: num_tokens / seconds for name, seconds in best.items()}


def in_order(plan: order.Plan, step: int) -> order.MicroBatches:
    """Row after row to rank after rank: random rows, as others deal them."""
    rows, size = list(order.step_rows(plan, step)), plan.micro_batch_size
    starts = range(0, plan.gradient_accumulation_steps * plan.world_size * size, size)
    batches = [rows[start : start + size] for start in starts]
    return [batches[rank :: plan.world_size] for rank in range(plan.world_size)]


def measure_balance(lengths: Ints, rows: Rows, shape: tuple[int, int, int]) -> dict[str, float]:
    """Mean waiting over steps, dealt in order and by cost, and the microseconds of dealing."""
    world_size, micro_steps, size = shape
    rows_a_step = world_size * micro_steps * size
    num_steps = min(200, len(rows) // rows_a_step)
    plan = order.Plan(num_steps * rows_a_step, num_steps, size, world_size)
    found, microseconds = [], []
    for step in range(num_steps):
        costs_R = order.row_costs(lengths, rows, order.step_rows(plan, step))
        started = time.perf_counter_ns()
        dealt = order.rank_micro_batches(plan, step, costs_R)
        microseconds.append((time.perf_counter_ns() - started) / 1000)
        plain, ours = (
            order.imbalance(batches, costs_R) for batches in (in_order(plan, step), dealt)
        )
        found.append((plain.micro_step, plain.optimizer_step, ours.micro_step, ours.optimizer_step))
    names = ("micro, in order", "step, in order", "micro", "step")
    means = dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))
    return means | {"us": float(np.median(microseconds))}


def print_balance(lengths: Ints) -> tuple[dict[str, dict[str, float]], list[Goal]]:
    """The table of ranks x micro-steps x rows, and the goals for 8 x 8 at 4,096 tokens."""
    found: dict[str, dict[str, float]] = {}
    for seq_length in (512, 2048, 4096):
        drawn = resampled(lengths, 200_000, seq_length)
        rows = pack(drawn, seq_length, order.epoch_rng(0, 0))
        for shape in SHAPES:
            name = f"{seq_length}: {' x '.join(map(str, shape))}"
            found[name] = measure_balance(drawn, rows, shape)
    print_table(
        ["row: ranks x micro-steps x rows", *next(iter(found.values()))],
        [
            [name, *(f"{value:.4f}" for value in list(values.values())[:4]), f"{values['us']:.0f}"]
            for name, values in found.items()
        ],
    )
    at = found["4096: 8 x 8 x 1"]
    return found, [
        Goal("slowest / mean rank of a micro-step, 4,096: 8 x 8 x 1", at["micro"], 1.03),
        Goal("slowest / mean rank of a step", at["step"], 1.002),
        Goal("us to deal a step of 8 x 8", at["us"], 20),
    ]


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    given = length_parser(__doc__, "a tenth of the batches").parse_args(arguments)
    lengths, source = read_lengths(given)
    print(f"lengths: {source}")
    collation = measure_collation(lengths, 30 if given.quick else 300)
    ours, *others = list(collation.values())
    print_table(
        ["collate 8 x 2,048", "ms", "times ours"],
        [[name, f"{ms:.3f}", f"{ms / ours:.1f}"] for name, ms in collation.items()],
    )
    found = [Goal("times cheaper than the cheapest other collator", min(others[1:]) / ours, -15)]
    speed: dict[str, float] = {}
    if given.data:
        speed = measure_tokenisation(read_codes(given.data), given.tokenizer)
        print_table(
            ["tokenise", "tokens / CPU s"], [[name, f"{rate:,.0f}"] for name, rate in speed.items()]
        )
        raw, own, _ = speed.values()
        found.append(Goal("tokenisation / the library alone", own / raw, -0.9))
    balance, goals = print_balance(lengths)
    found += goals
    print_goals(found)
    if given.json:
        whole = {"source": source, "collate_ms": collation, "tokens_a_second": speed}
        given.json.write_text(json.dumps(whole | {"balance": balance}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
