"""The card of an exported model, from facts alone: no claim that no file of the run holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.audit.markdown import fill
from data.readers.reading import listed
from trainer.evaluation.best_step import measured_kind
from trainer.evaluation.report import predictor_rows, table
from trainer.run.stock_check import Check
from trainer.run.trained import Trained
from trainer.run_folder.folder import write_whole

_PAGE = Path(__file__).with_name("model_card.md.jinja")
_USE = {
    "pipeline": """from transformers import pipeline

classify = pipeline("text-classification", model="FOLDER", batch_size=4, top_k=None)
print(classify(["int f(char *p) { return *p; }"], truncation=True))""",
    "language": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")""",
    "adapter": """from peft import {auto}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER"{settings}).eval()  # adapter_config.json names the base""",
    "loader": """from load_classifier import load  # beside this card
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
batch = tokenizer(CODES, padding=True, truncation=True, return_tensors="pt")
logits = load("FOLDER")(**batch)""",
}


def write_card(
    path: Path, trained: Trained, facts: Mapping[str, Any], check: Check, asked: Mapping[str, Any]
) -> None:
    """Write README.md of an exported folder.

    Args:
        facts: focaltune.json.
        check: The comparison with stock tools.
        asked: How they loaded it.
    """
    config, test = trained.config, facts["test"]
    report = {
        "measured": measured_kind(config.task.name, trained.classes),
        "predictors": {"model": test},
    }
    header, (values,) = predictor_rows(report)
    code = "\n".join(
        f"    {line}".rstrip() for line in _code(config.is_language, asked).split("\n")
    )
    page = fill(
        _PAGE,
        f=facts,
        is_language=config.is_language,
        library="peft" if asked["way"] == "adapter" else "transformers",
        title=f"{facts['base']['name']}, {config.task.name}",
        what=_what(trained, asked),
        rows=_rows(trained, facts),
        population=_population(test["population"]),
        figures=table(["Measure", "Value"], list(zip(header[1:], values[1:], strict=True))),
        code=_as_it_is(code),
        remarks=_remarks(trained, facts, asked),
        check=check.line,
    )
    write_whole(path, page)


def _as_it_is(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _population(counts: Mapping[str, Any]) -> str:
    """Such as "300 rows, 150 positive"."""
    numbers = {"rows" if key == "num" else key.removeprefix("num_").replace("_", " "): value
               for key, value in counts.items() if key.startswith("num") and value}  # fmt: skip
    return ", ".join(f"{value:,} {name}" for name, value in numbers.items())


def _what(trained: Trained, asked: Mapping[str, Any]) -> str:
    if trained.config.is_language:
        what = f"A language model ({trained.config.task.name})"
    elif trained.classes.sets is not None:
        what = f"Finds which of {listed(trained.classes.names)} hold for a function"
    else:
        what = f"Tells functions apart: {listed(trained.classes.names)}"
    form = "an adapter for the base below" if asked["way"] == "adapter" else "a model of its own"
    return f"{what}; {form}. Trained by focaltune."


def _rows(trained: Trained, facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    decision = trained.decision
    rows: list[tuple[str, Any]] = [
        ("base", f"{facts['base']['name']}, sha256 {facts['base']['sha256']}"),
        ("method", trained.config.tuning.method),
        ("step", facts["step"]),
        ("tokens of a row", facts["seq_length"]),
        ("longer functions", facts["long_functions"]),
    ]
    if "merge" in facts:
        rows.append(("merged onto", f"the {facts['merge']['onto']} base"))
    if trained.config.is_language:
        rows += [("template", facts["template"]), ("records", listed(facts["kinds"]))]
    else:
        rows.append(("whitespace", facts["normalize_whitespace"]))
        if trained.classes.is_binary:
            rows.append(("threshold", f"{decision.threshold} (eval.threshold {decision.rule})"))
        elif decision.thresholds:
            names = zip(trained.classes.names, decision.thresholds, strict=True)
            rows.append(("thresholds", ", ".join(f"{n} {value}" for n, value in names)))
        if decision.temperature is not None:
            rows.append(("temperature of probabilities", decision.temperature))
    digests = facts["data"]["sha256"]
    return rows + [(f"sha256 of {name}", digest) for name, digest in digests.items()]


def _code(is_language: bool, asked: Mapping[str, Any]) -> str:
    if asked["way"] == "pipeline":
        return _USE["language" if is_language else "pipeline"]
    kind = "CausalLM" if is_language else "SequenceClassification"
    settings = "".join(f", {key}={value!r}" for key, value in asked["settings"].items())
    return (
        _USE[asked["way"]]
        .replace("{auto}", f"AutoPeftModelFor{kind}")
        .replace("{settings}", settings)
    )


def _remarks(trained: Trained, facts: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What other tools have to do themselves."""
    if trained.config.is_language:
        return []
    names = [repr(name) for name in trained.classes.names]
    remarks = [f"classes in the order of their ids: {', '.join(names)}"]
    if facts["normalize_whitespace"] == "lines":
        remarks.append(
            "the model reads code without blank lines, common indentation and runs of blanks"
            " (data.normalize_whitespace=lines): change it before, no tokenizer does"
        )
    if facts["long_functions"] in ("window", "truncate_middle", "drop"):
        remarks.append(
            f"stock's tokenizer cuts off what is above {facts['seq_length']} tokens; in the test a"
            f" longer function was treated by data.long_functions={facts['long_functions']}"
        )
    if facts["quantization"]:
        remarks.append(f"the base is quantised by bitsandbytes: {dict(facts['quantization'])}")
        if asked["way"] == "loader":
            remarks.append("load() leaves the base as it is, which moves scores: quantise it first")
    if "batch_size" in asked:
        remarks.append("one function at a time: stock finds no padding behind virtual tokens")
    return remarks
