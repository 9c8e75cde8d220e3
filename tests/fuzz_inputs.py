"""Sound inputs of every kind, how each is read, and seeded damage."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from conftest import MINIMAL, REPOSITORY, SAMPLES
from dataset_files import COMPRESSIONS, FORMATS, tar, zipped

NESTED = "[" * 3000 + "]" * 3000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2.5, 1e308, float("nan"), 10**30, 10**400, "", "x", "=1+1", "\x1b[31m", "\0",
    "~nosuchuser/x", "/x\0y", "\ud800", "a" * 5000, [], [1], [[]], {}, {"a": {"b": 1}},
)  # fmt: skip
SNIPPETS = (
    b"2020-13-45", b"!!int abc", b"!!python/object:os.system x", b"!!binary '%'", b"9" * 5000,
    NESTED.encode(), b"*a", b"&a [*a]", b"<<: {a: 1}\n", b"? [a]\n: 1\n", b"\x1b]0;t\a",
    b"\xff\xfe", b"\x00", b"\t", b"{{x}}", b"!!timestamp x", b"1e999", b"-.inf", b"'",
    b'"\\x', b"\n- ",
)  # fmt: skip


_MARK = "a snippet"


@dataclass(frozen=True)
class Target:
    """An input that is read.

    Attributes:
        make: Writes the sound files into an empty folder; returns those that are damaged.
        read: Reads the folder; what it raises must be an error of ours.
        codes: Exit codes that a fault may have.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    codes: tuple[int, ...]


def damage(path: Path, draw: random.Random) -> None:
    """Change a file in one or a few places: bytes, or values of its JSON or YAML."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".yaml") and draw.random() < 0.6:
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        row = draw.randrange(len(lines))
        values = (yaml.safe_load if path.suffix == ".yaml" else json.loads)(lines[row])
        lines[row] = _with_an_odd_value(values, draw)
        path.write_bytes(b"\n".join(lines))
        return
    for _ in range(draw.choice((1, 1, 2, 8))):
        content = _changed(content, draw)
    path.write_bytes(content)


def _with_an_odd_value(values: Any, draw: random.Random) -> bytes:
    """Values as JSON, which is YAML too, with one of them removed or replaced."""
    place, key = _place(values, draw)
    way = draw.random()
    if way < 0.2:
        del place[key]
    else:
        place[key] = _MARK if way > 0.6 else draw.choice(ODD)
    text = json.dumps(values if way < 0.98 else draw.choice(ODD))
    return text.encode().replace(f'"{_MARK}"'.encode(), draw.choice(SNIPPETS))


def _place(values: Any, draw: random.Random) -> tuple[Any, Any]:
    while True:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        key = draw.choice(list(keys))
        inner = values[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            return values, key
        values = inner


def _changed(content: bytes, draw: random.Random) -> bytes:
    size = len(content)
    at = draw.randrange(size) if size else 0
    if draw.random() < 0.3:  # where most formats keep what describes them
        at = draw.choice((at % 64, max(size - 1 - at % 64, 0)))
    far = at + draw.choice((1, 4, draw.randrange(size or 1)))
    ways: Sequence[Callable[[], bytes]] = (
        lambda: content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :],
        lambda: content[:at] + draw.randbytes(far - at)[:64] + content[far:],
        lambda: content[:at] + content[far:],
        lambda: content[:at],
        lambda: content[:far] + content[at:],
        lambda: content[:at] + draw.choice((b"\xff", b"\0", b"\x7f")) * 4 + content[at + 4 :],
        lambda: content[:at] + draw.choice(SNIPPETS) + content[at:],
        lambda: content[:at] + draw.choice(SNIPPETS) + content[far:],
    )
    return draw.choice(ways)() if size else draw.randbytes(9)


ROWS = [
    {"code": f"int f{n}() {{ return {n}; }}", "target": n % 2, "cwe": "CWE-79", "id": str(n)}
    for n in range(6)
]
SAYS = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(6)]


CHATS = [
    {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": f"{n}."}]}
    for n in range(6)
]


def _data(name: str, content: bytes, *, language: bool = False) -> Target:
    def make(folder: Path) -> list[Path]:
        (folder / name).write_bytes(content)
        return [folder / name]

    return Target(make, lambda folder: _read(folder / name, language), (0, 3))


def _read(path: Path, language: bool = False) -> None:
    from data.config import DataConfig
    from data.readers import locate, read_language, read_records

    given = DataConfig(train=str(path))
    for source in locate(given, "train", language=language):
        for _ in (read_language if language else read_records)(source, "train", given):
            pass


def _database() -> bytes:
    with closing(sqlite3.connect(":memory:")) as made:
        made.execute("create table functions (code text, target integer, cwe text)")
        rows = [(row["code"], row["target"], row["cwe"]) for row in ROWS]
        made.executemany("insert into functions values (?, ?, ?)", rows)
        made.commit()
        return made.serialize()


def _label_folders(folder: Path) -> list[Path]:
    files = [folder / "train" / label / "a.c" for label in ("safe", "vulnerable")]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_text("int a;")
    return files


def _saved_dataset(folder: Path) -> list[Path]:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "train"))
    return [path for path in (folder / "train").iterdir() if path.is_file()]


def _recipe(folder: Path) -> list[Path]:
    whole = {
        **MINIMAL,
        "tuning": {"lora_r": 4, "lora_alpha": 8.0, "target_modules": ["c_attn"]},
        "loss": {"gamma": 2.0, "alpha": [0.4, 0.6], "group_weights": {"a": 1.0}},
        "eval": {"interval": 4},
        "log": {"interval": 1, "progress": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(whole))
    return [folder / "recipe.yaml"]


def _read_recipe(folder: Path) -> None:
    from trainer.config.recipe import load_run_config

    load_run_config(folder / "recipe.yaml", ["optim.lr=1e-4"])


def _read_override(folder: Path) -> None:
    from trainer.config.recipe import load_run_config

    text = (folder / "override.txt").read_bytes().decode("utf-8", "surrogateescape")
    if "\0" not in text:  # which no argument can hold
        load_run_config(REPOSITORY / "recipes" / "quickstart.yaml", [text])


def _override(folder: Path) -> list[Path]:
    (folder / "override.txt").write_text("tuning.target_modules=[c_attn, mlp.c_proj]")
    return [folder / "override.txt"]


def _hostfile(folder: Path) -> list[Path]:
    (folder / "hostfile").write_text("a slots=2\nb slots=2 # second\n")
    return [folder / "hostfile"]


def _read_hostfile(folder: Path) -> None:
    from trainer.processes.hostfile import read_hostfile

    read_hostfile(folder / "hostfile")


def _model_folder(folder: Path) -> None:
    for path in (SAMPLES / "model").glob("*.json"):
        shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_inner": 64}
    (folder / "config.json").write_text(json.dumps(config))


def _model_config(folder: Path) -> list[Path]:
    _model_folder(folder)
    return [folder / "config.json"]


def _run_config(folder: Path) -> Any:
    from trainer.config.recipe import load_run_config

    return load_run_config(
        REPOSITORY / "recipes" / "quickstart.yaml",
        [f"model.config={folder}", "model.path=null", f"data.tokenizer={SAMPLES / 'model'}"],
    )


def _read_model_config(folder: Path) -> None:
    from trainer.architectures.families import model_shape
    from trainer.models.files import check_model_files, hidden_size, read_config

    config = _run_config(folder)
    check_model_files(config, 100)
    hidden_size(config.model)
    model_shape(read_config(config.model))


def _load_model(folder: Path) -> None:
    import torch

    from trainer.models.files import check_model_files
    from trainer.models.load import load_base

    config = _run_config(folder)
    check_model_files(config, 100)
    settled = config.changed("engine", precision="fp32").changed("model", attention="sdpa")
    load_base(settled)(input_ids=torch.arange(8)[None], use_cache=False)


def _tokenizer(folder: Path) -> list[Path]:
    _model_folder(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    return [
        folder / name
        for name in (
            "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
            "chat_template.jinja",
        )
    ]  # fmt: skip


def _read_tokenizer(folder: Path) -> None:
    from data.records import Conversation, Turn
    from data.text.chat import chat_examples, chat_template
    from data.text.own_template import own_template
    from data.text.tokenizer import CodeTokenizer

    tokenizer = CodeTokenizer(folder)
    for ids in tokenizer.encode(["int main() { return 0; }", "<|endoftext|> é\0", ""]):
        tokenizer.decode(ids.tolist())
    template, special = own_template(folder)
    turns = (Turn("user", "Why?"), Turn("assistant", "So."))
    record = Conversation("1", turns, "a:1", "a", "chat")
    if template is not None:
        chat_examples(record, chat_template(template, special))


@cache
def _lora() -> Any:
    """A tiny model with the adapters that _adapter's folder is for."""
    from method_cases import model_config, tuning
    from transformers import AutoModelForSequenceClassification

    from trainer.tuning import METHODS

    base = AutoModelForSequenceClassification.from_config(model_config("llama"))
    return METHODS["lora"](base, tuning("lora"))


def _adapter(folder: Path) -> list[Path]:
    _lora().save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    facts = {"task": "classification", "base_sha256": "0" * 64, "threshold": 0.5}
    (folder / "focaltune.json").write_text(json.dumps(facts))
    return sorted(folder.iterdir())


def _read_adapter(folder: Path) -> None:
    from trainer.tuning.continued import adapter_folder, take_adapter

    take_adapter(_lora(), adapter_folder(folder, "0" * 64))


def targets() -> dict[str, Target]:
    """Every kind of input by name."""
    found: dict[str, Target] = {}
    for ending, write in FORMATS.items():
        for codec, pack in COMPRESSIONS.items() if ending == "jsonl" else [("", bytes)]:
            found[ending + codec] = _data(f"train.{ending}{codec}", pack(write(ROWS)))
    found["alpaca.jsonl"] = _data("train.jsonl", FORMATS["jsonl"](SAYS), language=True)
    found["chat.jsonl"] = _data("train.jsonl", FORMATS["jsonl"](CHATS), language=True)
    found["txt"] = _data("train.txt", b"A text.\n" * 9, language=True)
    members = [(f"train.{ending}", write(ROWS)) for ending, write in FORMATS.items()][:1]
    found["zip"] = _data("a.zip", zipped(*members, ("valid.csv", b"code,target\na,1\n")))
    found["tar"] = _data("a.tar", tar(*members))
    found["tar.gz"] = _data("a.tar.gz", COMPRESSIONS[".gz"](tar(*members)))
    found["parquet in zip"] = _data("b.zip", zipped(("train.parquet", FORMATS["parquet"](ROWS))))
    found["folder"] = Target(_label_folders, lambda folder: _read(folder / "train"), (0, 3))
    found["sqlite"] = _data("train.db", _database())
    found["datasets"] = Target(_saved_dataset, lambda folder: _read(folder / "train"), (0, 3))
    found["recipe"] = Target(_recipe, _read_recipe, (0, 2, 3))
    found["override"] = Target(_override, _read_override, (0, 2, 3))
    found["hostfile"] = Target(_hostfile, _read_hostfile, (0, 2))
    found["config.json"] = Target(_model_config, _read_model_config, (0, 2, 4))
    found["model"] = Target(_model_config, _load_model, (0, 2, 4))
    # 3: a record that its chat template refuses
    found["tokenizer"] = Target(_tokenizer, _read_tokenizer, (0, 3, 4))
    found["adapter"] = Target(_adapter, _read_adapter, (0, 4))
    return found
