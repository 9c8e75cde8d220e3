"""Prepared data in numbers: records, tokens, rows, their fill and the steps they make."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.batches.loader import TrainLoader
from data.batches.order import steps_for
from data.batches.packing import one_per_row, pack
from data.kinds import KINDS
from data.prepared.prepare import Prepared
from data.prepared.stock_tokenizer import decoded, difference
from data.readers.reading import listed
from data.text.escaping import escaped
from data.text.labels import OTHER, Classes
from data.text.language import LanguageFacts, show_example
from data.text.tokenization import TokenFacts
from trainer.config.sections import RunConfig
from trainer.run.preparation import print_lines, training_loader

_MOST_CLASSES = 20  # rows of the table
_PASSED_OVER = {
    "num_bad": "bad rows passed over (data.max_bad_rows)",
    "num_empty_dropped": "blank {unit} dropped",
    "num_identical": "pairs dropped whose fix changed nothing",
    "num_replaced": "texts were not UTF-8 and were repaired",
    "num_nul": "{unit} hold a NUL character, which is kept",
}
_CUT = {
    "truncate": "cut off here",
    "truncate_left": "cut off before the first",
    "truncate_middle": "cut out of the middle",
    "window": "of it are in other windows",
}


def print_prepared(config: RunConfig, prepared: Prepared, num_shown: int) -> None:
    """Print the first examples, the table of splits, steps, remarks and the place of the cache."""
    console = Console()
    for text in example_lines(prepared, num_shown, brackets=console.color_system is None):
        console.print(text, soft_wrap=True)
    console.print(split_table(config, prepared))
    print_lines(supervised_lines(prepared))
    print_lines(step_lines(config, prepared))
    print_lines(remark_lines(prepared))
    print_lines([f"cache: {prepared.facts['cache']}"])


def split_table(config: RunConfig, prepared: Prepared) -> Table:
    """One column for each split: records, classes or targets, tokens, long records, rows."""
    columns = {name: _split_facts(config, prepared, name) for name in prepared.splits}
    table = Table(title="Prepared data")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(column[row] for column in columns.values()))
    return table


def step_lines(config: RunConfig, prepared: Prepared) -> list[str]:
    """Optimizer steps of an epoch, packed and one example a row."""
    optim, lines = config.optim, []
    for packing in (True, False):
        loader = training_loader(config, prepared, packing=packing)
        lines.append(
            f"{'packed' if packing else 'unpacked'}: {loader.plan.num_rows:,} rows,"
            f" {loader.fill:.1%} full, {loader.plan.steps_per_epoch:,} steps an epoch of"
            f" {optim.global_batch_size} {optim.batch_unit}"
        )
        lines += order_lines(loader) if config.data.packing else []
        lines += small_lines(loader) if packing == config.data.packing else []
    if optim.batch_unit == "rows":
        steps = steps_for(round(loader.num_records), optim.global_batch_size)
        lines.append(
            "packed rows hold several examples, so the same number of rows is fewer updates;"
            f" optim.batch_unit=examples keeps {steps:,} steps"
        )
    return lines


def small_lines(loader: TrainLoader) -> list[str]:
    """That there is less data than a step takes."""
    batching = loader.batching
    size, unit = batching.global_batch_size, batching.batch_unit
    num = loader.plan.num_rows if unit == "rows" else round(loader.num_records)
    if num >= size:
        return []
    return [
        f"train has {num:,} {unit}, fewer than optim.global_batch_size={size:,}: every step takes"
        " all of them; lower it for more steps an epoch"
    ]


def order_lines(loader: TrainLoader) -> list[str]:
    """The number of rows, where rows that never mix files are at least twice as many as needed."""
    if loader.files is None or not loader.batching.packing:
        return []
    lengths, num_rows = loader.examples.lengths, loader.plan.num_rows
    seq_length = loader.batching.seq_length
    num_mixed = len(pack(lengths, seq_length))
    if num_rows < 2 * num_mixed:
        return []
    num_files = len(loader.files)
    return [
        f"data.order=sequential never mixes files in a row: {num_files:,} files of"
        f" {lengths.sum() / num_files:,.0f} tokens on average make {num_rows:,} rows of"
        f" {seq_length:,}, {loader.fill:.1%} full; data.order=shuffled packs them together"
        f" into {num_mixed:,}"
    ]


def remark_lines(prepared: Prepared) -> list[str]:
    """Remarks on the files: rows passed over, warnings, repetitions, leaks."""
    lines, unit = [], unit_of(prepared.facts["splits"]["train"])
    held_out = prepared.facts.get("held_out", {})
    for name, facts in prepared.facts["splits"].items():
        if name in held_out:  # read from train's files, which are described there
            continue
        counts = {words: facts[key] for key, words in _PASSED_OVER.items() if facts[key]}
        lines += [f"{name}: {n:,} {words.format(unit=unit)}" for words, n in counts.items()]
        lines += [f"{name}: {example}" for example in facts["bad_examples"]]
        lines += [f"{name}: {sentence}" for sentence in facts["warnings"]]
        if facts["ignored_fields"]:
            lines.append(f"{name}: columns not read: {', '.join(facts['ignored_fields'])}")
    if merged := prepared.classes.merged:
        lines.append(
            f"data.min_class_size: the class {OTHER!r} holds {len(merged):,} rare labels of"
            f" {sum(merged.values()):,} training functions: {listed(merged)}"
        )
    sharing = prepared.sharing
    if train := prepared.splits.get("train"):
        texts = decoded(prepared.tokenizer, train.examples.tokens, train.examples.starts)
        found = difference(prepared.tokenizer, texts)
        lines += [found] if found else []
    if begin := prepared.tokenizer.begin_token:
        lines.append(f"the tokenizer puts {begin!r} before every text")
    if unread := prepared.facts.get("unread"):
        lines.append(f"no split reads {listed(unread)}")
    if held_out:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in held_out.items())
        division = prepared.facts["division"]
        how = f"{division['by']}; the order of records does not matter"
        lines.append(f"{shares}: held out of data.train by {how}")
        if "near_duplicates" in division:
            lines.append(f"near duplicates: {division['near_duplicates']}")
    for name in prepared.splits:
        if sharing.contradictory[name]:
            different = "both" if prepared.classes.is_binary else "different"
            lines.append(
                f"{name}: {sharing.contradictory[name]:,} functions have {different} labels there"
            )
        if sharing.duplicates[name]:
            lines.append(f"{name}: {sharing.duplicates[name]:,} {unit} repeat an earlier one")
    for field, pairs in sharing.shared_groups.items():
        lines += [f"{pair}: {count:,} {field}s in both" for pair, count in pairs.items() if count]
    leaks = sharing.leak_lines(prepared.facts["leak_groups"], unit)
    lines += [f"LEAK (data.allow_leaks): {line}" for line in leaks]
    return lines


def unit_of(facts: Mapping[str, Any]) -> str:
    """What the records of a split are called."""
    held = {KINDS[kind].holds for kind in facts.get("kinds", [])}
    if not held:
        return "functions"
    of_one = {"messages": "conversations", "text": "texts", "function": "functions"}
    return of_one.get(held.pop(), "records") if len(held) == 1 else "records"


def plan_facts(loader: TrainLoader, total_steps: int) -> dict[str, Any]:
    """The content of plan.json: rows, steps and how evenly ranks are loaded."""
    return {
        **asdict(loader.plan),
        "gradient_accumulation_steps": loader.plan.gradient_accumulation_steps,
        "total_steps": total_steps,
        "records_per_epoch": loader.num_records,
        "packing_fill": loader.fill,
        "imbalance": asdict(loader.mean_imbalance()),
    }


def supervised_lines(prepared: Prepared) -> list[str]:
    """The training examples of a language task by their share of supervised tokens."""
    facts = prepared.splits["train"].tokens
    if not isinstance(facts, LanguageFacts):
        return []
    most = max(facts.share_histogram)
    return ["train: examples by share of supervised tokens"] + [
        f"  {place * 10:3}-{place * 10 + 10:3}%  {'#' * round(40 * num / most):40}  {num:,}"
        for place, num in enumerate(facts.share_histogram)
    ]


def example_lines(prepared: Prepared, limit: int, *, brackets: bool = False) -> list[Text]:
    """The first examples of the training split as the model reads them, with their origin.

    Targets are coloured, or between brackets; what was cut off is said.
    """
    train, shown = prepared.splits["train"], []
    policy = train.tokens.policy
    examples = train.examples
    for example in range(min(limit, len(examples))):
        place = slice(examples.starts[example], examples.starts[example + 1])
        tokens = np.asarray(examples.tokens[place], np.int32)
        mask = np.zeros(len(tokens), np.bool_)
        target, classes = int(examples.label_E[example]), prepared.classes
        shown_target = f"target {target if classes.are_usual else classes.text(target)}"
        what = f"{shown_target}, read at the last token"
        if examples.supervised is not None:
            mask = np.asarray(examples.supervised[place])
            what = f"{int(examples.count_E[example])} targets"
        record = int(examples.record_E[example])
        header = f"--- {train.samples[record].origin}: {len(tokens)} tokens, {what}"
        num_added = prepared.tokenizer.num_added if examples.supervised is None else 0
        num_cut = int(train.code_lengths[record]) + num_added - len(tokens)
        if policy != "window" and len(tokens) < examples.lengths.max():
            num_cut = 0  # what is cut fills its row: this is one answer of several
        cut = f"[{num_cut:,} tokens {_CUT[policy]}: data.long_functions={policy}]"
        text = show_example(tokens, mask, prepared.tokenizer, brackets=brackets)
        shown += [Text(escaped(header), "bold"), text]
        shown += [Text(cut, "bold")] if num_cut > 0 else []
    return shown


def _split_facts(config: RunConfig, prepared: Prepared, name: str) -> dict[str, str]:
    """A column of the table; rows are those that are trained, or scored."""
    split, packed, length = prepared.splits[name], config.data.packing, config.data.seq_length
    if name == "train":
        loader = training_loader(config, prepared, packing=packed)
        num_rows, fill = loader.plan.num_rows, loader.fill
    else:
        lengths = split.examples.lengths
        num_rows = len(pack(lengths, length) if packed else one_per_row(len(lengths)))
        fill = lengths.sum() / (num_rows * length)
    facts, unit = split.tokens, unit_of(prepared.facts["splits"][name])
    if isinstance(facts, LanguageFacts):
        of_kind = _language_facts(facts, unit)
    else:
        of_kind = _code_facts(facts, prepared.classes)
    return of_kind | {f"rows of {length}": f"{num_rows:,}", "fill": f"{fill:.2%}"}


def _code_facts(facts: TokenFacts, classes: Classes) -> dict[str, str]:
    shown = list(zip(classes.names, facts.class_counts, strict=True))[:_MOST_CLASSES]
    counts = {
        escape(escaped(name)): f"{count:,} ({count / facts.num_functions:.1%})"
        for name, count in (shown[1:] if classes.are_usual else shown)
    }
    more = len(classes.names) - len(shown)
    long, oversized = f"{facts.num_long:,}", f"{facts.num_oversized:,}"
    if classes.are_usual:
        long += f" ({facts.long_counts[1]:,} vulnerable)"
        oversized += f" ({facts.oversized_counts[1]:,} vulnerable)"
    return {
        "functions": f"{facts.num_functions:,}",
        **counts,
        **({"more classes": f"{more:,}"} if more else {}),
        "tokens mean": f"{facts.tokens_mean:.1f}",
        "tokens median": f"{facts.tokens_median:.0f}",
        "tokens p90": f"{facts.tokens_p90:.0f}",
        "tokens max": f"{facts.tokens_max:,}",
        f"long ({facts.policy})": long,
        "oversized (dropped)": oversized,
        "pieces in rows": f"{facts.num_examples:,}",
    }


def _language_facts(facts: LanguageFacts, unit: str) -> dict[str, str]:
    return {
        unit: f"{facts.num_records:,}",
        "examples": f"{facts.num_examples:,}",
        "tokens": f"{facts.num_tokens:,}",
        "supervised": f"{facts.num_supervised:,} ({facts.num_supervised / facts.num_tokens:.1%})",
        "targets": f"{facts.num_targets:,}",
        f"long ({facts.policy})": f"{facts.num_long:,}",
        "oversized (dropped)": f"{facts.num_oversized:,}",
        f"{unit} dropped": f"{facts.num_dropped:,}",
        "pieces without an answer": f"{facts.num_unsupervised:,}",
    }
