"""Methods of PEFT on tiny models, packed rows against stock code: for tests and `make methods`."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from example_sets import example_set, language_set
from method_cases import model_config
from peft import PeftModel
from strategies import proof_settings
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.batches.batch import collate
from trainer.config.peft_methods import peft_names
from trainer.config.sections import OWN_METHODS, LossSection, TuningSection
from trainer.models.heads import PackedClassifier, PackedLanguageModel
from trainer.models.proof import choose_strategy, use
from trainer.run_folder.model import save_model
from trainer.tuning import add_method
from trainer.tuning.any_peft import unloaded
from trainer.tuning.continued import take_adapter

PEFT_ARGUMENTS: dict[str, dict[str, object]] = {
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 1},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 8},
    "cartridge": {"num_virtual_tokens": 5},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "psoft": {"r": 4},
    "randlora": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": [3, 4, 40, 50, 60]},
    "vblora": {"num_vectors": 16, "vector_length": 8},
    "waveft": {"n_frequency": 100},
}


def peft_overrides(method: str) -> list[str]:
    """For a command line."""
    given = PEFT_ARGUMENTS.get(method, {})
    return [f"tuning.peft.{name}={value}" for name, value in given.items()]


LENGTHS = (37, 5, 90, 64, 30)
ROWS = [np.array([0, 1, 2]), np.array([3, 4])]
CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "instruction": AutoModelForCausalLM,
}
NAMES = [name for name in peft_names() if name not in OWN_METHODS]


def section(name, **more):
    given = {"lora_dropout": 0.0, "lora_r": 4, "peft": PEFT_ARGUMENTS.get(name, {})}
    return TuningSection(method=name, **given | more)


def base_of(family, task):
    torch.manual_seed(0)
    base = CLASSES[task].from_config(model_config(family))
    base.config.pad_token_id = None
    return base


def packed(name, family, task, seed=1, **more):
    base, given = base_of(family, task), section(name, **more)
    torch.manual_seed(seed)
    tuned = add_method(base, given)
    if task == "classification":
        return PackedClassifier(tuned).eval()
    return PackedLanguageModel(tuned, LossSection(backend="reference")).eval()


def records(task):
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, 2048, length).tolist() for length in LENGTHS]
    ids[0][:3] = [3, 40, 50]  # which trainable_tokens trains
    if task == "classification":
        return example_set(ids)
    return language_set(ids, [[True] * len(one) for one in ids])


def prove(model, task):
    settings = replace(proof_settings("segment_sdpa"), is_free=True)
    return choose_strategy(model, model, records(task), settings, torch.device("cpu"))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def scores(model, task):
    """Logits of each function, or the nll of each target."""
    with torch.no_grad():
        found = model(collate(records(task), ROWS))
    return found if task == "classification" else found[:, 0]


def stock_scores(model, task):
    """The same by stock code, one record at a time."""
    examples, found = records(task), []
    for index, length in enumerate(LENGTHS):
        ids = torch.from_numpy(examples.tokens[examples.starts[index] :][:length].astype(np.int64))
        with torch.no_grad():
            given = {"input_ids": ids[None], "attention_mask": torch.ones(1, length)}
            logits = model(**given).logits[0]
        if task == "instruction":
            chances = logits[-length:-1].log_softmax(-1)
            logits = -chances.gather(1, ids[1:, None])[:, 0]
        found.append(logits)
    return torch.cat(found) if task == "instruction" else torch.stack(found)


def step(model, task):
    model.train()
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.01)
    for _ in range(2):
        found = model(collate(records(task), ROWS))
        loss = found.square().sum() if task == "classification" else found[0] / found[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@dataclass(frozen=True)
class Cell:
    """What became of a method on a model.

    Attributes:
        strategy: How packed records are kept apart.
        num_trained: Parameters.
        is_put_back: Whether the proof left every weight as it was.
        moved: Share of the trained parameters that two steps moved; foreign ones raise.
        reload: Largest difference of the scores once another start has taken what was saved.
        stock: To stock PEFT, which loads it over the base and reads one record at a time.
        merged: To the merged model of transformers; None where PEFT does not merge.
    """

    strategy: str
    num_trained: int
    is_put_back: bool
    moved: float
    reload: float
    stock: float
    merged: float | None


def run_cell(name: str, family: str, task: str, folder: Path) -> Cell:
    """Prove, train, save, load again and by stock PEFT, and merge."""
    model = packed(name, family, task)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    strategy = prove(model, task)[-1].split()[1].strip(":")
    is_put_back = all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    step(model, task)
    own = trained(model)
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved <= set(own), moved - set(own)
    weights = {key: p.detach().float() for key, p in own.items()}
    save_model(model.model, weights, folder, {})
    fresh = packed(name, family, task, seed=2)
    take_adapter(fresh.model, folder)
    use(fresh, model.strategy)
    ours = scores(model, task)
    stock = PeftModel.from_pretrained(base_of(family, task), folder).eval()
    differences = [(found - ours).abs().max().item() for found in (
        scores(fresh, task), stock_scores(stock, task)
    )]  # fmt: skip
    assert (ours - scores(packed(name, family, task), task)).abs().max() > 1e-5  # it has learned
    return Cell(
        strategy, sum(p.numel() for p in own.values()), is_put_back, len(moved) / len(own),
        *differences, _merged(model, task, ours),
    )  # fmt: skip


def _merged(model: PackedClassifier | PackedLanguageModel, task: str, ours: Tensor) -> float | None:
    use(model, model.stock)
    try:
        model.model.merge_adapter()
        found = stock_scores(unloaded(model.model), task)
    except (AttributeError, NotImplementedError, ValueError):
        return None
    return (found - ours).abs().max().item()
