"""Merge a finished run's adapter into its base: launcher/export.py RUN --merge [--onto full].

Writes a plain transformers folder (RUN/merged) and prints how far its logits differ from those of
the trained model.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Write the merged model; return the exit code."""
    parser = command.command_parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder of launcher/train.py")
    parser.add_argument("--merge", action="store_true", required=True, help="what to do")
    parser.add_argument(
        "--onto",
        choices=("dequantized", "full"),
        default="dequantized",
        help="the decoded weights that QLoRA trained with (default), or the unquantised base",
    )
    parser.add_argument("--output", type=Path, help="new folder; default: RUN/merged")
    return command.main(parser, _merge, arguments)


def _merge(given: Namespace) -> None:
    from trainer.config.recipe import load_run_config
    from trainer.run.preparation import prepare_run

    run, target = given.run, given.output or given.run / "merged"
    here = f"run.output_dir={json.dumps(str(run.resolve()))}"  # the run may have moved
    config = load_run_config(run / "config.yaml", [here])
    prepared = prepare_run(config)

    from trainer.run.merge import merge_run

    drift = merge_run(config, prepared, target.resolve(), given.onto)
    print(
        f"{target}: merged onto the {drift['onto']} base; logits of {drift['num_functions']}"
        f" validation functions move by {drift['max_logit_difference']:.2e} at most,"
        f" {drift['mean_logit_difference']:.2e} on average (largest logit"
        f" {drift['largest_logit']:.2f})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
