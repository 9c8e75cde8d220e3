"""Prepare a recipe's data before the GPU time starts: launcher/prepare.py RECIPE [KEY=VALUE ...].

Reads, checks, tokenises and packs on the CPU, keeps the result where training maps it from, and
prints what the data came to.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher.command import recipe_parser, run_command


def main(arguments: list[str]) -> int:
    """Prepare as the recipe says; the exit code."""
    given = recipe_parser(__doc__ or "").parse_args(arguments)
    return run_command(lambda: _prepare(given.recipe, given.overrides))


def _prepare(recipe: Path, overrides: list[str]) -> None:
    from trainer.preparation import prepare_run
    from trainer.recipe import load_run_config

    config = load_run_config(recipe, overrides)
    prepared = prepare_run(config)

    from rich.console import Console

    from trainer.data_report import remark_lines, split_table, step_lines

    console = Console()
    console.print(split_table(config, prepared))
    for line in [*step_lines(config, prepared), *remark_lines(prepared)]:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"cache: {prepared.facts['cache']}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
