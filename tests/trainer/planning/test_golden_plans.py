"""Planned bytes of every recipe are those in tests/golden/plans.json.

They were recorded when benchmarks/memory.py held the planner against measured tensor bytes (median
2.2%). Whoever changes the arithmetic runs that benchmark again, then `make golden`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, SAMPLES
from recipe_cases import plan_words

from trainer.config.recipe import load_run_config
from trainer.planning.planned import plan_recipe

RECORDED = REPOSITORY / "tests" / "golden" / "plans.json"
RECIPES = sorted(
    recipe
    for recipe in (REPOSITORY / "recipes").rglob("*.yaml")
    if "# Plan: " in recipe.read_text(encoding="utf-8")
)
VARIATIONS = {
    "as written": [],
    "recomputed": ["model.gradient_checkpointing=true"],
    "kept, eager": ["model.gradient_checkpointing=false", "model.attention=eager"],
    "ZeRO 3": ["engine.preset=a100x2_zero3", "model.gradient_checkpointing=false"],
}


def planned_bytes(recipe: Path, overrides: list[str], folder: Path) -> dict[str, int]:
    """Bytes by component, or nothing where the recipe refuses the variation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    words = parser.parse_intermixed_args(plan_words(recipe))
    keys = [f"data.tokenizer={SAMPLES / 'model'}", f"data.cache_dir={folder}"]
    try:
        config = load_run_config(
            recipe, [*words.overrides, *keys, f"run.output_dir={folder / 'run'}", *overrides]
        )
    except ValueError:  # such as ZeRO 3 of a quantised base
        return {}
    plan = plan_recipe(config, words.device, None, words.gpus).plan
    components = {name: round(value) for name, value in plan.memory.by_component().items()}
    others = {
        "sent": round(plan.step_communication_bytes),
        "checkpoint": round(plan.checkpoint_bytes),
        "flops": round(plan.flops),
        "rows": plan.largest_micro_batch_size or 0,
    }
    return components | others


@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_bytes_of_every_recipe_are_the_recorded_ones(variation, tmp_path):
    recorded = json.loads(RECORDED.read_text())[variation]
    found = {
        recipe.stem: planned_bytes(recipe, VARIATIONS[variation], tmp_path) for recipe in RECIPES
    }
    assert sum(map(bool, found.values())) >= 10  # ZeRO 3 refuses quantised bases; else all 31
    assert found == recorded


def record() -> None:
    """Write plans.json."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            name: {recipe.stem: planned_bytes(recipe, keys, Path(folder)) for recipe in RECIPES}
            for name, keys in VARIATIONS.items()
        }
    lines = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f" {json.dumps(stem)}: {json.dumps(row)}" for stem, row in rows.items())
        + "\n}"
        for name, rows in values.items()
    ]
    RECORDED.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    record()
    sys.exit(0)
