"""LLaMA-Factory's supervised training with neat_packing, in its own Python, for trainers.py.

    PYTHON -I benchmarks/llama_factory.py REQUEST RESULT

REQUEST: JSON of arguments (of its run_exp), rows (input_ids, labels) and warm_steps. Its own packer
packs the rows as token ids, its own loop trains. RESULT: JSON of CPU seconds and real tokens after
warm_steps, the loss of the first row before training, and what a changed record does to logits of
the records that share its row (neighbour; 0 is isolated) and to its own (own).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def pack(arguments: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write arguments["tokenized_path"], by its packer in its batches."""
    from datasets import Dataset
    from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    class OfIds(PackedSupervisedDatasetProcessor):  # type: ignore[misc]
        """Ids stand where it has messages, so that nothing is tokenized again."""

        def _encode_data_example(self, prompt: Any, response: Any, **_: Any) -> Any:
            return prompt[0], response[0]

    data = DataArguments(neat_packing=True, cutoff_len=arguments["cutoff_len"])
    tokenizer = AutoTokenizer.from_pretrained(arguments["model_name_or_path"])
    packer = OfIds(template=None, tokenizer=tokenizer, processor=None, data_args=data)
    packed: dict[str, list[Any]] = {}
    for start in range(0, len(rows), data.preprocessing_batch_size):
        part = rows[start : start + data.preprocessing_batch_size]
        unused = ("_system", "_tools", "_images", "_videos", "_audios")
        given: dict[str, list[Any]] = {name: [None] * len(part) for name in unused}
        given["_prompt"] = [[row["input_ids"]] for row in part]
        given["_response"] = [[row["labels"]] for row in part]
        for name, values in packer.preprocess_dataset(given).items():
            packed.setdefault(name, []).extend(values)
    Dataset.from_dict(packed).save_to_disk(arguments["tokenized_path"])


def first_loss(model: Any, row: dict[str, Any]) -> float:
    """Loss of one record alone."""
    import torch

    return float(model(**{name: torch.tensor([ids]) for name, ids in row.items()}).loss)


def isolation(model: Any, loader: Any) -> dict[str, float]:
    """Largest changes of logits when all tokens of the first record of a packed row change."""
    packed = next(r for r in loader.dataset if len(r["packing_params"]["sequence_boundaries"]) > 3)
    _, first, *_ = packed["packing_params"]["sequence_boundaries"]
    num_tokens = sum(place > 0 for place in packed["attention_mask"])
    batch = loader.collate_fn([packed])
    batch.pop("labels")
    before = model(**batch).logits[0, :num_tokens]
    batch["input_ids"][0, :first] = (batch["input_ids"][0, :first] + 1) % before.shape[-1]
    change = (model(**batch).logits[0, :num_tokens] - before).abs()
    return {"own": float(change[:first].max()), "neighbour": float(change[first:].max())}


def train(arguments: dict[str, Any], row: dict[str, Any], warm_steps: int) -> dict[str, Any]:
    """By its run_exp(): process time between callbacks, real tokens of its collator."""
    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    found: dict[str, Any] = {"tokens": 0, "seconds": 0.0}
    started = {"tokens": 0, "seconds": 0.0}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **has: Any) -> None:
            model, loader = has["model"].eval(), has["train_dataloader"]
            with torch.no_grad():
                found.update(loss=first_loss(model, row), **isolation(model, loader))
            model.train()
            collate = loader.collate_fn

            def counting(rows: Any) -> Any:
                found["tokens"] += sum(place > 0 for r in rows for place in r["attention_mask"])
                return collate(rows)

            loader.base_dataloader.collate_fn = counting

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found["seconds"] = time.process_time()
            if state.global_step == warm_steps:
                started.update(tokens=found["tokens"], seconds=found["seconds"])

    run_exp(arguments, [Clock()])
    return found | {name: found[name] - started[name] for name in started}


def main(request: str, result: str) -> int:
    """Pack, train, write the result."""
    asked = json.loads(Path(request).read_text())
    pack(asked["arguments"], asked["rows"])
    found = train(asked["arguments"], asked["rows"][0], asked["warm_steps"])
    Path(result).write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
