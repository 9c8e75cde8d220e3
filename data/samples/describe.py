"""Print the README's tables of the sample: `python data/samples/describe.py`."""

import gzip
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: sys.path[0] is data/samples/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data.samples.generate import SPLITS

FOLDER = Path(__file__).resolve().parent
Record = dict[str, Any]


def read_split(folder: Path, split: str) -> list[Record]:
    """Records of one split, in file order."""
    with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tfidf_auc(train: list[Record], test: list[Record]) -> float:
    """ROC AUC of the bag-of-words baseline: TF-IDF over 1-2 grams, then logistic regression.

    A word is a run of letters, digits and underscores, or one sign, so the baseline sees
    operators too. Terms of two functions or more count, with 1 + log(frequency).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    vectorizer = TfidfVectorizer(
        token_pattern=r"\w+|[^\w\s]",
        ngram_range=(1, 2),
        lowercase=False,
        min_df=2,
        sublinear_tf=True,
    )
    features = vectorizer.fit_transform([record["code"] for record in train])
    model = LogisticRegression(C=10.0, max_iter=1_000)
    model.fit(features, [record["target"] for record in train])
    scores = model.decision_function(vectorizer.transform([record["code"] for record in test]))
    return float(roc_auc_score([record["target"] for record in test], scores))


def count_tokens(folder: Path, records: list[Record]) -> list[int]:
    """Tokens of each function, without the end token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    return [len(tokenizer.encode(record["code"]).ids) for record in records]


def print_row(*cells: object) -> None:
    """One row of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def print_split_table(splits: dict[str, list[Record]]) -> None:
    """Counts and token lengths of each split."""
    header = [
        "split",
        "functions",
        "commits",
        "vulnerable",
        "fixed",
        "java",
        "c",
        "python",
        "min",
        "median",
        "p90",
        "max",
    ]
    print_row(*header)
    print_row(*["---"] * len(header))
    for split, records in splits.items():
        targets = Counter(record["target"] for record in records)
        languages = Counter(record["language"] for record in records)
        lengths = sorted(count_tokens(FOLDER, records))
        print_row(
            split,
            len(records),
            len({record["commit"] for record in records}),
            *(targets[1], targets[0]),
            *(languages[name] for name in ("java", "c", "python")),
            lengths[0],
            round(statistics.median(lengths)),
            lengths[len(lengths) * 9 // 10],
            lengths[-1],
        )


def print_cwe_table(splits: dict[str, list[Record]]) -> None:
    """Functions of each weakness and language in each split."""
    print_row("CWE", "language", *splits)
    print_row(*["---"] * (2 + len(splits)))
    counts = {
        split: Counter((record["cwe"], record["language"]) for record in records)
        for split, records in splits.items()
    }
    keys = {key for count in counts.values() for key in count}
    for cwe, language in sorted(keys, key=lambda key: (int(key[0].removeprefix("CWE-")), key[1])):
        print_row(cwe, language, *(counts[split][cwe, language] for split in splits))


def main() -> None:
    """Print both tables and the baseline."""
    splits = {split: read_split(FOLDER, split) for split in SPLITS}
    print_split_table(splits)
    print()
    print_cwe_table(splits)
    print()
    for split in ("valid", "test", "test_imbalanced"):
        print(f"TF-IDF ROC AUC on {split}: {tfidf_auc(splits['train'], splits[split]):.3f}")


if __name__ == "__main__":
    main()
