"""What `make base` does before and after recipes/base.yaml pretrains the tiny model.

base.py corpus DIR     writes its texts: generated functions of seeds that no split uses, and
                       functions of Python's standard library
base.py weights FILE   puts the weights of the finished run into model/, in 16 bit
"""

import argparse
import ast
import hashlib
import random
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is data/samples/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data.samples.generate import SEED, SPLITS, draw_pair, split_records, write_gzip_lines

NUM_PAIRS = 16_000
NUM_LIBRARY_FUNCTIONS = 3_000
LIBRARY_CHARACTERS = range(100, 1_200)  # of one function
NOT_LIBRARY = {"test", "tests", "site-packages", "lib2to3", "idlelib"}


def generated_functions(num_pairs: int) -> Iterator[str]:
    """Both versions of pairs; no split of the embedded sample has the same code."""
    seen: set[str] = set()
    for split in SPLITS:
        for _ in split_records(split, seen):
            pass
    for index in range(num_pairs):
        rng = random.Random(f"{SEED}:base:{index}")
        _, _, pair = draw_pair(rng, seen)
        yield from rng.sample([pair.vulnerable, pair.fixed], 2)


def library_functions(root: Path, num_functions: int) -> list[str]:
    """Functions and methods of the standard library, those whose digests come first."""
    functions = {
        function
        for path in root.rglob("*.py")
        if not NOT_LIBRARY & set(path.relative_to(root).parts)
        for function in _functions(path.read_bytes())
        if len(function) in LIBRARY_CHARACTERS
    }
    by_digest = sorted(functions, key=lambda code: hashlib.sha256(code.encode()).digest())
    return by_digest[:num_functions]


def _functions(source: bytes) -> Iterator[str]:
    lines = source.decode("utf-8").split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            yield textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) + "\n"


def write_corpus(out: Path) -> None:
    """Write generated.jsonl.gz and library.jsonl.gz under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "generated": generated_functions(NUM_PAIRS),
        "library": library_functions(Path(sysconfig.get_path("stdlib")), NUM_LIBRARY_FUNCTIONS),
    }
    for name, functions in texts.items():
        path = out / f"{name}.jsonl.gz"
        write_gzip_lines(path, [{"text": text} for text in functions])
        print(f"{path}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def write_weights(trained: Path) -> None:
    """Write the weights of a safetensors file as fp16 into the tiny model's folder."""
    import torch
    from safetensors.torch import load_file, save_file

    path = Path(__file__).resolve().parent / "model" / "model.safetensors"
    weights = {name: weight.to(torch.float16) for name, weight in load_file(trained).items()}
    save_file(weights, path, {"format": "pt"})
    print(f"{path}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(
        description="texts and weights of the tiny model's pretraining"
    )
    parser.add_argument("what", choices=STEPS)
    parser.add_argument("path", type=Path)
    given = parser.parse_args()
    STEPS[given.what](given.path)


STEPS: dict[str, Callable[[Path], None]] = {"corpus": write_corpus, "weights": write_weights}


if __name__ == "__main__":
    main()
