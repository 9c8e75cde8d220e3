"""Files -> checked, tokenised splits and the facts about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data.config import DataConfig
from data.errors import DataError
from data.readers import SPLITS, ReadFacts, file_digest, read_records, split_path
from data.records import CodeSample
from data.splits import compare_splits, refuse_leaks, refuse_one_class
from data.tokenization import CodeTokenizer, ExampleSet, TokenFacts, tokenize


@dataclass(frozen=True)
class Split:
    """One split, read and tokenised."""

    samples: list[CodeSample]
    examples: ExampleSet
    tokens: TokenFacts

    @property
    def targets(self) -> list[int]:
        """Target of every function, dropped ones included."""
        return [sample.target for sample in self.samples]


@dataclass(frozen=True)
class Prepared:
    """A dataset ready for training.

    Attributes:
        splits: By name.
        tokenizer: What encoded them.
        facts: The content of data.json: digests, counts, what was dropped, leaks.
    """

    splits: dict[str, Split]
    tokenizer: CodeTokenizer
    facts: dict[str, Any]

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of every file that decides the rows."""
        digests: dict[str, str] = self.facts["sha256"]
        return digests


def prepare(
    config: DataConfig, tokenizer_folder: Path, group_weights: Mapping[str, float]
) -> Prepared:
    """Read, check and tokenise the three splits.

    Raises:
        DataError: A file, a row or a combination of splits that cannot be used.
    """
    tokenizer = CodeTokenizer(tokenizer_folder, config.end_token)
    digests = {"tokenizer": file_digest(tokenizer.path)}
    samples: dict[str, list[CodeSample]] = {}
    rows: dict[str, ReadFacts] = {}
    for name in SPLITS:
        path = split_path(config, name)
        digests[name] = file_digest(path)
        rows[name] = ReadFacts()
        samples[name] = list(read_records(path, name, config, rows[name]))
        if not samples[name]:
            raise_empty(name, rows[name])
    refuse_one_class([sample.target for sample in samples["train"]], "train")
    refuse_unknown_groups(group_weights, samples["train"])
    leaks = compare_splits(samples)
    refuse_leaks(leaks, config.allow_leaks)
    splits = {
        name: Split(split, *tokenize(split, tokenizer, config, group_weights))
        for name, split in samples.items()
    }
    for name, split in splits.items():
        if not len(split.examples):
            raise_empty(name, rows[name], split.tokens)
    kept = splits["train"].examples.label_E.tolist()
    refuse_one_class(kept, "train, without the functions data.long_functions=drop takes away")
    facts = {
        "sha256": digests,
        "end_token": tokenizer.end_token,
        "normalize_whitespace": config.normalize_whitespace,
        "seq_length": config.seq_length,
        "leaks": leaks.to_json() | {"allowed": config.allow_leaks},
        "splits": {name: _split_facts(splits[name], rows[name]) for name in SPLITS},
    }
    return Prepared(splits, tokenizer, facts)


def read_split(
    path: Path, name: str, config: DataConfig, tokenizer: CodeTokenizer
) -> tuple[Split, dict[str, Any]]:
    """One file alone, for an evaluation after training."""
    rows = ReadFacts()
    samples = list(read_records(path, name, config, rows))
    if not samples:
        raise_empty(name, rows)
    split = Split(samples, *tokenize(samples, tokenizer, config))
    if not len(split.examples):
        raise_empty(name, rows, split.tokens)
    return split, _split_facts(split, rows) | {"sha256": file_digest(path)}


def refuse_unknown_groups(weights: Mapping[str, float], train: Sequence[CodeSample]) -> None:
    """A weight for a status that no function has is a slip of the pen.

    Raises:
        DataError: Naming it and the statuses there are.
    """
    present = {sample.status for sample in train}
    unknown = sorted(weights.keys() - present)
    if unknown:
        raise DataError(
            f"loss.group_weights: no training function has status {unknown}; there are"
            f" {sorted(present)}"
        )


def raise_empty(name: str, rows: ReadFacts, tokens: TokenFacts | None = None) -> NoReturn:
    """Every row was passed over.

    Raises:
        DataError: Always, with the count of each reason.
    """
    reasons = f"{rows.num_empty} had no code"
    if tokens is not None:
        reasons += (
            f", {tokens.num_long} were dropped as longer than data.seq_length; raise it, or set"
            " data.long_functions to truncate or window"
        )
    raise DataError(f"{name}: no function left of {rows.num_rows} rows: {reasons}")


def _split_facts(split: Split, rows: ReadFacts) -> dict[str, Any]:
    return split.tokens.to_json() | {
        "num_rows": rows.num_rows,
        "num_empty_dropped": rows.num_empty,
        "ignored_fields": sorted(rows.ignored_fields),
    }
