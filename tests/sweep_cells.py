"""Run folders of finished cells with chosen numbers, and the cells of a sweep that own them."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from data.prepared.prepare import data_digests
from trainer.models.files import base_digest
from trainer.sweep.grid import Cell, expand

NUM_LOGGED = 20  # a final train loss is the mean of the last two


def cells_of(
    recipe: Path, folder: Path, methods: tuple[str, ...], models: tuple[str, ...], num_seeds: int
) -> tuple[Path, list[Cell]]:
    """The grid of a recipe below a folder, of the task "instruction"."""
    keys = (f"run.output_dir={folder}", "task.name=instruction", "data.packing=false")
    return expand(recipe, keys, methods, models, range(num_seeds))


def write_cell(
    cell: Cell,
    test_loss: float,
    *,
    num_trained: int = 100,
    accuracy: float = 0.5,
    seconds: float = 10.0,
    memory_gib: float = 1.0,
    digest: str | None = None,
) -> None:
    """What a finished language run leaves, as far as a sweep reads it.

    The train loss is `test_loss` + 1 - 1/20, + 1 at its last two logged steps. `digest`: of its
    training file, where that is to be another than the recipe's.
    """
    folder = cell.config.output_dir
    losses = [test_loss + 2 - step / NUM_LOGGED for step in range(1, NUM_LOGGED + 1)]
    rows = [
        {
            "kind": "train",
            "step": step,
            "loss": loss,
            "memory_gib": memory_gib - 0.1 * (step == 1),
            "train_seconds": seconds * step / NUM_LOGGED,
        }
        for step, loss in enumerate(losses, 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    _write(folder / "config.yaml", yaml.safe_dump(cell.config.to_json()))
    _write(folder / "log.jsonl", text)
    plan = {"num_trained": num_trained, "num_parameters": 1000, "memory": {"total": 2**30 / 2}}
    plan |= {"limit_bytes": None}
    _json(folder / "plan.json", plan)
    model = {
        "loss": test_loss,
        "interval": [test_loss - 0.1, test_loss + 0.1],
        "token_accuracy": accuracy,
    }
    _json(
        folder / "model" / "focaltune.json",
        {"base_sha256": base_digest(cell.config.model, cell.config.run.seed)},
    )
    data, tokenizer = cell.config.data, cell.config.tokenizer_folder
    found = data_digests(data, tokenizer, language=True)
    digests = {f"sha256_{name}": value for name, value in found.items()}
    digests |= {} if digest is None else {"sha256_train": digest}
    report = {
        "predictors": {"model": model, "before training": {"loss": 9.0}},
        "facts": {"steps": NUM_LOGGED, **digests},
    }
    _json(folder / "report" / "test.json", report)


def _json(path: Path, values: Mapping[str, object]) -> None:
    _write(path, json.dumps(values))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
