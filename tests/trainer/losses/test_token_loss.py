"""TokenLoss on a tiny GPT-2 under DeepSpeed equals the printed formula without it."""

import json

import language_checks
import pytest
import torch
from language_checks import CASES, GAMMA, LR, STEPS, batches, build, num_labels, trained
from loss_cases import naive_sum
from rank_pool import run_ranks
from torch import nn

from trainer.config.sections import LossSection
from trainer.errors import ModelError
from trainer.models.token_loss import TokenLoss, output_layer


def naive_run(is_tied, method):
    """Losses and trained weights by logits, autograd and SGD; and the weights before."""
    model = build(is_tied, method).double()
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    optimizer = torch.optim.SGD(trained(model).values(), lr=LR)
    losses = []
    for step in range(STEPS):
        total = 0.0
        for input_ids, targets in batches(step):
            logits = model(input_ids).logits.flatten(0, 1)
            keep = targets != -100
            identity = torch.eye(logits.shape[1], dtype=torch.float64)
            total = total + naive_sum(logits[keep], identity, targets[keep], GAMMA)
        loss = total / num_labels(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, before, {name: p.detach() for name, p in trained(model).items()}


@pytest.fixture(scope="module")
def expected():
    return {case: naive_run(*case) for case in CASES}


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_equals_the_formula_in_loss_and_gradient(stage, world_size, expected, tmp_path):
    printed = tmp_path / "printed"
    codes = run_ranks(
        [str(tmp_path), str(stage)], world_size, printed, entry=language_checks.language_losses
    )
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    for (is_tied, method), (losses, before, after) in expected.items():
        name = f"{method}-{'tied' if is_tied else 'untied'}"
        ours = json.loads((tmp_path / f"{name}.json").read_text())
        assert ours["losses"] == pytest.approx(losses, rel=1e-5)
        assert ours["weights"].keys() == {f"model.{key}" for key in after}
        for key, weight in after.items():
            moved = torch.tensor(ours["weights"][f"model.{key}"]).double() - before[key].flatten()
            exact = (weight - before[key]).flatten()
            # fp32 against float64 through the model, and a second step that starts from the first:
            # 5.05e-5 with AVX2 kernels. A wrong divisor or mask is off by more than 1e-2.
            assert float((moved - exact).norm() / exact.norm()) < 1e-4, key
        head = [key for key in after if "lm_head" in key or "wte" in key]
        assert len(head) == (0 if method == "lora" else 1 if is_tied else 2)


def test_a_weight_trained_whole_by_peft_is_the_copy_it_trains():
    from peft import LoraConfig, get_peft_model

    base = build(False, "full")
    settings = LoraConfig(
        r=2, target_modules=["c_attn"], modules_to_save=["lm_head"], fan_in_fan_out=True
    )
    head = output_layer(get_peft_model(base, settings))
    assert head.weight.requires_grad
    assert type(head) is nn.Linear


def test_an_output_layer_with_adapters_is_refused():
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, target_modules=["lm_head"])
    model = get_peft_model(build(False, "full"), settings)
    with pytest.raises(ModelError, match=r"tuning\.target_modules"):
        TokenLoss(model, LossSection(backend="torch"))
