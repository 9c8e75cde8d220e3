"""One cell of the model matrix: a run of the program, its export, and stock's scores beside them.

The reference shares nothing with the program: transformers and PEFT load what the run wrote, take
one record at a time without padding, and give logits.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401  # a run of this process that needs none would hide it
import stock_pool
import yaml
from conftest import SAMPLES, sample_rows, write_rows
from method_cells import peft_overrides
from rank_pool import run_ranks
from tiny_models import WINDOW

TOLERANCE = 5e-5  # of fp32 scores, relative to max(1, the largest)
STEPS = 6
EQUAL, REFUSED, WRONG, TRACEBACK = "equal", "refused", "WRONG", "TRACEBACK"
_SHOWN = ("records", "modules", "trained", "experts", "head", "text")  # of the banner
_REFUSALS = (2, 3, 4, 5, 6)  # exit codes of the program's own errors
_TRAIN, _SHORT, _LONG = 12, 170, (420, 700)  # records; characters
_METHODS = {"lora": ["tuning.lora_r=4"], "qlora": ["tuning.lora_r=4"], "full": []}


@dataclass(frozen=True)
class Cell:
    """What is run.

    Attributes:
        name: Of the config.
        config: Folder of its config.json.
        task, method: As in a recipe.
        drawn: The program draws the weights (model.config); else stock saves them (model.path).
    """

    name: str
    config: Path
    task: str
    method: str
    drawn: bool = False

    def __str__(self) -> str:
        return "-".join([self.name, self.task, self.method, *(["drawn"] if self.drawn else [])])


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        verdict: One of the four above.
        code: Exit code of the run.
        message: Of a refusal; what differs by how much; the last line of a traceback.
        banner: What it says of `_SHOWN`.
        seconds: Of computing, on one core.
    """

    verdict: str
    code: int
    message: str
    banner: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def write_data(folder: Path) -> Path:
    """Recipes NAME.yaml of both tasks, with data in which some records exceed the window."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows_of in (("classification", _functions), ("instruction", _instructions)):
        (folder / task).mkdir(exist_ok=True)
        for split, count in (("train", _TRAIN), ("valid", 6), ("test", 8)):
            write_rows(folder / task / f"{split}.jsonl", rows_of(split, count))
        values = {
            "run": {"output_dir": "unset", "seed": 3},
            "model": {"config": "unset"},
            "task": {"name": task},
            "data": {
                "path": str(folder / task), "seq_length": 320, "tokenizer": str(SAMPLES / "model"),
            },
            "tuning": {"lora_dropout": 0.0},
            "optim": {
                "lr": 3e-3, "max_steps": STEPS, "global_batch_size": _TRAIN,
                "micro_batch_size": 2, "schedule": "constant",
            },
            "engine": {"precision": "fp32"},
            "eval": {"interval": STEPS},
            "log": {"interval": 1, "progress": False, "trackers": []},
            "save": {"interval": STEPS},
        }  # fmt: skip
        if task == "classification":
            values["loss"] = {"gamma": 0.0}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def _functions(split: str, count: int) -> list[dict[str, object]]:
    """Functions of both classes: two of three short, the rest longer than the window."""
    rows, by_kind = sample_rows(split, 1000, _LONG[1]), {}
    for row in rows:
        size = len(str(row["code"]))
        is_long = size >= _LONG[0]
        if is_long or size <= _SHORT:
            by_kind.setdefault((is_long, row["target"]), []).append(row)
    kinds = [(False, 0), (False, 1), (True, 0), (False, 1), (False, 0), (True, 1)]
    return [by_kind[kinds[n % 6]].pop() for n in range(count)]


def _instructions(split: str, count: int) -> list[dict[str, object]]:
    rows = _functions(split, count)
    return [
        {"prompt": f"Complete: {str(row['code'])[:60]}", "completion": str(row["code"])[60:]}
        for row in rows
    ]


def run_cell(cell: Cell, data: Path, folder: Path) -> Outcome:
    """Train, export and compare in forked processes; the folder is removed."""
    folder.mkdir(parents=True)
    values = json.dumps({**asdict(cell), "config": str(cell.config)})
    given = [values, str(data), str(folder), stock_pool.start()]
    try:
        outcome = _outcome(given, folder)
    except AssertionError as error:  # a process that hangs
        outcome = Outcome(TRACEBACK, 1, str(error))
    spent = folder / "seconds.txt"
    seconds = sum(map(float, spent.read_text().split())) if spent.is_file() else 0.0
    if not os.environ.get("KEEP_CELLS"):
        shutil.rmtree(folder, ignore_errors=True)
    return replace(outcome, seconds=seconds)


def _outcome(given: list[str], folder: Path) -> Outcome:
    printed = folder / "printed.txt"
    banner: dict[str, str] = {}
    for entry in (train_cell, check_cell):
        [code] = run_ranks(given, 1, printed, entry=entry)
        text = printed.read_text(errors="replace")
        found = dict(re.findall(r"^  (\w+) +(.*)", text, re.MULTILINE))
        banner = banner or {key: found[key] for key in _SHOWN if key in found}
        if code:
            verdict, message = refusal(code, text)
            return Outcome(verdict, code, message, banner)
    differences = json.loads((folder / "differences.json").read_text())
    is_equal = all(value <= TOLERANCE for value in differences.values())  # NaN is not
    shown = ", ".join(f"{key} {value:.1e}" for key, value in differences.items())
    return Outcome(EQUAL if is_equal else WRONG, 0, shown, banner)


def refusal(code: int, text: str) -> tuple[str, str]:
    """The verdict and the message of a run that ended with an error."""
    found = re.search(r"^error: (.*)", text, re.MULTILINE | re.DOTALL)
    if code in _REFUSALS and found:
        return REFUSED, " ".join(found[1].split())
    lines = [line for line in text.splitlines() if line.strip()]
    return TRACEBACK, lines[-1].strip() if lines else f"exit code {code}"


def _given(arguments: list[str]) -> tuple[Cell, list[str], Path]:
    """The cell, the arguments of launcher/train.py and the folder of the cell."""
    values, data, folder = json.loads(arguments[0]), arguments[1], Path(arguments[2])
    cell = Cell(**values | {"config": Path(values["config"])})
    base = f"model.config={cell.config}" if cell.drawn else f"model.path={folder / 'base'}"
    recipe = [f"{data}/{cell.task}.yaml", f"run.output_dir={folder / 'run'}", base]
    if not cell.drawn:
        recipe.append("model.config=null")
    own = _METHODS.get(cell.method) or peft_overrides(cell.method)
    return cell, [*recipe, f"tuning.method={cell.method}", *own], folder


def train_cell(arguments: list[str]) -> int:
    """Entry of a forked rank: save the base as stock does, then train."""
    from launcher.train import main

    cell, recipe, folder = _given(arguments)
    if not cell.drawn:
        save_base(cell, folder / "base")
    with _timed(folder), recorded_scores(folder):
        return main(recipe)


def check_cell(arguments: list[str]) -> int:
    """Entry of a forked process: export, load in stock tools, and write how far scores differ."""
    import transformers

    from launcher.export import main as export_main

    cell, _, folder = _given(arguments)
    os.environ[stock_pool.ADDRESS] = arguments[3]
    run, merged = folder / "run", folder / "merged"
    transformers.logging.set_verbosity_error()
    with _timed(folder), stock_pool.exports_are_scored_here():
        code = export_main([str(run), str(merged), "--merge"])
        if code == 2 and cell.method not in _METHODS:  # PEFT does not merge every method
            code = export_main([str(run), str(folder / "adapter")])
        if code:
            return code
        _write_differences(cell, folder)
    return 0


def _write_differences(cell: Cell, folder: Path) -> None:
    import torch

    from trainer.run_folder.metrics import read_log

    run, merged = folder / "run", folder / "merged"
    torch.manual_seed(0)
    kept = json.loads((folder / "scores.json").read_text())
    base = run / "base" if cell.drawn else folder / "base"
    losses = [row["loss"] for row in read_log(run / "log.jsonl")]
    assert min(losses) < losses[0], losses  # a run that does not move proves nothing
    differences = {}
    for name, model in stock_models(base, run / "model", merged, cell):
        stock = [stock_scores(model, **record) for record in kept["test"]]
        differences[name] = distance([score for one in kept["ours"] for score in one], stock)
    is_identity = cell.method in _METHODS and cell.method != "qlora"  # at its start
    if cell.task == "instruction" and is_identity:
        differences["first loss"] = loss_difference(run, base, kept["train"])
    (folder / "differences.json").write_text(json.dumps(differences))


@contextlib.contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the seconds that this process has computed, which do not depend on the others."""
    yield
    with (folder / "seconds.txt").open("a") as file:
        file.write(f"{time.process_time()}\n")


def save_base(cell: Cell, folder: Path) -> None:
    """The checkpoint that a user would have of the config, drawn and saved by stock."""
    import torch
    import transformers

    settings = transformers.AutoConfig.from_pretrained(cell.config)
    torch.manual_seed(1)
    with contextlib.redirect_stderr(io.StringIO()):
        model_class(settings, cell.task)._from_config(settings).save_pretrained(folder)


def model_class(settings: Any, task: str = "instruction") -> Any:
    """The class of the checkpoint that is published for a config."""
    import transformers

    is_half = settings.is_encoder_decoder and task == "classification"  # a decoder alone
    if settings.architectures and not is_half:
        return getattr(transformers, settings.architectures[0])
    order = ["MaskedLM", "Seq2SeqLM", "CausalLM"]
    if hasattr(settings, "text_config"):
        order = ["ImageTextToText", *order]
    for kind in order:
        mapping = getattr(transformers, f"AutoModelFor{kind}")._model_mapping
        if type(settings) in mapping:
            found = mapping[type(settings)]
            return found[0] if isinstance(found, tuple) else found
    return transformers.AutoModel._model_mapping[type(settings)]


@contextlib.contextmanager
def recorded_scores(folder: Path) -> Iterator[None]:
    """Keep what the run scores the test split with, packed, and the records as they are read."""
    from trainer.evaluation.scoring import Evaluation
    from trainer.run.session import Session

    outputs, finish, seen = Evaluation.outputs, Session.finish, {}

    def recording(evaluation: Any, split: Any) -> Iterator[Any]:
        pairs = seen[id(split)] = []
        for pair in outputs(evaluation, split):
            pairs.append(pair)
            yield pair

    def keeping(session: Any) -> Any:
        report = finish(session)
        splits = session.prepared.splits
        kept = {name: _records(splits[name].examples) for name in ("train", "test")}
        kept["ours"] = _in_order(seen[id(splits["test"])], kept["test"])
        (folder / "scores.json").write_text(json.dumps(kept))
        return report

    # The process ends with the run.
    Evaluation.outputs, Session.finish = recording, keeping
    yield


def _records(examples: Any) -> list[dict[str, list[int]]]:
    """Token ids and the places of the targets of each record."""
    records = []
    for first, last in itertools.pairwise(examples.starts.tolist()):
        marks = [] if examples.supervised is None else examples.supervised[first:last].tolist()
        targets = [place for place, is_target in enumerate(marks) if is_target and place]
        records.append({"ids": examples.tokens[first:last].tolist(), "targets": targets})
    return records


def _in_order(pairs: list[Any], records: list[dict[str, list[int]]]) -> list[list[float]]:
    """The scores of each record: its logits, or the nll of its targets."""
    found: list[list[float]] = [[] for _ in records]
    most = 0
    for batch, scores in pairs:
        most = max(most, len(set(batch.example_S.tolist())) - len(batch.input_ids_BT))
        order = sorted(range(len(scores)), key=lambda s: (batch.row_S[s], batch.read_S[s]))
        for place in order:
            number = int(batch.example_S[place])
            is_language = bool(records[number]["targets"])
            found[number] += scores[place, : 1 if is_language else None].double().tolist()
    assert most > 0, "no row holds several records"
    assert max(len(record["ids"]) for record in records) > 1.5 * WINDOW
    return found


def stock_models(base: Path, adapter: Path, merged: Path, cell: Cell) -> Iterator[tuple[str, Any]]:
    """What users of stock tools load: the merged folder, and the adapter over the base."""
    if merged.is_dir():
        yield "merged", _whole_model(merged)
    if cell.method == "full":
        yield "saved", _whole_model(adapter)
        return
    yield "adapter", _adapted_model(base, adapter, cell)


def _whole_model(folder: Path) -> Any:
    import torch
    import transformers

    if (folder / "load_classifier.py").is_file():
        return _loader(folder).load(str(folder))
    settings = json.loads((folder / "config.json").read_text())
    found = getattr(transformers, settings["architectures"][0])
    return found.from_pretrained(folder, dtype=torch.float32).eval()


def _adapted_model(base: Path, adapter: Path, cell: Cell) -> Any:
    """As docs/run_folder.md and docs/functions.md say, on a base quantised afresh."""
    import torch
    import transformers
    from peft import PeftModel

    from trainer.models.quantized import prepare_layers

    facts = json.loads((adapter / "focaltune.json").read_text())
    has_loader = (adapter / "load_classifier.py").is_file()
    if has_loader and cell.method != "qlora":
        return _loader(adapter).load(str(adapter))
    settings = transformers.AutoConfig.from_pretrained(base).get_text_config()
    if cell.task == "classification":
        settings.num_labels = 2
    more: dict[str, Any] = {}
    if cell.method == "qlora":
        whole = json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"] or []
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=facts["quantization"]["quant_type"],
            bnb_4bit_use_double_quant=facts["quantization"]["double_quant"],
            llm_int8_skip_modules=[*whole, "score", "lm_head"],
        )
    loaded = getattr(transformers, facts["model_class"]).from_pretrained(
        base, config=settings, key_mapping=facts["key_mapping"], dtype=torch.float32, **more
    )
    if has_loader:
        loaded.score = torch.nn.Linear(settings.hidden_size, 2, bias=False)
    model = PeftModel.from_pretrained(loaded, adapter).eval()
    if cell.method == "qlora":
        prepare_layers(model)  # CPUs with AVX512 decode rows as narrow as these wrongly
    if has_loader:
        return _loader(adapter).Classifier(model.get_base_model(), facts["pooling"]).eval()
    return model


def _loader(folder: Path) -> Any:
    """The module that the run wrote beside a head of its own."""
    spec = importlib.util.spec_from_file_location("load_classifier", folder / "load_classifier.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stock_scores(model: Any, ids: list[int], targets: list[int]) -> Any:
    """Logits of a function, or the nll of each target, by stock's forward of the record alone."""
    import torch

    ids_1T = torch.tensor([ids])
    with torch.no_grad():
        if hasattr(model, "pooling"):  # of load_classifier.py
            return model(ids_1T, torch.ones_like(ids_1T))[0].double()
        logits = model(input_ids=ids_1T).logits[0].double()
    if not targets:
        return logits
    places = torch.tensor(targets)
    return -logits[places - 1].log_softmax(-1).gather(1, ids_1T[0, places, None])[:, 0]


def distance(ours: list[float], stock: list[Any]) -> float:
    """Largest difference, relative to max(1, the largest score)."""
    import torch

    first, second = torch.tensor(ours, dtype=torch.float64), torch.cat(stock)
    assert first.shape == second.shape, (first.shape, second.shape)
    assert float(second.std()) > 1e-6, "all scores are equal: the cell proves nothing"
    return float((first - second).abs().max() / second.abs().max().clamp(min=1.0))


def loss_difference(run: Path, base: Path, records: list[dict[str, list[int]]]) -> float:
    """The logged loss of the first step against the mean nll by stock's base.

    The batch holds all of the training split, and adapters change nothing yet.
    """
    import torch
    import transformers

    from trainer.run_folder.metrics import read_log

    settings = transformers.AutoConfig.from_pretrained(base)
    model = model_class(settings).from_pretrained(base, dtype=torch.float32).eval()
    expected = torch.cat([stock_scores(model, **record) for record in records]).mean()
    return abs(float(expected) - read_log(run / "log.jsonl")[0]["loss"])
