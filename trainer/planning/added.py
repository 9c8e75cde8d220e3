"""What a method that only PEFT can size adds to a model, counted on its skeleton."""

import json
import warnings
from dataclasses import replace
from functools import lru_cache

from data.errors import first_line
from trainer.architectures.classes import head_modules, model_class
from trainer.architectures.meta_model import transformers_config
from trainer.architectures.shapes import ModelShape
from trainer.config.sections import OWN_METHODS, RunConfig, TuningSection
from trainer.models.files import read_config


def counted(config: RunConfig, shape: ModelShape) -> tuple[int | None, ModelShape]:
    """Parameters of the adapters; None where a formula of ours has them.

    Where PEFT's start needs values, which a skeleton lacks, LoRA's formula of the same rank is
    taken, and the shape says so.

    Raises:
        ModelError: The method cannot be added to this model as the recipe says.
    """
    tuning = config.tuning
    if tuning.method in OWN_METHODS and not tuning.peft:
        return None, shape
    pooling = None if config.is_language else config.model.pooling
    found = _on_skeleton(json.dumps(read_config(config.model)), pooling, tuning.model_dump_json())
    if isinstance(found, int):
        return found, shape
    doubt = f"{tuning.method} is sized as LoRA of rank {tuning.lora_r}: PEFT needs values ({found})"
    return None, replace(shape, doubt=f"{shape.doubt}; {doubt}" if shape.doubt else doubt)


@lru_cache(maxsize=8)
def _on_skeleton(config: str, pooling: str | None, tuning_json: str) -> int | str:
    """The number, or why there is none."""
    import torch

    from trainer.tuning import add_method

    tuning = TuningSection.model_validate_json(tuning_json)
    base = model_class(transformers_config(json.loads(config)), pooling).skeleton(None)
    heads = tuple(f".{path}." for path in (*head_modules(base), "modules_to_save"))
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a run says them once
            model = add_method(base, tuning)
    except Exception as error:
        if not isinstance(error.__cause__ or error, RuntimeError):  # what lacks values raises these
            raise
        return first_line(error)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return sum(int(p.numel()) for n, p in trained.items() if not any(part in n for part in heads))
