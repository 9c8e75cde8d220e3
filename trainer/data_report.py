"""What prepared data came to: rows, their fill and the steps they make."""

from rich.table import Table

from data.loader import TrainLoader
from data.order import steps_for
from data.packing import pack
from data.prepare import Prepared, Split
from trainer.config import RunConfig


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
        functions = float(prepared.splits["train"].examples.share_E.sum())
        steps = steps_for(functions, optim.global_batch_size)
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
    )


def _split_facts(config: RunConfig, split: Split) -> dict[str, str]:
    facts = split.tokens
    rows = pack(split.examples.lengths, config.data.seq_length)
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
