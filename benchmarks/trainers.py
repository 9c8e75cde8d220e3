"""CPU time of a real token in a training step: ours, transformers' Trainer, TRL, LLaMA-Factory.

    OMP_NUM_THREADS=1 python benchmarks/trainers.py --data ARCHIVE --tokenizer FOLDER \\
        --instructions FOLDER [--peers FOLDER] [--llama-factory PYTHON] [--only TEXT] \\
        [--against TEXT] [--steps N] [--json FILE]

Every contender trains the same LoRA on the same random base and tokens, in a process of its own, by
the trainer's own loop with about 8,192 real tokens a step; the first two steps are not counted.
Losses of one batch before training are compared with ours first. Ratios are ours / theirs: below 1
ours is cheaper. --peers is where `pip install --no-deps --target FOLDER trl` put TRL;
--llama-factory is the Python of an environment that has LLaMA-Factory. Batches grouped by length
are long ones first and cost otherwise later: only a whole epoch (--steps) is fair to them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import markdown
from benchmarks.runs import BIG_CODE, on_forked_ranks, overrides_of, write_model

if TYPE_CHECKING:
    from data.text.tokenization import ExampleSet
    from trainer.run.session import Run

OURS = "ours, packed"
LLAMA_FACTORY = "LLaMA-Factory, neat_packing"
TOKENS_A_BATCH, ACCUMULATION = 2048, 4
WIDTH, LAYERS = 384, 4
_WARM_STEPS = 2
_RATE = 1e-4
# Keys of the Trainer, or of TRL, beside those that all have; records a micro-batch where fixed.
CLASSIFIERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "Trainer, padded": ({}, None),
    "Trainer, grouped by length": ({"train_sampling_strategy": "group_by_length"}, None),
    "Trainer, one function at a time": ({}, 1),
}
LANGUAGE: dict[str, tuple[dict[str, Any], int | None]] = {
    "TRL, padded": ({}, None),
    "TRL, packed (not isolated on a CPU)": ({"packing": True, "packing_strategy": "wrapped"}, None),
}


def measure(
    build: Callable[[], "Run"], contender: str, steps: int, peers: str | None, llama: str | None
) -> dict[str, Any]:
    """Microseconds of CPU a real token, and the loss of one record before training."""
    if peers:
        sys.path.append(peers)
    run = build()
    examples = run.loader.examples
    if contender == OURS:
        first = _own_loss(run)
        seconds, tokens = _own_steps(run, steps)
    elif contender == LLAMA_FACTORY:
        found = _llama_factory(run, steps, str(llama))
        return found | {"us": 1e6 * found["seconds"] / found["tokens"]}
    else:
        model = _stock_model(run)
        _leave_the_ranks()
        first = _stock_loss(model, examples)
        make = sft if run.config.is_language else _classifier
        seconds, tokens = _their_steps(make, model, run, contender, steps)
    return {"us": 1e6 * seconds / tokens, "loss": first, "tokens": tokens}


def _own_loss(run: "Run") -> float:
    """Ours of the first record alone."""
    import torch

    from data.batches.batch import collate

    with torch.no_grad():
        loss = run.task.loss_sum(run.engine, collate(run.loader.examples, [np.array([0])]))
    return float(loss.sum / loss.count)


def _own_steps(run: "Run", steps: int) -> tuple[float, int]:
    from trainer.run.loop import optimizer_step

    started, tokens = 0.0, 0
    for step in range(steps):
        if step == _WARM_STEPS:
            started, tokens = time.process_time(), 0
        batches = run.loader.step(step)
        optimizer_step(run, batches, step, _RATE)
        tokens += batches.num_tokens
    return time.process_time() - started, tokens


def _leave_the_ranks() -> None:
    """This process is nobody's rank any more: the Trainer would wrap its model for several."""
    import torch

    torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]


def _stock_model(run: "Run") -> Any:
    """The base of the run as transformers loads it, with PEFT's LoRA and the run's head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    base, tuning = str(run.config.output_dir / "base"), run.config.tuning
    kind = AutoModelForCausalLM if run.config.is_language else AutoModelForSequenceClassification
    model = kind.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
    model.config.pad_token_id = pad_id(run)
    ours = run.engine.module.model
    if not run.config.is_language:
        model.score.load_state_dict(_plain_head(ours))
    return get_peft_model(
        model,
        LoraConfig(
            r=tuning.lora_r,
            lora_alpha=tuning.lora_alpha,
            lora_dropout=0.0,
            target_modules=ours.peft_config["default"].target_modules,
            modules_to_save=ours.peft_config["default"].modules_to_save,
            task_type="CAUSAL_LM" if run.config.is_language else "SEQ_CLS",
        ),
    )


def _plain_head(ours: Any) -> dict[str, Any]:
    head = ours.get_base_model().score
    head = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    return dict(head.state_dict())


def _stock_loss(model: Any, examples: "ExampleSet") -> float:
    """Theirs of the first record alone."""
    import torch

    model.eval()
    one = {name: torch.tensor([value]) for name, value in row_of(examples, 0).items()}
    with torch.no_grad():
        return float(model(**one).loss)


def row_of(examples: "ExampleSet", number: int) -> dict[str, Any]:
    """Tokens and labels of an example, as the others take them."""
    place = slice(examples.starts[number], examples.starts[number + 1])
    ids = examples.tokens[place].tolist()
    if examples.supervised is None:
        return {"input_ids": ids, "labels": int(examples.label_E[number])}
    pairs = zip(ids, examples.supervised[place].tolist(), strict=True)
    return {"input_ids": ids, "labels": [i if is_target else -100 for i, is_target in pairs]}


def _their_steps(
    make: Callable[..., Any], model: Any, run: "Run", contender: str, steps: int
) -> tuple[float, int]:
    """By the trainer's own train(): process time between callbacks, tokens of its collator."""
    from transformers import TrainerCallback

    keys, fixed = (LANGUAGE if run.config.is_language else CLASSIFIERS)[contender]
    examples = run.loader.examples
    size = fixed or max(1, round(TOKENS_A_BATCH / examples.lengths.mean()))
    if "packing" in keys:
        size = max(1, TOKENS_A_BATCH // run.config.data.seq_length)
    accumulation = ACCUMULATION if fixed is None else round(
        ACCUMULATION * TOKENS_A_BATCH / examples.lengths.mean()
    )  # fmt: skip
    arguments = {
        "output_dir": str(run.config.output_dir / "theirs"), "max_steps": steps,
        "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation,
        "learning_rate": _RATE, "lr_scheduler_type": "constant", "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 10,
        "remove_unused_columns": False, "weight_decay": 0.01, "bf16": False, **keys,
    }  # fmt: skip
    counted = {"tokens": 0, "before": 0, "started": 0.0, "seconds": 0.0}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == _WARM_STEPS:
                counted["started"], counted["before"] = time.process_time(), counted["tokens"]
            counted["seconds"] = time.process_time() - counted["started"]

    trainer = make(model, arguments, [row_of(examples, e) for e in range(len(examples))], run)
    collate = trainer.data_collator

    def counting(rows: Any) -> Any:
        batch = collate(rows)
        counted["tokens"] += sum(len(row["input_ids"]) for row in rows)
        return batch

    trainer.data_collator = counting
    trainer.add_callback(Clock())
    model.train()
    trainer.train()
    return counted["seconds"], int(counted["tokens"] - counted["before"])


def _llama_factory(run: "Run", steps: int, python: str) -> dict[str, Any]:
    """By its own Python, on the base that the run saved: see benchmarks/llama_factory.py."""
    _leave_the_ranks()
    base, tuning = run.config.output_dir / "base", run.config.tuning
    tokenizer_of(run).save_pretrained(base)
    adapted = run.engine.module.model.peft_config["default"]
    arguments = {
        "stage": "sft", "do_train": True, "model_name_or_path": str(base), "template": "empty",
        "dataset": "tokenized", "tokenized_path": str(base.with_name("tokenized")),
        "neat_packing": True, "cutoff_len": run.config.data.seq_length, "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True, "finetuning_type": "lora",
        "lora_rank": tuning.lora_r, "lora_alpha": tuning.lora_alpha, "lora_dropout": 0.0,
        "lora_target": ",".join(sorted(adapted.target_modules)),
        "per_device_train_batch_size": TOKENS_A_BATCH // run.config.data.seq_length,
        "gradient_accumulation_steps": ACCUMULATION, "max_steps": steps, "learning_rate": _RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.01, "bf16": False, "use_cpu": True,
        "output_dir": str(base.with_name("theirs")), "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "logging_steps": 10,
    }  # fmt: skip
    examples = run.loader.examples
    rows = [row_of(examples, number) for number in range(len(examples))]
    asked = {"arguments": arguments, "rows": rows, "warm_steps": _WARM_STEPS}
    request, result = base.with_name("request.json"), base.with_name("result.json")
    request.write_text(json.dumps(asked))
    script = Path(__file__).with_name("llama_factory.py")
    quiet = {"LLAMAFACTORY_VERBOSITY": "ERROR", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [python, "-I", script, request, result], check=True, stdout=sys.stderr,
        env=os.environ | quiet,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def tokenizer_of(run: "Run") -> Any:
    """The run's tokenizer for them, with an end and a padding token."""
    from transformers import PreTrainedTokenizerFast

    folder = run.config.tokenizer_folder
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(run))
    return tokenizer


def pad_id(run: "Run") -> int:
    """Not the end token: transformers' heads would read the token before it."""
    used = set(np.unique(run.loader.examples.tokens).tolist())
    return next(number for number in range(2047, 0, -1) if number not in used)


def _classifier(model: Any, arguments: dict[str, Any], rows: list[Any], run: "Run") -> Any:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    return Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer_of(run)),
    )


def sft(model: Any, arguments: dict[str, Any], rows: list[Any], run: "Run") -> Any:
    """TRL's trainer of these rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    own = {"max_length": run.config.data.seq_length}
    return SFTTrainer(
        model=model,
        args=SFTConfig(**{"gradient_checkpointing": False} | arguments | own),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(run),
    )


def cases(given: argparse.Namespace) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Title, keys of the recipe, what the model's shape has of its own."""
    found: list[tuple[str, list[str], dict[str, Any]]] = []
    for length in (512, 2048):
        rows = f"data.seq_length={length} optim.micro_batch_size={TOKENS_A_BATCH // length}"
        total = ACCUMULATION * TOKENS_A_BATCH // length
        rows += f" optim.global_batch_size={total} optim.batch_unit=rows tuning.lora_r=8"
        rows += " optim.max_grad_norm=1.0 loss.gamma=0"
        if given.data:
            keys = f"{rows} data.path={given.data} data.allow_leaks=true"
            found.append((f"functions at {length}", keys.split(), {}))
        if given.instructions:
            keys = f"{rows} task.name=instruction data.path={given.instructions}"
            keys += " data.template=question_answer"
            for vocabulary in (2048, 49152):
                title = f"instructions at {length}, vocabulary {vocabulary}"
                found.append((title, keys.split(), {"vocab_size": vocabulary}))
    return [case for case in found if given.only in case[0]]


def run_case(
    title: str, keys: list[str], shape: dict[str, Any], given: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Every contender of a case."""
    is_language = "instruction" in title
    found = {}
    contenders = [OURS, *(LANGUAGE if is_language else CLASSIFIERS)]
    if is_language and given.llama_factory:
        contenders.append(LLAMA_FACTORY)
    for contender in contenders:
        if contender != OURS and given.against not in contender:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            base = BIG_CODE | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 6, "vocab_size": 49152}
            model = write_model(folder / "model", base | shape)
            overrides = [*overrides_of(model, folder, ""), *keys]
            if not is_language:
                overrides.append(f"data.tokenizer={given.tokenizer}")
            call = partial(on_forked_ranks, measure, 1, overrides, folder)
            found[contender] = call(contender, given.steps, given.peers, given.llama_factory)
    return found


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="functions, as data.path")
    parser.add_argument("--tokenizer", type=Path, help="folder of the functions' tokenizer")
    parser.add_argument("--instructions", type=Path, help="instructions, as data.path")
    parser.add_argument("--peers", help="folder of packages that are not in the environment")
    parser.add_argument("--llama-factory", help="Python of an environment with LLaMA-Factory")
    parser.add_argument("--only", default="", help="cases whose title has this text")
    parser.add_argument("--against", default="", help="contenders whose name has this text")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path, help="also write the rows")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, all_found = [], {}
    for title, keys, shape in cases(given):
        found = all_found[title] = run_case(title, keys, shape, given)
        for contender, one in found.items():
            ratio = found[OURS]["us"] / one["us"]
            gap = abs(one["loss"] - found[OURS]["loss"])
            step = one["tokens"] / (given.steps - _WARM_STEPS)
            rows.append([title, contender, f"{one['us']:.0f}", f"{ratio:.2f}", f"{gap:.1e}"])
            rows[-1].append(f"{step:.0f}")
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    columns = ["CPU us a token", "ours / it", "losses differ", "tokens a step"]
    print(markdown(["case", "contender", *columns], rows))
    if given.json:
        given.json.write_text(json.dumps(all_found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
