"""Equal budgets: a size is the largest at which the model, really built, trains no more."""

import pytest
from conftest import SAMPLES
from transformers import AutoModelForCausalLM

from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError
from trainer.planning.plan import read_shape
from trainer.sweep.budget import parse_budget
from trainer.sweep.grid import expand
from trainer.tuning import add_method

BUDGET = 60_000


def built(config):
    """Trained parameters of the model that a recipe makes."""
    base = AutoModelForCausalLM.from_pretrained(SAMPLES / "model")
    model = add_method(base, config.tuning)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("method", "size", "unit"),
    [
        ("lora", "lora_r", 1), ("adapter_h", "adapter_size", 1), ("ptuning", "adapter_size", 1),
        ("hra", "r", 2), ("loha", "r", 1), ("prompt_tuning", "num_virtual_tokens", 1),
    ],
)  # fmt: skip
def test_the_largest_size_within_the_budget_is_taken(base, tmp_path, method, size, unit):
    keys = [f"run.output_dir={tmp_path}", "task.name=instruction", "data.packing=false"]
    _, [cell] = expand(base, keys, [method], budget=f"trained_parameters={BUDGET}")
    tuning = cell.config.tuning
    found = tuning.peft[size] if size in tuning.peft else getattr(tuning, size)
    num = built(cell.config)
    assert 0.8 * BUDGET < num <= BUDGET
    larger = {size: found + unit}
    more = {"peft": {**tuning.peft, **larger}} if size in tuning.peft else larger
    assert built(cell.config.changed("tuning", **more)) > BUDGET


def test_loras_scale_stays_that_of_the_recipe(base, tmp_path):
    keys = [f"run.output_dir={tmp_path}", "tuning.lora_alpha=24"]
    own = load_run_config(base, keys).tuning
    _, cells = expand(base, keys, ["lora"], seeds=[0, 1], budget="trained_parameters=10%")
    assert len({cell.config.tuning.lora_r for cell in cells}) == 1
    tuning = cells[0].config.tuning
    assert tuning.lora_r > own.lora_r
    assert tuning.lora_alpha / tuning.lora_r == pytest.approx(24 / own.lora_r, rel=1e-5)


def test_a_method_without_a_size_keeps_what_it_has_and_says_so(base, tmp_path, capsys):
    keys = [f"run.output_dir={tmp_path}"]
    _, [cell] = expand(base, keys, ["ia3"], budget="trained_parameters=5%")
    assert cell.config.tuning == load_run_config(base, ["tuning.method=ia3"]).tuning
    assert "it has no size to set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "more", "message"),
    [
        ("trained_parameters=10", (), "at tuning.lora_r=1 trains"),
        ("trained_parameters=5%", ("tuning.lora_r=4",), "--budget sets tuning.lora_r"),
        ("trained_parameters=-5%", (), "write trained_parameters=1%"),
        ("peak_memory=5", (), "write trained_parameters=1%"),
    ],
)
def test_what_cannot_be_met_is_refused(base, tmp_path, budget, more, message):
    keys = [f"run.output_dir={tmp_path}", *more]
    with pytest.raises(ConfigError, match=message):
        expand(base, keys, ["lora"], budget=budget)


def test_a_share_is_one_of_the_base(base):
    num = read_shape(load_run_config(base, [])).num_parameters
    assert parse_budget("trained_parameters=1%", num) == num // 100
