"""The learning rate of each update, by hand, and the groups of the optimizer."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.config.recipe import load_run_config
from trainer.config.sections import OptimSection
from trainer.engine.engine import set_learning_rate
from trainer.engine.optim import (
    RATE,
    build_optimizer,
    learning_rate,
    refuse_too_much_paged,
)
from trainer.engine.state import seed_step
from trainer.errors import ConfigError, MachineError
from trainer.planning.memory import moment_bytes
from trainer.run.build import build_model, resolve_here


def rates(total: int, **optim: object) -> list[float]:
    section = OptimSection.model_validate({"lr": 1.0} | optim)
    return [learning_rate(section, update, total) for update in range(total)]


def test_warm_up_rises_in_equal_steps_to_the_peak():
    assert rates(6, warmup_steps=4, schedule="constant") == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_through_a_half_in_the_middle():
    found = rates(12, warmup_steps=4, schedule="cosine")
    # eight updates after warm-up: 0.5 (1 + cos(pi k / 8)); cos(pi / 4) = sqrt(1 / 2)
    assert found[4] == 1.0
    assert found[6] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert found[8] == pytest.approx(0.5)
    assert found[10] == pytest.approx(0.5 * (1 - math.sqrt(0.5)))


def test_a_line_falls_by_the_same_amount_each_update():
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(6, schedule="linear", warmup_steps=2)[2:] == [1.0, 0.75, 0.5, 0.25]


def test_warm_up_stable_decay_falls_at_the_end_alone():
    found = rates(10, schedule="wsd", warmup_steps=2, decay_ratio=0.4)
    assert found == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_decay_of_no_whole_update_ends_after_the_last():
    section = OptimSection(lr=1.0, schedule="wsd", decay_ratio=0.01)
    assert [learning_rate(section, update, 5) for update in range(6)] == [1, 1, 1, 1, 1, 0]


def test_a_schedule_falls_to_its_floor():
    assert rates(4, schedule="linear", min_lr_ratio=0.5) == [1.0, 0.875, 0.75, 0.625]
    found = rates(9, schedule="cosine", min_lr_ratio=0.2)
    assert found[3] == pytest.approx(0.2 + 0.8 * 0.75)  # cos(pi / 3) is a half
    section = OptimSection(lr=1.0, schedule="cosine", min_lr_ratio=0.2)
    assert learning_rate(section, 9, 9) == pytest.approx(0.2)


def test_warm_up_can_be_a_share_of_the_updates():
    assert rates(8, warmup_ratio=0.5, schedule="constant") == rates(
        8, warmup_steps=4, schedule="constant"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.schedule=constant", "optim.min_lr_ratio=0.1"], "which does not fall"),
        (["optim.decay_ratio=0.2"], "of optim.schedule=wsd alone"),
    ],
)
def test_a_key_without_effect_on_the_schedule_is_refused(words, said, base):
    with pytest.raises(ConfigError, match=said):
        load_run_config(base, words)


def test_lora_plus_gives_b_matrices_their_own_rate():
    """The first update of AdamW is lr in size wherever there is a gradient."""
    weights = {f"layer.lora_{one}.default.weight": nn.Parameter(torch.ones(2, 2)) for one in "AB"}
    optimizer = build_optimizer(weights.items(), OptimSection(lr=0.01, lora_plus_ratio=16))
    engine = SimpleNamespace(optimizer=optimizer)
    set_learning_rate(engine, 0.002)
    for weight in weights.values():
        weight.grad = torch.full_like(weight, 0.5)
    optimizer.step()
    a, b = (float((1 - one).detach().mean()) for one in weights.values())
    assert a == pytest.approx(0.002, rel=1e-4)  # fp32 near 1
    assert b == pytest.approx(0.032, rel=1e-4)


def test_a_constant_rate_stays():
    assert rates(3, schedule="constant") == [1.0, 1.0, 1.0]


def test_the_update_after_the_last_would_reach_zero():
    for schedule in ("cosine", "linear"):
        section = OptimSection(lr=1.0, schedule=schedule, warmup_steps=2)
        assert learning_rate(section, 10, 10) == 0.0
        assert learning_rate(section, 99, 10) == 0.0
        warming = OptimSection(lr=1.0, schedule=schedule, warmup_steps=4)  # all of a run
        assert [learning_rate(warming, update, 4) for update in (3, 4, 5)] == [1.0, 1.0, 0.0]


@given(
    total=st.integers(1, 60),
    warmup=st.integers(0, 60),
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    peak=st.floats(1e-6, 1.0),
)
def test_no_update_of_a_run_is_lost_to_a_rate_of_zero(total, warmup, schedule, peak):
    found = rates(total, lr=peak, warmup_steps=min(warmup, total), schedule=schedule)
    assert min(found) > 0
    assert max(found) == pytest.approx(peak, rel=1e-15)  # lr x 3 / 3 can be off by one rounding


def test_weight_decay_is_for_matrices_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), OptimSection(lr=0.1, weight_decay=0.01))
    decayed, plain = optimizer.param_groups
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(2, 3)]
    assert decayed["weight_decay"] == 0.01
    assert [tuple(parameter.shape) for parameter in plain["params"]] == [(2,), (2,), (2,), (2,)]
    assert plain["weight_decay"] == 0.0


def test_an_adapter_without_vectors_has_one_group():
    optimizer = build_optimizer(nn.Linear(3, 2, bias=False).named_parameters(), OptimSection())
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("betas", "eps"), [([0.9, 0.999], 1e-8), ([0.8, 0.95], 1e-7)])
def test_two_updates_are_those_of_adamw_by_hand(betas, eps):
    """Gradients 1e-8 and 3e-8, so small that the epsilon counts."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    given = OptimSection(lr=0.1, betas=betas, eps=eps)
    optimizer = build_optimizer([("weight", weight)], given)
    first, second, expected = 0.0, 0.0, 0.0
    for step, gradient in enumerate((1e-8, 3e-8), start=1):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        mean = first / (1 - betas[0] ** step)
        deviation = math.sqrt(second / (1 - betas[1] ** step))
        expected -= 0.1 * mean / (deviation + eps)
        assert weight.item() == pytest.approx(expected, rel=1e-12)
    assert eps != 1e-8 or -0.12 < expected < -0.11  # -0.1 and about -0.09 more without the epsilon


def two_updates(optimizer, weight, gradients, **optim):
    """A matrix of a block, in its dtype, after an update with each of two gradients."""
    parameter = nn.Parameter(weight.clone())
    given = OptimSection(optimizer=optimizer, lr=0.1, weight_decay=0.5, **optim)
    built = build_optimizer([("h.0.weight", parameter)], given)
    for gradient in gradients:
        parameter.grad = gradient.to(weight.dtype)
        built.step()
    return parameter.detach().double()


@pytest.fixture
def drawn():
    """A weight and two gradients of 64 x 96 in float64, none near 0."""
    draw = torch.Generator().manual_seed(0)
    signs = torch.randn(3, 64, 96, generator=draw, dtype=torch.float64).sign()
    return signs * (1 + torch.rand(3, 64, 96, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", ["lion", "lion_8bit"])
def test_two_updates_are_those_of_lion_by_hand(optimizer, drawn):
    """Chen et al. 2023, algorithm 2; the second gradient is small, so the moment decides."""
    weight, first, second = drawn[0], drawn[1], 0.02 * drawn[2]
    found = two_updates(optimizer, weight.float(), (first, second))
    expected = weight * 0.95 - 0.1 * first.sign()
    moment = 0.01 * first
    expected = expected * 0.95 - 0.1 * (0.9 * moment + 0.1 * second).sign()
    assert ((0.9 * moment + 0.1 * second).sign() != second.sign()).sum() > 1000
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # fp32


def test_two_updates_are_those_of_momentum_by_hand(drawn):
    weight, *gradients = drawn
    expected, velocity = weight, torch.zeros_like(weight)
    for gradient in gradients:
        velocity = 0.8 * velocity + gradient + 0.5 * expected
        expected = expected - 0.1 * velocity
    found = two_updates("sgd", weight, gradients, betas=[0.8, 0.9])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_two_updates_are_those_of_adafactor_by_hand(drawn):
    """Shazeer & Stern 2018, algorithm 4 with an absolute rate; the second gradient is larger."""
    weight, first, second = drawn[0], drawn[1], 5 * drawn[2]
    expected, rows, columns = weight, torch.zeros(64, 1), torch.zeros(1, 96)
    for step, gradient in enumerate((first, second), start=1):
        decay = 1 - step**-0.8
        rows = decay * rows + (1 - decay) * (gradient**2).mean(1, keepdim=True)
        columns = decay * columns + (1 - decay) * (gradient**2).mean(0, keepdim=True)
        update = gradient / (rows * columns / rows.mean()).sqrt()
        update = update / max(1.0, float((update**2).mean().sqrt()))
        expected = expected - 0.1 * update - 0.1 * 0.5 * expected
    found = two_updates("adafactor", weight, (first, second))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_two_updates_are_those_of_muon_by_hand(drawn):
    """Jordan et al. 2024: five Newton-Schulz steps, here in float64 and there in bf16.

    The size is that of Liu et al. 2025: 0.2 x the root of the longer side.
    """
    weight, *gradients = drawn
    expected, momentum = weight, torch.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        x = 0.05 * gradient + 0.95 * momentum
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        expected = expected * 0.95 - 0.1 * 0.2 * math.sqrt(96) * x
    found = two_updates("muon", weight, gradients)
    moved = (expected - 0.95**2 * weight).norm()
    assert (found - expected).norm() < 0.02 * moved  # 8 bits of bf16, five times
    assert moved > 1


def test_muon_leaves_what_is_no_matrix_of_a_block_to_adamw():
    """AdamW's first update is lr in size at every element; Muon's is not."""
    shapes = {"wte.weight": (6, 4), "h.0.weight": (4, 4), "h.0.bias": (4,), "score.weight": (2, 4)}
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    optimizer = build_optimizer(weights.items(), OptimSection(optimizer="muon", lr=0.01))
    set_learning_rate(SimpleNamespace(optimizer=optimizer), 0.002)
    for weight in weights.values():
        weight.grad = torch.rand_like(weight) + 0.5
    optimizer.step()
    for name, weight in weights.items():
        is_adamw = torch.allclose(weight, torch.full_like(weight, -0.002), rtol=1e-4)
        assert is_adamw == (name != "h.0.weight")
    assert (
        0.3 < float(weights["h.0.weight"].detach().norm() / 0.002 / (0.2 * 4)) < 3
    )  # 0.2 an element
    with pytest.raises(ConfigError, match=r"take .*adamw"):
        build_optimizer([("score.weight", weights["score.weight"])], OptimSection(optimizer="muon"))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd", "muon", "adafactor"])
def test_the_planner_counts_the_state_that_the_optimizer_keeps(optimizer, method, tiny_recipe):
    given = [f"optim.optimizer={optimizer}", f"tuning.method={method}"]
    recipe = resolve_here(load_run_config(tiny_recipe, given), torch.device("cpu"))
    assert recipe.preset.stage == 0 or optimizer == "lion"
    model = build_model(recipe.config)
    built = build_optimizer(model.named_parameters(), recipe.config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    kept = [value for entry in built.state.values() for value in entry.values()]
    held = sum(4 * one.numel() for one in kept if torch.is_tensor(one) and one.ndim)
    assert moment_bytes(recipe) == pytest.approx(held, rel=0.05)  # biases and a small head


def test_the_rate_falls_from_block_to_block():
    """BEiT's: embeddings 0.5 ** 3 with two blocks, the head the whole rate."""
    names = (
        "wte.weight",
        "h.0.a.weight",
        "h.0.b.weight",
        "h.1.a.weight",
        "ln.weight",
        "score.weight",
    )
    parameters = [(name, nn.Parameter(torch.zeros(1, 1))) for name in names]
    parameters[1][1].requires_grad_(False)
    groups = build_optimizer(parameters, OptimSection(layer_decay=0.5)).param_groups
    assert {group[RATE]: len(group["params"]) for group in groups} == {
        0.125: 1, 0.25: 1, 0.5: 1, 1.0: 2
    }  # fmt: skip


def test_betas_of_lion_are_its_papers_and_keys_that_nobody_reads_are_refused(base):
    assert load_run_config(base, ["optim.optimizer=lion"]).optim.betas == [0.9, 0.99]
    given = ["optim.optimizer=lion_8bit", "optim.betas=[0.8,0.9]"]
    assert load_run_config(base, given).optim.betas == [0.8, 0.9]
    for optimizer, key in (("lion", "eps=1e-6"), ("adafactor", "betas=[0.8,0.9]")):
        with pytest.raises(ConfigError, match=rf"is not read by .*{optimizer}"):
            load_run_config(base, [f"optim.optimizer={optimizer}", f"optim.{key}"])


def test_dropout_differs_by_run_step_and_rank_and_repeats():
    def drawn(seed: int, step: int, rank: int) -> float:
        seed_step(seed, step, rank)
        return float(torch.rand(()))

    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0), (0, 0, 2)]
    first = [drawn(*case) for case in cases]
    assert len(set(first)) == len(cases)
    assert [drawn(*case) for case in cases] == first


@pytest.mark.parametrize(
    ("optimizer", "free", "is_refused"),
    [
        ("paged_adamw", 8 * 300_000, False),
        ("paged_adamw", 8 * 300_000 - 1, True),
        ("paged_adamw_8bit", 2 * 300_000, False),
        ("paged_adamw_8bit", 2 * 300_000 - 1, True),
        ("adamw", 0, False),
    ],
)
def test_paged_moments_never_ask_for_more_than_the_gpu_has_free(
    optimizer, free, is_refused, monkeypatch
):
    """300,000 elements are paged; those of a small parameter are not."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in (200_000, 100_000, 99_999)]
    updated = torch.optim.SGD(parameters, lr=1.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    section = OptimSection(optimizer=optimizer, epochs=1)
    if is_refused:
        with pytest.raises(MachineError, match="of the GPU are free beside the model; take"):
            refuse_too_much_paged(updated, section, torch.device("cuda"))
        return
    refuse_too_much_paged(updated, section, torch.device("cuda"))
    refuse_too_much_paged(updated, section, torch.device("cpu"))  # asks nothing
