"""Files -> checked, tokenised splits on disk, and the facts about them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.errors import DataError
from data.kinds import KINDS
from data.prepared.build import build_splits
from data.prepared.cache import cached, code_lengths, default_root, open_split, read_facts
from data.prepared.kinds import FUNCTIONS, LANGUAGE, Kind, kind_of
from data.prepared.sources import Source, sources_digest, sources_of
from data.prepared.splits import SplitFacts, refuse_absent_class, refuse_leaks
from data.prepared.table import RecordTable
from data.readers import source_digest, told_apart, unread
from data.text.labels import Classes, class_counts
from data.text.language import LanguageFacts
from data.text.own_template import own_template
from data.text.tokenization import TOKENS_FORMAT, ExampleSet, TokenFacts
from data.text.tokenizer import CodeTokenizer

# Libraries on which records, tokens or their files depend.
_LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow")
# Settings on which the rows of a run depend, but not the content of the cache.
_NOT_IN_KEY = {
    "path", "train", "valid", "test", "tokenizer", "cache_dir", "packing", "packing_window",
    "sampling", "split", "leak_groups", "allow_leaks", "isolate", "order", "functions",
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """One split, read and tokenised.

    Attributes:
        samples: Its records, on disk: whole functions, or the origins of language records.
        examples: Their tokens, on disk.
        tokens: Counts of tokens, and of examples dropped or cut.
        folder: Holds records and tokens.
        files: For language records: the first record of each file, by name, in the files' order.
        times_N: How often an epoch takes each record, where data.train gives weights.
    """

    samples: RecordTable[Any]
    examples: ExampleSet
    tokens: TokenFacts | LanguageFacts
    folder: Path
    files: Mapping[str, int] = field(default_factory=dict)
    times_N: npt.NDArray[np.float64] | None = None

    @cached_property
    def targets(self) -> list[int]:
        """Target of every function, also of dropped ones."""
        targets: list[int] = self.samples.targets.tolist()
        return targets

    @property
    def code_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every record's whole text; -1 where it is too long to be tokenised."""
        return code_lengths(self.folder)


@dataclass(frozen=True)
class Prepared:
    """A dataset ready for training.

    Attributes:
        splits: By name; none where only `facts` are left of a run's data.
        tokenizer: Has encoded them.
        facts: The content of data.json: digests, counts, dropped records, leaks.
    """

    splits: dict[str, Split]
    tokenizer: CodeTokenizer
    facts: dict[str, Any]

    @property
    def sharing(self) -> SplitFacts:
        """What splits share, and repetitions within one."""
        return SplitFacts(**self.facts["sharing"])

    @property
    def leaks(self) -> dict[str, dict[str, int]]:
        """What two splits must not share but do, by kind and pair of splits."""
        return self.sharing.leaks(self.facts["leak_groups"])

    @property
    def classes(self) -> Classes:
        """The classes of functions."""
        return Classes.of(self.facts)

    @property
    def prior_C(self) -> npt.NDArray[np.float64]:
        """Share of each class in training, dropped functions included."""
        tokens = self.facts["splits"]["train"]["tokens"]
        shares: npt.NDArray[np.float64] = np.array(class_counts(tokens)) / tokens["num_functions"]
        return shares

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of everything on which the rows depend."""
        digests: dict[str, str] = self.facts["sha256"]
        return digests


def prepare(
    config: DataConfig,
    tokenizer_folder: Path,
    *,
    language: bool = False,
    group_weights: Mapping[str, float] | None = None,
    class_weights: str = "none",
) -> Prepared:
    """The three splits of a run, checked: from the cache, which is filled first if necessary.

    A split without files takes a part of train's.

    Args:
        config: Where they are and how they are read.
        tokenizer_folder: Holds tokenizer.json.
        language: Conversations and documents, not functions.
        group_weights: Loss weight of a function by its status.
        class_weights: "balanced" weighs functions by the inverse share of their class in training.

    Raises:
        DataError: A file, a record or a combination of splits cannot be used.
    """
    prepared = open_splits(config, tokenizer_folder, language=language)
    unit = "records" if language else "functions"
    refuse_leaks(prepared.sharing, prepared.facts["leak_groups"], config.allow_leaks, unit)
    if language:
        return prepared
    train, classes = prepared.splits["train"], prepared.classes
    refuse_absent_class(train.samples.targets, "train", classes)
    kept = "train, without the functions data.long_functions=drop takes away"
    refuse_absent_class(train.examples.label_E, kept, classes)
    weight_K = np.ones(classes.num_targets, np.float32)
    if class_weights == "balanced" and classes.sets is None:
        weight_K = _class_weights(train)
    _refuse_unknown_groups(train, group_weights or {})
    splits = dict(prepared.splits)
    for name in ("train", "valid"):  # the loss on valid is that of training
        examples = splits[name].examples
        weight_N = _loss_weights(splits[name], group_weights or {}, weight_K)
        examples = replace(examples, weight_E=weight_N[examples.record_E])
        splits[name] = replace(splits[name], examples=examples)
    return replace(prepared, splits=splits)


def open_splits(
    config: DataConfig,
    tokenizer_folder: Path,
    *,
    language: bool = False,
) -> Prepared:
    """The three splits as they are, also those that training refuses.

    Raises:
        DataError: A file or a record cannot be read.
    """
    sources = sources_of(config, language)
    prepared = _open(config, sources, tokenizer_folder, kind_of(language))
    groups = [] if language else list(config.leak_groups)
    used = [path for source in sources.values() for path in source.paths]
    own = {"leak_groups": groups, "leaks_allowed": config.allow_leaks}
    own |= {"unread": unread(config, used, language=language)}
    return replace(prepared, facts=prepared.facts | own)


def read_split(
    paths: Sequence[Path],
    name: str,
    config: DataConfig,
    tokenizer: CodeTokenizer,
    *,
    language: bool = False,
    classes: Classes | None = None,
) -> tuple[Split, dict[str, Any]]:
    """A single split, for an evaluation after training; functions are in one file.

    `classes` are those of the training.
    """
    sources = {name: Source(tuple(paths), {}, told_apart(paths))}
    of_run = classes or Classes()
    prepared = _open(config, sources, tokenizer.path.parent, kind_of(language), of_run)
    facts = prepared.facts["splits"][name] | {"sha256": prepared.digests[name]}
    return prepared.splits[name], facts


def data_digests(config: DataConfig, tokenizer_folder: Path, *, language: bool) -> dict[str, str]:
    """`Prepared.digests` of a recipe, from its files alone: nothing is tokenised.

    Raises:
        DataError: A split is missing.
        OSError: No tokenizer.json.
    """
    sources = sources_of(config, language)
    tokenizer_file = tokenizer_folder / "tokenizer.json"
    return _digests(sources, config, tokenizer_file, kind_of(language))


def _class_weights(train: Split) -> npt.NDArray[np.float32]:
    """Weight N / (C N_c) of class c of C, with N functions that are not dropped.

    Its mean over functions is 1 (King and Zeng 2001). Of several classes at once each has weights
    of its own, in the loss.
    """
    kept_C = np.bincount(train.samples.targets[np.unique(train.examples.record_E)])
    weight_C: npt.NDArray[np.float32] = (kept_C.sum() / (len(kept_C) * kept_C)).astype(np.float32)
    return weight_C


def _refuse_unknown_groups(train: Split, group_weights: Mapping[str, float]) -> None:
    """Refuse a weight of a status that no training function has.

    Raises:
        DataError: With those that there are.
    """
    if not group_weights:
        return
    present = train.samples.column("status").unique().to_pylist()
    if unknown := sorted(group_weights.keys() - set(present)):
        raise DataError(
            f"loss.group_weights: no training function has status {unknown}; there are"
            f" {sorted(present)}"
        )


def _loss_weights(
    split: Split, group_weights: Mapping[str, float], weight_K: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Weight of every function: that of its group times that of its class."""
    weight_N = weight_K[split.samples.targets]
    if group_weights:
        statuses = split.samples.column("status").combine_chunks().dictionary_encode()
        of_status = [group_weights.get(s, 1.0) for s in statuses.dictionary.to_pylist()]
        weight_N = weight_N * np.array(of_status, np.float32)[statuses.indices.to_numpy()]
    return weight_N


def _open(
    config: DataConfig,
    sources: Mapping[str, Source],
    tokenizer_folder: Path,
    kind: Kind,
    classes: Classes | None = None,
) -> Prepared:
    """Splits from the cache, which is filled first if it does not hold them."""
    tokenizer = CodeTokenizer(tokenizer_folder, config.end_token)
    digests = _digests(sources, config, tokenizer.path, kind)
    held_out = dict(sources["train"].held_out) if "train" in sources else {}
    content = {
        "digests": digests,
        # every origin begins with a file's name
        "names": {name: [s.name_of(path) for path in s.paths] for name, s in sources.items()},
        "kind": kind.stored.__name__,
        "fields": kind.stored._fields,
        "end_token": tokenizer.end_token,
        "config": config.model_dump(mode="json", exclude=_NOT_IN_KEY),
        "versions": {name: version(name) for name in _LIBRARIES},
        "format": TOKENS_FORMAT,
        "classes": classes and classes.to_json(),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def build(folder: Path) -> dict[str, Any]:
        return build_splits(folder, config, sources, tokenizer, kind, classes) | {
            "sha256": digests,
            "held_out": held_out,
            "begin_token": tokenizer.begin_token,
            "end_token": tokenizer.end_token,
            "normalize_whitespace": config.normalize_whitespace,
            "seq_length": config.seq_length,
            "sample": config.sample,
        }

    entry = cached(Path(config.cache_dir) if config.cache_dir else default_root(), key, build)
    facts = read_facts(entry)
    splits = {
        name: _open_split(entry / name, facts, tokenizer.vocab_size, kind) for name in sources
    }
    if weighed := {name: source for name, source in sources.items() if source.weights}:
        train = weighed["train"]
        weight_F = [train.weights.get(path, 1.0) for path in train.paths]
        times_N = np.repeat(weight_F, facts["splits"]["train"]["path_records"])
        splits["train"] = replace(splits["train"], times_N=times_N)
    return Prepared(splits, tokenizer, facts | {"cache": str(entry)})


def _digests(
    sources: Mapping[str, Source], config: DataConfig, tokenizer_file: Path, kind: Kind
) -> dict[str, str]:
    by_paths = {paths: sources_digest(paths) for paths in {s.paths for s in sources.values()}}
    digests = {name: by_paths[source.paths] for name, source in sources.items()}
    if sources and config.functions is not None:
        digests["functions"] = source_digest(Path(config.functions))
    held_out, weighed = (
        {path: of for source in sources.values() for path, of in getattr(source, name).items()}
        for name in ("held_out", "weights")
    )
    if held_out:  # paths may move, their order is that of the sources
        digests["division"] = _digest([held_out, config.split.by, config.leak_groups])
    if weighed:
        digests["weights"] = _digest(list(weighed.values()))
    digests["tokenizer"] = source_digest(tokenizer_file)
    if kind is LANGUAGE:
        own, calling = (own_template(tokenizer_file.parent, has_tools=has) for has in (False, True))
        digests["chat_template"] = _digest(own if own == calling else [own, calling])
    return digests


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _open_split(folder: Path, every: Mapping[str, Any], vocab_size: int, kind: Kind) -> Split:
    samples, examples = open_split(folder, vocab_size, kind.stored)
    facts = every["splits"][folder.name]
    if kind is FUNCTIONS:
        examples = replace(examples, members_KC=Classes.of(every).members_KC)
        return Split(samples, examples, TokenFacts(**facts["tokens"]), folder)
    if all(
        KINDS[kind].holds == "text" for kind in facts["kinds"]
    ):  # the windows of a text are examples of their own
        examples = replace(examples, share_E=np.ones(len(examples)))
    files = _first_records(facts["files"])
    return Split(samples, examples, LanguageFacts(**facts["tokens"]), folder, files)


def _first_records(files: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Name -> first record; `told_apart` made the names differ."""
    starts: dict[str, int] = {}
    first = 0
    for file in files:
        starts[file["name"]] = first
        first += file["num_records"]
    return starts
