"""What gets no gradient in the first step stops the run, under every ZeRO stage."""

from types import SimpleNamespace

import pytest
import rank_checks
import torch
from method_cases import FAMILIES, METHODS, model_config, tuning
from rank_pool import run_ranks
from torch import nn
from transformers import AutoModelForSequenceClassification

from trainer.engine.gradients import GradientCheck, unreached_message, without_gradient
from trainer.errors import NoProgressError
from trainer.tuning import METHODS as FUNCTIONS


def check_of(module):
    return GradientCheck(SimpleNamespace(module=module, device=torch.device("cpu")))


def hooks_of(module):
    return [p for p in module.parameters() if p._backward_hooks]


class Two(nn.Module):
    """Two layers, one of which can be left out."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x, weight=None):
        used = self.used(x).sum()
        return used if weight is None else used + weight * self.unused(x).sum()


def test_a_layer_without_a_gradient_is_named_and_the_hooks_are_gone():
    module = Two()
    check = check_of(module)
    assert len(hooks_of(module)) == 4
    module(torch.ones(1, 3)).backward()
    assert check.unreached(was_skipped=False) == ["unused"]
    assert not hooks_of(module)
    module.zero_grad()
    module(torch.ones(1, 3)).backward()
    assert check.unreached(was_skipped=False) == []  # said once


def test_a_gradient_that_is_zero_is_one():
    """Weights drawn as zeros make it so, until they are trained."""
    module = Two()
    check = check_of(module)
    module(torch.ones(1, 3), weight=0.0).backward()
    assert module.unused.weight.grad.abs().sum() == 0
    assert check.unreached(was_skipped=False) == []


def test_every_micro_batch_of_the_step_counts():
    module = Two()
    check = check_of(module)
    for weight in (None, 1.0, None):
        module(torch.ones(1, 3), weight).backward()
    assert check.unreached(was_skipped=False) == []
    assert not hooks_of(module)


@pytest.mark.parametrize("loss", [0.0, float("nan"), float("inf")])
def test_a_step_that_says_nothing_is_followed_by_the_next(loss):
    module = Two()
    check = check_of(module)
    (module(torch.ones(1, 3), weight=1.0) * loss).backward()
    assert check.unreached(was_skipped=False) == []
    module(torch.ones(1, 3), weight=1.0).backward()
    assert check.unreached(was_skipped=True) == []  # fp16: another layer may have overflowed
    module(torch.ones(1, 3)).backward()
    assert check.unreached(was_skipped=False) == ["unused"]


def test_a_run_that_never_has_a_gradient_ends():
    module = Two()
    check = check_of(module)
    for _ in range(49):
        assert check.unreached(was_skipped=False) == []
    with pytest.raises(NoProgressError, match="50 steps without a gradient"):
        check.unreached(was_skipped=False)


def test_an_expert_that_no_token_chose_is_excused_by_another_and_a_layer_is_not():
    experts = [f"layers.{block}.experts.{n}.w1" for block in (0, 1) for n in (0, 1)]
    targets = [*experts, "layers.0.q_proj", "layers.1.q_proj"]
    assert without_gradient(targets, {experts[0], "layers.0.q_proj"}) == [
        *experts[2:], "layers.1.q_proj",
    ]  # fmt: skip
    assert without_gradient(targets, {*experts[1:3], *targets[-2:]}) == []


def test_long_lists_are_cut():
    names = [f"layers.{n}.q_proj" for n in range(10)]
    line = unreached_message(names)
    assert line.startswith("10 modules get no gradient in the first step: layers.0.q_proj, ")
    assert line.endswith("layers.7.q_proj and 2 more")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "ptuning"])
def test_fresh_adapters_of_every_method_pass(method, family):
    """A of LoRA and the first matrix of a bottleneck have no gradient while the other is 0."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(model_config(family))
    base.config.pad_token_id = 0
    section = tuning(method)
    model = FUNCTIONS[section.method](base, section)
    check = check_of(model)
    model.get_base_model()(input_ids=torch.arange(1, 9)[None]).logits.square().sum().backward()
    zero = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert zero or method in ("full", "ia3", "adapter_p")
    assert check.unreached(was_skipped=False) == []
    assert not hooks_of(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "world_size", "more"),
    [(0, 1, []), (1, 2, []), (2, 2, ["model.gradient_checkpointing=true"]), (3, 1, []),
     (3, 2, ["model.gradient_checkpointing=true"])],
)  # fmt: skip
def test_a_dead_layer_ends_the_run_on_every_rank(stage, world_size, more, tiny_recipe, tmp_path):
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}", *more]
    command.append(f"engine.preset=cpu_zero{stage}")
    printed = tmp_path / "printed.txt"
    entry = rank_checks.train_with_a_dead_layer
    assert run_ranks(command, world_size, printed, entry=entry) == [4] * world_size
    said = printed.read_text()
    assert "2 modules get no gradient in the first step: " in said
    assert "transformer.h.0.attn.c_attn, " in said
    assert "transformer.h.1.mlp.c_proj; leave them out of tuning.target_modules" in said
    assert not list((tmp_path / "run").glob("checkpoints/step*"))
