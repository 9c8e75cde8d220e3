"""Tiny data and a tiny model for every recipe, made from the embedded samples."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import REPOSITORY, SAMPLES, write_rows
from method_cases import FAMILIES
from tokenizers import AddedToken, Tokenizer

RECIPES = REPOSITORY / "recipes"
REPLICATION = sorted(RECIPES.glob("replication/*.yaml"))
LANGUAGE = sorted([*RECIPES.glob("instruction/*.yaml"), *RECIPES.glob("domain/*.yaml")])
PUBLISHED_SETS = sorted(RECIPES.glob("vulnerability/*.yaml"))
RECORDS = {  # by the first word of a recipe's name
    "alpaca": "alpaca", "astraios": "prompt_completion", "sft": "chat", "gpt2": "text",
    "instruction": "alpaca", "base": "text",
}  # fmt: skip
CHAT = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (  # as Qwen's: a marker before and after every turn
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Names and counts that a three-step run overrides, or that change no path through the code.
_NUMBERS = ("max_steps", "epochs", "global_batch_size", "warmup_steps", "lr", "micro_batch_size")


def kind(recipe: Path) -> str:
    """What a recipe says besides names, lengths and counts."""
    values = values_of(recipe)
    values["run"] = values["log"] = None
    values["data"].pop("seq_length", None)
    for key in _NUMBERS:
        values["optim"].pop(key, None)
    return json.dumps(values, sort_keys=True)


def values_of(recipe: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(recipe.read_text())
    return values


def header(recipe: Path) -> list[str]:
    return [line for line in recipe.read_text().splitlines() if line.startswith("#")]


def plan_words(recipe: Path) -> list[str]:
    """The arguments of launcher/plan.py that the header gives, with whole paths."""
    [asked] = [line.removeprefix("# Plan: ") for line in header(recipe) if "# Plan: " in line]
    return [word.replace("=recipes", f"={RECIPES}") for word in asked.split()]


def shape_file(recipe: Path) -> Path:
    """config.json of the model in the header."""
    [path] = [word for word in plan_words(recipe) if word.startswith("model.config=")]
    return Path(path.partition("=")[2])


def write_records(folder: Path, records: str, count: int = 24) -> list[str]:
    """The first embedded instructions as records of a kind; what a recipe is told of them."""
    folder.mkdir()
    if records == "text":
        rows = list(_rows("train", "alpaca", 4 * count))  # a twentieth of them is held out
        for place, number in enumerate((1, 2, 10)):
            texts = [{"text": f"{row['input']}{row['output']}"} for row in rows[place::3]]
            (folder / f"part{number}.json").write_text(json.dumps(texts))
        return [f"data.train={folder}/*.json"]
    for split in ("train", "valid", "test"):
        write_rows(folder / f"{split}.jsonl", list(_rows(split, records, count)))
    return [f"data.path={folder}"]


def write_model(folder: Path, like: Path) -> Path:
    """A tiny model of the family of a config.json; its tokenizer knows a chat's markers."""
    family = json.loads(like.read_text())["model_type"]
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(SAMPLES / "model" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(marker) for marker in CHAT])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((SAMPLES / "model" / "tokenizer_config.json").read_text())
    settings |= {"chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    values = FAMILIES[family] | {"model_type": family, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _rows(split: str, records: str, count: int) -> Iterator[dict[str, Any]]:
    path = SAMPLES / "instructions" / f"{split}.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for row in rows[:count]:
        asked = f"{row['instruction']}\n{row['input']}"
        if records == "chat":
            turns = (("user", asked), ("assistant", row["output"]))
            yield {"messages": [{"role": role, "content": text} for role, text in turns]}
        elif records == "prompt_completion":
            yield {"prompt": asked, "completion": row["output"]}
        else:
            yield row
