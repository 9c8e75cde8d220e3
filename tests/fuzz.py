"""Damages inputs of every kind by seed and reads them: tests/fuzz.py --seconds 600 --seed 1.

An input ends well or with an error of ours that names it, in bounded time and memory. Every fault
is printed with its seed: --only TARGET:SEED reads that one again.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

from fuzz_inputs import damage, targets

from launcher import command

LONGEST_SECONDS = 20  # of a busy machine
MEMORY_BYTES = 3 << 30  # beyond what the libraries have mapped
LONGEST_MESSAGE = 4000


class _Late(KeyboardInterrupt):  # not an error that input could cause, so nothing wraps it
    pass


def _late(number: int, frame: FrameType | None) -> None:
    raise _Late


def read_damaged(name: str, seed: int, folder: Path) -> str:
    """Damage an input of a kind and read it; what is wrong with the way it ended, or nothing."""
    draw, files = random.Random(f"{name}:{seed}"), made(name, folder)
    damage(draw.choice(files), draw)
    return fault_of(name, folder)


def made(name: str, folder: Path) -> list[Path]:
    """The sound input of a kind in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return targets()[name].make(folder)


def fault_of(name: str, folder: Path, codes: tuple[int, ...] = ()) -> str:
    """Read an input; what is wrong with the way it ended, or nothing."""
    target = targets()[name]
    said = io.StringIO()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(0 if codes else LONGEST_SECONDS)  # whoever gives codes imports first
    try:
        with redirect_stderr(said):
            code = command.run_command(lambda: target.read(folder) and None)
    except _Late:
        return f"above {LONGEST_SECONDS} s"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {place.name}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    message = said.getvalue()
    if code not in (codes or target.codes):
        return f"exit code {code}: {message[:200]}"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters"
    odd = [c for c in message if c < " " and c not in "\n\t"]
    return f"control characters {odd[:3]} in the message" if odd else ""


def _work(first: int, step: int, until: float, names: list[str], out: Path) -> None:
    bound_memory()
    folder = out / f"work-{first}"
    with (out / f"found-{first}").open("w") as found:
        seed = first
        while time.monotonic() < until:
            for name in names:
                print(json.dumps([name, seed]), file=found, flush=True)
                fault = read_damaged(name, seed, folder)
                if fault:
                    print(json.dumps([name, seed, fault]), file=found, flush=True)
            seed += step


def bound_memory() -> None:
    """Make an allocation far above what inputs need fail in this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(
    seconds: float, seed: int = 0, num_workers: int = 2, names: list[str] | None = None
) -> tuple[Counter[str], dict[tuple[str, int], str]]:
    """Read damaged inputs for some seconds: how many of each kind, and the faults by seed."""
    out = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in names or targets():  # which also imports once for all workers
        made(name, out / "sound")
        assert not (fault := fault_of(name, out / "sound", codes=(0,))), f"{name}: {fault}"
    fork, chosen = multiprocessing.get_context("fork"), names or list(targets())
    until = time.monotonic() + seconds
    workers = [
        fork.Process(target=_work, args=(seed + n, num_workers, until, chosen, out))
        for n in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    num, faults = Counter[str](), dict[tuple[str, int], str]()
    for n, worker in enumerate(workers):
        worker.join(seconds + 60)
        if worker.is_alive():
            worker.kill()
            worker.join()
        lines = (out / f"found-{seed + n}").read_text().splitlines()
        for name, own_seed, *fault in map(json.loads, lines):
            if fault:
                faults[name, own_seed] = fault[0]
            else:
                num[name] += 1
        if worker.exitcode:
            faults[name, own_seed] = f"the process ended by {worker.exitcode}"
    shutil.rmtree(out)
    return num, faults


def main(arguments: list[str]) -> int:
    """Run, print the faults; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="TARGET, or TARGET:SEED")
    given = parser.parse_args(arguments)
    name, _, one = (given.only or "").partition(":")
    if one:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-")) / "input"
        print(read_damaged(name, int(one), folder) or "ends well", f"({folder})")
        return 0
    num, faults = run(given.seconds, given.seed, names=[name] if name else None)
    for (kind, seed), fault in faults.items():
        print(f"{kind}:{seed}: {fault}")
    for kind in num:
        print(f"{kind:20} {num[kind]:7,} {sum(k == kind for k, _ in faults):5} faults")
    print(f"{'all':20} {num.total():7,} {len(faults):5} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
