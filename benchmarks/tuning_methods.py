"""Seven tuning methods on three sizes: does the smallest size predict the order at the largest?

    python benchmarks/tuning_methods.py --data FOLDER --output FOLDER [--seeds 0 1]

The study of Astraios (Zhuo et al. 2024) in small: three GPTBigCode bases of 0.1 to 1 M parameters
learn CodeAlpaca, then launcher/sweep.py tunes them on the OASST half of OctoPack, both files below
--data. About 15 seconds of CPU a cell.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from launcher.sweep import main as sweep
from trainer.config.preset import ROOT

CODE_ALPACA = "codealpaca/new_codealpaca.json.gz"
OASST = "oasst_octopack/oasstcommitpackftmanual.jsonl.gz"
TOKENIZER = ROOT / "data" / "samples" / "model"
SIZES = {"tiny": (32, 2), "small": (64, 3), "base": (128, 4)}  # width, layers
METHODS = ("full", "lora", "ia3", "ptuning", "adapter_h", "adapter_p", "parallel")
SETTINGS = (  # one rate for each method, not searched; widths in proportion to these bases
    "full:optim.lr=1e-3", "ia3:optim.lr=3e-2", "ptuning:tuning.adapter_size=8",
    *(f"{method}:tuning.adapter_size=16" for method in METHODS[-3:]),
)  # fmt: skip
OPTIM = {"micro_batch_size": 8, "global_batch_size": 8, "batch_unit": "rows", "lr": 3e-3}
QUIET: dict[str, Any] = {
    "task": {"name": "instruction"},
    "eval": {"interval": "never", "prompts": ["Write a function."]},
    "save": {"interval": 10_000},
}


def main() -> int:
    """Train the bases, run the sweep; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two datasets")
    parser.add_argument("--output", type=Path, required=True, help="folder for bases and runs")
    parser.add_argument("--seeds", nargs="+", default=["0", "1"])
    given = parser.parse_args()
    bases = [f"{name}={base(name, given.data, given.output)}" for name in SIZES]
    recipe = write_recipe(
        given.output / "sweep.yaml",
        run={"output_dir": str(given.output.resolve() / "grid")},
        model={"path": bases[0].partition("=")[2]},
        data={
            "train": str(given.data.resolve() / OASST),
            "tokenizer": str(TOKENIZER),
            "seq_length": 192,
            "packing": False,  # P-Tuning's virtual tokens need a row for each example
        },
        tuning={"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        optim=OPTIM | {"max_steps": 100, "warmup_steps": 6},
        log={"interval": 2, "progress": False, "trackers": []},
    )
    grid = ["--methods", *METHODS, "--models", *bases, "--seeds", *given.seeds]
    return sweep([str(recipe), *grid, "--set", *SETTINGS])


def base(name: str, data: Path, output: Path) -> Path:
    """Train a base from random weights, or go on; the folder of its weights."""
    width, num_layers = SIZES[name]
    config = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))
    config |= {"n_embd": width, "n_layer": num_layers, "n_inner": 4 * width}
    config |= {"n_positions": 256, "initializer_range": 0.05}
    path = output.resolve() / "configs" / name / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")
    recipe = write_recipe(
        output / f"{name}.yaml",
        run={"output_dir": str(output.resolve() / "bases" / name), "seed": 7},
        model={"config": str(path)},
        data={
            "train": str(data.resolve() / CODE_ALPACA),
            "tokenizer": str(TOKENIZER),
            "supervise": "all",
            "seq_length": 128,
        },
        tuning={"method": "full"},
        optim=OPTIM | {"max_steps": 300, "warmup_steps": 20, "weight_decay": 0.01},
        log={"interval": 20, "progress": False, "trackers": []},
    )
    subprocess.run([sys.executable, ROOT / "launcher" / "train.py", recipe], check=True)
    return output.resolve() / "bases" / name / "model"


def write_recipe(path: Path, **sections: dict[str, Any]) -> Path:
    """A recipe with these sections and those that all runs share."""
    path.write_text(yaml.safe_dump(QUIET | sections), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
