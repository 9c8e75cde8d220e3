"""How scores become answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Decision:
    """How scores become answers, as chosen on validation.

    Attributes:
        threshold: Of two classes.
        thresholds: Of each class, where several hold at once.
        rule: That chose them, eval.threshold.
        is_kept: Whether validation keeps the rate of the rule.
        temperature: That makes scores probabilities; None where it was not fitted.
        valid: Counts tn, fp, fn and tp of validation.
    """

    threshold: float = 0.5
    thresholds: Sequence[float] = ()
    rule: str | float = "best_f1"
    is_kept: bool = True
    temperature: float | None = None
    valid: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the threshold apart, for a checkpoint."""
        return {key: value for key, value in asdict(self).items() if key != "threshold"}


USUAL_DECISION = Decision()
