"""Functions and language records: the steps from files to a split that differ between them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.errors import DataError
from data.prepared.cache import RECORDS, code_lengths, open_split
from data.prepared.sources import Source
from data.prepared.splits import SplitKeys
from data.prepared.table import RecordClass, rewrite_targets
from data.readers import ReadFacts, read_language, read_records
from data.records import CodeSample, Conversation, Document, RecordSource
from data.text.labels import Classes, settled
from data.text.language import LanguageFacts, encode_language, supervised_facts
from data.text.thoughts import ends_with_thought
from data.text.tokenization import Pieces, TokenFacts, encode_functions, token_facts
from data.text.tokenizer import CodeTokenizer
from data.text.whitespace import collapse_damage


@dataclass
class FileFacts:
    """Counts of the language records that a split has from one file."""

    name: str
    num_records: int = 0
    num_examples: int = 0
    num_tokens: int = 0


@dataclass
class Building:
    """A split while it is built: its source and settings, and counts so far.

    `part_N` is the part of every record of a source that splits share, `is_sampled_N` says which
    of the split's own records a sample takes; the first `num_read` and `num_own` are read.
    """

    name: str
    folder: Path
    source: Source
    config: DataConfig
    tokenizer: CodeTokenizer
    rows: ReadFacts = field(default_factory=ReadFacts)
    keys: SplitKeys = field(default_factory=SplitKeys)
    files: list[FileFacts] = field(default_factory=list)
    begins_file: bool = True
    part_N: npt.NDArray[np.int8] | None = None
    num_read: int = 0
    is_sampled_N: npt.NDArray[np.bool_] | None = None
    num_own: int = 0
    path_records: list[int] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    num_documents: int = 0
    num_unsupervised: int = 0
    num_split: int = 0
    num_thinking: int = 0
    learns_end: bool = False
    control_tokens: Counter[str] = field(default_factory=Counter)
    classes: Classes = field(default_factory=Classes)


@dataclass(frozen=True)
class Kind:
    """What differs between functions and language records; all other steps are the same.

    Attributes:
        stored: Class whose fields are kept on disk beside the tokens.
        read: Records of a file: path, split, settings, the facts to fill and the file's name.
        encode: A chunk of records to tokens.
        add: Count a chunk in the building.
        settle: What only the complete splits decide: facts about all of them.
        facts: Facts about the complete split for facts.json.
    """

    stored: RecordClass
    read: Callable[[Path, str, DataConfig, ReadFacts, str], Iterator[Any]]
    encode: Callable[[Sequence[Any], CodeTokenizer, DataConfig], Pieces]
    add: Callable[[Building, Sequence[Any], Pieces], None]
    settle: Callable[[Mapping[str, Building], Classes | None], dict[str, Any]]
    facts: Callable[[Building], dict[str, Any]]


def _settle_classes(splits: Mapping[str, Building], given: Classes | None) -> dict[str, Any]:
    """Derive the classes, and give every function its target."""
    met = {name: building.rows.labels for name, building in splits.items()}
    counts = {
        name: np.bincount(building.keys.target_N, minlength=len(met[name].numbers))
        for name, building in splits.items()
    }
    config = next(iter(splits.values())).config
    classes, target_of = settled(met, counts, config, given)
    for name, building in splits.items():
        building.classes = classes
        if not np.array_equal(target_of[name], np.arange(len(target_of[name]))):
            building.keys.relabel(target_of[name])
            rewrite_targets(building.folder / RECORDS, building.keys.target_N)
    return {"classes": classes.to_json()}


def _function_facts(building: Building) -> dict[str, Any]:
    """Counts of a split of functions.

    Raises:
        DataError: No function is left; says how many were dropped for which reason.
    """
    config, rows, tokenizer = building.config, building.rows, building.tokenizer
    samples, examples = open_split(building.folder, tokenizer.vocab_size, CodeSample)
    lengths_N, num_examples = code_lengths(building.folder), len(examples)
    tokens = token_facts(
        lengths_N, samples.targets, num_examples, config, tokenizer.num_added, building.classes
    )
    if not tokens.num_examples:
        raise DataError(_no_function(building.name, rows, tokens))
    if config.normalize_whitespace == "collapse":
        warning = collapse_damage(samples).warning()
        rows.warnings += [warning] if warning else []
    return {"tokens": asdict(tokens), "cwe": building.keys.cwe_table(building.classes)}


def _first_bad(rows: ReadFacts) -> str:
    """What is wrong with the first bad row: mostly the same as with all others."""
    return f" ({rows.bad_examples[0]})" if rows.bad_examples else ""


def _no_function(name: str, rows: ReadFacts, tokens: TokenFacts) -> str:
    reasons = f"{rows.num_empty} had no code, {rows.num_bad} were bad{_first_bad(rows)}"
    if rows.num_identical:
        reasons += f", {rows.num_identical} pairs had a fix that changed nothing"
    if tokens.num_functions:
        reasons += (
            f", {tokens.num_oversized} were above data.max_function_bytes, {tokens.num_long} were"
            " dropped as longer than data.seq_length; raise it, or set data.long_functions to"
            " truncate or window"
        )
    return f"{name}: no function left of {rows.num_rows} rows: {reasons}"


def _add_language(
    building: Building, records: Sequence[Conversation | Document], pieces: Pieces
) -> None:
    building.num_documents += sum(isinstance(record, Document) for record in records)
    building.kinds |= {record.kind for record in records}
    building.num_unsupervised += pieces.num_unsupervised
    building.num_split += pieces.num_split
    building.num_thinking += sum(map(ends_with_thought, records))
    building.control_tokens.update(pieces.control_tokens)
    end_id = building.tokenizer.end_id
    building.learns_end |= bool(np.any(pieces.tokens[pieces.supervised] == end_id))
    examples_N = np.bincount(pieces.record_E, minlength=len(records))
    tokens_N = np.bincount(pieces.record_E, pieces.lengths_E, len(records))
    for record, examples, tokens in zip(records, examples_N, tokens_N, strict=True):
        if building.begins_file or record.source != building.files[-1].name:
            building.files.append(FileFacts(record.source))
            building.begins_file = False
        building.files[-1].num_records += 1
        building.files[-1].num_examples += int(examples)
        building.files[-1].num_tokens += int(tokens)


def _language_facts(building: Building) -> dict[str, Any]:
    """Counts of a split of language records.

    Raises:
        DataError: No record or no target is left; says why, and what to do.
    """
    folder, config = building.folder, building.config
    _, examples = open_split(folder, building.tokenizer.vocab_size, RecordSource)
    pieces = Pieces(
        examples.tokens, examples.lengths, examples.record_E, code_lengths(folder),
        examples.supervised, building.num_unsupervised,
    )  # fmt: skip
    facts = supervised_facts(pieces, config, building.num_documents)
    if not facts.num_targets:
        raise DataError(f"{building.name}: {_nothing_learned(building, facts)}")
    building.rows.warnings += facts.warnings
    for warning in _warnings(building, facts):
        building.rows.warn(warning)
    return {
        "tokens": asdict(facts),
        "kinds": sorted(building.kinds),
        "num_thinking": building.num_thinking,
        "files": [asdict(file) for file in building.files],
    }


def _nothing_learned(building: Building, facts: LanguageFacts) -> str:
    rows = building.rows
    if facts.num_records:
        return (
            f"nothing to learn is left of {facts.num_records} records:"
            f" {facts.num_oversized} were above data.max_function_bytes, {facts.num_long} longer"
            f" than data.seq_length ({facts.policy}), {facts.num_unsupervised} pieces held no"
            " answer; raise data.seq_length, or set data.long_functions to window"
        )
    if building.source.held_out and rows.num_bad + rows.num_empty < rows.num_rows:
        return f"none of {rows.num_rows} records of data.train is left for it; give it a file"
    return (
        f"no record left of {rows.num_rows}: {rows.num_empty} were blank, {rows.num_bad} were bad"
        f"{_first_bad(rows)}"
    )


def _warnings(building: Building, facts: LanguageFacts) -> Iterator[str]:
    if not building.learns_end:
        remedy = "set data.end_token to what the template closes an answer with"
        if facts.num_long:
            policy = building.config.long_functions
            remedy = f"data.long_functions={policy} cuts it off; take window, or {remedy}"
        yield (
            f"no target is the end token {building.tokenizer.end_token!r}, so the model does not"
            f" learn to stop: {remedy}"
        )
    if building.num_split:
        yield (
            f"{building.num_split} conversations became an example for each of several answers: the"
            " chat template writes earlier turns otherwise once more follow"
        )
    if building.control_tokens:
        yield (
            f"{building.control_tokens.total()} records write a special token of the tokenizer in"
            f" their own text, the first one {next(iter(building.control_tokens))!r}: it acts as"
            " the control token; remove it where it is meant as text"
        )


FUNCTIONS: Final = Kind(
    stored=CodeSample,
    read=read_records,
    encode=lambda samples, tokenizer, config: encode_functions(
        [s.code for s in samples], tokenizer, config, [s.code2 for s in samples]
    ),
    add=lambda building, samples, _: building.keys.append_groups(samples),
    settle=_settle_classes,
    facts=_function_facts,
)
LANGUAGE: Final = Kind(
    stored=RecordSource,
    read=read_language,
    encode=encode_language,
    add=_add_language,
    settle=lambda *_: {},
    facts=_language_facts,
)


def kind_of(language: bool) -> Kind:
    """The kind of records that a task reads."""
    return LANGUAGE if language else FUNCTIONS
