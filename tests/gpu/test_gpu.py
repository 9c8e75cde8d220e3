"""What only a GPU can show; skipped with the reason elsewhere."""

import importlib.util

import pytest
import rank_checks
import torch
from conftest import REPOSITORY
from rank_pool import run_ranks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainer.models import varlen_kernels  # noqa: F401  # makes its back ends known
from trainer.models.packed_attention import causal_segment_mask
from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None


def losses(recipe, folder, *overrides):
    printed = folder.with_suffix(".txt")
    assert run_ranks([str(recipe), f"run.output_dir={folder}", *overrides], 1, printed) == [0], (
        printed.read_text()[-3000:]
    )
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def reference(tiny_recipe, tmp_path_factory):
    """fp32 with an explicit mask on the GPU."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    return losses(tiny_recipe, folder, "engine.precision=fp32", "model.attention=sdpa")


@pytest.mark.parametrize("preset", ["gpu_zero0", "gpu_zero1", "gpu_zero2", "gpu_zero3"])
def test_fp32_losses_do_not_depend_on_the_stage(preset, reference, tiny_recipe, tmp_path):
    overrides = ["engine.precision=fp32", f"engine.preset={preset}"]
    ours = losses(tiny_recipe, tmp_path / "run", *overrides, "model.attention=sdpa")
    assert ours == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32(precision, reference, tiny_recipe, tmp_path):
    ours = losses(tiny_recipe, tmp_path / "run", f"engine.precision={precision}")
    assert ours == pytest.approx(reference, rel=0.1)


@pytest.mark.parametrize("attention", ["torch_varlen", "torch_efficient"])
def test_torchs_own_kernels_have_the_gradients_of_a_mask(attention):
    """In fp16, of two heads a key; a record of one token and one of odd length are among them."""
    if attention == "torch_varlen" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("torch's flash kernel needs sm80")
    lengths = (1, 37, 90)
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
    segment_BT = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None].cuda()
    draw = torch.Generator("cuda").manual_seed(0)
    heads = (4, 2, 2)
    inputs = [
        torch.randn(1, n, sum(lengths), 64, device="cuda", generator=draw).half().requires_grad_()
        for n in heads
    ]
    layer = torch.nn.Module()
    layer.num_key_value_groups = 2
    of_both = []
    for name, kwargs in (
        ("sdpa", {"attention_mask": causal_segment_mask(segment_BT, torch.float16)}),
        (attention, {"attention_mask": None, "cu_seq_lens_q": ends, "max_length_q": max(lengths)}),
    ):
        mask = kwargs.pop("attention_mask")
        out, _ = ALL_ATTENTION_FUNCTIONS[name](layer, *inputs, mask, **kwargs)
        grads = torch.autograd.grad(out.float().square().sum(), inputs)
        of_both.append([out, *grads])
    for ours, theirs in zip(*of_both, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not HAS_FLASH, reason="flash_attn is not installed")
def test_flash_attention_keeps_functions_apart(reference, tiny_recipe, tmp_path):
    """The proof at the start refuses a leak, so finishing is the test."""
    overrides = ["engine.precision=bf16", "model.attention=flash_attention_2"]
    assert losses(tiny_recipe, tmp_path / "run", *overrides) == pytest.approx(reference, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nan_is_read_behind_the_update_and_ends_the_run(precision, tiny_recipe, tmp_path):
    """Neither logged nor saved on the way: what a step later tells is enough."""
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [
        str(tiny_recipe), f"run.output_dir={folder}", f"engine.precision={precision}",
        "eval.interval=never", "save.interval=1000", "log.interval=1000", "POISON=loss",
    ]  # fmt: skip
    assert run_ranks(command, 1, printed, entry=rank_checks.read_poison) == [6]
    assert "the loss of rank 0 is nan" in printed.read_text()
    assert not list((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("preset", ["gpu_zero1", "gpu_zero3"])
def test_the_fused_loss_of_a_language_task_is_that_of_whole_logits(preset, tiny_model, tmp_path):
    """Training, evaluation, greedy answers and the report, by the embedded instructions."""
    recipe = REPOSITORY / "recipes" / "instruction_sample.yaml"
    overrides = [
        f"model.config={tiny_model}", "optim.epochs=null", "optim.max_steps=4", "log.interval=1",
        "optim.warmup_steps=0", "engine.precision=fp32", f"engine.preset={preset}",
    ]  # fmt: skip
    whole = losses(recipe, tmp_path / "whole", *overrides, "loss.backend=reference")
    fused = losses(recipe, tmp_path / "fused", *overrides, "loss.backend=triton")
    assert len(set(whole)) == 4
    assert fused == pytest.approx(whole, rel=1e-4)
