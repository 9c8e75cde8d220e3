"""Yes or no in words: the answer rule of the ASTRAIOS study (arXiv 2401.00788), and its scores.

The rule and the seed of its sample are those of the notebook that the study published; which pairs
it asked about, those of its tasks in bigcode-evaluation-harness.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.resampling import FloatArray, Multiplicities, f1_from_counts
from trainer.evaluation.suites.scoring import with_intervals
from trainer.evaluation.suites.suite import Item, Judged, Result

INVALID = "invalid"


@dataclass(frozen=True)
class Question:
    """A yes-or-no question about a row.

    Attributes:
        label: Column of the truth: 1, true or yes is yes.
        yes: Phrases that mean yes where the first sentence says neither or both.
        no: Phrases that then mean no, looked for after those.
        sampled: (no, yes): how many of each the study drew; fewer rows are all taken.
    """

    label: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    sampled: tuple[int, int] | None = None

    def answer(self, text: str) -> str:
        """ "1", "0" or INVALID.

        Only what follows the last "\\nAnswer:" counts. Its first sentence ends at a full stop or a
        comma, and "no" may stand inside of a word: "not", "know", "none".
        """
        text = text.split("\nAnswer:")[-1].lower()
        sentence = text.replace(",", ".").split(".")[0]
        has_yes, has_no = "yes" in sentence, "no" in sentence
        if has_yes != has_no:
            return "1" if has_yes else "0"
        if any(phrase in text for phrase in self.yes):
            return "1"
        return "0" if any(phrase in text for phrase in self.no) else INVALID

    def truth(self, item: Item) -> str:
        """ "1" or "0"."""
        return "1" if str(item.row[self.label]).strip().lower() in ("1", "true", "yes") else "0"

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """The rows that the study drew, in the order of the file; all where there are fewer."""
        kinds = [[item for item in items if self.truth(item) == kind] for kind in ("0", "1")]
        if self.sampled is None or any(
            len(kind) < num for kind, num in zip(kinds, self.sampled, strict=True)
        ):
            return items
        generator = random.Random(0)
        chosen = [
            kind[n]
            for kind, num in zip(kinds, self.sampled, strict=True)
            for n in generator.sample(range(len(kind)), num)
        ]
        return sorted(chosen, key=lambda item: item.place)

    def judge(self, item: Item, outputs: Sequence[str]) -> list[Judged]:
        """Compare answers with the truth; the detail is the answer."""
        answers, truth = map(self.answer, outputs), self.truth(item)
        return [
            Judged("invalid" if a == INVALID else "pass" if a == truth else "fail", detail=a)
            for a in answers
        ]

    def summary(self, results: Sequence[Result]) -> dict[str, Any]:
        """Accuracy and F1 of yes over all items, an invalid answer being wrong, with intervals.

        Items are drawn one by one: a row does not say which others come from its project.
        """
        truth_N = np.array([self.truth(item) == "1" for item, _ in results])
        answers = [judged[0].detail for _, judged in results]
        yes_N = np.array([answer == "1" for answer in answers])
        right_N = np.array([judged[0].verdict == "pass" for _, judged in results])

        def measured(weights_RN: Multiplicities) -> dict[str, FloatArray]:
            tallies = (right_N, yes_N & truth_N, yes_N, truth_N)
            right, tp, yes, true = (weights_RN @ tally.astype(np.float64) for tally in tallies)
            accuracy = right / weights_RN.sum(axis=1)
            return {"accuracy": 100 * accuracy, "F1": 100 * f1_from_counts(tp, yes, true)}

        return {
            "measures": with_intervals(measured, len(results)),
            "counts": dict(sorted(Counter(answers).items())),
        }


DEFECT = Question(
    "target",
    yes=("there is a", "ere is a", "has a defect", "contains a defect"),
    no=("there is no defect",),
    sampled=(1081, 919),
)
CLONE = Question("label", yes=("there is a", "ere is a"), no=("there is no",), sampled=(1726, 1000))
