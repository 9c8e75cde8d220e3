"""What an audit finds: frozen dataclasses of plain values, ready for JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.text.whitespace import CollapseFacts

IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]

Severity = Literal["leak", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("leak", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A verdict: what was found, what it means, what to do."""

    severity: Severity
    found: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class SplitPopulation:
    """What a split contains; lengths are in tokens, and empty before tokenisation.

    Attributes:
        num_distinct: Functions that differ in more than whitespace.
        counts: Functions of each class; of several at once a function counts for each.
        num_fix_pairs: Functions (a commit and a name) that are safe and not.
        groups: Distinct values of "commit", "project" and "cve"; 0 where the dataset has none.
        lengths: min, median, mean, p90, p99, max.
        length_auc: ROC AUC of the length alone as a score, for each class against the rest, of two
            classes the second; without those that all functions or none hold.
        histogram: By class: functions in each bin of AuditFacts.length_edges.
    """

    name: str
    num_functions: int
    counts: dict[str, int]
    num_distinct: int
    num_fix_pairs: int
    groups: dict[str, int]
    lengths: dict[str, float]
    length_auc: dict[str, float]
    histogram: dict[str, list[int]]

    def share(self, name: str) -> float:
        """Share of the functions that hold a class."""
        return self.counts[name] / max(self.num_functions, 1)


@dataclass(frozen=True)
class Shared:
    """Codes, ids or groups that repeat within a split ("train") or are in two ("train/test").

    Attributes:
        where: One split, or two with a slash.
        num_things: Codes, ids or groups found there.
        num_functions: By split: functions that have one of them.
    """

    where: str
    num_things: int
    num_functions: dict[str, int]
    examples: list[str]


@dataclass(frozen=True)
class NearPairs:
    """Near duplicates within a split or between two.

    Attributes:
        num_pairs: Pairs at or above the threshold; a lower bound in dense clusters.
        num_opposite: Those whose labels differ.
        num_functions: By split: functions in at least one of the pairs.
    """

    where: str
    num_pairs: int
    num_opposite: int
    num_functions: dict[str, int]
    examples: list[str]


@dataclass(frozen=True)
class NearFacts:
    """The search for near duplicates.

    Attributes:
        examined: By split: functions that were compared, and all functions.
        pairs: For each split and each two, without exact duplicates and pairs of a fix.
        num_fix_pairs: By split: pairs above the threshold with one commit, of which one is safe, as
            every fix makes them.
        clusters: Connected exact and near duplicates: number of clusters, functions in them,
            largest cluster, and clusters that reach over several splits.
    """

    method: str
    examined: dict[str, tuple[int, int]]
    pairs: list[NearPairs]
    num_fix_pairs: dict[str, int]
    clusters: dict[str, int]
    functions_per_second: float


@dataclass(frozen=True)
class TellingWord:
    """A word whose presence goes with a class.

    Attributes:
        label: The class that it says most about; of two classes always the second.
        words: Words in exactly the same functions: known ones first, then short ones.
        place: "comment", "string", "name" (the function's own), "code" or "file".
        num_positive, num_negative: Functions that hold it, of the class and of others.
        bits: Mutual information of its presence and the class.
        balanced_accuracy: Of the better rule "with the word: the class; without it: another", or
            its opposite.
        p_value: Fisher's exact test, two-sided, before correction.
        is_known: Datasets are known to leak their labels by this word.
        carries_label: Alone it says more about the label than any real weakness does.
    """

    label: str
    words: list[str]
    place: str
    num_positive: int
    num_negative: int
    bits: float
    balanced_accuracy: float
    p_value: float
    is_known: bool
    carries_label: bool


@dataclass(frozen=True)
class WordFacts:
    """Words of the train split tested against the label.

    Attributes:
        num_examined: Distinct functions that were read.
        num_tested: Words in enough functions; p-values are corrected by this number, times the
            classes where there are more than two.
        label_bits: Entropy of the label, the most that a word can say about it.
        num_telling: Words beyond chance; `words` holds the first of them.
    """

    num_examined: int
    num_tested: int
    label_bits: float
    num_telling: int
    words: list[TellingWord]


@dataclass(frozen=True)
class AuditFacts:
    """All results of an audit, verdicts first.

    Attributes:
        classes: Names, in their order.
        informative: The classes whose counts give those of the others: of two the second.
        cwes: CWE: split: functions, and those of them that are not safe.
    """

    findings: list[Finding]
    classes: list[str]
    informative: list[str]
    splits: list[SplitPopulation]
    exact: list[Shared]
    near: NearFacts
    contradictions: list[Shared]
    ids: list[Shared]
    groups: dict[str, list[Shared]]
    words: WordFacts
    cwes: dict[str, dict[str, tuple[int, int]]]
    length_edges: list[float]
    seq_length: int | None
    collapse: CollapseFacts | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
