"""Chains of tests/faults.py: one run folder, what is done to it, and what has to be left."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import REPOSITORY
from launched import free_port, marked
from rank_pool import start_ranks

from launcher.export import main as export_main
from launcher.prepare import main as prepare_main
from trainer.errors import ModelError
from trainer.run_folder.checkpoint import load_checkpoint
from trainer.run_folder.metrics import read_log

STEPS = 8
LONGEST_SECONDS = 120
PHASES = ("preparation", "start-up", "step", "save", "validation", "report", "export")
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}
FAULTS = (*SIGNALS, "disk full", "folder removed", "two runs")
WEIGHTS = (10, 3, 3, 2, 1, 1)
CODES = {0, 2, 3, 4, 5, 6, 75}


_ASKING = threading.Lock()  # starting a process asks for the ends of all, which are said once


class Forked:
    """Ranks forked from a server that has paid the imports."""

    def __init__(
        self, words: Sequence[str], ranks: int, printed: Path, entry: Callable | None = None
    ) -> None:
        with _ASKING:
            self._ranks: list[BaseProcess] = start_ranks(words, ranks, printed, entry=entry)

    def is_alive(self) -> bool:
        """Whether a rank runs."""
        with _ASKING:
            return any(rank.is_alive() for rank in self._ranks)

    def send(self, number: int) -> None:
        """Send a signal to every rank."""
        for rank in self._ranks:
            with suppress(ProcessLookupError):
                os.kill(rank.pid or 0, number)

    def codes(self) -> set[int]:
        """Exit codes of the ranks, which have ended."""
        return {rank.exitcode or 0 for rank in self._ranks}


class Launched:
    """A run started as a user starts it."""

    def __init__(self, words: Sequence[str], ranks: int, printed: Path) -> None:
        name, value = "FOCALTUNE_FAULTS", uuid.uuid4().hex
        self._mark = f"{name}={value}"
        deepspeed = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port"]
        before = [] if ranks == 1 else [*deepspeed, str(free_port())]
        with printed.open("ab") as output:
            self._runner = subprocess.Popen(
                [sys.executable, *before, str(REPOSITORY / "launcher" / "train.py"), *words],
                env=os.environ | {name: value}, stdout=output, stderr=output, cwd=REPOSITORY,
                start_new_session=True,
            )  # fmt: skip

    def is_alive(self) -> bool:
        """Whether the launcher or a rank runs."""
        return self._runner.poll() is None or bool(marked(self._mark))

    def send(self, number: int) -> None:
        """Send a signal to the launcher and every rank."""
        for process in marked(self._mark):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def codes(self) -> set[int]:
        """Exit code of the launcher, which has its own for a rank that stopped."""
        return {self._runner.returncode}


@dataclass
class Chain:
    """One run folder and what was done to it."""

    number: int
    seed: str
    folder: Path
    recipe: Path
    ranks: int
    is_launched: bool
    is_small: bool  # on a disk that can be filled
    hits: list[tuple[str, str]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.run, self.cache = self.folder / "run", self.folder / "cache"
        self.printed = self.folder.with_suffix(".txt")  # not on the disk that is filled
        self.foreign: dict[Path, str] = {}
        self.cache.mkdir(parents=True)
        self.put(self.cache / "mine" / "notes.txt")

    def put(self, path: Path) -> None:
        """Write a file that is the user's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.foreign[path] = f"{path} {self.draw.random()}"
        path.write_text(self.foreign[path])

    def start(self, entry: Callable | None = None) -> "Forked | Launched":
        """Start the same command, or another on the same recipe."""
        words = [str(self.recipe), f"data.cache_dir={self.cache}"]
        if entry is None:
            words.append(f"run.output_dir={self.run}")
        if self.is_launched and entry is None:
            return Launched(words, self.ranks, self.printed)
        return Forked(words, self.ranks if entry is None else 1, self.printed, entry)

    def lost(self, what: str) -> None:
        """Note a loss."""
        self.losses.append(f"chain {self.number} (seed {self.seed}) after {self.hits}: {what}")


def steps_of(run: Path, kind: str = "train") -> int:
    """Lines of a kind in the log, as a number: readers race with the run."""
    with suppress(OSError):
        return (run / "log.jsonl").read_text(errors="replace").count(f'"kind": "{kind}"')
    return 0


def moment(chain: Chain, phase: str) -> Callable[[], bool]:
    """What is seen when a phase begins."""
    run, begun = chain.run, time.time_ns()
    done = steps_of(run)
    least = min(STEPS, done + chain.draw.randint(1, 3))

    def is_logged(count: int, kind: str = "train") -> bool:
        with suppress(OSError):
            return (run / "log.jsonl").stat().st_mtime_ns > begun and steps_of(run, kind) >= count
        return False

    def is_there(pattern: str) -> bool:
        with suppress(OSError):
            return any(p.stat().st_mtime_ns > begun for p in chain.folder.glob(pattern))
        return False

    return {
        "preparation": lambda: is_there("cache/*/*") or is_there("cache/*/.*"),
        "start-up": lambda: True,
        "step": lambda: is_logged(least),
        "save": lambda: is_there("run/checkpoints/.tmp-*"),
        "validation": lambda: is_logged(STEPS // 2 if done < STEPS // 2 else STEPS),
        "report": lambda: is_logged(STEPS) and steps_of(run, "valid") >= 2,
        "export": lambda: is_there("run/.adapter-*"),
    }[phase]


DELAYS = {  # seconds that a phase takes, at most
    "preparation": 0.15, "start-up": 2.5, "step": 0.1, "save": 0.01, "validation": 0.2,
    "report": 0.5, "export": 0.02,
}  # fmt: skip


def wait(process: "Forked | Launched", condition: Callable[[], bool]) -> bool:
    """Wait until something is seen; False if the run ended before."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while process.is_alive() and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05 if isinstance(process, Launched) else 0.001)
    return False


def ended(chain: Chain, process: "Forked | Launched") -> set[int]:
    """Exit codes at the end; one that hangs is a loss."""
    wait(process, lambda: False)
    if process.is_alive():
        chain.lost("a hang")
        process.send(signal.SIGKILL)
        wait(process, lambda: False)
    return process.codes()


def strike(chain: Chain, fault: str, process: "Forked | Launched") -> None:
    """Do the fault to a run that is alive, and wait until the run has ended."""
    filler = chain.folder / "filler"
    if fault in SIGNALS:
        process.send(SIGNALS[fault])
    elif fault == "disk full":
        fill(filler, chain.draw.choice([0, 0, 4096, 40_960]))
    elif fault == "folder removed":
        with suppress(OSError):  # it was not there yet
            shutil.rmtree(chain.run.rename(chain.folder / "removed"))
        chain.foreign = {p: t for p, t in chain.foreign.items() if chain.run not in p.parents}
    else:
        second = chain.start()
        codes = ended(chain, second)
        if not codes <= {0, 1, 5} or (codes == {0} and process.is_alive()):
            chain.lost(f"the second run ended with {codes}")
        process.send(signal.SIGKILL)
    codes = ended(chain, process)
    filler.unlink(missing_ok=True)
    allowed = CODES | ({-SIGNALS[fault], 128 + SIGNALS[fault], 1} if fault in SIGNALS else set())
    if fault == "two runs":
        allowed |= {-signal.SIGKILL, 1}
    if not isinstance(process, Launched) and not codes <= allowed:
        chain.lost(f"{fault} ended with {codes}")


def fill(filler: Path, left: int) -> None:
    """Fill a small disk but for some bytes."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError):
        os.truncate(filler, max(0, filler.stat().st_size - left))


def acknowledged(chain: Chain) -> set[Path]:
    """Checkpoints that have their name."""
    return set((chain.run / "checkpoints").glob("step-*"))


def attempt(chain: Chain, phase: str, fault: str) -> bool:
    """Start the command and strike in a phase; False if it ended by itself before."""
    if phase == "preparation":
        for path in chain.cache.glob("*"):
            if path.name != "mine":
                shutil.rmtree(path)
    process = chain.start()
    is_reached = wait(process, moment(chain, phase))
    slow = 4 if chain.is_launched and phase in ("start-up", "report") else 1
    time.sleep(chain.draw.random() * DELAYS[phase] * slow)
    if not is_reached or not process.is_alive():
        codes = ended(chain, process)
        if codes != {0}:
            chain.lost(f"the same command ended with {codes}")
        return False
    chain.hits.append((phase, fault))
    strike(chain, fault, process)
    for path in acknowledged(chain):
        try:
            load_checkpoint(path)
        except ModelError as error:
            chain.lost(str(error))
    if (chain.run / ".focaltune-run").is_file() and chain.run / "mine.txt" not in chain.foreign:
        chain.put(chain.run / "mine.txt")
        chain.put(chain.run / "mine" / "model" / "MANIFEST.json")
    return True


def two_prepares(chain: Chain) -> None:
    """Prepare twice at once into an empty cache, kill one of them; the other ends well."""
    pair = [chain.start(prepare_main) for _ in range(2)]
    wait(pair[0], lambda: any(p.name != "mine" for p in chain.cache.glob("*")))
    time.sleep(chain.draw.random() * DELAYS["preparation"])
    chain.hits.append(("preparation", "two prepares"))
    pair[0].send(signal.SIGKILL)
    if ended(chain, pair[1]) != {0}:
        chain.lost("the other of two prepares failed")
    ended(chain, pair[0])


def merge(chain: Chain, is_struck: bool) -> None:
    """Merge the adapter; before that, kill one that merges."""
    output = chain.run / "merged"
    words = [str(chain.run), str(output), "--merge"]
    if is_struck:
        process = Forked(words, 1, chain.printed, export_main)
        wait(process, lambda: any(chain.run.glob(".merged-*")))
        time.sleep(chain.draw.random() * DELAYS["export"])
        if process.is_alive():
            chain.hits.append(("export", "SIGKILL"))
            process.send(signal.SIGKILL)
        ended(chain, process)
    if not output.exists():
        codes = ended(chain, Forked(words, 1, chain.printed, export_main))
        if codes != {0}:
            chain.lost(f"the merge ended with {codes}")


def results(run: Path) -> dict[str, object]:
    """What has to be equal to the last bit."""
    names = (
        "report/predictions.jsonl", "model/adapter_model.safetensors", "base/model.safetensors",
        "merged/model.safetensors",
    )  # fmt: skip
    found: dict[str, object] = {
        "losses": [row["loss"] for row in read_log(run / "log.jsonl")],
        "validations": read_log(run / "log.jsonl", "valid"),
    }
    for name in names:
        with suppress(OSError):
            found[name] = (run / name).read_bytes()
    with suppress(OSError, ValueError):
        report = json.loads((run / "report" / "test.json").read_text())
        found["report"] = {k: v for k, v in report.items() if "seconds" not in k}
    return found


def play(chain: Chain, kills: int, whole: dict[str, object] | None) -> Chain:
    """Strike a chain up to `kills` times, let it end, and compare."""
    draw = chain.draw
    if kills and draw.random() < 0.3:
        two_prepares(chain)
    for phase in sorted((draw.choice(PHASES) for _ in range(kills)), key=PHASES.index):
        fault = draw.choices(FAULTS, WEIGHTS)[0]
        if fault == "disk full" and not chain.is_small:
            fault = "SIGKILL"
        if not attempt(chain, phase, fault):
            break
    else:
        codes = ended(chain, chain.start())
        if codes != {0}:
            chain.lost(f"the same command ended with {codes}")
    if not chain.losses:
        merge(chain, kills > 0)
        compare(chain, whole)
    return chain


def compare(chain: Chain, whole: dict[str, object] | None) -> None:
    """Compare with the undisturbed run, and look for what is lost or left over."""
    for name, expected in (whole or {}).items():
        if results(chain.run).get(name) != expected:
            chain.lost(f"{name} differs from the undisturbed run")
    for path, content in chain.foreign.items():
        if not path.is_file() or path.read_text() != content:
            chain.lost(f"the user's {path} is gone or changed")
    left = [
        str(path.relative_to(chain.folder))
        for pattern in ("run/.adapter-*", "run/.base-*", "run/checkpoints/.*", "run/.merged-*")
        for path in chain.folder.glob(pattern)
    ]  # fmt: skip
    if left:
        chain.lost(f"left over: {left}")
    printed = chain.printed.read_text(errors="replace")
    own = f'File "{REPOSITORY}/' if chain.is_launched else ""  # the launcher may have some
    if "Traceback" in printed and own in printed:
        chain.lost("a traceback")
