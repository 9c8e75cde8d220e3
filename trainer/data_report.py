"""What prepared data came to: rows, their fill and the steps they make."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from data.loader import TrainLoader
from data.order import steps_for
from data.packing import one_per_row, pack
from data.prepare import Prepared, Split
from trainer.config import RunConfig
from trainer.models.files import hidden_size

_PASSED_OVER = {
    "num_bad": "bad rows passed over (data.max_bad_rows)",
    "num_empty_dropped": "functions without code dropped",
    "num_identical": "pairs dropped whose fix changed nothing",
    "num_replaced": "texts were not UTF-8 and were repaired",
    "num_nul": "functions hold a NUL character, which is kept",
}


def split_table(config: RunConfig, prepared: Prepared) -> Table:
    """One column a split: functions, classes, tokens, what long functions lost, rows."""
    columns = {name: _split_facts(config, split) for name, split in prepared.splits.items()}
    table = Table(title="Prepared data")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(column[row] for column in columns.values()))
    return table


def step_lines(config: RunConfig, prepared: Prepared) -> list[str]:
    """Optimizer steps of an epoch, packed and one function a row."""
    optim, lines = config.optim, []
    for packing in (True, False):
        loader = training_loader(config, prepared, 0, 1, packing=packing)
        lines.append(
            f"{'packed' if packing else 'unpacked'}: {loader.plan.num_rows:,} rows,"
            f" {loader.fill:.1%} full, {loader.plan.steps_per_epoch:,} steps an epoch of"
            f" {optim.global_batch_size} {optim.batch_unit}"
        )
    if optim.batch_unit == "rows":
        steps = steps_for(round(loader.num_functions), optim.global_batch_size)
        lines.append(
            "packed rows hold several functions, so the same number of rows is fewer updates;"
            f" optim.batch_unit=functions keeps {steps:,} steps"
        )
    return lines


def training_loader(
    config: RunConfig, prepared: Prepared, rank: int, world_size: int, *, packing: bool
) -> TrainLoader:
    """The steps of the training split for a rank."""
    return TrainLoader(
        prepared.splits["train"].examples,
        seq_length=config.data.seq_length,
        packing=packing,
        packing_window=config.data.packing_window,
        sampling=config.data.sampling,
        seed=config.run.seed,
        global_batch_size=config.optim.global_batch_size,
        batch_unit=config.optim.batch_unit,
        micro_batch_size=config.optim.micro_batch_size,
        rank=rank,
        world_size=world_size,
        hidden_size=hidden_size(config),
    )


def remark_lines(prepared: Prepared) -> list[str]:
    """What a user should know of the files: rows passed over, warnings, repetitions, leaks."""
    lines = []
    for name, facts in prepared.facts["splits"].items():
        counts = {words: facts[key] for key, words in _PASSED_OVER.items() if facts[key]}
        lines += [f"{name}: {count:,} {words}" for words, count in counts.items()]
        lines += [f"{name}: {example}" for example in facts["bad_examples"]]
        lines += [f"{name}: {sentence}" for sentence in facts["warnings"]]
        if facts["ignored_fields"]:
            lines.append(f"{name}: columns not read: {', '.join(facts['ignored_fields'])}")
    sharing = prepared.sharing
    for name in prepared.splits:
        if sharing.contradictory[name]:
            lines.append(
                f"{name}: {sharing.contradictory[name]:,} functions stand there with both labels"
            )
        if sharing.duplicates[name]:
            lines.append(f"{name}: {sharing.duplicates[name]:,} functions repeat an earlier one")
    for field, pairs in sharing.shared_groups.items():
        lines += [f"{pair}: {count:,} {field}s in both" for pair, count in pairs.items() if count]
    if prepared.leaks:
        lines.append(f"LEAKS: {prepared.leaks} stand in two splits (data.allow_leaks)")
    return lines


def plan_facts(loader: TrainLoader, total_steps: int) -> dict[str, Any]:
    """The content of plan.json: rows, steps and how evenly ranks are loaded."""
    return {
        **asdict(loader.plan),
        "gradient_accumulation_steps": loader.plan.gradient_accumulation_steps,
        "total_steps": total_steps,
        "functions_per_epoch": loader.num_functions,
        "packing_fill": loader.fill,
        "imbalance": asdict(loader.mean_imbalance()),
    }


def _split_facts(config: RunConfig, split: Split) -> dict[str, str]:
    facts = split.tokens
    lengths = split.examples.lengths
    packed = config.data.packing
    rows = pack(lengths, config.data.seq_length) if packed else one_per_row(len(lengths))
    fill = split.examples.lengths.sum() / (len(rows) * config.data.seq_length)
    return {
        "functions": f"{facts.num_functions:,}",
        "vulnerable": f"{facts.num_positive:,} ({facts.num_positive / facts.num_functions:.1%})",
        "tokens mean": f"{facts.tokens_mean:.1f}",
        "tokens median": f"{facts.tokens_median:.0f}",
        "tokens p90": f"{facts.tokens_p90:.0f}",
        "tokens max": f"{facts.tokens_max:,}",
        f"long ({facts.policy})": f"{facts.num_long:,} ({facts.long_positive:,} vulnerable)",
        "oversized (dropped)": f"{facts.num_oversized:,} ({facts.oversized_positive:,} vulnerable)",
        "pieces in rows": f"{facts.num_examples:,}",
        f"rows of {config.data.seq_length}": f"{len(rows):,}",
        "fill": f"{fill:.2%}",
    }
