"""Every method of PEFT on a tiny Llama and GPTBigCode, compared with stock: `make methods`.

Writes docs/methods.md. Whole runs of some methods, on ranks, continued and exported, are in
tests/trainer/tuning/test_runs.py.
"""

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.path[0:1] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from method_cells import CLASSES, NAMES, PEFT_ARGUMENTS, Cell, run_cell, section

from trainer.config.peft_methods import LEFT_OUT
from trainer.models.quantized_methods import prove_quantised

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
FAMILIES = ("llama", "gpt_bigcode")
TOLERANCE = 5e-5  # fp32 sums in another order, through two layers
MERGED = 2e-4  # merging rounds every weight of the sum once more
COLUMNS = (
    "method", "tuning.peft here", *(f"{family}, {task}" for family in FAMILIES for task in CLASSES),
    "kept apart by", "trained", "merges", "nf4", "int8",
)  # fmt: skip
HEAD = """# Which methods of PEFT train?

`make methods` writes this page: every method of PEFT {version} that is not one of ours
([tuning_methods.md](tuning_methods.md)) on a tiny Llama and a tiny GPTBigCode, with the layers of
`tuning.target_modules: auto`. Adapters that act are proved on packed records, trained for two
steps, saved, loaded again (equal to the last bit) and loaded by stock PEFT, which reads one record
at a time.

A number is the largest difference between stock's scores and the program's (logits of functions,
losses of tokens); the limit is 5e-05 in fp32. {counts} *Trained* counts the adapters on the Llama,
without a classifier's head. *Merges*: the merged model of transformers gives the scores, to 2e-04.
*nf4* and *int8*: on one layer the method computes the same as on its decoded weights. Everything
else is refused, with the sentence below.

"""


def main() -> int:
    """Run every cell and write the page; 1 where a cell is wrong."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    refusals: list[str] = []
    lines, num_equal, num_wrong = [], 0, 0
    for name in NAMES:
        cells = [_cell(name, family, task) for family in FAMILIES for task in CLASSES]
        found = [one for one in cells if isinstance(one, Cell)]
        num_equal += sum(max(one.reload, one.stock) <= TOLERANCE for one in found)
        num_wrong += sum(max(one.reload, one.stock) > TOLERANCE for one in found)
        lines.append(_line(name, cells, refusals))
        print(lines[-1], flush=True)
    counts = f"Of {num_equal + num_wrong} cells that train {num_equal} are equal."
    left_out = [f"- `{name}` is left out: {why}" for name, why in sorted(LEFT_OUT.items())]
    notes = [f"{number}. {text}" for number, text in enumerate(refusals, 1)]
    head = HEAD.format(version=_version(), counts=counts)
    table = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *lines]
    PAGE.write_text(head + "\n".join([*table, "", *notes, "", *left_out]) + "\n", encoding="utf-8")
    print(counts)
    return int(num_wrong > 0)


def _cell(name: str, family: str, task: str) -> Cell | str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return run_cell(name, family, task, Path(folder) / "model")
        except ValueError as error:  # the program's own
            return str(error).split("; ")[0]


def _line(name: str, cells: list[Cell | str], refusals: list[str]) -> str:
    found = [one for one in cells if isinstance(one, Cell)]
    shown = [
        _number(one, refusals) if isinstance(one, str) else f"{max(one.reload, one.stock):.0e}"
        for one in cells
    ]
    given = ", ".join(f"{key} {value}" for key, value in PEFT_ARGUMENTS.get(name, {}).items())
    ways = ", ".join(sorted({one.strategy for one in found}))
    language = next((one for one in cells[1::2] if isinstance(one, Cell)), None)
    trained = f"{language.num_trained:,}" if language else ""
    merged = [one.merged for one in found]
    merges = "yes" if merged and all(m is not None and m <= MERGED for m in merged) else "no"
    quantised = [_quantised(name, kind, refusals) for kind in ("nf4", "int8")]
    return f"| {' | '.join([f'`{name}`', given, *shown, ways, trained, merges, *quantised])} |"


def _quantised(name: str, quant_type: str, refusals: list[str]) -> str:
    try:
        prove_quantised(section(name, quant_type=quant_type))
    except ValueError as error:
        return _number(str(error).split("; ")[0], refusals)
    return "yes"


def _number(refusal: str, refusals: list[str]) -> str:
    if refusal not in refusals:
        refusals.append(refusal)
    return f"({refusals.index(refusal) + 1})"


def _version() -> str:
    from importlib.metadata import version

    return version("peft")


if __name__ == "__main__":
    sys.exit(main())
