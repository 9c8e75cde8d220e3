"""Fine-tune a code model: deepspeed launcher/train.py RECIPE [section.key=value ...]."""

import os
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Train the recipe; return the exit code."""
    return command.main(command.recipe_parser(__doc__), _train, arguments)


def _train(given: Namespace) -> None:
    from trainer.processes.launchers import launchers_above

    above = launchers_above()  # now: one that ends while the model loads must be missed

    from trainer.config.recipe import load_run_config
    from trainer.processes.launched import check_launch
    from trainer.processes.ranks import adopt_launcher

    config = load_run_config(given.recipe, given.overrides)
    adopt_launcher(os.environ)
    check_launch(int(os.environ.get("WORLD_SIZE", "1")))

    from trainer.models.files import check_model_files
    from trainer.run.preparation import prepare_run

    prepared = prepare_run(config)
    check_model_files(config, prepared.tokenizer.vocab_size)

    from trainer.run.training import (
        run_training,  # torch and DeepSpeed: only once the input is sound
    )

    run_training(config, prepared, above)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
