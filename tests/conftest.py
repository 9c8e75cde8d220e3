"""Small data, a small model and the recipe that joins them."""

import gc
import gzip
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import yaml

# Files that start ranks, launchers or hosts, the longest first. `make quick` leaves them out;
# `make test` begins with them, so that its workers end together.
SLOW = (
    "test_models.py",
    "trainer/run/test_resume.py",
    "trainer/tuning/test_runs.py",
    "trainer/tuning/test_lora_starts.py",
    "trainer/run/test_any_world_size.py",
    "trainer/run/test_class_run.py",
    "trainer/run/test_early_stop.py",
    "trainer/run/test_language_run.py",
    "trainer/evaluation/suites/test_programs.py",
    "trainer/evaluation/suites/test_sandbox.py",
    "trainer/run/test_export.py",
    "trainer/run/test_trained.py",
    "trainer/run/test_bounded.py",
    "trainer/run/test_chat_run.py",
    "trainer/run/test_suite_run.py",
    "launcher/test_deepspeed_signals.py",
    "trainer/run/test_encoder_run.py",
    "trainer/run/test_qlora.py",
    "trainer/run/test_same_loss.py",
    "test_recipes.py",
    "launcher/test_sweep.py",
    "test_fuzz.py",
    "trainer/run/test_plain_loop.py",
    "trainer/run_folder/test_model.py",
    "launcher/test_deepspeed.py",
    "trainer/run/test_run_output.py",
    "trainer/run/test_rows_run.py",
    "trainer/sweep/test_report.py",
    "trainer/run/test_other_batch_run.py",
    "trainer/engine/test_engine.py",
    "trainer/engine/test_waits.py",
    "test_golden.py",
    "test_docs.py",
    "launcher/test_prepare.py",
    "launcher/test_predict.py",
    "launcher/test_start_up.py",
    "trainer/engine/test_fp16.py",
    "trainer/run/test_vllm_run.py",
    "trainer/run/test_onnx.py",
    "trainer/evaluation/test_population.py",
    "trainer/evaluation/test_robustness_run.py",
    "trainer/generation/test_sampling_ranks.py",
    "trainer/losses/test_token_loss.py",
    "cluster",
    "gpu",
)
REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY / "data" / "samples"

CACHE = tempfile.mkdtemp(prefix="focaltune-tests-")  # of prepared data: never the user's own
os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", XDG_CACHE_HOME=CACHE
)
if not any("gpu" in Path(argument.partition("::")[0]).parts for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # only tests/gpu, run by its name, sees GPUs


hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is no fault
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Import without Python's collector, as trainer/processes/imports.py; all that stays."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow and put it first."""
    tests = REPOSITORY / "tests"

    def place(item: pytest.Item) -> int:
        name = str(item.path.relative_to(tests))
        return next((n for n, slow in enumerate(SLOW) if name.startswith(slow)), len(SLOW))

    items.sort(key=place)
    for item in items:
        if place(item) < len(SLOW):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def cache_is_removed() -> Iterator[None]:
    """Take the prepared data of the tests away."""
    yield
    shutil.rmtree(CACHE, ignore_errors=True)


def sample_rows(split: str, count: int, longest: int = 900) -> list[dict[str, object]]:
    """The first short functions of an embedded split, both classes."""
    with gzip.open(SAMPLES / f"{split}.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [row for row in map(json.loads, stream) if len(row["code"]) <= longest]
    return rows[:count]


def file_tree(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every file and folder with its content and time, to compare later."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else None,
            path.lstat().st_mtime_ns if path.is_file() else 0,
        )
        for path in sorted(folder.rglob("*"))
    }


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with 40 / 20 / 20 functions, each split with both classes."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 40), ("valid", 20), ("test", 20)):
        write_rows(folder / f"{split}.jsonl", sample_rows(split, count))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """config.json of a two-layer GPTBigCode with the embedded tokenizer beside it."""
    folder = tmp_path_factory.mktemp("model")
    config = json.loads((SAMPLES / "model" / "config.json").read_text())
    config |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "initializer_range": 0.2}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SAMPLES / "model" / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory, tiny_data, tiny_model) -> Path:
    """A recipe of eight steps that runs in a second or two; tests give run.output_dir."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    values = {
        "run": {"output_dir": str(recipe.parent / "run"), "seed": 3},
        "model": {"config": str(tiny_model)},
        "data": {"path": str(tiny_data), "seq_length": 640},
        "tuning": {"lora_r": 4, "lora_dropout": 0.0},
        "loss": {"gamma": 2.0, "alpha": [0.4, 0.6]},
        "optim": {
            "lr": 1e-2,
            "warmup_steps": 2,
            "max_steps": 8,
            "global_batch_size": 12,
            "weight_decay": 0.01,
        },
        "eval": {"interval": 4},
        "log": {"interval": 1, "progress": False, "trackers": []},
        "save": {"interval": 2},
    }
    recipe.write_text(yaml.safe_dump(values))
    return recipe


@pytest.fixture(scope="session")
def saved_model(tiny_model, tmp_path_factory) -> Path:
    """A causal language model with its tokenizer, as users have it: no classification head."""
    import torch  # most tests need neither
    from transformers import AutoModelForCausalLM, GPTBigCodeConfig

    folder: Path = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(1)
    config = GPTBigCodeConfig.from_pretrained(tiny_model)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    return folder


@pytest.fixture(scope="module")
def stock_pool() -> Iterator[None]:
    """What compares exports with stock is forked, not started (tests/stock_pool.py)."""
    from stock_pool import exports_are_scored_here  # most tests need no torch

    with exports_are_scored_here():
        yield


MINIMAL = {
    "run": {"output_dir": "runs/x"},
    "model": {"config": "data/samples/model"},
    "data": {"path": "data/samples"},
    "optim": {"epochs": 1},
}


@pytest.fixture
def base(tmp_path) -> Path:
    """The shortest recipe that is sound."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path
