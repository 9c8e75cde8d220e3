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

from conftest import SAMPLES, sample_rows, write_rows
from method_cases import write_model
from method_cells import CLASSES, NAMES, PEFT_ARGUMENTS, Cell, peft_overrides, run_cell, section
from rank_pool import run_ranks

from trainer.config.peft_methods import LEFT_OUT
from trainer.models.quantized_methods import prove_quantised
from trainer.run_folder.metrics import read_log

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
NOISY = {"pvera": "it draws noise in training, other noise on other ranks"}
FAMILIES = ("llama", "gpt_bigcode")
TOLERANCE = 5e-5  # fp32 sums in another order, through two layers
RANKS = 1e-5  # relative, of losses over three steps whose sums are in another order
MERGED = 2e-4  # merging rounds every weight of the sum once more
COLUMNS = (
    "method", "tuning.peft here", *(f"{family}, {task}" for family in FAMILIES for task in CLASSES),
    "kept apart by", "trained", "merges", "ZeRO 2", "ZeRO 3", "nf4", "int8",
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
*ZeRO 2* and *ZeRO 3*: the largest relative difference between the losses of three steps of a run on
two ranks, of the Llama as a classifier, and those of one rank without ZeRO; the limit is 1e-05.
*nf4* and *int8*: on one layer the method computes the same as on its decoded weights. Everything
else is refused, with the sentence below.

"""


def main() -> int:
    """Run every cell and write the page; 1 where a cell is wrong."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    refusals: list[str] = []
    lines, num_equal, num_wrong = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(Path(folder))
        for name in NAMES:
            cells = [_cell(name, family, task) for family in FAMILIES for task in CLASSES]
            found = [one for one in cells if isinstance(one, Cell)]
            sharded = _sharded(name, recipe, Path(folder) / name) if found else []
            num_equal += sum(max(one.reload, one.stock) <= TOLERANCE for one in found)
            num_wrong += sum(max(one.reload, one.stock) > TOLERANCE for one in found)
            num_wrong += sum(isinstance(one, float) and one > RANKS for one in sharded)
            lines.append(_line(name, cells, sharded, refusals))
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


def _recipe(folder: Path) -> list[str]:
    """Overrides of the quickstart: three steps on a few functions, of a tiny Llama."""
    data = folder / "data"
    data.mkdir()
    for split, count in (("train", 40), ("valid", 20), ("test", 20)):
        write_rows(data / f"{split}.jsonl", sample_rows(split, count, 600))
    base = write_model(folder / "llama", "llama", SAMPLES / "model")
    return [
        "recipes/quickstart.yaml", "model.path=null", f"model.config={base}", f"data.path={data}",
        "data.seq_length=512", "tuning.lora_r=4", "optim.epochs=null", "optim.max_steps=3",
        "optim.warmup_steps=0", "eval.interval=never", "log.interval=1", "log.trackers=[]",
    ]  # fmt: skip


def _sharded(name: str, recipe: list[str], folder: Path) -> list[float | str]:
    """Under ZeRO 2 and 3, the largest relative difference of losses, or why there are none."""
    if name in NOISY:
        return [NOISY[name]] * 2
    folder.mkdir()
    losses: list[list[float] | str] = []
    for stage, num_ranks in ((0, 1), (2, 2), (3, 2)):
        run, printed = folder / f"zero{stage}", folder / f"zero{stage}.txt"
        words = [f"tuning.method={name}", *peft_overrides(name), f"run.output_dir={run}"]
        codes = run_ranks([*recipe, *words, f"engine.preset=cpu_zero{stage}"], num_ranks, printed)
        if any(codes):
            said = printed.read_text().partition("error: ")[2] or "it ends with a traceback"
            losses.append(f"ZeRO {stage}: {said.splitlines()[0][:200]}")
        else:
            losses.append([row["loss"] for row in read_log(run / "log.jsonl")])
    alone = losses[0]
    if isinstance(alone, str):
        return [alone, alone]
    return [
        one
        if isinstance(one, str)
        else max(abs(a / b - 1) for a, b in zip(one, alone, strict=True))
        for one in losses[1:]
    ]


def _line(
    name: str, cells: list[Cell | str], sharded: list[float | str], refusals: list[str]
) -> str:
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
    zero = [_number(one, refusals) if isinstance(one, str) else f"{one:.0e}" for one in sharded]
    quantised = [_quantised(name, kind, refusals) for kind in ("nf4", "int8")]
    columns = [f"`{name}`", given, *shown, ways, trained, merges, *(zero or ["", ""]), *quantised]
    return f"| {' | '.join(columns)} |"


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
