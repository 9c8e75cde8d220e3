"""What a prediction found, for every format."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.prediction.about import About
from trainer.prediction.extraction import REPAIRED
from trainer.prediction.languages import meant
from trainer.prediction.ranked import Ranked, ScoredFunction
from trainer.prediction.tree import Tree

_ODD = 0.2  # by which the share of findings exceeds that of validation where code is another kind


@dataclass
class Report:
    """Scored functions, the model and what was passed over.

    Attributes:
        root: Names of files are below it.
        top: Functions that are listed at most; None: all.
        num_findings: Functions to look at.
        num_known: Findings that the baseline has; they are not among the ranked ones.
        num_longer: Functions longer than any in training.
        worst: Highest probability of a function that is neither known nor suppressed.
    """

    about: About
    tree: Tree
    ranked: Ranked
    root: Path
    top: int | None = None
    num_findings: int = 0
    num_suppressed: int = 0
    num_known: int = 0
    num_longer: int = 0
    worst: float = -1.0

    def add(self, one: ScoredFunction, known: set[str], *, keep: bool) -> None:
        """Count a function, and keep it on the rank that writes."""
        self.num_longer += self.about.longest is not None and one.num_tokens > self.about.longest
        if one.fingerprint in known:
            self.num_known += 1
            return
        self.num_suppressed += one.is_suppressed
        self.num_findings += one.is_finding
        if not one.is_suppressed:
            self.worst = max(self.worst, one.probability)
        if keep:
            self.ranked.add(one)

    def rows(self) -> Iterator[ScoredFunction]:
        """The functions that are listed, by rank."""
        return islice(self.ranked, self.top)

    @property
    def num_functions(self) -> int:
        """Functions that have a score."""
        return self.tree.num_by_language.total()

    @property
    def skipped(self) -> dict[str, int]:
        """What was passed over, by reason."""
        return dict(sorted((self.tree.walk.skipped + self.tree.skipped).items()))

    @property
    def unseen_languages(self) -> list[str]:
        """Languages that training had not, where it is known which it had."""
        known = {shown for word in self.about.languages for shown in meant(word)}
        return [name for name in sorted(self.tree.num_by_language) if known and name not in known]

    def facts(self) -> dict[str, Any]:
        """Everything but the functions, as plain values."""
        return {
            "model": dict(self.about.facts),
            "num_files": self.tree.num_files,
            "num_functions": self.num_functions,
            "num_findings": self.num_findings,
            "num_suppressed": self.num_suppressed,
            "num_known": self.num_known,
            "functions_by_language": dict(sorted(self.tree.num_by_language.items())),
            "skipped": self.skipped,
            "never_seen": {
                "longer_than_any_training_function": self.num_longer,
                "languages": self.unseen_languages,
            },
        }

    def lines(self) -> list[tuple[str, str]]:
        """The same for people: a word, and what is said of it."""
        by_language = ", ".join(
            f"{n:,} {name}" for name, n in self.tree.num_by_language.most_common()
        )
        scored = f"{self.num_functions:,} in {self.tree.num_files:,} files"
        lines = [
            *self.about.lines,
            ("functions", f"{scored}{': ' if by_language else ''}{by_language}"),
        ]
        unseen = (
            [f"{self.num_longer:,} functions longer than any of training"]
            if self.num_longer
            else []
        )
        unseen += [f"functions in {name}" for name in self.unseen_languages]
        if not self.about.languages:
            unseen.append(
                "perhaps some of these languages: the model does not say which it learned"
            )
        if unseen:
            lines.append(("never seen", "; ".join(unseen)))
        skipped = self.skipped
        if repaired := skipped.pop(REPAIRED, 0):
            lines.append(("repaired", f"{repaired:,} {REPAIRED}"))
        if skipped:
            passed = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
            lines.append(("left out", passed))
        found = f"{self.num_findings:,}"
        if self.num_known:
            found += f" new, {self.num_known:,} known from the baseline"
        if self.num_suppressed:
            found += f", {self.num_suppressed:,} functions suppressed by 'focaltune: ignore'"
        expected = self.about.facts.get("validation_share_found")
        if self.num_functions and expected is not None:
            share = (self.num_findings + self.num_known) / self.num_functions
            found += f": {share:.1%} of the functions; {expected:.1%} on validation"
            if share > expected + _ODD:
                found += ": this code is unlike that of training, trust the order alone"
        return [*lines, ("findings", found)]
