"""How the threshold of two classes is chosen on validation: eval.threshold."""

from dataclasses import dataclass

_FORMS = "best_f1, fpr=0.005, recall=0.9, precision=0.5, cost=10:1 or a number such as 0.5"


@dataclass(frozen=True)
class ThresholdRule:
    """A rule that chooses one of the thresholds between the scores of validation.

    Attributes:
        kind: "best_f1", "fpr", "recall", "precision", "cost" or "fixed".
        value: The rate to keep; the cost of a missed positive in false alarms; the threshold.
    """

    kind: str = "best_f1"
    value: float = 0.0

    @classmethod
    def of(cls, text: str | float) -> "ThresholdRule":
        """Read eval.threshold.

        Raises:
            ValueError: It is none of the forms.
        """
        kind, _, value = str(text).partition("=")
        try:
            if kind == "best_f1" and not value:
                return cls()
            if kind == "cost":
                missed, alarm = map(float, value.split(":"))
                if 0 < missed / alarm < float("inf"):
                    return cls(kind, missed / alarm)
            elif kind in ("fpr", "recall", "precision"):
                if 0 <= float(value) <= 1:
                    return cls(kind, float(value))
            elif not value and 0 <= float(kind) <= 1:
                return cls("fixed", float(kind))
        except (ValueError, ZeroDivisionError):
            pass
        raise ValueError(
            f"{str(text)[:80]!r} is no rule for a threshold; write {_FORMS}; rates and thresholds"
            " lie from 0 to 1, and cost=10:1 says that a missed one costs ten false alarms"
        )

    @property
    def title(self) -> str:
        """In words, after "the threshold with"."""
        return {
            "best_f1": "the highest F1",
            "fpr": f"the highest recall at a false positive rate of at most {self.value:g}",
            "recall": f"the fewest false alarms at a recall of at least {self.value:g}",
            "precision": f"the highest recall at a precision of at least {self.value:g}",
            "cost": f"the lowest cost, a missed one costing {self.value:g} false alarms",
            "fixed": "the value of eval.threshold",
        }[self.kind]
