"""Exports a trained model for stock tools: its adapter, or one model of adapter and base.

A QLoRA adapter was trained beside quantised weights. Merged into those weights, decoded, it
computes the same up to rounding. Merged into the unquantised base it meets other weights, which
differ by the quantisation. Merging into the packed weights, as PEFT does, would quantise the sum
again and is not offered.

E examples, C classes.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batches.sampling import at_most
from data.errors import parsing
from data.text.terminal import step
from data.text.tokenization import ExampleSet
from trainer.architectures.classes import OWN
from trainer.config.methods import BOTTLENECKS, PROMPTS
from trainer.config.sections import OWN_METHODS, RunConfig
from trainer.errors import ConfigError
from trainer.evaluation.scoring import outputs, split_batches
from trainer.models.heads import PackedModel
from trainer.models.proof import use
from trainer.models.quantized import decoded_weight, quantized_layers
from trainer.processes.distributed import Ranks
from trainer.run.build import alone, scoring_model, trained_model
from trainer.run.model_card import write_card
from trainer.run.preparation import print_lines
from trainer.run.stock_check import Check, Rows, check_stock
from trainer.run.trained import Trained
from trainer.run_folder.folder import FACTS, MANIFEST, built, write_json
from trainer.run_folder.model import complete_model, write_facts
from trainer.run_folder.stock import settle_generation, settle_tokenizer
from trainer.tuning.any_peft import unloaded
from trainer.tuning.plain import save_base

MERGED = ("full", "lora", "qlora", "ia3")  # what they train is part of a layer's weights
_MOST_ROWS = 32
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_CARD, _ADAPTER = "README.md", "adapter_config.json"
_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Wanted:
    """What is exported.

    Attributes:
        output: A new folder.
        merge: Adapter and base as one model.
        onto: "dequantized" or "full", of a merge; without quantisation they are the same.
        dtype: Of the weights of one model, as torch names it; None: that of the run.
        is_onnx: With model.onnx, in float32.
    """

    output: Path
    merge: bool = False
    onto: str = "dequantized"
    dtype: str | None = None
    is_onnx: bool = False


@dataclass(frozen=True)
class _Exported:
    """A model whose scores are known.

    Attributes:
        scores_EC: That stock tools have to give.
        drift: What merging was and how far it moved logits; None of an adapter.
    """

    model: PackedModel
    settled: RunConfig
    scores_EC: Tensor
    drift: dict[str, Any] | None


def export_model(trained: Trained, rows: Rows, wanted: Wanted) -> Check:
    """Write the folder with its tokenizer and card, once stock tools give the model's scores.

    Args:
        rows: By which scores are compared.

    Returns:
        What was compared.

    Raises:
        ConfigError: The folder exists, or the method has no such form.
        ModelError: Weights or base do not load, or stock tools give other scores.
    """
    _refuse(trained, wanted)
    rows = rows.some(at_most(_MOST_ROWS, len(rows.examples)))
    exported = _exported(trained, rows, wanted)
    base = exported.model.model.get_base_model()
    num_embeddings = base.get_input_embeddings().weight.shape[0]
    is_whole = wanted.merge or trained.is_whole
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    with built(wanted.output) as building:
        facts = dict(trained.facts)
        if is_whole:
            dtype = "float32" if wanted.is_onnx else wanted.dtype
            dtype = _write_whole(exported, trained, building, dtype)
            facts = _merged_facts(facts, exported.drift)
        else:
            dtype = _NAMES[exported.settled.base_dtype]
            _copy_adapter(trained, building)
        if trained.config.is_language:
            settle_generation(building, trained.tokenizer, trained.config, facts["kinds"])
            pad = None
        else:
            pad = settle_tokenizer(building, trained.tokenizer, trained.config, num_embeddings)
            if is_whole and (building / "config.json").is_file():
                settings = json.loads((building / "config.json").read_text(encoding="utf-8"))
                write_json(building / "config.json", settings | {"pad_token_id": pad.id})
        if is_whole:
            write_facts(base, building, facts)
        asked = _asked(trained, exported.settled, building, pad.id if pad else None, dtype)
        scores = exported.scores_EC.tolist()
        check = check_stock(building, asked, rows, scores, dtype)
        if wanted.is_onnx:
            onnx = check_stock(building, {**asked, "way": "onnx"}, rows, scores, dtype)
            check = replace(check, line=f"{check.line}; {onnx.line}")
        write_card(building / _CARD, trained, facts, check, asked)
    if exported.drift is not None:
        print_lines([_merged_line(trained, exported.drift)])
    return check


def _refuse(trained: Trained, wanted: Wanted) -> None:
    method = trained.config.tuning.method
    if wanted.output.exists():
        raise ConfigError(f"{wanted.output} exists; give a new folder")
    if wanted.merge and method in (*OWN_METHODS, *PROMPTS) and method not in MERGED:
        raise ConfigError(
            f"tuning.method {method} cannot be merged: its adapters are not part of a linear"
            f" layer's weight, as those of {', '.join(MERGED)} are; leave out --merge"
        )
    if not wanted.merge and method in BOTTLENECKS:
        raise ConfigError(
            f"tuning.method {method}: no stock library reads bottleneck adapters; copy"
            f" {trained.folder}, whose layout trainer/tuning/bottleneck.py describes"
        )
    if wanted.dtype and not wanted.merge and not trained.is_whole:
        raise ConfigError("--dtype is of a whole model, and an adapter keeps its own; add --merge")
    if wanted.is_onnx:
        _refuse_onnx(trained, wanted)


def _refuse_onnx(trained: Trained, wanted: Wanted) -> None:
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        raise ConfigError(
            f"--format onnx needs {', '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'"
        )
    if trained.config.is_language or trained.facts.get("pooling") != OWN:
        raise ConfigError(
            "--format onnx is for encoders that classify by a head of transformers' own; leave it"
            " out, and the folder is one for transformers"
        )
    if not (wanted.merge or trained.is_whole):
        raise ConfigError("--format onnx writes one model, and this is an adapter; add --merge")
    if wanted.dtype not in (None, "float32"):
        raise ConfigError(f"--format onnx writes float32, not --dtype {wanted.dtype}; remove that")


def _exported(trained: Trained, rows: Rows, wanted: Wanted) -> _Exported:
    """The model that is exported and its scores; a merged one is not the one that was trained."""
    config, classes, ranks = trained.config, trained.classes, alone()
    settled, model = scoring_model(config, trained.folder, classes, ranks, rows.examples)
    logits_EC = _logits(model, config, rows.examples, ranks)
    if not wanted.merge:
        return _Exported(model, settled, _scores(trained, logits_EC), None)
    strategy = model.strategy
    decoded = {
        name.replace(".base_layer", ""): decoded_weight(layer).cpu()
        for name, layer in quantized_layers(model).items()
    }
    del model
    merged = trained_model(_plain(settled), trained.folder, classes)
    if wanted.onto == "dequantized":
        _take_weights(merged, decoded)
    with parsing(f"tuning.method {settled.tuning.method}", ConfigError, "leave out --merge"):
        merged.model.merge_adapter()
    merged = merged.to(ranks.device)
    use(merged, strategy)
    after_EC = _logits(merged, config, rows.examples, ranks)
    drift = {"onto": wanted.onto if decoded else "full", **_drift(logits_EC, after_EC)}
    return _Exported(merged, settled, _scores(trained, after_EC), drift)


def _drift(before_EC: Tensor, after_EC: Tensor) -> dict[str, Any]:
    difference_E = (after_EC - before_EC).abs().amax(1)
    return {
        "max_logit_difference": float(difference_E.max()),
        "mean_logit_difference": float(difference_E.mean()),
        "largest_logit": float(before_EC.abs().max()),
        "num": len(difference_E),
    }


def _merged_line(trained: Trained, drift: Mapping[str, Any]) -> str:
    unit = "losses" if trained.config.is_language else "logits"
    return (
        f"merged onto the {drift['onto']} base; {unit} of {drift['num']} rows move by"
        f" {drift['max_logit_difference']:.2e} at most, {drift['mean_logit_difference']:.2e} on"
        f" average (largest {drift['largest_logit']:.2f})"
    )


def _plain(config: RunConfig) -> RunConfig:
    """The recipe on the unquantised base."""
    method = "lora" if config.tuning.method == "qlora" else config.tuning.method
    plain = config.changed("model", quantize_cache=None)
    return plain.changed("tuning", method=method, quant_type="auto")


def _logits(model: PackedModel, config: RunConfig, examples: ExampleSet, ranks: Ranks) -> Tensor:
    """Logits (E, C) in float64, or the mean nll of each example's targets (E, 1)."""
    found = torch.zeros(len(examples), 0, dtype=torch.float64)
    for batch, scores in outputs(
        model, split_batches(examples, config.data, 1, ranks, "scoring rows")
    ):
        scores = scores.double().cpu()
        if not len(found[0]):
            found = torch.zeros(
                len(examples), 1 if config.is_language else scores.shape[1]
            ).double()
        if config.is_language:
            found.index_add_(0, torch.from_numpy(batch.example_S), scores[:, :1])
        else:
            found[batch.example_S] = scores
    if config.is_language:
        found /= torch.from_numpy(examples.count_E)[:, None]
    model.eval()
    return found


def _scores(trained: Trained, logits_EC: Tensor) -> Tensor:
    """Probabilities (E, C) of classes; of a language model the losses as they are."""
    if trained.config.is_language:
        return logits_EC
    return logits_EC.softmax(1) if trained.classes.sets is None else logits_EC.sigmoid()


def _take_weights(model: PackedModel, weights: dict[str, Tensor]) -> None:
    """Put decoded weights (out, in) under the adapters; GPT-2's Conv1D is transposed."""
    layers = dict(model.named_modules())
    for name, weight in weights.items():
        layer: Any = layers[name]
        layer = getattr(layer, "base_layer", layer)
        transposed = type(layer).__name__ == "Conv1D"
        layer.weight.data.copy_(weight.T if transposed else weight)


@step("writing the model")
def _write_whole(exported: _Exported, trained: Trained, folder: Path, dtype: str | None) -> str:
    """Save adapter and base as one model; returns the dtype of its weights."""
    model = unloaded(exported.model.model)
    head = model.get_output_embeddings()
    if head is not None and not torch.equal(head.weight, model.get_input_embeddings().weight):
        model.config.tie_word_embeddings = False  # one of the two was trained alone
    kept = _NAMES[exported.settled.engine.precision]
    model = model.to(getattr(torch, dtype or kept))
    save_base(model, folder)
    complete_model(folder, trained.config)
    return dtype or kept


def _merged_facts(facts: dict[str, Any], drift: dict[str, Any] | None) -> dict[str, Any]:
    """focaltune.json of a model without a base."""
    recipe = dict(facts["recipe"]) | {"tuning": {"method": "full"}}
    recipe["model"] = recipe["model"] | {"dtype": "auto"}
    more = {} if drift is None else {"merge": drift}
    return facts | {"quantization": None, "recipe": recipe} | more


def _copy_adapter(trained: Trained, folder: Path) -> None:
    """Copy a model's files; its adapter names the base where it is now."""
    for path in trained.folder.iterdir():
        if path.name not in (MANIFEST, _CARD):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, folder / path.name)
    settings = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    base = trained.config.model.path
    write_json(folder / _ADAPTER, settings | {"base_model_name_or_path": base})
    facts = dict(trained.facts)
    facts["base"] = facts["base"] | {"path": base}
    write_json(folder / FACTS, facts)


def _asked(
    trained: Trained, settled: RunConfig, folder: Path, pad_id: int | None, dtype: str
) -> dict[str, Any]:
    """What the fresh process loads, and how."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    if not trained.config.is_language:
        settings = {"num_labels": len(trained.classes.names), "pad_token_id": pad_id}
        settings["problem_type"] = trained.classes.problem_type
    is_adapter = (folder / _ADAPTER).is_file()
    way = "adapter" if is_adapter else "pipeline"
    if (folder / "load_classifier.py").is_file():
        way = "loader"
    asked = {
        "folder": str(folder), "way": way, "settings": settings, "dtype": dtype,
        "is_several": trained.classes.sets is not None,
        "model_class": facts["model_class"], "key_mapping": facts["key_mapping"],
        "base": trained.config.model.path, "quantization": None,
        "pooling": facts.get("pooling"),
    }  # fmt: skip
    if is_adapter and facts["quantization"]:
        asked["quantization"] = _quantization(facts, folder, dtype)
    if trained.config.tuning.method == "ptuning":
        asked["batch_size"] = 1  # stock looks for padding among token ids, which it does not get
    return asked


def _quantization(facts: Mapping[str, Any], folder: Path, dtype: str) -> dict[str, Any]:
    """Arguments of transformers' BitsAndBytesConfig."""
    kind = facts["quantization"]["quant_type"]
    whole = json.loads((folder / _ADAPTER).read_text(encoding="utf-8")).get("modules_to_save")
    kept: dict[str, Any] = {"llm_int8_skip_modules": [*(whole or []), "score", "lm_head"]}
    if kind == "int8":
        return kept | {"load_in_8bit": True}
    return kept | {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": facts["quantization"]["double_quant"],
    }
