"""What commands import: nothing that only another recipe needs. In processes of their own.

torch's own optimizers and transformers' masks import torch._dynamo and with it the settings of
torch._inductor; the compiler behind them, which bitsandbytes imports, takes most of the time.
"""

import json
import os
import subprocess
import sys

from conftest import REPOSITORY, write_rows

COMPILER = "torch._inductor.compile_fx"
BUILDS = "setuptools"  # with which DeepSpeed looks for what its operators need
PROGRAM = """
import json, sys
from importlib import import_module

code = import_module(sys.argv[1]).main(sys.argv[2:])
names = [name for name, module in sys.modules.items() if module]
print(json.dumps([code, names]))
"""


def imported(program: str, *arguments: object) -> set[str]:
    """Modules that a command has imported when it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"launcher.{program}", *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return set(names)


def test_neither_a_run_nor_an_evaluation_imports_bitsandbytes_a_compiler_or_its_search(
    tiny_recipe, tiny_data, tmp_path
):
    run, file = tmp_path / "run", next(tiny_data.glob("test*"))
    keys = [f"run.output_dir={run}", "optim.max_steps=2", "log.trackers=[]"]
    for names in (
        imported("train", tiny_recipe, *keys, "tuning.lora_backend=peft"),
        imported("evaluate", run, file, "--name", "again"),
    ):
        assert {"torch", "transformers", "peft", "sklearn"} <= names  # the program has run
        assert sorted({"bitsandbytes", COMPILER, BUILDS} & names) == []
    assert "pandas" not in names  # the evaluation's: its baseline imports scikit-learn first


def test_instructions_under_zero_import_no_compiler_and_nothing_for_reports_of_functions(
    tiny_recipe, tmp_path
):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, first, num in (("train", 0, 24), ("valid", 100, 6), ("test", 200, 6)):
        rows = [
            {"prompt": f"Double {n}.", "completion": str(2 * n)} for n in range(first, first + num)
        ]
        write_rows(folder / f"{split}.jsonl", rows)
    names = imported(
        "train", tiny_recipe, f"run.output_dir={tmp_path / 'run'}", f"data.path={folder}",
        "task.name=instruction", "tuning.method=full", "loss.alpha=null", "optim.max_steps=2",
        "engine.preset=cpu_zero1", "log.trackers=[]",
    )  # fmt: skip
    assert {"torch", "deepspeed", "transformers"} <= names
    absent = {"bitsandbytes", COMPILER, BUILDS, "sklearn", "scipy", "pandas"}
    assert sorted(absent & names) == []


def test_prepared_data_are_shown_without_torch_or_pandas(tiny_recipe):
    for _ in range(2):  # the second time from the cache
        names = imported("prepare", tiny_recipe)
    assert {"numpy", "pyarrow", "rich"} <= names
    assert sorted({"torch", "transformers", "pandas"} & names) == []
