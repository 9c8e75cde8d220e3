"""Loads the classifier beside this file with transformers (and PEFT, if it is an adapter) alone.

logits = load("FOLDER")(input_ids, attention_mask)   # a row each; padding on the right
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


class Classifier(torch.nn.Module):
    """Scores a pooled state of the backbone."""

    def __init__(self, backbone: Any, pooling: str) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        takes = inspect.signature(backbone.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in takes else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (rows, classes)."""
        states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, **self.options
        ).last_hidden_state
        rows, last = torch.arange(len(states)), attention_mask.sum(1) - 1
        if self.pooling == "mean":
            pooled = (states * attention_mask[..., None]).sum(1) / (last[:, None] + 1)
        else:
            pooled = states[rows, last if self.pooling == "last" else 0]
        trained = next(self.backbone.score.parameters()).dtype
        logits: torch.Tensor = self.backbone.score(pooled.to(trained))
        return logits


def load(folder: str) -> Classifier:
    """The classifier of a folder, in evaluation mode."""
    facts = json.loads((Path(folder) / "focaltune.json").read_text())
    adapter, base = Path(folder) / "adapter_config.json", folder
    if adapter.exists():
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
    config = transformers.AutoConfig.from_pretrained(base).get_text_config()
    backbone = getattr(transformers, facts["model_class"]).from_pretrained(
        base, config=config, key_mapping=facts["key_mapping"]
    )
    backbone.score = torch.nn.Linear(config.hidden_size, len(facts["classes"]), bias=False)
    if adapter.exists():
        from peft import PeftModel

        backbone = PeftModel.from_pretrained(backbone, folder).get_base_model()
    else:
        backbone.score.load_state_dict(load_file(Path(folder) / "score.safetensors"))
    return Classifier(backbone, facts["pooling"]).eval()
