"""CPU cost of a real token, forward and backward, by how functions are laid out in batches.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/packed_step.py --data ARCHIVE --tokenizer TOKENIZER
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.lengths import Ints, length_parser, random_examples, read_lengths
from benchmarks.tables import Goal, print_goals, print_table
from data.batches.batch import Batch, collate
from data.batches.order import epoch_rng
from data.batches.packing import pack
from data.text.tokenization import ExampleSet
from trainer.config.methods import SEGMENT_SDPA
from trainer.models.packed_attention import causal_segment_mask

VOCABULARY = 4096
WIDTH, LAYERS = 384, 2  # ratios do not depend on the number of layers
TOKENS_A_BATCH = 2048
Rows = Sequence[Ints]


@dataclass(frozen=True)
class Layout:
    """A way to make batches and to attend in them.

    Attributes:
        batches: Examples, seq_length -> batches of rows of examples.
        attention: Back end of transformers.
        arguments: Batch, seq_length -> what the model is called with.
    """

    batches: Callable[[ExampleSet, int], list[Rows]]
    attention: str
    arguments: Callable[[Batch, int], dict[str, Any]]


def random_batches(examples: ExampleSet, seq_length: int) -> list[Rows]:
    """One function in a row; a batch has TOKENS_A_BATCH real tokens on average."""
    order = epoch_rng(0, 0).permutation(len(examples))
    size = max(1, round(TOKENS_A_BATCH / examples.lengths.mean()))
    return [list(order[i : i + size, None]) for i in range(0, len(order) - size + 1, size)]


def grouped_batches(examples: ExampleSet, seq_length: int) -> list[Rows]:
    """The same, sorted by length within 50 batches, as transformers' group_by_length does."""
    rows = [row for batch in random_batches(examples, seq_length) for row in batch]
    size = max(1, round(TOKENS_A_BATCH / examples.lengths.mean()))
    grouped: list[Ints] = []
    for first in range(0, len(rows), 50 * size):
        part = rows[first : first + 50 * size]
        grouped += sorted(part, key=lambda row: -int(examples.lengths[row[0]]))
    return [grouped[i : i + size] for i in range(0, len(grouped) - size + 1, size)]


def packed_batches(examples: ExampleSet, seq_length: int) -> list[Rows]:
    """Full rows."""
    packed = pack(examples.lengths, seq_length, epoch_rng(0, 0))
    size = TOKENS_A_BATCH // seq_length
    rows = [packed.row(index) for index in range(len(packed))]
    return [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]


def padded_arguments(batch: Batch, seq_length: int) -> dict[str, Any]:
    """As from a padding collator: ids and a mask of real tokens."""
    real = torch.arange(batch.input_ids_BT.shape[1]) <= batch.read_S[:, None]
    return {"input_ids": batch.input_ids_BT, "attention_mask": real.long()}


def full_width_arguments(batch: Batch, seq_length: int) -> dict[str, Any]:
    """The same, padded to seq_length."""
    wider = seq_length - batch.input_ids_BT.shape[1]
    arguments = padded_arguments(batch, seq_length)
    return {name: torch.nn.functional.pad(value, (0, wider)) for name, value in arguments.items()}


def dense_arguments(batch: Batch, seq_length: int) -> dict[str, Any]:
    """A mask of T x T for each row."""
    mask = causal_segment_mask(batch.segment_ids_BT, torch.float32)
    return _packed_arguments(batch) | {"attention_mask": mask}


def segment_arguments(batch: Batch, seq_length: int) -> dict[str, Any]:
    """Boundaries only: attention function after function."""
    return _packed_arguments(batch) | {"segment_lengths": batch.segment_lengths}


def contaminated_arguments(batch: Batch, seq_length: int) -> dict[str, Any]:
    """Functions that see those before them in their row."""
    return {"input_ids": batch.input_ids_BT}


def _packed_arguments(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids_BT, "position_ids": batch.position_ids_BT}


LAYOUTS: dict[str, Layout] = {
    "padded to the longest, random": Layout(random_batches, "sdpa", padded_arguments),
    "padded to seq_length": Layout(random_batches, "sdpa", full_width_arguments),
    "grouped by length": Layout(grouped_batches, "sdpa", padded_arguments),
    "packed, dense mask": Layout(packed_batches, "sdpa", dense_arguments),
    "packed, segment by segment": Layout(packed_batches, SEGMENT_SDPA, segment_arguments),
    "packed, not isolated": Layout(packed_batches, "sdpa", contaminated_arguments),
}
PADDED, SEGMENTS, MIXED = (list(LAYOUTS)[place] for place in (0, 4, 5))


def small_model(width: int, layers: int, seq_length: int) -> torch.nn.Module:
    """A GPTBigCode with random weights."""
    from transformers import GPTBigCodeConfig, GPTBigCodeModel

    torch.manual_seed(0)
    model: torch.nn.Module = GPTBigCodeModel(
        GPTBigCodeConfig(
            vocab_size=VOCABULARY,
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            n_positions=seq_length,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,  # with dropout, attention on a CPU falls back to T x T matrices
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    return model


def step(model: torch.nn.Module, arguments: dict[str, Any], batch: Batch) -> Tensor:
    """Forward, a loss on the last token of each function, backward."""
    hidden_BTD = model(use_cache=False, **arguments).last_hidden_state
    loss: Tensor = hidden_BTD[batch.row_S, batch.read_S].square().mean()
    loss.backward()
    return loss


def measure(
    lengths: Ints, seq_length: int, num_batches: int, width: int, layers: int
) -> dict[str, float]:
    """Microseconds of CPU a real token of every layout, their batches taken in turn."""
    examples = random_examples(lengths[lengths <= seq_length], VOCABULARY)
    model = small_model(width, layers, seq_length)
    batches = {name: layout.batches(examples, seq_length) for name, layout in LAYOUTS.items()}
    for of_layout in batches.values():
        of_layout.sort(key=lambda rows: int(examples.lengths[np.concatenate(rows)].sum()))
    seconds, tokens = dict.fromkeys(LAYOUTS, 0.0), dict.fromkeys(LAYOUTS, 0)
    for turn in range(-1, num_batches):  # the first turn warms up
        for name, layout in LAYOUTS.items():
            # evenly over the batches from the shortest to the longest, as in an epoch
            place = int((max(turn, 0) + 0.5) / num_batches * len(batches[name]))
            batch = collate(examples, batches[name][place])
            arguments = layout.arguments(batch, seq_length)
            model.set_attn_implementation(layout.attention)  # type: ignore[operator]
            started = time.process_time()
            step(model, arguments, batch)
            if turn >= 0:
                seconds[name] += time.process_time() - started
                tokens[name] += batch.num_tokens
    return {name: 1e6 * seconds[name] / tokens[name] for name in LAYOUTS}


def goals(ratios: dict[int, dict[str, float]]) -> list[Goal]:
    """Goals for packed, isolated rows."""
    found = []
    for seq_length, most in ((512, 1.05), (2048, 1.0)):
        if seq_length in ratios:
            cost = 1 / ratios[seq_length][MIXED]
            found.append(Goal(f"isolated / not isolated at {seq_length}", cost, most))
    if 512 in ratios:
        found.append(Goal("padded / packed and isolated at 512", ratios[512][PADDED], -1.7))
    return found


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    given = length_parser(__doc__, "a fifth of the batches").parse_args(arguments)
    torch.set_num_threads(1)
    lengths, source = read_lengths(given)
    costs, ratios = {}, {}
    for seq_length in (512, 2048):
        costs[seq_length] = measure(lengths, seq_length, 2 if given.quick else 8, WIDTH, LAYERS)
        packed = costs[seq_length][SEGMENTS]
        ratios[seq_length] = {name: cost / packed for name, cost in costs[seq_length].items()}
    print(f"lengths: {source}; GPTBigCode, {WIDTH} wide, {LAYERS} layers, fp32, one thread")
    print_table(
        ["layout", *(f"{n} us a token" for n in costs), *(f"{n} ratio" for n in costs)],
        [
            [
                name,
                *(f"{costs[n][name]:.0f}" for n in costs),
                *(f"{ratios[n][name]:.2f}" for n in costs),
            ]
            for name in LAYOUTS
        ],
    )
    print_goals(goals(ratios))
    if given.json:
        given.json.write_text(
            json.dumps({"source": source, "us": costs, "ratios": ratios}, indent=1)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
