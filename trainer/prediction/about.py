"""What a reader of scores has to know about the model, as far as its focaltune.json says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.text.labels import Classes, says_nothing
from trainer.config.threshold import ThresholdRule
from trainer.evaluation.measures import MEASURES
from trainer.run.trained import Trained

_TOLD = ("roc_auc", "mean_ap")  # of two classes, of more


@dataclass(frozen=True)
class About:
    """Facts about the model.

    Attributes:
        facts: Plain values, for files.
        lines: The same for people: a word, and what is said of it.
        longest: Tokens of the longest training function; None where it is not known.
        languages: Of the training functions; none where they are not known.
    """

    facts: Mapping[str, Any]
    lines: list[tuple[str, str]]
    longest: int | None
    languages: frozenset[str]


def found_classes(classes: Classes) -> list[str]:
    """The classes that are findings: all but those that say "nothing found"."""
    if classes.is_binary:
        return [classes.shown[1]]
    return [name for name in classes.names if not says_nothing(name)]


def about(trained: Trained) -> About:
    """What is known about a model."""
    decision, classes = trained.decision, trained.classes
    data = trained.facts["data"]
    tokens, languages = data["splits"]["train"]["tokens"], data.get("languages", {})
    prior_C = trained.prepared.prior_C
    share = 1 - float(prior_C[0]) if classes.sets is None else None
    facts: dict[str, Any] = {
        "model": trained.folder.parent.name if trained.run else trained.folder.name,
        "classes": list(classes.shown),
        "found_classes": found_classes(classes),
        "threshold": None if decision.thresholds else decision.threshold,
        "thresholds": list(decision.thresholds),
        "threshold_rule": str(decision.rule),
        "temperature": decision.temperature,
        "validation_share_found": _share_found(decision.valid),
        "base_rate": share,
        "num_training_functions": tokens["num_functions"],
        "longest_training_function": tokens["tokens_max"],
        "training_languages": dict(languages),
        "seq_length": trained.config.data.seq_length,
        "test": _tested(trained),
    }
    return About(facts, _lines(facts), tokens["tokens_max"], frozenset(languages))


def _share_found(valid: Mapping[str, int]) -> float | None:
    """Share of the functions of validation that reached the threshold; None where not counted."""
    return (valid["tp"] + valid["fp"]) / sum(valid.values()) if valid else None


def _tested(trained: Trained) -> dict[str, Any] | None:
    """The ranking measure of the test split, with its interval."""
    test = trained.facts.get("test") or {}
    values, intervals = test.get("metrics", {}), test.get("intervals", {})
    for name in _TOLD:
        if values.get(name) is not None:
            return {
                "measure": MEASURES[name].title,
                "value": values[name],
                "interval": intervals.get(name),
                "num_functions": test["population"]["num"],
            }
    return None


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rule = ThresholdRule.of(facts["threshold_rule"]).title
    if facts["thresholds"]:
        bounds = zip(facts["classes"], facts["thresholds"], strict=True)
        threshold = ", ".join(f"{name} {value:.3f}" for name, value in bounds)
    else:
        threshold = f"{facts['threshold']:.3f}"
    lines = [("threshold", f"{threshold}: {rule} on validation")]
    if facts["temperature"] is None:
        lines.append(("probability", "the score itself: no temperature was fitted"))
    else:
        lines.append(("probability", f"the score at temperature {facts['temperature']:.2f}"))
    if facts["base_rate"] is not None:
        lines.append(
            (
                "base rate",
                f"{facts['base_rate']:.1%} of {facts['num_training_functions']:,} training"
                " functions; where fewer are vulnerable, fewer findings are true",
            )
        )
    if (test := facts["test"]) is not None:
        low_high = "" if test["interval"] is None else " [{:.3f}, {:.3f}]".format(*test["interval"])
        lines.append(
            (
                "test",
                f"{test['measure']} {test['value']:.3f}{low_high} on"
                f" {test['num_functions']:,} functions like those of training",
            )
        )
    return lines
