"""Merges the adapter of a finished run into its base and measures what merging changes.

A QLoRA adapter was trained beside quantised weights. Merged into those weights, decoded, it
computes the same up to rounding. Merged into the unquantised base it meets other weights, which
differ by the quantisation. Merging into the packed weights, as PEFT does, would quantise the sum
again and is not offered.

S packed functions, C classes.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.text.tokenization import ExampleSet
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.evaluation.scoring import outputs, split_batches
from trainer.models.heads import PackedModel
from trainer.models.proof import use
from trainer.models.quantized import decoded_weight, quantized_layers
from trainer.processes.distributed import Ranks
from trainer.run.build import alone, scoring_model, trained_model
from trainer.run.trained import Trained
from trainer.run_folder.folder import built
from trainer.run_folder.model import complete_model, write_facts
from trainer.tuning.plain import save_base

MERGED = ("full", "lora", "qlora", "ia3")  # what they train is part of a layer's weights
_MOST_BATCHES = 16  # of the validation split: the drift is a check, not a report


def merge_adapter(
    trained: Trained, valid: ExampleSet | None, output: Path, onto: str
) -> dict[str, Any]:
    """Write the merged model and its tokenizer as a plain transformers folder.

    Args:
        valid: The drift is measured on it; None: not at all.
        onto: "dequantized" or "full"; without quantisation they are the same.

    Returns:
        What was merged and the drift if measured, also in focaltune.json of the folder.

    Raises:
        ConfigError: The folder exists, or the method's weights cannot become part of the base.
        ModelError: The weights or the base do not load.
    """
    config, classes = trained.config, trained.classes
    if config.tuning.method not in MERGED:
        raise ConfigError(
            f"tuning.method {config.tuning.method} cannot be merged: its adapters are not part of a"
            f" linear layer's weight, as those of {', '.join(MERGED)} are; use {trained.folder}"
            " beside the base"
        )
    if output.exists():
        raise ConfigError(f"{output} exists; give --output another folder")
    ranks = alone()
    settled, model = scoring_model(config, trained.folder, classes, ranks, valid)
    before_SC = None if valid is None else _logits(model, config, valid, ranks)
    strategy = model.strategy
    decoded = {
        name.replace(".base_layer", ""): decoded_weight(layer).cpu()
        for name, layer in quantized_layers(model).items()
    }
    del model
    merged = trained_model(_plain(settled), trained.folder, classes)
    if onto == "dequantized":
        _take_weights(merged, decoded)
    merged.model.merge_adapter()
    merged = merged.to(ranks.device)
    use(merged, strategy)
    merge: dict[str, Any] = {"onto": onto if decoded else "full"}
    if valid is not None and before_SC is not None:
        merge |= _drift(before_SC, _logits(merged, config, valid, ranks))
    recipe = dict(trained.facts["recipe"]) | {"tuning": {"method": "full"}}
    recipe["model"] = recipe["model"] | {"dtype": "auto"}
    facts = {**trained.facts, "quantization": None, "recipe": recipe, "merge": merge}
    _write(merged, config, output, facts)
    return merge


def _drift(before_SC: Tensor, after_SC: Tensor) -> dict[str, Any]:
    difference_S = (after_SC - before_SC).abs().amax(1)
    return {
        "max_logit_difference": float(difference_S.max()),
        "mean_logit_difference": float(difference_S.mean()),
        "largest_logit": float(before_SC.abs().max()),
        "num_functions": len(difference_S),
    }


def _plain(config: RunConfig) -> RunConfig:
    """The recipe on the unquantised base."""
    method = "lora" if config.tuning.method == "qlora" else config.tuning.method
    plain = config.changed("model", quantize_cache=None)
    return plain.changed("tuning", method=method, quant_type="auto")


def _logits(model: PackedModel, config: RunConfig, examples: ExampleSet, alone: Ranks) -> Tensor:
    """fp32 logits (S, C) of the first functions of a split, or nll and margin of its targets."""
    batches = split_batches(examples, config.data, config.optim.micro_batch_size, alone)
    scored = outputs(model, islice(batches, _MOST_BATCHES))
    kept = 2 if config.is_language else None
    return torch.cat([scores[:, :kept].float().cpu() for _, scores in scored])


def _take_weights(model: PackedModel, weights: dict[str, Tensor]) -> None:
    """Put decoded weights (out, in) under the adapters; GPT-2's Conv1D is transposed."""
    layers = dict(model.named_modules())
    for name, weight in weights.items():
        layer: Any = layers[name]
        layer = getattr(layer, "base_layer", layer)
        transposed = type(layer).__name__ == "Conv1D"
        layer.weight.data.copy_(weight.T if transposed else weight)


def _write(merged: PackedModel, config: RunConfig, output: Path, facts: dict[str, Any]) -> None:
    model = merged.model.unload()
    head = model.get_output_embeddings()
    if head is not None and not torch.equal(head.weight, model.get_input_embeddings().weight):
        model.config.tie_word_embeddings = False  # one of the two was trained alone
    output.parent.mkdir(parents=True, exist_ok=True)
    with built(output) as building:
        save_base(model, building)
        complete_model(building, config)
        write_facts(model, building, facts)
