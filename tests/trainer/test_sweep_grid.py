"""The cells of a grid: their folders, their recipes, and what is refused before the first runs."""

import os
from dataclasses import replace

import pytest
from conftest import SAMPLES
from sweep_cells import cells_of, write_cell

from trainer.errors import ConfigError
from trainer.sweep.grid import Request, expand
from trainer.sweep.running import is_finished, train_command

MODEL = str(SAMPLES / "model")


def test_a_grid_is_every_method_on_every_model_with_every_seed(base, tmp_path):
    models = (f"a={MODEL}", f"b={MODEL}")
    root, cells = cells_of(base, tmp_path / "grid", ("full", "ia3"), models, 2)
    assert root == tmp_path / "grid"
    assert [cell.name for cell in cells] == [
        "full/a/seed-0", "ia3/a/seed-0", "full/b/seed-0", "ia3/b/seed-0",
        "full/a/seed-1", "ia3/a/seed-1", "full/b/seed-1", "ia3/b/seed-1",
    ]  # fmt: skip
    for cell in cells:
        assert cell.config.output_dir == root / cell.name
        assert cell.config.tuning.method == cell.method
        assert cell.config.run.seed == cell.seed


def test_the_command_of_a_cell_gives_train_py_the_recipe_that_was_checked(base, tmp_path):
    from launcher.command import recipe_parser
    from trainer.recipe import load_run_config

    _, [cell] = cells_of(base, tmp_path / "a folder", ("ia3",), (MODEL,), 1)
    command = train_command(base, cell, None)
    assert command[1].endswith("launcher/train.py")
    given = recipe_parser("").parse_args(command[2:])
    assert load_run_config(given.recipe, given.overrides) == cell.config
    ranks = train_command(base, cell, 2)
    assert ranks[1:5] == ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    assert ranks[7:] == command[1:]


def test_without_models_and_seeds_the_recipes_own_are_taken(base, tmp_path):
    request = Request(base, (f"run.output_dir={tmp_path}", "run.seed=5"), ("lora",))
    _, [cell] = expand(request)
    assert cell.name == "lora/model/seed-5"
    assert cell.config.model.config == MODEL


def test_a_folder_with_weights_is_a_path_and_one_without_gives_random_weights(base, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").touch()
    (weights / "config.json").write_bytes((SAMPLES / "model" / "config.json").read_bytes())
    cells = expand(Request(base, (), ("lora",), (MODEL, str(weights))))[1]
    assert [(cell.config.model.path, cell.config.model.config) for cell in cells] == [
        (None, MODEL),
        (str(weights), None),
    ]


def test_a_setting_of_one_method_changes_its_cells_alone(base, tmp_path):
    request = Request(base, ("optim.lr=1e-3",), ("full", "lora"), settings=("full:optim.lr=1e-6",))
    rates = {cell.method: cell.config.optim.lr for cell in expand(request)[1]}
    assert rates == {"full": 1e-6, "lora": 1e-3}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": ("full", "lorra")}, "^lorra: tuning.method: .*found 'lorra'"),
        ({"settings": ("ia3:optim.lr=1",)}, r"METHOD one of \['full', 'lora'\]"),
        ({"settings": ("optim.lr=1",)}, "METHOD:section.key=value"),
        ({"settings": ("full:run.seed=3",)}, "a sweep sets run.seed of every cell"),
        ({"overrides": ("tuning.method=ia3",)}, "a sweep sets tuning.method"),
        ({"methods": ("full", "full")}, "--methods full full: one stands twice"),
        ({"models": (MODEL, MODEL)}, "two are named model; write NAME=FOLDER"),
        ({"models": (f"a b={MODEL}",)}, "'a b' cannot name"),
        ({"models": (MODEL, "run.output_dir=X")}, "^--models run.output_dir=X: .* behind RECIPE"),
        ({"methods": ("full", "optim.lr=1")}, "^--methods optim.lr=1: .* right behind RECIPE"),
        # What one method alone cannot do is said before another has run for hours.
        (
            {"overrides": ("tuning.modules_to_save=[wte]",)},
            "^full: .*trains everything",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_cell(base, asked, message):
    request = Request(base, (), ("full", "lora"))
    with pytest.raises(ConfigError, match=message):
        expand(Request(**vars(request) | asked))


def test_a_cell_is_finished_when_its_report_is_of_a_whole_run_with_these_settings(base, tmp_path):
    _, [cell] = cells_of(base, tmp_path, ("lora",), (MODEL,), 1)
    assert not is_finished(cell)  # nothing there
    write_cell(cell, 1.0)
    assert is_finished(cell)

    optim = cell.config.optim.model_copy(update={"lr": 1e-3})
    assert not is_finished(replace(cell, config=cell.config.model_copy(update={"optim": optim})))

    report = cell.config.output_dir / "report" / "test.json"
    started = (cell.config.output_dir / "config.yaml").stat().st_mtime_ns
    os.utime(report, ns=(started - 1, started - 1))  # begun again since, and not ended
    assert not is_finished(cell)
    report.write_text("{")
    assert not is_finished(cell)
