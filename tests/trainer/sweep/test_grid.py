"""The cells of a grid: their folders, their recipes, and what is refused before the first runs."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from conftest import SAMPLES
from sweep_cells import cells_of, write_cell

from trainer.errors import ConfigError, MachineError
from trainer.run_folder.folder import RunLock
from trainer.sweep.finished import unfinished
from trainer.sweep.grid import Cell, expand
from trainer.sweep.running import train_command
from trainer.sweep.sweep import run_sweep

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
    from trainer.config.recipe import load_run_config

    _, [cell] = cells_of(base, tmp_path / "a folder", ("ia3",), (MODEL,), 1)
    command = train_command(base, cell, None)
    assert command[1].endswith("launcher/train.py")
    given = recipe_parser("").parse_args(command[2:])
    assert load_run_config(given.recipe, given.overrides) == cell.config
    ranks = train_command(base, cell, 2)
    assert ranks[1:5] == ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    assert ranks[7:] == command[1:]


def test_without_models_and_seeds_the_recipes_own_are_taken(base, tmp_path):
    _, [cell] = expand(base, (f"run.output_dir={tmp_path}", "run.seed=5"), ("lora",))
    assert cell.name == "lora/model/seed-5"
    assert cell.config.model.config == MODEL


def test_swept_keys_have_a_cell_for_each_combination_of_their_values(base, tmp_path):
    keys = (f"run.output_dir={tmp_path}",)
    grid = ("optim.lr=1e-4,3e-4", "tuning.target_modules=[c_attn],[c_attn, c_fc]")
    root, cells = expand(base, keys, ("lora", "ia3"), seeds=(0, 1), grid=grid)
    assert len(cells) == len({cell.config.output_dir for cell in cells}) == 2 * 2 * 2 * 2
    assert all(root in cell.config.output_dir.parents for cell in cells)
    found = {
        (c.config.tuning.method, c.config.optim.lr, len(c.config.tuning.target_modules))
        for c in cells
    }
    assert found == {(m, lr, n) for m in ("lora", "ia3") for lr in (1e-4, 3e-4) for n in (1, 2)}
    assert cells[0].method == 'lora optim.lr=0.0001 tuning.target_modules=["c_attn"]'
    _, own = expand(base, keys, (), grid=("data.seq_length=128,256",))
    assert [cell.name for cell in own] == [
        f"lora_data.seq_length={length}/model/seed-0" for length in (128, 256)
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (("optim.lr=1e-4,0.0001",), "each value only once"),
        (("optim.lr=1e-4", "optim.lr=1e-3"), "given twice"),
        (("optim.epochs=1,2",), "given twice"),
        (("run.seed=1,2",), "take --methods, --models, --seeds"),
        (("optim.lr",), "write section"),
        (("optim.rate=1,2",), "unknown key optim.rate"),
        (("optim.lr=-1,1e-3",), "lora optim.lr=-1 model: optim.lr"),
    ],
)
def test_a_grid_that_could_not_run_is_refused_before_anything_runs(base, tmp_path, grid, message):
    keys = (f"run.output_dir={tmp_path}", "optim.epochs=1")
    with pytest.raises(ConfigError, match=message):
        expand(base, keys, ("lora",), (f"model={MODEL}",), grid=grid)


def test_a_folder_with_weights_is_a_path_and_one_without_gives_random_weights(base, tmp_path):
    weights = shutil.copytree(SAMPLES / "model", tmp_path / "weights")
    bare = shutil.copytree(SAMPLES / "model", tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    cells = expand(base, (), ("lora",), (str(bare), str(weights)))[1]
    assert [(cell.config.model.path, cell.config.model.config) for cell in cells] == [
        (None, str(bare)),
        (str(weights), None),
    ]


def test_a_setting_of_one_method_changes_its_cells_alone(base, tmp_path):
    keys, own = ("optim.lr=1e-3",), ("full:optim.lr=1e-6",)
    _, cells = expand(base, keys, ("full", "lora"), settings=own)
    rates = {cell.method: cell.config.optim.lr for cell in cells}
    assert rates == {"full": 1e-6, "lora": 1e-3}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"methods": ("full", "lorra")},
            "^lorra: tuning.method 'lorra' is not known; did you mean 'lora'",
        ),
        ({"settings": ("ia3:optim.lr=1",)}, r"METHOD one of \['full', 'lora'\]"),
        ({"settings": ("optim.lr=1",)}, "METHOD:section.key=value"),
        ({"settings": ("full:run.seed=3",)}, "a sweep sets run.seed of every cell"),
        ({"overrides": ("tuning.method=ia3",)}, "a sweep sets tuning.method"),
        ({"methods": ("full", "full")}, "--methods full full: name each only once"),
        ({"models": (MODEL, MODEL)}, "two are named model; write NAME=FOLDER"),
        ({"models": (f"a b={MODEL}",)}, "'a b' cannot name"),
        ({"models": (MODEL, "run.output_dir=X")}, "^--models run.output_dir=X: .* follow RECIPE"),
        ({"methods": ("full", "optim.lr=1")}, "^--methods optim.lr=1: .* follow RECIPE"),
        # What one method alone cannot do is said before another has run for hours.
        (
            {"overrides": ("tuning.modules_to_save=[wte]",)},
            "^full: .*trains everything",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_cell(base, changed, message):
    given = {"recipe": base, "overrides": (), "methods": ("full", "lora")}
    with pytest.raises(ConfigError, match=message):
        expand(**given | changed)


def test_a_cell_is_finished_when_its_report_is_of_a_whole_run_with_these_settings(base, tmp_path):
    _, [cell] = cells_of(base, tmp_path, ("lora",), (MODEL,), 1)
    assert unfinished(cell) == "has no report yet"
    write_cell(cell, 1.0)
    assert unfinished(cell) is None

    config = cell.config
    optim = config.optim.model_copy(update={"lr": 1e-3})
    other_rate = replace(cell, config=config.model_copy(update={"optim": optim}))
    assert unfinished(other_rate) == "was run with other settings (optim.lr: 0.0002 -> 0.001)"
    scored = config.eval.model_copy(update={"interval": 5})
    other_eval = replace(cell, config=config.model_copy(update={"eval": scored}))
    assert unfinished(other_eval) == "was run with other settings (eval.interval: epoch -> 5)"

    report = config.output_dir / "report" / "test.json"
    started = (config.output_dir / "config.yaml").stat().st_mtime_ns
    os.utime(report, ns=(started - 1, started - 1))
    assert str(unfinished(cell)).startswith("has begun again since its report")


def test_a_cell_of_another_base_or_other_data_is_not_finished_wherever_these_lie(base, tmp_path):
    places = {name: shutil.copytree(SAMPLES / "model", tmp_path / name / "m") for name in "abc"}
    for name in ("data", "moved", "other"):
        (tmp_path / name).mkdir()
        for split in ("train", "valid", "test"):
            shutil.copy(SAMPLES / f"{split}.jsonl.gz", tmp_path / name)
    shutil.copy(SAMPLES / "valid.jsonl.gz", tmp_path / "other" / "test.jsonl.gz")
    config = places["b"] / "config.json"
    config.write_text(config.read_text().replace('"n_layer": 4', '"n_layer": 3'))
    (places["c"] / "chat_template.jinja").write_text("{{ messages[0].content }}")

    def cell(model: str, data: str) -> Cell:
        keys = (f"run.output_dir={tmp_path / 'grid'}", f"data.path={tmp_path / data}")
        keys += ("task.name=instruction", "data.packing=false")
        [found] = expand(base, keys, ("lora",), (str(places[model]),))[1]
        return found

    first = cell("a", "data")
    write_cell(first, 1.0)
    assert unfinished(first) is None
    assert unfinished(cell("a", "moved")) is None
    assert cell("b", "data").config.output_dir == first.config.output_dir
    assert unfinished(cell("b", "data")) == "was run with another base"
    assert unfinished(cell("c", "data")) == "was run with another chat_template"
    assert unfinished(cell("a", "other")) == "was run with another test"
    assert unfinished(cell("b", "other")) == "was run with another base, test"
    assert "does not exist" in str(unfinished(cell("a", "nowhere")))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", ""),
        ("config.yaml", "run: ["),
        ("plan.json", ""),
        ("plan.json", None),
        ("plan.json", '{"steps": 4}'),
        ("log.jsonl", ""),
        ("log.jsonl", '{"kind": "train"}\n'),
        ("report/test.json", "{"),
        ("report/test.json", '{"facts": 4}'),
        ("model/focaltune.json", "[]"),
        ("model/focaltune.json", None),
    ],
)
def test_a_damaged_file_leaves_its_own_cell_unfinished_and_the_others_are_reported(
    base, tmp_path, capsys, name, text
):
    root, cells = cells_of(base, tmp_path / "grid", ("lora", "ia3"), (MODEL,), 1)
    for cell in cells:
        write_cell(cell, 1.0)
    path = cells[0].config.output_dir / name
    path.unlink()
    if text is not None:
        path.write_text(text)
        report = cells[0].config.output_dir / "report" / "test.json"
        report.touch()
    run_sweep(root, cells, None, None)
    assert "1 of 2 cells are not finished; the report says why" in capsys.readouterr().out
    page = (root / "report" / "report.md").read_text()
    assert f"- lora/model/seed-0: {path} is missing or damaged" in page
    assert "| ia3 |" in page
    assert "| lora |" not in page


def test_what_a_file_lacks_is_named(base, tmp_path):
    _, [cell] = cells_of(base, tmp_path, ("lora",), (MODEL,), 1)
    write_cell(cell, 1.0)
    path = cell.config.output_dir / "report" / "test.json"
    facts = json.loads(path.read_text())["facts"]
    path.write_text(json.dumps({"facts": facts}))
    assert f"{path} is missing or damaged (KeyError('predictors'))" in str(unfinished(cell))
    write_cell(cell, 1.0)
    (cell.config.output_dir / "log.jsonl").unlink()
    assert "(ValueError('no step is logged'))" in str(unfinished(cell))


def test_a_report_of_nothing_is_refused(base, tmp_path):
    root, cells = cells_of(base, tmp_path / "grid", ("lora", "ia3"), (MODEL,), 1)
    with pytest.raises(ConfigError, match=f"no cell is finished with these settings under {root}"):
        run_sweep(root, cells, None, None)
    assert not root.exists()


def test_two_sweeps_do_not_run_in_one_folder_and_a_report_may_be_made_meanwhile(base, tmp_path):
    root, cells = cells_of(base, tmp_path / "grid", ("lora",), (MODEL,), 1)
    write_cell(cells[0], 1.0)
    held = RunLock(root, ".sweep.lock", "sweep")
    with pytest.raises(MachineError, match=rf"another sweep .*\(process {os.getpid()} on "):
        run_sweep(root, cells, base, None)
    assert not (root / "report").exists()
    run_sweep(root, cells, None, None)
    held.release()
    run_sweep(root, cells, base, None)  # all is finished
    run_sweep(root, cells, base, None)  # and the folder was let go
