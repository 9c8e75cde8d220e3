"""How much data a recipe has, from what was prepared before, else assumed and said so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.batches.order import Plan, steps_for
from data.errors import DataError
from data.prepared.cache import FACTS, default_root
from data.prepared.kinds import kind_of
from data.prepared.prepare import sources_digest
from trainer.config.sections import RunConfig

_ASSUMED_FUNCTIONS, _ASSUMED_TOKENS = 1000, 400.0
_FILL = 0.97  # of packed rows; real functions at 512 to 2,048 tokens fill 95 to 99%
_LARGEST_DIGESTED = 256 << 20  # bytes: a second of sha256


@dataclass(frozen=True)
class DataFacts:
    """The training split in numbers.

    Attributes:
        num_functions: Functions, conversations or documents trained on in an epoch.
        tokens_mean: Of a whole one, without end token.
        source: Where the numbers are from, for people.
        is_assumed: True where nothing was prepared.
    """

    num_functions: int
    tokens_mean: float
    source: str
    is_assumed: bool

    def tokens_of_function(self, config: RunConfig) -> float:
        """Tokens of a function in rows, end token included."""
        whole = self.tokens_mean + 1
        is_windowed = config.data.long_functions == "window"
        return whole if is_windowed else min(whole, config.data.seq_length)

    def num_rows(self, config: RunConfig) -> int:
        """Rows of an epoch."""
        if not config.data.packing:
            pieces = self.tokens_of_function(config) / config.data.seq_length
            return round(self.num_functions * max(1.0, pieces))
        tokens = self.num_functions * self.tokens_of_function(config)
        return max(1, round(tokens / (config.data.seq_length * _FILL)))

    def steps_per_epoch(self, config: RunConfig) -> int:
        """Optimizer steps of an epoch."""
        is_rows = config.optim.batch_unit == "rows"
        units = self.num_rows(config) if is_rows else self.num_functions
        return min(steps_for(units, config.optim.global_batch_size), self.num_rows(config))

    def num_steps(self, config: RunConfig) -> int:
        """Optimizer steps of the run."""
        return config.optim.max_steps or (config.optim.epochs or 0) * self.steps_per_epoch(config)

    def accumulation(self, config: RunConfig, world_size: int) -> int:
        """Micro-batches of a rank in a step."""
        plan = Plan(
            self.num_rows(config),
            self.steps_per_epoch(config),
            config.optim.micro_batch_size,
            world_size,
        )
        return plan.gradient_accumulation_steps

    def tokens_of_step(self, config: RunConfig) -> float:
        """Real tokens of a step over all ranks."""
        return self.num_functions * self.tokens_of_function(config) / self.steps_per_epoch(config)


def data_facts(config: RunConfig) -> DataFacts:
    """Counts of the training split: of the run folder, of the cache, or assumed."""
    run = config.output_dir / "data.json"
    if run.is_file() and (found := facts_of(config, _json(run), str(run))):
        return found
    digest = _train_digest(config)
    root = Path(config.data.cache_dir) if config.data.cache_dir else default_root()
    for entry in sorted(root.glob(f"*/{FACTS}")) if digest else []:
        facts = _json(entry)
        if facts.get("sha256", {}).get("train") != digest:
            continue
        if found := facts_of(config, facts, f"prepared data {entry.parent}"):
            return found
    return DataFacts(
        _ASSUMED_FUNCTIONS,
        _ASSUMED_TOKENS,
        f"ASSUMED {_ASSUMED_FUNCTIONS:,} functions of {_ASSUMED_TOKENS:g} tokens: nothing is"
        " prepared; launcher/prepare.py RECIPE counts them",
        is_assumed=True,
    )


def facts_of(config: RunConfig, facts: Mapping[str, Any], source: str) -> DataFacts | None:
    """Counts out of data.json's content; None where they are of other settings."""
    same = all(
        facts.get(key) == getattr(config.data, key)
        for key in ("seq_length", "normalize_whitespace")
    )
    try:
        tokens = facts["splits"]["train"]["tokens"]
        if not same or tokens["policy"] != config.data.long_functions:
            return None
        if config.is_language:
            num_records = tokens["num_records"] - tokens["num_dropped"]
            tokens_mean = tokens["num_tokens"] / num_records - 1
            return DataFacts(num_records, tokens_mean, source, is_assumed=False)
        dropped = tokens["num_oversized"]
        dropped += tokens["num_long"] if config.data.long_functions == "drop" else 0
        num_functions = tokens["num_functions"]
        if config.data.sampling == "balanced":  # both classes as often as the more frequent one
            positive = tokens["num_positive"]
            num_functions = 2 * max(positive, num_functions - positive)
        return DataFacts(num_functions - dropped, tokens["tokens_mean"], source, is_assumed=False)
    except KeyError:
        return None


def _train_digest(config: RunConfig) -> str | None:
    try:
        paths = kind_of(config.is_language).paths(config.data, "train")
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
