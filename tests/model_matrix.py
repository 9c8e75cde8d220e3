"""Every config with every task through the real program, compared with stock: `make models`.

`python tests/model_matrix.py` runs the generated configs; `--configs FOLDER` takes NAME/config.json
of another folder. A line of `--json FILE` for each cell is kept, and a cell that has one is not run
again. `--page` writes docs/models.md.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the forked processes import these by name
    sys.path[0:1] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from tiny_models import WINDOW, cases, write_config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
COMBINATIONS = tuple(
    (task, method)
    for method in ("lora", "qlora", "full")
    for task in ("classification", "instruction")
)
_DOES_NOT_APPLY = re.compile(
    r"is an encoder\b|its tokens see later tokens|has no causal language model"
)
_COLUMNS = (
    "config", "model type", *(f"{task}, {method}" for task, method in COMBINATIONS),
    "kept apart by", "adapted", "seconds",
)  # fmt: skip
_HEAD = """# Which models train?

Any decoder, encoder or encoder-decoder that transformers builds without code of its own. `make
models` writes this page: it draws a tiny model of each config of `tests/tiny_models.py` ({configs}
configs, {types} model types), trains it for six steps, exports it, and loads what was written in
transformers and PEFT. Stock code scores each record alone, without padding; some records are longer
than the windows of {window} tokens.

A number is the largest difference between stock's scores and the program's, relative to the largest
score; the limit is 5e-05 in fp32. For instructions it covers the loss of the first step, too. For
QLoRA, stock code quantises the base afresh. A dash: the task is not one for the model; empty: not
run. {counts}

*Kept apart by* is how packed records stay apart ([batches.md](batches.md)). *Adapted* are the
layers of `tuning.target_modules: auto` under LoRA; the head of a classifier is trained whole.
Seconds are those of one core for a cell: the run, its report, its export and the comparison.

"""


def main(arguments: Sequence[str]) -> int:
    """Run the cells side by side, keep a line of each, print the table; 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=Path, help="folder of NAME/config.json")
    parser.add_argument("--names", nargs="*", help="only these")
    parser.add_argument("--only", nargs="*", help="only these TASK-METHOD")
    parser.add_argument("--json", type=Path, help="a line for each cell")
    parser.add_argument("--page", action="store_true", help="write docs/models.md")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="focaltune-models-"))
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    try:
        rows = list(_rows(_configs(given, work), given, work))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if given.page:
        PAGE.write_text(page(rows), encoding="utf-8")
    print(counts(rows))
    return int(any(row["verdict"] in ("WRONG", "TRACEBACK") for row in rows))


def _configs(given: argparse.Namespace, work: Path) -> dict[str, Path]:
    if not given.configs:
        names = given.names or cases()
        return {name: write_config(name, work / "configs" / name) for name in names}
    found = {
        path.parent.name: path.parent.resolve() for path in given.configs.glob("*/config.json")
    }
    return {name: found[name] for name in given.names or sorted(found)}


def _rows(
    configs: dict[str, Path], given: argparse.Namespace, work: Path
) -> Iterator[dict[str, Any]]:
    """A row of each cell, those of an earlier call first."""
    from model_cells import Cell, run_cell, write_data

    kept = given.json.read_text().splitlines() if given.json and given.json.is_file() else []
    earlier = [json.loads(line) for line in kept]
    yield from (row for row in earlier if row["name"] in configs)
    done = {(row["name"], row["task"], row["method"]) for row in earlier}
    data = write_data(work / "data")
    cells = [
        Cell(name, config, task, method)
        for task, method in COMBINATIONS
        for name, config in configs.items()
        if (not given.only or f"{task}-{method}" in given.only) and (name, task, method) not in done
    ]
    with ThreadPoolExecutor(given.workers) as pool:
        outcomes = pool.map(lambda cell: run_cell(cell, data, work / str(cell)), cells)
        for cell, outcome in zip(cells, outcomes, strict=True):
            row = {**asdict(cell), "config": str(cell.config), **asdict(outcome)}
            print(_shown(row), flush=True)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            yield row


def _shown(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:24} {row['task']:14} {row['method']:6} {_verdict(row):14}"
        f" {row['seconds']:5.1f}s  {row['message'][:200]}  {_strategy(row)}"
    )


def _verdict(row: dict[str, Any]) -> str:
    applies = not (row["verdict"] == "refused" and _DOES_NOT_APPLY.search(row["message"]))
    return str(row["verdict"]) if applies else "does not apply"


def _strategy(row: dict[str, Any]) -> str:
    return str(row["banner"].get("records", "").partition(" ")[0].strip(":"))


def counts(rows: Sequence[dict[str, Any]]) -> str:
    """The number of cells with each verdict, as a sentence."""
    found = Counter(_verdict(row) for row in rows)
    apart = found.pop("does not apply", 0)
    parts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(found.items()))
    return f"Of {sum(found.values())} runs: {parts}. {apart} combinations do not apply."


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/models.md."""
    known = cases()
    by_name: dict[str, dict[tuple[str, str], dict[str, Any]]] = {name: {} for name in known}
    for row in rows:
        by_name[row["name"]][row["task"], row["method"]] = row
    head = _HEAD.format(
        configs=len(known), types=len({kind for kind, _ in known.values()}), window=WINDOW,
        counts=counts(rows),
    ) + f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}\n"  # fmt: skip
    limits = sorted({limit for row in rows if (limit := _limit(row))})
    lines = [_page_row(name, known[name][0], found, limits) for name, found in by_name.items()]
    notes = [f"{number}. {limit}" for number, limit in enumerate(limits, 1)]
    return (
        head + "\n".join(lines) + ("\n\n## Limits\n\n" + "\n".join(notes) if notes else "") + "\n"
    )


def _page_row(
    name: str, kind: str, found: dict[tuple[str, str], dict[str, Any]], limits: list[str]
) -> str:
    cells = [_page_cell(found.get(combination), limits) for combination in COMBINATIONS]
    first = next(iter(found.values()), {"banner": {}})
    ways = sorted({_strategy(row) for row in found.values()} - {""})
    adapted = first["banner"].get("modules", "").partition(" (")[0]
    spent = [row["seconds"] for row in found.values() if row["verdict"] == "equal"]
    seconds = f"{sum(spent) / len(spent):.1f}" if spent else ""
    entries = [f"`{name}`", kind, *cells, ", ".join(ways), adapted, seconds]
    return f"| {' | '.join(entries)} |"


def _page_cell(row: dict[str, Any] | None, limits: list[str]) -> str:
    if row is None:
        return ""
    if _verdict(row) == "does not apply":
        return "-"
    if row["verdict"] == "equal":
        return f"{max(map(float, re.findall(r'[0-9.]+e[-+][0-9]+', row['message']))):.0e}"
    return f"{row['verdict']} ({limits.index(_limit(row)) + 1})"


def _limit(row: dict[str, Any]) -> str:
    """What stops a cell, without the names of its folder."""
    if row["verdict"] == "equal" or _verdict(row) == "does not apply":
        return ""
    return re.sub(r"/\S*/", "", row["message"])[:400]


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    sys.exit(main(sys.argv[1:]))
