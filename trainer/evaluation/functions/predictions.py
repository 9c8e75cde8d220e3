"""What the model says of one function."""

from dataclasses import dataclass

DROPPED = "dropped: scored by the prior"


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one function.

    Attributes:
        origin: file:line.
        label, predicted: 0 or 1.
        score: P(class 1).
        group: Its commit; empty: a group of its own.
        cwe: May be empty.
        note: Begins with DROPPED if the model never saw the function.
        digest: From `text_digest`, of its text.
        project, language: May be empty.
        pair: Shared by a vulnerable function and its fix alone; "" where unknown.
    """

    id: str
    origin: str
    label: int
    score: float
    predicted: int
    group: str
    cwe: str
    status: str
    num_tokens: int
    note: str = ""
    digest: str = ""
    project: str = ""
    language: str = ""
    pair: str = ""
