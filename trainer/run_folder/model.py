"""Saves a trained model as a folder of its own: weights, head, tokenizer and focaltune.json.

Weights are in the open layout of each method. LoRA, IA3 and P-Tuning: PEFT's. Bottleneck adapters:
see trainer/tuning/bottleneck.py. Full fine-tuning: a plain transformers folder.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.prepared.prepare import Prepared
from data.prepared.stock_tokenizer import TOKENIZER_FILES
from data.text.tokenizer import special_tokens
from trainer.architectures.classes import head_modules
from trainer.config.methods import as_plain, start_of, takes_part_of_base
from trainer.config.recipe import without_paths
from trainer.config.sections import ModelSection, RunConfig, TuningSection
from trainer.engine.state import TrainState
from trainer.models.files import base_digest, read_config, text_values
from trainer.run_folder.folder import BASE, FACTS, MODEL_FORMAT, built, write_json
from trainer.run_folder.start import read_start
from trainer.tuning.any_peft import is_any, names_of
from trainer.tuning.bottleneck import BottleneckModel
from trainer.tuning.peft_layers import add_own_head
from trainer.tuning.plain import LOADER, PlainModel, is_backbone
from trainer.tuning.ptuning import is_prompted, save_prompt
from trainer.tuning.starts import started

if TYPE_CHECKING:
    from peft import PeftModel

_WRAPPER = "model."  # PackedClassifier.model
_OF_TRAIN = ("tokens", "kinds", "num_thinking")  # of data.json, what is needed without the data


def save_model(
    model: "PeftModel | PlainModel",
    weights: Mapping[str, Tensor],
    folder: Path,
    facts: Mapping[str, Any],
    config: RunConfig | None = None,
) -> None:
    """Write the method's files, the tokenizer, focaltune.json and a manifest, all or nothing.

    Args:
        model: Decides layout and dtype; its values are not read, so they may be sharded.
        weights: fp32, by the engine's parameter names, from a checkpoint or gathered_state.
        folder: An existing one is replaced.
        facts: From `model_facts`.
        config: The recipe, whose tokenizer and, for a whole model, settings go with the weights.
    """
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    state = {name: weights[_WRAPPER + name].to(dtype) for name, dtype in dtypes.items()}
    if is_any(model) and not is_prompted(model):
        # What a method draws once belongs to its adapter; what layers share has several names.
        names = names_of(model)
        own = {alias: value for name, value in state.items() for alias in names[name]}
        state = model.state_dict() | own
    with built(folder) as building:
        if isinstance(model, PlainModel):
            model.save(building, state)
        elif is_prompted(model):
            save_prompt(model, building, state)
        else:
            # Embeddings are not adapted; PEFT would look for the base's config.json to find out.
            model.save_pretrained(
                str(building),
                state_dict=state,
                safe_serialization=True,
                save_embedding_layers=False,
            )
            if config is not None and start_of(config.tuning) is not None:
                tuning = started(config.tuning, read_start(config.output_dir))
                plain = as_plain(tuning)
                if takes_part_of_base(tuning):
                    _put_on_whole_base(building, weights, plain)
                facts = _with_tuning(facts, plain)
            add_own_head(model, building, state)
            (building / "README.md").unlink(missing_ok=True)  # an empty form for a model hub
        if config is not None:
            complete_model(building, config)
        is_stock = not isinstance(model, BottleneckModel) and not is_prompted(model)
        write_facts(model.get_base_model(), building, facts, with_loader=is_stock)


def _put_on_whole_base(folder: Path, weights: Mapping[str, Tensor], plain: TuningSection) -> None:
    """Make an adapter that begins with a part of the base plain LoRA on the base as it is.

    W - s B0 A0 + s B A is W + s [B, -B0] [A; A0].

    Args:
        folder: From PEFT's save_pretrained.
        plain: From `as_plain`.
    """
    path, tensors = folder / "adapter_model.safetensors", {}
    for name, value in load_file(path).items():
        layer, _, side = name.rpartition(".lora_")
        if side not in ("A.weight", "B.weight"):
            tensors[name] = value
            continue
        start = weights[f"{_WRAPPER}{layer}.start_{side[0]}"].to(value.dtype)
        parts = [value, start] if side[0] == "A" else [value, -start]
        tensors[name] = torch.cat(parts, "AB".index(side[0]))
    save_file(tensors, path, metadata={"format": "pt"})
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings |= {"r": plain.lora_r, "lora_alpha": plain.lora_alpha, "init_lora_weights": True}
    settings |= {key: plain.peft.get(key, {}) for key in ("rank_pattern", "alpha_pattern")}
    write_json(folder / "adapter_config.json", settings)


def _with_tuning(facts: Mapping[str, Any], plain: TuningSection) -> dict[str, Any]:
    """The facts with the recipe of what is saved, which began otherwise."""
    keys = ("lora_r", "lora_alpha", "peft", "target_modules")
    changed = {key: getattr(plain, key) for key in keys}
    tuning = facts["recipe"]["tuning"] | changed
    return {**facts, "recipe": facts["recipe"] | {"tuning": tuning}}


def write_facts(
    base: Any, folder: Path, facts: Mapping[str, Any], *, with_loader: bool = True
) -> None:
    """Write focaltune.json: facts, how transformers loads the base, which states a head scores.

    Args:
        folder: Of a whole model, or of an adapter.
        with_loader: Where transformers has no class with this head, write the code that loads it.
    """
    is_whole = not (folder / "adapter_config.json").is_file()
    names = {} if is_whole else getattr(base, "key_mapping", {})  # of the base's files
    more = {"model_class": type(base).__name__, "key_mapping": names}
    if head_modules(base):
        more["pooling"] = getattr(base, "pooling", "last")
    write_json(folder / FACTS, {**facts, **more})
    if with_loader and is_backbone(base):
        shutil.copyfile(LOADER, folder / LOADER.name)


def complete_model(folder: Path, config: RunConfig) -> None:
    """Give a saved model its tokenizer, and a whole one what stock tools expect of its base.

    Training clears pad_token_id (trainer/models/load.py); without it stock tools score one text at
    a time. The tokenizer's own pad token is used where the base names none.
    """
    tokenizer = config.tokenizer_folder
    copied = [(tokenizer, path) for p in TOKENIZER_FILES for path in tokenizer.glob(p)]
    if (folder / "config.json").is_file():
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pad_id = text_values(read_config(config.model)).get("pad_token_id")
        settings["pad_token_id"] = _pad_id(tokenizer) if pad_id is None else pad_id
        write_json(folder / "config.json", settings)
        copied.append((config.model_folder, config.model_folder / "generation_config.json"))
    for source, path in copied:
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _pad_id(folder: Path) -> int | None:
    """Id of the tokenizer's pad token; None where there is none or it ends texts, too."""
    from tokenizers import Tokenizer

    named = special_tokens(folder)
    pad = named.get("pad_token")
    if pad is None or pad == named.get("eos_token"):
        return None
    found: int | None = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(pad)
    return found


def model_facts(
    config: RunConfig,
    prepared: Prepared,
    state: TrainState,
    best: Mapping[str, Any],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of focaltune.json: all that a user of the model needs but weights and base.

    Args:
        config: The recipe; it is kept without the paths of this machine, but for the base's.
        prepared: Its data.
        state: Of the best validation.
        best: What that measured.
        report: Of the test split.
    """
    tuning, data, classes = config.tuning, config.data, prepared.classes
    quantised = {"quant_type": tuning.base_quant_type, "double_quant": tuning.double_quant}
    train = prepared.facts["splits"]["train"]
    task_facts: dict[str, Any] = {
        "classes": list(classes.names),
        "problem_type": classes.problem_type,
        "decision": {"threshold": state.threshold, **state.decision},
        "normalize_whitespace": data.normalize_whitespace,
        "window_score": config.eval.window_score,
    }
    if config.is_language:
        task_facts = {"template": data.template, "kinds": train["kinds"]}
    return {
        "format": MODEL_FORMAT,
        "task": config.task.name,
        **task_facts,
        "begin_token": prepared.tokenizer.begin_token,
        "end_token": prepared.tokenizer.end_token,
        "seq_length": data.seq_length,
        "long_functions": data.long_functions,
        "window_overlap": data.window_overlap,
        "step": state.best_step,
        **best,
        "test": {"population": report["population"], **report["predictors"]["model"]},
        "base": _base_facts(config),
        "base_sha256": base_digest(config.model, config.run.seed),
        "quantization": quantised if tuning.base_quant_type else None,
        "data": {
            "sha256": prepared.digests,
            "held_out": prepared.facts.get("held_out", {}),
            "classes": classes.to_json(),
            "splits": {"train": {key: train[key] for key in _OF_TRAIN if key in train}},
            "languages": {} if config.is_language else _languages(prepared),
        },
        "recipe": without_paths(config),
    }


def _languages(prepared: Prepared) -> dict[str, int]:
    """Training functions of each language that the data names."""
    counts = prepared.splits["train"].samples.column("language").value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in counts if one["values"]}


def _base_facts(config: RunConfig) -> dict[str, str]:
    """Name, place and digest of the base; one of random weights is in the run folder."""
    folder = Path(config.model.path or config.output_dir / BASE)
    digest = base_digest(ModelSection(path=str(folder)), config.run.seed)
    return {"name": config.model_folder.name, "path": str(folder), "sha256": digest}
