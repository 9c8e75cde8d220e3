"""SUITES[name] is all that a suite needs."""

from trainer.evaluation.suites.answers import CLONE, DEFECT
from trainer.evaluation.suites.suite import Suite

SUITES: dict[str, Suite] = {
    "defect": Suite(
        "defect detection (Devign)",
        "defect",
        judge=DEFECT.judge,
        summary=DEFECT.summary,
        select=DEFECT.select,
        num_samples=1,
        temperature=0.0,
        max_new_tokens=64,
        runs_programs=False,
    ),
    "clone": Suite(
        "clone detection (BigCloneBench)",
        "clone",
        judge=CLONE.judge,
        summary=CLONE.summary,
        num_samples=1,
        temperature=0.0,
        max_new_tokens=64,
        runs_programs=False,
    ),
}
