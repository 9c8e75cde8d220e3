"""What a run finds only on its machine, by the number of bad inputs; the GPUs are made up."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from rank_pool import run_ranks

from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError, MachineError
from trainer.processes import distributed
from trainer.processes.distributed import Ranks, refuse_unseen_gpus
from trainer.run import build
from trainer.run.build import resolve_here
from trainer.run.training import build_loader


def test_58_a_batch_that_the_ranks_cannot_share_shows_the_arithmetic(base):
    settings = ["optim.batch_unit=rows", "optim.micro_batch_size=3", "optim.global_batch_size=16"]
    ranks = Ranks(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
    said = r"16 rows is not a multiple of 3 rows a micro-batch x 2 ranks = 6; take 12"
    with pytest.raises(ConfigError, match=said):
        build_loader(load_run_config(base, settings), SimpleNamespace(), ranks)


def test_103_a_rank_without_a_gpu_of_its_own_is_told_how_many_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MachineError, match=r"local rank 2 has no GPU: this node has 2; lower"):
        distributed._device(2)


@pytest.mark.parametrize(
    ("environment", "is_refused"),
    [
        ({}, True),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, True),  # as launchers set it
        ({"CUDA_VISIBLE_DEVICES": ""}, False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ({"DS_ACCELERATOR": "cpu"}, False),
    ],
)
def test_114_a_gpu_that_torch_does_not_see_is_not_left_idle_in_silence(
    environment, is_refused, tmp_path
):
    refuse_unseen_gpus(environment, tmp_path)  # without a GPU the CPU trains
    (tmp_path / "nvidiactl").touch()
    refuse_unseen_gpus(environment, tmp_path)
    (tmp_path / "nvidia0").touch()
    if not is_refused:
        refuse_unseen_gpus(environment, tmp_path)
        return
    with pytest.raises(MachineError, match=r"nvidia0.*doctor.*DS_ACCELERATOR=cpu") as caught:
        refuse_unseen_gpus(environment, tmp_path)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("capability", "built", "remedy"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], r"sm_70 is not in .*CUDA 12\.6"),  # a V100
        ((12, 0), ["sm_80", "sm_90"], "sm_120 is not in .*install a torch build that has it"),
        ((7, 5), ["sm_75", "sm_80"], None),
    ],
)
def test_115_a_torch_build_without_code_for_the_gpu_ends_before_the_model(
    capability, built, remedy, base, monkeypatch
):
    gpu = SimpleNamespace(name="a GPU", total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    config = load_run_config(base, ["engine.precision=fp32", "model.attention=sdpa"])
    if remedy is None:
        assert resolve_here(config, torch.device("cuda")).faults == ()
        return
    with pytest.raises(MachineError, match=remedy) as caught:
        resolve_here(config, torch.device("cuda"))
    assert caught.value.exit_code == 5


def test_a_run_is_evaluated_beside_gpus_that_torch_does_not_see_and_says_so(monkeypatch):
    def refuse(environment):
        raise MachineError("torch does not see this machine's GPUs (/dev/nvidia0)")

    monkeypatch.setattr(build, "refuse_unseen_gpus", refuse)
    [line] = build._unseen(torch.device("cpu"))
    assert line == "on the CPU, because torch does not see this machine's GPUs (/dev/nvidia0)"
    assert build._unseen(torch.device("cuda", 0)) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_config_with_which_the_forward_pass_fails_is_named(
    method, tiny_recipe, tiny_model, tmp_path
):
    """Three heads of keys for four of queries: transformers builds it, and then cannot run it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 3, "num_hidden_layers": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 2048}
    config = {"model_type": "llama", "max_position_embeddings": 1024, **heads, **sizes}
    (model / "config.json").write_text(json.dumps(config))
    printed = tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}", f"tuning.method={method}"]
    assert run_ranks([*command, f"model.config={model}"], 1, printed) == [4]
    said = printed.read_text()
    assert "config.json: the forward pass of transformers' llama fails (The size of tensor" in said
    assert "compare the file with the model's source, or take another base" in said
    assert "Traceback" not in said
