"""Merge a finished run's adapter into its base: launcher/export.py RUN --merge [--onto full].

Writes a plain transformers folder (RUN/merged) and prints how far its logits are from those of the
model that was trained.
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher.command import run_command


def main(arguments: list[str]) -> int:
    """Write the merged model; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of launcher/train.py")
    parser.add_argument("--merge", action="store_true", required=True, help="what to do")
    parser.add_argument(
        "--onto",
        choices=("dequantized", "full"),
        default="dequantized",
        help="the weights QLoRA trained beside, decoded (default), or the unquantised base",
    )
    parser.add_argument("--output", type=Path, help="new folder; default: RUN/merged")
    given = parser.parse_args(arguments)
    return run_command(lambda: _merge(given.run, given.output or given.run / "merged", given.onto))


def _merge(run: Path, target: Path, onto: str) -> None:
    from trainer.config.recipe import load_run_config
    from trainer.run.preparation import prepare_run

    here = f"run.output_dir={json.dumps(str(run.resolve()))}"  # the run may have moved
    config = load_run_config(run / "config.yaml", [here])
    prepared = prepare_run(config)

    from trainer.run.merge import merge_run

    drift = merge_run(config, prepared, target.resolve(), onto)
    print(
        f"{target}: merged onto the {drift['onto']} base; logits of {drift['num_functions']}"
        f" validation functions move by {drift['max_logit_difference']:.2e} at most,"
        f" {drift['mean_logit_difference']:.2e} on average (largest logit"
        f" {drift['largest_logit']:.2f})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
