"""Sizes of methods that make them train equally many parameters."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from data.text import terminal
from trainer.architectures.shapes import ModelShape
from trainer.config.machines import Machine
from trainer.config.methods import LORA, adapter_size
from trainer.config.peft_methods import argument_names
from trainer.config.sections import OWN_METHODS, RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve

_KEY = "trained_parameters"
_PEFT_SIZES = ("r", "num_virtual_tokens", "n_frequency")
_UNITS = (1, 2, 4, 8)  # of which a method takes multiples
_MOST = 1 << 14  # a size above it is not looked for
_MACHINE = Machine(None, 1)  # counts do not depend on it


def keys_within(text: str, config: RunConfig, given: Sequence[str], name: str) -> tuple[str, ...]:
    """The overrides that give a method its largest size within a budget; says what was found.

    LoRA's alpha follows its rank, so that the scale stays. A method without a size that more
    parameters go with keeps what it has.

    Args:
        text: trained_parameters=N, or =N%, of the base.
        given: Overrides of the cell.
        name: Of the method and model, for people.

    Raises:
        ConfigError: The smallest size is above the budget, or the text is not one.
    """
    shape = read_shape(config)
    budget = parse_budget(text, shape.num_parameters)
    size = _size(config)
    if size in {one.partition("=")[0] for one in given}:
        raise ConfigError(f"--budget sets {size}; take one of the two")
    trained = partial(_num_trained, config, shape, size)
    unit = next((n for n in _UNITS if size and 0 < trained(n) < trained(2 * n) < math.inf), 0)
    if not unit:
        num = _num_trained(config, shape, None, 0)
        terminal.say(f"{name}: trains {num:,} of {budget:,} parameters; it has no size to set")
        return ()
    found = unit * _largest(lambda number: trained(unit * number) <= budget)
    if not found:
        least = f"at {size}={unit} trains {trained(unit):,} parameters"
        raise ConfigError(f"{least}, above --budget {text}")
    keys = [f"{size}={found}"]
    if size == "tuning.lora_r":
        keys.append(f"tuning.lora_alpha={_at(config, size, found).tuning.lora_alpha:g}")
    terminal.say(f"{name}: trains {trained(found):,} of {budget:,} parameters, {' '.join(keys)}")
    return tuple(keys)


def parse_budget(text: str, num_parameters: int) -> int:
    """The most trained parameters of --budget, of a base with so many parameters.

    Raises:
        ConfigError: It is neither a share nor a number.
    """
    key, _, raw = text.partition("=")
    share = num_parameters / 100 if raw.endswith("%") else 1
    try:
        value = float(raw.removesuffix("%")) * share
    except ValueError:
        value = 0.0
    if key != _KEY or not 1 <= value < math.inf:
        raise ConfigError(f"--budget {text}: write {_KEY}=1% (of the base) or {_KEY}=2000000")
    return int(value)


def _size(config: RunConfig) -> str | None:
    """The key that sets a method's size."""
    method = config.tuning.method
    if method in LORA:
        return "tuning.lora_r"
    if method in OWN_METHODS:
        return "tuning.adapter_size" if adapter_size(config.tuning) else None
    return next(
        (f"tuning.peft.{name}" for name in _PEFT_SIZES if name in argument_names(method)), None
    )


def _at(config: RunConfig, size: str, number: int) -> RunConfig:
    tuning, name = config.tuning, size.rpartition(".")[2]
    if size.startswith("tuning.peft."):
        return config.changed("tuning", peft={**tuning.peft, name: number})
    if name == "lora_r":
        alpha = tuning.lora_alpha * number / tuning.lora_r
        return config.changed("tuning", lora_r=number, lora_alpha=alpha)
    return config.changed("tuning", **{name: number})


def _num_trained(config: RunConfig, shape: ModelShape, size: str | None, number: int) -> float:
    """Parameters of adapters, head and what is trained whole; infinite for a size it refuses."""
    recipe = resolve(_at(config, size, number) if size else config, shape, _MACHINE)
    is_refused = any(isinstance(fault, ModelError) for fault in recipe.faults)
    return math.inf if is_refused else recipe.num_trained


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest size that fits, 0 where none does; more never fits where less does not."""
    low, high = 0, 1
    while high < _MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
