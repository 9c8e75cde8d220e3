"""Write the embedded sample: `python data/samples/generate.py [--out DIR]`.

Output is bit-identical on each run: every pair has a random source of its own, seeded by its split
and its place, and gzip headers carry neither a time nor a name.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: sys.path[0] is data/samples/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data.samples import templates_c, templates_java, templates_python
from data.samples.patterns import Pair, Pattern, render_pair
from data.samples.questions import instruction_rows
from data.samples.train_tokenizer import write_model

SEED = 2024
KIND_WEIGHTS: dict[str, float] = {"lexical": 0.25, "order": 0.50, "relation": 0.25}
PATTERNS: dict[str, dict[str, tuple[Pattern, ...]]] = {
    language: {"lexical": file.LEXICAL, "order": file.ORDER, "relation": file.RELATION}
    for language, file in {
        "c": templates_c, "java": templates_java, "python": templates_python
    }.items()
}  # fmt: skip
# Unrelated statements in a function: a log-normal with this median and spread, then cut.
MEDIAN_STATEMENTS = 3.0
SPREAD_STATEMENTS = 0.9
# Words and signs; the tokenizer gives 1 to 1.3 times as many tokens, and 1,500 is the limit.
MIN_WORDS, MAX_WORDS = 24, 1_400


class Split(NamedTuple):
    """Size of one file; without a share, a commit gives both versions, otherwise one."""

    num_commits: int
    vulnerable_share: float | None


SPLITS: dict[str, Split] = {
    "train": Split(2_400, None),
    "valid": Split(200, None),
    "test": Split(300, None),
    "test_imbalanced": Split(600, 0.10),
}
INSTRUCTED = ("train", "valid", "test")  # splits from which instructions are made


def draw_pair(rng: random.Random, seen: set[str]) -> tuple[str, Pattern, Pair]:
    """Draw pairs until one fits the length limit and neither version was seen; mark it seen."""
    while True:
        kind = rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()))[0]
        language, pattern = rng.choice(
            [(name, pattern) for name, kinds in PATTERNS.items() for pattern in kinds[kind]]
        )
        drawn = rng.lognormvariate(0.0, SPREAD_STATEMENTS) * MEDIAN_STATEMENTS
        pair = render_pair(pattern, kind, language, round(drawn) - 1, rng)
        # the key of a duplicate: code with each run of whitespace as one space
        keys = {" ".join(code.split()) for code in (pair.vulnerable, pair.fixed)}
        assert len(keys) == 2, f"{pattern.cwe}: both versions are the same code"
        num_words = max(len(re.findall(r"\w+|[^\w\s]", key)) for key in keys)
        if MIN_WORDS <= num_words <= MAX_WORDS and not keys & seen:
            seen |= keys
            return language, pattern, pair


def split_records(split: str, seen: set[str]) -> Iterator[dict[str, str | int]]:
    """Records of one split; `seen` holds the collapsed code of all splits so far."""
    num_commits, share = SPLITS[split]
    num_records = 0
    for index in range(num_commits):
        rng = random.Random(f"{SEED}:{split}:{index}")
        language, pattern, pair = draw_pair(rng, seen)
        for target in rng.sample([0, 1], 2) if share is None else [int(rng.random() < share)]:
            yield {
                "id": f"{split}-{num_records:05d}",
                "code": pair.vulnerable if target else pair.fixed,
                "target": target,
                "cwe": pattern.cwe,
                "status": "VULNERABLE" if target else "FIXED",
                "commit": hashlib.sha1(f"{SEED}:{split}:{index}".encode()).hexdigest(),
                "function_name": pair.function_name,
                "language": language,
            }
            num_records += 1


def write_gzip_lines(path: Path, records: list[dict[str, str | int]]) -> None:
    """Write JSON lines; mtime 0 and no file name keep the bytes the same on each run."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def generate(out: Path) -> None:
    """Write the splits, their instructions, the tiny model's tokenizer and config under `out`."""
    (out / "instructions").mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split in SPLITS:
        records = list(split_records(split, seen))
        write_gzip_lines(out / f"{split}.jsonl.gz", records)
        if split in INSTRUCTED:
            rows = list(instruction_rows(records, SEED))
            write_gzip_lines(out / "instructions" / f"{split}.jsonl.gz", rows)
        if split == "train":
            write_model(out / "model", [str(record["code"]) for record in records])


def main() -> None:
    """Parse the command line and generate."""
    parser = argparse.ArgumentParser(description="write the embedded sample")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    generate(parser.parse_args().out)


if __name__ == "__main__":
    main()
