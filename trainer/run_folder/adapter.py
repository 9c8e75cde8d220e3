"""Saves the trained weights, head included, in the open layout of each method.

LoRA, IA3 and P-Tuning: PEFT's layout. Bottleneck adapters: see trainer/tuning/bottleneck.py. Full
fine-tuning: a plain transformers folder. Each holds focaltune.json too.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from data.prepared.prepare import Prepared
from data.text.tokenizer import special_tokens
from trainer.config.sections import RunConfig
from trainer.engine.state import TrainState
from trainer.models.files import base_digest, read_config, text_values
from trainer.models.load import CLASSES
from trainer.run_folder.folder import built, write_json
from trainer.tuning.layers import has_head
from trainer.tuning.peft_layers import add_frozen_head
from trainer.tuning.plain import LOADER, PlainModel, is_backbone
from trainer.tuning.ptuning import is_prompted, save_prompt

if TYPE_CHECKING:
    from peft import PeftModel

_WRAPPER = "model."  # PackedClassifier.model
FACTS = "focaltune.json"
_OF_TOKENIZER = (  # as tokenizers of transformers name their files
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
    "merges.txt", "*.model", "*.tiktoken",
)  # fmt: skip


def save_adapter(
    model: "PeftModel | PlainModel",
    weights: Mapping[str, Tensor],
    folder: Path,
    facts: Mapping[str, Any],
    config: RunConfig | None = None,
) -> None:
    """Write the method's files, focaltune.json and a manifest, whole or not at all.

    Args:
        model: Decides layout and dtype; its values are not read, so they may be sharded.
        weights: fp32, by the engine's parameter names, from gather_state or a checkpoint.
        folder: An existing one is replaced.
        facts: How inputs were made, and the threshold of the scores.
        config: The recipe, for a folder that is a model by itself.
    """
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    state = {name: weights[_WRAPPER + name].to(dtype) for name, dtype in dtypes.items()}
    with built(folder) as building:
        if isinstance(model, PlainModel):
            model.save(building, state)
            if config is not None and config.tuning.method == "full":
                complete_model(building, config)
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
            add_frozen_head(model, building)
            if is_backbone(model.get_base_model()):
                shutil.copyfile(LOADER, building / LOADER.name)
            (building / "README.md").unlink(missing_ok=True)  # an empty form for a model hub
        write_json(building / FACTS, {**facts, **class_facts(model.get_base_model())})


def class_facts(base: Any) -> dict[str, Any]:
    """How transformers loads a base and, of a classifier, which states it scores."""
    names = getattr(base, "key_mapping", {})
    facts = {"model_class": type(base).__name__, "key_mapping": names}
    return facts | ({"pooling": getattr(base, "pooling", "last")} if has_head(base) else {})


def complete_model(folder: Path, config: RunConfig) -> None:
    """Make a saved model what stock tools expect of its base: pad token, tokenizer, generation.

    Training clears pad_token_id (trainer/models/load.py); without it stock tools score one text at
    a time. The tokenizer's own pad token is used where the base names none.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pad_id = text_values(read_config(config.model)).get("pad_token_id")
    settings["pad_token_id"] = _pad_id(config.tokenizer_folder) if pad_id is None else pad_id
    write_json(folder / "config.json", settings)
    copied = [path for p in _OF_TOKENIZER for path in config.tokenizer_folder.glob(p)]
    copied.append(config.model_folder / "generation_config.json")
    for path in copied:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def _pad_id(folder: Path) -> int | None:
    """Id of the tokenizer's pad token; None where there is none or it ends texts, too."""
    from tokenizers import Tokenizer

    named = special_tokens(folder)
    pad = named.get("pad_token")
    if pad is None or pad == named.get("eos_token"):
        return None
    found: int | None = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(pad)
    return found


def adapter_facts(config: RunConfig, prepared: Prepared, state: TrainState) -> dict[str, Any]:
    """The content of focaltune.json: what a user of the adapter needs for the same scores.

    `state` is that of the best validation.
    """
    tuning, data = config.tuning, config.data
    quantised = {"quant_type": tuning.base_quant_type, "double_quant": tuning.double_quant}
    task_facts: dict[str, Any] = {
        "classes": list(CLASSES),
        "normalize_whitespace": data.normalize_whitespace,
        "threshold": state.threshold,
        "valid_roc_auc": state.best_score,
    }
    if config.is_language:
        task_facts = {
            "template": data.template,
            "kinds": prepared.facts["splits"]["train"]["kinds"],
            "valid_loss": None if state.best_score is None else -state.best_score,
        }
    return {
        "task": config.task.name,
        **task_facts,
        "begin_token": prepared.tokenizer.begin_token,
        "end_token": prepared.tokenizer.end_token,
        "seq_length": data.seq_length,
        "step": state.best_step,
        "base_sha256": base_digest(config.model, config.run.seed),
        "quantization": quantised if tuning.base_quant_type else None,
    }
