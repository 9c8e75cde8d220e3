"""How much data a recipe has: counts of prepared data, or else an assumption that says so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.batches.order import Plan, steps_for
from data.config import DataConfig, Weighted
from data.errors import DataError
from data.prepared.cache import FACTS, default_root, entries
from data.prepared.sources import sources_digest
from data.readers import locate
from data.text.labels import VULNERABLE, Classes, class_counts, fixed_names
from trainer.config.sections import OptimSection, RunConfig

_ASSUMED_RECORDS, _ASSUMED_TOKENS = 1000, 400.0
_FILL = 0.97  # of packed rows; real functions at 512 to 2,048 tokens fill 95 to 99%
_LARGEST_DIGESTED = 256 << 20  # bytes: a second of sha256


@dataclass(frozen=True)
class DataFacts:
    """The training split in numbers.

    Attributes:
        num_functions: Functions, or records of a language task, trained on in an epoch.
        tokens_mean: Of a whole one, without end token.
        source: Where the numbers are from, for people.
        num_classes: Of functions.
    """

    num_functions: int
    tokens_mean: float
    source: str
    is_assumed: bool
    unit: str = "functions"
    num_classes: int = len(VULNERABLE)

    def steps(self, data: DataConfig, optim: OptimSection, num_ranks: int) -> "Steps":
        """The steps of a run over this split."""
        length = self.tokens_mean + 1  # with the end token
        if data.long_functions != "window":
            length = min(length, data.seq_length)
        tokens = self.num_functions * length
        if data.packing:
            num_rows = max(1, round(tokens / (data.seq_length * _FILL)))
        else:
            num_rows = round(self.num_functions * max(1.0, length / data.seq_length))
        units = num_rows if optim.batch_unit == "rows" else self.num_functions
        per_epoch = min(steps_for(units, optim.global_batch_size), num_rows)
        plan = Plan(num_rows, per_epoch, optim.micro_rows, num_ranks)
        return Steps(
            num=optim.max_steps or (optim.epochs or 0) * per_epoch,
            accumulation=plan.gradient_accumulation_steps,
            tokens=tokens / per_epoch,
            tokens_of_record=length,
        )


@dataclass(frozen=True)
class Steps:
    """The steps of a run.

    Attributes:
        accumulation: Micro-batches of a rank in a step.
        tokens: Real tokens of a step over all ranks.
        tokens_of_record: Tokens of a record in rows, end token included.
    """

    num: int
    accumulation: int
    tokens: float
    tokens_of_record: float


def data_facts(config: RunConfig) -> DataFacts:
    """Counts of the training split: from the run folder or the cache, or assumed."""
    data, is_language = config.data, config.is_language
    run = config.output_dir / "data.json"
    if run.is_file() and (found := facts_of(data, is_language, _json(run), str(run))):
        return found
    digest = _train_digest(data, is_language)
    root = Path(data.cache_dir) if data.cache_dir else default_root()
    for entry in entries(root) if digest else []:
        facts = _json(entry / FACTS)
        if facts.get("sha256", {}).get("train") != digest:
            continue
        if found := facts_of(data, is_language, facts, f"prepared data {entry}"):
            return found
    unit = "records" if is_language else "functions"
    return DataFacts(
        _ASSUMED_RECORDS,
        _ASSUMED_TOKENS,
        f"ASSUMED {_ASSUMED_RECORDS:,} {unit} of {_ASSUMED_TOKENS:g} tokens: nothing is"
        " prepared; launcher/prepare.py RECIPE counts them",
        is_assumed=True,
        unit=unit,
        num_classes=len(fixed_names(data)) or len(VULNERABLE),
    )


def facts_of(
    data: DataConfig, is_language: bool, facts: Mapping[str, Any], source: str
) -> DataFacts | None:
    """Counts from the content of data.json; None if it was made with other settings."""
    keys = ("seq_length", "normalize_whitespace", "sample")
    same = all(facts.get(key) == getattr(data, key) for key in keys)
    same = same and not any(isinstance(each, Weighted) for each in data.train or "")
    try:
        tokens = facts["splits"]["train"]["tokens"]
        if not same or tokens["policy"] != data.long_functions:
            return None
        if is_language:
            num_records = tokens["num_records"] - tokens["num_dropped"]
            tokens_mean = tokens["num_tokens"] / num_records - 1
            return DataFacts(num_records, tokens_mean, source, is_assumed=False, unit="records")
        dropped = tokens["num_oversized"]
        dropped += tokens["num_long"] if data.long_functions == "drop" else 0
        num_functions = tokens["num_functions"]
        if data.sampling == "balanced":  # all classes as often as the most frequent one
            counts = class_counts(tokens)
            num_functions = len(counts) * max(counts)
        num_classes = len(Classes.of(facts).names)
        return DataFacts(
            num_functions - dropped,
            tokens["tokens_mean"],
            source,
            is_assumed=False,
            num_classes=num_classes,
        )
    except KeyError:
        return None


def _train_digest(data: DataConfig, is_language: bool) -> str | None:
    try:
        paths = locate(data, "train", language=is_language)
        are_files = all(path.is_file() for path in paths)
        if not are_files or sum(path.stat().st_size for path in paths) > _LARGEST_DIGESTED:
            return None
        return sources_digest(paths)
    except (DataError, OSError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values
