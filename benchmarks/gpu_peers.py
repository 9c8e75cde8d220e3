"""Others in the GPU campaign: tokens/s and peak of a LoRA on the same shape, texts and steps.

    python benchmarks/gpu_peers.py PEER --model CONFIG [--device cpu] [--quantised] [--steps N]

PEER is trainer (transformers' Trainer + PEFT, padded), trl (its packing), liger (the same with its
kernels) or unsloth. The last line is JSON; a peer that is not installed is recorded as absent.
Weights are random, in the precision of the device; a base to quantise goes through --folder.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.runs import QUICKSTART, SAMPLES
from benchmarks.trainers import pad_id, row_of, sft, tokenizer_of

NEEDS = {"trainer": "transformers", "trl": "trl", "liger": "liger_kernel", "unsloth": "unsloth"}
RANK, ROWS, ACCUMULATION = 16, 4, 8  # LoRA's; of a micro-batch; micro-batches of a step
_WARM_STEPS = 2
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measure(peer: str, given: argparse.Namespace) -> dict[str, Any]:
    """Real tokens a second after the first steps, peak GiB, share of padding, and the losses."""
    if find_spec(NEEDS[peer]) is None:
        return {"absent": f"{NEEDS[peer]} is not installed"}
    import torch

    device = torch.device(given.device)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of names that change
        data = _data(given, Path(folder))
        model = _model(peer, given, device, Path(folder))
        model.config.pad_token_id = pad_id(data)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = _steps(peer, model, data, given, Path(folder))
        if device.type == "cuda":
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _data(given: argparse.Namespace, folder: Path) -> Any:
    """The examples that our own run of these texts trains on, with its settings."""
    from trainer.config.recipe import load_run_config
    from trainer.run.preparation import prepare_run

    keys = [
        "model.path=null", f"model.config={given.model}", "task.name=instruction",
        f"data.path={SAMPLES / 'instructions'}", f"data.tokenizer={SAMPLES / 'model'}",
        f"data.seq_length={given.seq_length}", f"data.cache_dir={folder / 'cache'}",
        f"run.output_dir={folder / 'run'}",
    ]  # fmt: skip
    config = load_run_config(QUICKSTART, keys)
    examples = prepare_run(config).splits["train"].examples
    return SimpleNamespace(config=config, loader=SimpleNamespace(examples=examples))


def _precision(device: Any) -> Any:
    import torch

    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _model(peer: str, given: argparse.Namespace, device: Any, folder: Path) -> Any:
    """The base of random weights under LoRA on every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    dtype = _precision(device)
    settings = AutoConfig.from_pretrained(given.model, local_files_only=True)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    if peer == "unsloth":
        return _unsloth(base, given, dtype, folder)
    if given.quantised:
        base.save_pretrained(folder / "base")
        del base
        base = AutoModelForCausalLM.from_pretrained(
            folder / "base", local_files_only=True, dtype=dtype, attn_implementation="sdpa",
            device_map={"": device},
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
        )  # fmt: skip
        base = prepare_model_for_kbit_training(base)
    elif device.type == "cuda":
        base.enable_input_require_grads()  # recomputation needs a gradient at its input
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(base, lora)


def _unsloth(base: Any, given: argparse.Namespace, dtype: Any, folder: Path) -> Any:
    """Unsloth's own loader wants a folder with a tokenizer."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]

    base.save_pretrained(folder / "base")
    del base
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / name).write_bytes((SAMPLES / "model" / name).read_bytes())
    model, _ = FastLanguageModel.from_pretrained(
        str(folder / "base"), max_seq_length=given.seq_length, dtype=dtype,
        load_in_4bit=given.quantised, local_files_only=True,
    )  # fmt: skip
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=_TARGETS,
        use_gradient_checkpointing=True,
    )  # fmt: skip


def _steps(
    peer: str, model: Any, data: Any, given: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """By the trainer's own train(), between the steps that its callbacks see."""
    import torch
    from transformers import TrainerCallback

    is_gpu = given.device == "cuda"
    dtype = _precision(torch.device(given.device))
    arguments = {
        "output_dir": str(folder / "theirs"), "max_steps": given.steps, "report_to": "none",
        "per_device_train_batch_size": given.rows, "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "save_strategy": "no",
        "use_cpu": not is_gpu, "disable_tqdm": True, "logging_steps": 1, "weight_decay": 0.0,
        "remove_unused_columns": False, "gradient_checkpointing": is_gpu,
        "bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16,
        "use_liger_kernel": peer == "liger",
    }  # fmt: skip
    examples = data.loader.examples
    rows = [row_of(examples, number) for number in range(len(examples))]
    packs = peer != "trainer"
    if packs:
        way = "bfd" if find_spec("flash_attn") else "wrapped"  # bfd keeps texts apart
        arguments |= {"packing": True, "packing_strategy": way}
    trainer = (sft if packs else _padded)(model, arguments, rows, data)
    counted = {"tokens": 0, "places": 0, "before": 0, "started": 0.0, "seconds": 0.0}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if is_gpu:
                torch.cuda.synchronize()
            if state.global_step == _WARM_STEPS:
                counted["started"], counted["before"] = time.perf_counter(), counted["tokens"]
            counted["seconds"] = time.perf_counter() - counted["started"]

    collate = trainer.data_collator

    def counting(chosen: Any) -> Any:
        batch = collate(chosen)
        counted["tokens"] += sum(len(row["input_ids"]) for row in chosen)
        counted["places"] += batch["input_ids"].numel()
        return batch

    trainer.data_collator = counting
    trainer.add_callback(Clock())
    model.train()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "tokens_per_second": (counted["tokens"] - counted["before"]) / counted["seconds"],
        "padding": 1 - counted["tokens"] / counted["places"],
        "steps": given.steps,
        "losses": losses,
        "packing": arguments.get("packing_strategy", "none"),
    }


def _padded(model: Any, arguments: dict[str, Any], rows: list[Any], data: Any) -> Any:
    """Rows as long as the longest text in them."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    return Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer_of(data)),
    )


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=list(NEEDS))
    parser.add_argument("--model", required=True, help="config.json of the shape")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quantised", action="store_true", help="the base in nf4")
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", help="on a disk with room for the base")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read = parsed(sys.argv[1:])
    print(json.dumps(measure(read.peer, read)))
