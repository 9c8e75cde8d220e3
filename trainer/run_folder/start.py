"""RUN/start: how a run's LoRA begins, drawn once and read by every rank and every continuation."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.batches.batch import Batch, collate
from data.errors import json_object
from data.text.labels import Classes
from data.text.tokenization import ExampleSet
from trainer.config.methods import OF_DATA, start_of
from trainer.config.sections import RunConfig
from trainer.errors import ModelError
from trainer.losses.tasks import TASKS
from trainer.models.files import base_digest
from trainer.models.heads import PackedClassifier, PackedLanguageModel, PackedModel
from trainer.models.load import load_base
from trainer.models.quantized import decoded_weight, quantized_layers
from trainer.run_folder.folder import START, built, verify, write_json
from trainer.tuning.plain import PlainModel
from trainer.tuning.starts import Passes, draw_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS, _FACTS = "start.safetensors", "start.json"
_MOST_RECORDS = 256  # of the training split, for starts that look at it
_SIZES_OF_BASE = 4  # corda keeps covariances of twice the weights (PEFT's preprocess_corda)
_REMEDY = "remove it, and the same command draws it again"


def read_start(run: Path) -> dict[str, Tensor]:
    """Path of a layer + ".A" or ".B" -> what its adapter begins with.

    Raises:
        ModelError: The file is missing or damaged.
    """
    verify(run / START, _REMEDY)
    return load_file(run / START / _WEIGHTS)


def start_lines(config: RunConfig) -> list[str]:
    """Says how adapters begin, and what that was drawn from."""
    start = start_of(config.tuning)
    if start is None:
        return []
    facts = json_object(config.output_dir / START / _FACTS, ModelError, _REMEDY)
    drawn, (low, high) = "", facts["ranks"]
    if start in OF_DATA:
        drawn = f", from {facts['records']:,} records ({facts['tokens']:,} tokens) of training"
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return [f"  start      {start}{drawn}, {ranks}: kept in {config.output_dir / START}"]


def write_start(
    config: RunConfig,
    classes: Classes,
    examples: ExampleSet,
    device: torch.device,
    quantised: "Callable[[], PreTrainedModel]",
) -> None:
    """Draw how adapters begin, where the recipe names a start; one that lies there is kept.

    Args:
        config: A settled recipe.
        classes: Of a classifier.
        examples: The training split, of which run.seed draws records.
        device: Where the base runs, if it fits there.
        quantised: Loads the base as it is trained.

    Raises:
        ModelError: The base does not load, or a layer has no such start.
    """
    start, folder = start_of(config.tuning), config.output_dir / START
    if start is None:
        return
    records_N = _records(examples, config) if start in OF_DATA else np.zeros(0, np.int64)
    wanted = _drawn_from(config, examples.subset(records_N) if len(records_N) else None)
    if folder.exists():
        verify(folder, _REMEDY)
        found = json_object(folder / _FACTS, ModelError, _REMEDY)
        if {key: found.get(key) for key in wanted} == wanted:
            return
    base = load_base(config, classes)
    if len(records_N) and _fits(base, device):
        base = base.to(device)
    trained = quantised() if start == "loftq" else None

    def decoded(path: str) -> Tensor | None:
        layer = None if trained is None else quantized_layers(trained).get(path)
        return None if layer is None else decoded_weight(layer)

    passes = _passes(base, config, examples, records_N, decoded)
    tensors = {
        name: value.cpu().contiguous()
        for name, value in draw_start(base, config.tuning, passes).items()
    }
    ranks = [len(value) for name, value in tensors.items() if name.endswith(".A")]
    tokens = int(examples.lengths[records_N].sum())
    found = {"records": len(records_N), "tokens": tokens, "ranks": [min(ranks), max(ranks)]}
    with built(folder) as building:
        save_file(tensors, building / _WEIGHTS, metadata={"format": "pt"})
        write_json(building / _FACTS, wanted | found)


def _records(examples: ExampleSet, config: RunConfig) -> npt.NDArray[np.int64]:
    return np.random.default_rng(config.run.seed).permutation(len(examples))[:_MOST_RECORDS]


def _drawn_from(config: RunConfig, records: ExampleSet | None) -> dict[str, Any]:
    """What a start depends on."""
    sample = hashlib.sha256()
    if records is not None:
        for array in (records.tokens, records.label_E, records.supervised):
            sample.update(b"" if array is None else array.tobytes())
    return {
        "base": base_digest(config.model, config.run.seed),
        "task": config.task.name,
        "loss": config.loss.model_dump(mode="json"),
        "tuning": config.tuning.model_dump(mode="json"),
        "sample": sample.hexdigest(),
    }


def _passes(
    base: "PreTrainedModel",
    config: RunConfig,
    examples: ExampleSet,
    records_N: npt.NDArray[np.int64],
    decoded: Callable[[str], Tensor | None],
) -> Passes:
    """Passes over these records, each in a row of its own, by the task's own loss."""
    model: PackedModel
    tuned, detach_modulator = PlainModel(base), config.replication.detach_modulator
    if config.is_language:
        model = PackedLanguageModel(tuned, config.loss, detach_modulator)
    else:
        model = PackedClassifier(tuned)
    device = next(base.parameters()).device
    task = TASKS[config.task.name](config.loss, device, detach_modulator, examples)

    def batches() -> Iterator[Batch]:
        for record in records_N:
            yield collate(examples, [np.array([record])]).to(device)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            for batch in batches():
                model(batch)

    def backward() -> None:
        model.train()
        base.eval()  # without its dropout
        for batch in batches():
            loss = task.loss_sum(model, batch)
            torch.autograd.backward(loss.sum / loss.count.clamp(min=1))

    return Passes(forward, backward, decoded)


def _fits(base: "PreTrainedModel", device: torch.device) -> bool:
    """Whether a GPU has room for weights, their gradients or covariances, and a record's states."""
    if device.type != "cuda":
        return False
    held = sum(one.numel() * one.element_size() for one in base.parameters())
    free = torch.cuda.mem_get_info(device)[0]
    return bool(free > _SIZES_OF_BASE * held)
