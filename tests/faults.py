"""Cuts runs off by seed and starts them again: tests/faults.py --kills 200 --seed 0.

A chain is one run folder: the same command starts again and again, a fault ends it in a phase, and
the last start ends by itself. Then losses, validations, report, adapter and merged model equal
those of an undisturbed run on as many ranks to the last bit, every checkpoint that was there before
a fault verifies, and files of others are as they were. Faults:

    SIGKILL, SIGTERM, SIGHUP   to every rank; through a launcher, to the launcher as well
    disk full                  a tmpfs that a filler leaves a few kB of; needs root
    folder removed             the run folder, at once, while the run writes to it
    two runs, two prepares     at once, in one run folder or one cache

Most chains fork their ranks (rank_pool.py); every --launcher-every-th starts `python
launcher/train.py` on one rank and `deepspeed launcher/train.py` on two.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

import yaml
from conftest import REPOSITORY, sample_rows, write_rows
from fault_chains import FAULTS, PHASES, STEPS, Chain, play, results


@contextmanager
def small_disk(folder: Path, is_small: bool) -> Iterator[None]:
    """Mount a tmpfs on a new folder, if root may."""
    folder.mkdir()
    if is_small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "faults", folder], check=True)
    try:
        yield
    finally:
        if is_small:
            subprocess.run(["umount", "-l", folder], check=True)


def write_inputs(folder: Path) -> Path:
    """A recipe of eight steps with a small model and few functions."""
    samples = REPOSITORY / "data" / "samples" / "model"
    data, model = folder / "data", shutil.copytree(samples, folder / "model")
    data.mkdir()
    for split, count in (("train", 24), ("valid", 12), ("test", 12)):
        write_rows(data / f"{split}.jsonl", sample_rows(split, count))
    config = json.loads((model / "config.json").read_text())
    config |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "initializer_range": 0.2}
    (model / "config.json").write_text(json.dumps(config))
    values = {
        "run": {"output_dir": "runs/faults", "seed": 3},
        "model": {"config": str(model)},
        "data": {"path": str(data), "seq_length": 640},
        "tuning": {"lora_r": 4, "lora_dropout": 0.1},
        "optim": {"lr": 1e-2, "max_steps": STEPS, "global_batch_size": 8},
        "eval": {"interval": STEPS // 2},
        "log": {"interval": 1, "progress": False},
        "save": {"interval": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def table(chains: Sequence[Chain]) -> str:
    """Counts by fault and phase, as Markdown."""
    counts = Counter(hit for chain in chains for hit in chain.hits)
    faults = (*FAULTS, "two prepares")
    lines = [f"| fault | {' | '.join(PHASES)} | all |", "|---" * (len(PHASES) + 2) + "|"]
    for fault in faults:
        row = [counts[phase, fault] for phase in PHASES]
        lines.append(f"| {fault} | {' | '.join(map(str, row))} | {sum(row)} |")
    return "\n".join(lines)


class Campaign:
    """Chains side by side until enough faults are done."""

    def __init__(self, given: Namespace) -> None:
        self._given, self._begun = given, time.monotonic()
        self.root = Path(tempfile.mkdtemp(prefix="focaltune-faults-"))
        self._recipe = write_inputs(self.root)
        self._wholes: dict[int, dict[str, object]] = {}
        self._numbers = iter(range(10**6))
        self.chains: list[Chain] = []

    def run(self) -> None:
        """First one undisturbed run for each number of ranks."""
        for ranks in self._given.ranks:
            self._play(-2 * ranks, ranks, 0)
        with ThreadPoolExecutor(self._given.jobs) as pool:
            for future in [pool.submit(self._work) for _ in range(self._given.jobs)]:
                future.result()

    @property
    def num_hits(self) -> int:
        """Faults so far, in chains that have ended."""
        return sum(len(chain.hits) for chain in self.chains)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    def _work(self) -> None:
        while self.num_hits < self._given.kills and self.seconds < self._given.seconds:
            number = next(self._numbers)
            ranks = self._given.ranks[number // 2 % len(self._given.ranks)]
            self.chains.append(self._play(number, ranks, self._given.length))

    def _play(self, number: int, ranks: int, kills: int) -> Chain:
        every = self._given.launcher_every
        is_launched = bool(kills and every and number % every >= every - len(self._given.ranks))
        is_small = number % 2 == 1 and os.geteuid() == 0
        folder, seed = self.root / f"chain-{number}", f"{self._given.seed}:{number}"
        with small_disk(folder, is_small):
            chain = Chain(number, seed, folder, self._recipe, ranks, is_launched, is_small)
            play(chain, kills, self._wholes.get(ranks))
            if kills == 0:
                self._wholes[ranks] = results(chain.run)
            if chain.losses:
                shutil.copytree(folder, self.root / f"lost-{number}", symlinks=True)
        shutil.rmtree(folder)
        start = "launcher" if is_launched else "forked"
        line = f"chain {number}, {ranks} ranks, {start}: {len(chain.hits)} faults"
        losses = chain.losses or ["nothing lost"]
        print(f"{self.seconds:5.0f} s  {line}", *losses, sep="\n         ", flush=True)
        return chain


def main(arguments: Sequence[str]) -> int:
    """Play chains until enough faults are done; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="faults in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--length", type=int, default=8, help="faults of a chain, at most")
    parser.add_argument("--launcher-every", type=int, default=12, help="chains; 0: never")
    parser.add_argument("--jobs", type=int, default=2, help="chains at the same time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start none after")
    given = parser.parse_args(arguments)
    os.nice(10)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    campaign = Campaign(given)
    campaign.run()
    lost = [loss for chain in campaign.chains for loss in chain.losses]
    launched = sum(len(chain.hits) for chain in campaign.chains if chain.is_launched)
    print(table(campaign.chains))
    print(
        f"seed {given.seed}: {campaign.num_hits} faults in {len(campaign.chains)} chains,"
        f" {launched} of them through the launcher, {len(lost)} losses, {campaign.seconds:.0f} s"
    )
    if lost:
        print(*lost, f"what was left: {campaign.root}", sep="\n")
    else:
        shutil.rmtree(campaign.root)
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
