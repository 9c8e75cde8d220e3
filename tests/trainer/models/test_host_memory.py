"""What a rank holds in host memory while it loads a base: a few tensors, not a copy of the model.

Anonymous memory alone counts: pages of the files are shared by all ranks, and the kernel takes them
back. A device of another kind is stood in for by torch's meta device, which keeps nothing, behind
the copy that a GPU makes on the host of a tensor whose dtype changes.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rank_pool import run_ranks
from safetensors.torch import load_file, save_file

from trainer.config.machines import DEVICES, Machine
from trainer.config.recipe import load_run_config
from trainer.models.as_saved import cast_to_run
from trainer.planning.host import host_memory
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve
from trainer.run.build import build_model
from trainer.run_folder.metrics import read_log

REPOSITORY = Path(__file__).resolve().parents[3]
MIB = 1 << 20
LAYERS, WIDTH, INNER, VOCABULARY = 16, 1024, 4096, 4096
LARGEST = WIDTH * INNER  # elements of a tensor
SETTLED = [
    "model.config=null", "model.attention=sdpa", "engine.precision=fp16", "task.name=causal_lm",
    "data.seq_length=64", "loss.alpha=null",
]  # fmt: skip


class Peak(threading.Thread):
    """The most anonymous memory of this process, above that at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.is_on, self.first, self.most = True, anonymous(), 0

    def run(self) -> None:
        while self.is_on:
            self.most = max(self.most, anonymous() - self.first)
            time.sleep(0.001)


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def child(path: str, folder: str) -> None:
    """Load in each way and print the peaks, the least first."""
    import transformers.core_model_loading as loading

    recipe = Path(path)
    config = load_run_config(recipe, [f"model.path={folder}", *SETTLED])
    build_model(load_run_config(recipe, SETTLED[1:]))  # all that is imported once
    copied = loading._materialize_copy

    def through_the_host(tensor, device=None, dtype=None):
        return copied(tensor, None, dtype).to(device)

    loading._materialize_copy = through_the_host
    found = {}
    for way in ("as saved", "device", "copy"):
        peak = Peak()
        peak.start()
        device = torch.device("meta" if way == "device" else "cpu")
        model = build_model(config, device=device, as_saved=way == "as saved")
        if way == "as saved":
            cast = cast_to_run(config, model)
            for parameter in model.parameters():
                cast(parameter)
                parameter.data = parameter.data.new_empty(0)  # its part
        peak.is_on = False
        peak.join()
        found[way] = max(peak.most, anonymous() - peak.first)
        del model
    print(json.dumps(found))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base of 400 MiB in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, vocab_size=VOCABULARY,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        names = LlamaForCausalLM(config).state_dict()
    config.save_pretrained(folder)
    weights = {
        name: torch.full(like.shape, 0.01, dtype=torch.bfloat16)
        for name, like in names.items() if name != "lm_head.weight"
    }  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_rank_copies_a_few_tensors_and_not_the_model(tiny_recipe, large):
    """fp16 from bf16: on the CPU a whole copy; to a device, or to be cut up, next to nothing."""
    done = subprocess.run(
        [sys.executable, __file__, str(tiny_recipe), str(large)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    peaks = json.loads(done.stdout.splitlines()[-1])
    print({way: peak / MIB for way, peak in peaks.items()})
    whole = (large / "model.safetensors").stat().st_size
    assert whole > 390 * MIB
    assert peaks["copy"] > 0.9 * whole
    config = load_run_config(tiny_recipe, [f"model.path={large}", *SETTLED])
    shape = read_shape(config)
    for preset, way in (("gpu_zero1", "device"), ("gpu_zero3", "as saved")):
        run = config.changed("engine", preset=preset)
        planned = host_memory(resolve(run, shape, Machine(DEVICES["V100-16"], 8))).loading
        assert planned < 0.1 * whole
        assert 0.3 * planned < peaks[way] < 1.1 * planned, (way, planned / MIB)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_weights_cast_one_by_one_are_those_cast_at_once(
    tiny_recipe, saved_model, tmp_path, task, precision
):
    """To the bit, also the head, which is drawn; frozen and trained."""
    shutil.copytree(saved_model, tmp_path / "base")
    weights = load_file(saved_model / "model.safetensors")
    weights = {name: one.bfloat16() for name, one in weights.items()}
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    for method in ("lora", "full", "ia3", "adapter_h"):
        keys = [f"model.path={tmp_path / 'base'}", *SETTLED, f"task.name={task}"]
        keys += [f"engine.precision={precision}", f"tuning.method={method}"]
        config = load_run_config(tiny_recipe, keys)
        at_once, later = build_model(config), build_model(config, as_saved=True)
        cast, num_cast = cast_to_run(config, later), 0
        wanted = dict(at_once.named_parameters())
        for name, parameter in later.named_parameters():
            before = parameter.dtype
            cast(parameter)
            num_cast += parameter.dtype != before
            expected = wanted[name]
            if parameter.requires_grad:  # of one dtype, as every other stage casts it
                expected = expected.to({"fp16": torch.float16, "fp32": torch.float32}[precision])
            assert parameter.dtype == expected.dtype, name
            assert torch.equal(parameter, expected), name
        assert num_cast > 10


@pytest.mark.slow
def test_zero_3_from_files_of_another_dtype_trains_as_zero_1(tiny_recipe, saved_model, tmp_path):
    """Two ranks in fp32 on a base in bf16; 5e-6: ZeRO 3 sums the norm in another order."""
    shutil.copytree(saved_model, tmp_path / "base")
    weights = load_file(saved_model / "model.safetensors")
    weights = {name: one.bfloat16() for name, one in weights.items()}
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    losses = {}
    for stage in (1, 3):
        folder = tmp_path / f"zero{stage}"
        command = [
            str(tiny_recipe), "model.config=null", f"model.path={tmp_path / 'base'}",
            f"run.output_dir={folder}", f"engine.preset=cpu_zero{stage}", "eval.interval=never",
            "optim.max_steps=4",
        ]  # fmt: skip
        assert run_ranks(command, 2, tmp_path / "printed") == [0, 0]
        losses[stage] = [row["loss"] for row in read_log(folder / "log.jsonl")]
    assert len(set(losses[1])) == 4
    assert losses[3] == pytest.approx(losses[1], rel=5e-6)


if __name__ == "__main__":
    child(*sys.argv[1:])
