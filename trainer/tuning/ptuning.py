"""Virtual tokens through PEFT: trained embeddings, or keys and values, before every function.

P-Tuning (Liu et al. 2021): in training an embedding and an MLP make the tokens. PEFT's layout keeps
the tokens, which is enough for scoring; what makes them is saved beside it, for tuning.init_from.
Prompt tuning (Lester et al. 2021) trains the embeddings themselves, prefix tuning (Li and Liang
2021) and cartridges the keys and values of every layer.

B rows, P virtual tokens, D hidden
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.config.methods import PREFIXES, adapter_size
from trainer.config.sections import TuningSection
from trainer.tuning.layers import task_type, trained_whole, with_peft

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ENCODER_FILE = "prompt_encoder.safetensors"
_ENCODER = "prompt_encoder.default."
_KEPT = ".modules_to_save.default"


def add_prompt(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base, train virtual tokens through an MLP as wide as the model, and the head."""
    from peft import PromptEncoderConfig

    embeddings: Any = base.get_input_embeddings()
    settings = PromptEncoderConfig(
        task_type=task_type(base),
        num_virtual_tokens=adapter_size(tuning),
        encoder_hidden_size=embeddings.weight.shape[1],
        modules_to_save=trained_whole(base, tuning),
    )
    return with_peft(base, settings)


def virtual_tokens(model: nn.Module) -> Tensor | None:
    """The embeddings (1, P, D) before every function; None for other methods."""
    prompted: Any = model
    return prompted.get_prompt(1) if is_prompted(model) and not is_prefixed(model) else None


def prefix(model: nn.Module, num_texts: int) -> dict[str, Any]:
    """What a forward pass of texts gets before their tokens: a cache; {} for other methods."""
    prefixed: Any = model
    return {"past_key_values": prefixed.get_prompt(num_texts)} if is_prefixed(model) else {}


def num_virtual(model: nn.Module) -> int:
    """Virtual tokens before every function; 0 for other methods."""
    return int(_settings(model).num_virtual_tokens) if is_prompted(model) else 0


def is_prefixed(model: nn.Module) -> bool:
    """Whether virtual tokens are keys and values of every layer, not embeddings."""
    return is_prompted(model) and _settings(model).peft_type.value.lower() in PREFIXES


def is_prompted(model: nn.Module) -> bool:
    """Whether a model has virtual tokens."""
    settings = _settings(model)
    return settings is not None and bool(settings.is_prompt_learning)


def _settings(model: nn.Module) -> Any:
    """PEFT's, of the adapter; None of a model without."""
    return getattr(model, "peft_config", {}).get("default")


def save_prompt(model: "PeftModel", folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write PEFT's layout and the encoder beside it, into a new folder.

    The weights come from `state`, by their names in the model: PEFT itself would read the virtual
    tokens from the live model, which ZeRO-3 has sharded.
    """
    from safetensors.torch import save_file

    encoder = {n.removeprefix(_ENCODER): v for n, v in state.items() if n.startswith(_ENCODER)}
    whole = {n.replace(_KEPT, ""): v for n, v in state.items() if not n.startswith(_ENCODER)}
    settings = model.peft_config["default"]
    base = model.get_base_model()
    folder.mkdir(parents=True, exist_ok=True)
    replace(
        settings, inference_mode=True, base_model_name_or_path=base.name_or_path
    ).save_pretrained(str(folder))
    whole["prompt_embeddings"] = _encoded(encoder)
    for name, tensors in (("adapter_model.safetensors", whole), (ENCODER_FILE, encoder)):
        save_file(tensors, folder / name, metadata={"format": "pt"})


def _encoded(encoder: Mapping[str, Tensor]) -> Tensor:
    """The encoder's virtual tokens (P, D): its only weight, or P-Tuning's three linear layers."""
    if len(encoder) == 1:
        return next(iter(encoder.values()))
    hidden_PD = encoder["embedding.weight"]
    for layer in (0, 2, 4):
        hidden_PD = nn.functional.linear(
            hidden_PD if layer == 0 else torch.relu(hidden_PD),
            encoder[f"mlp_head.{layer}.weight"],
            encoder[f"mlp_head.{layer}.bias"],
        )
    return hidden_PD
