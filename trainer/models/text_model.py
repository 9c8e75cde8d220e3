"""The text model of a multimodal checkpoint, which is trained without the other parts."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trainer.config.sections import ModelSection
from trainer.models.files import config_values, text_values
from trainer.models.weights import tensor_names, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_prefix(tensors: Iterable[str], skeleton: "PreTrainedModel") -> str:
    """What the names of a text model's tensors begin with in the files of the whole model.

    Returns:
        E.g. "language_model.model."; "" where no tensor is one of the text model's.
    """
    own = {name for name, _ in skeleton.base_model.named_parameters()}
    found: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in own:
                found["".join(f"{part}." for part in parts[:cut])] += 1
    return found.most_common(1)[0][0] if found else ""


def text_names(tensors: Iterable[str], skeleton: "PreTrainedModel") -> dict[str, str]:
    """Patterns of names in the files -> names in the text model, for from_pretrained."""
    tensors = list(tensors)
    prefix = text_prefix(tensors, skeleton)
    backbone = "" if skeleton.base_model is skeleton else f"{skeleton.base_model_prefix}."
    names = {f"^{re.escape(prefix)}": backbone} if prefix not in ("", backbone) else {}
    for name in tensors:
        before, found, _ = name.rpartition("lm_head.")
        if found and before:
            names[f"^{re.escape(name)}$"] = "lm_head." + name.rpartition(".")[2]
    return names


def text_model_line(model: ModelSection, base: "PreTrainedModel") -> str | None:
    """Says that a multimodal base trains as its text model, and what of its files is left out."""
    values = config_values(model.config_file)
    text = text_values(values)
    if text is values:
        return None
    line = f"the text model {text.get('model_type')} of a {values.get('model_type')} alone"
    if model.config:
        return line
    names = tensor_names(weight_files(model.config_file.parent))
    prefix = text_prefix(names, base)
    others = [n for n in names if not n.startswith(prefix) and "lm_head" not in n.split(".")]
    parts = sorted({name.removeprefix("model.").split(".")[0] for name in others})
    return f"{line}; {len(others)} of {len(names)} tensors are left out ({', '.join(parts)})"
