"""Baselines that a fine-tuned model has to beat: constant answers and word counts.

Shapes: N functions of the set that is scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.evaluation.resampling import FloatArray

TFIDF_LOGISTIC = "TF-IDF + logistic regression"
PRIOR = "prior"
ALWAYS_POSITIVE = "always positive"
ALWAYS_NEGATIVE = "always negative"

# Identifiers and keywords, numbers, C's operators of two and three characters, then any other
# single mark. Operators matter: a missing check is often one operator.
CODE_TOKEN = (
    r"[^\W\d]\w*"
    r"|\d[\w.]*"
    r"|<<=|>>=|\.\.\."
    r"|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||::|[-+*/%&|^]="
    r"|[^\w\s]"
)

Scorer = Callable[[Sequence[str]], FloatArray]


@dataclass(frozen=True)
class Baseline:
    """P(class 1) of every function; a score >= threshold predicts the class 1."""

    scores_N: FloatArray
    threshold: float


def constant_baselines(prior: float, num: int) -> dict[str, Baseline]:
    """The same score for each of `num` functions: the training share of positives, 1, or 0.

    The threshold is 0.5, so the prior predicts the majority class of the training data.
    """
    scores = {PRIOR: prior, ALWAYS_POSITIVE: 1.0, ALWAYS_NEGATIVE: 0.0}
    return {name: Baseline(np.full(num, score), 0.5) for name, score in scores.items()}


def tfidf_logistic(train_codes: Sequence[str], train_labels: npt.ArrayLike) -> Scorer:
    """Fit logistic regression on TF-IDF of word 1-2-grams and return its scorer.

    Tokens match CODE_TOKEN, case kept; tf is 1 + ln(tf); terms of two or more training
    functions count, the 50,000 most frequent of them. The fit (lbfgs, C = 1) draws nothing at
    random.

    Args:
        train_codes: Source text of the training functions.
        train_labels: 0 or 1, both present.

    Returns:
        A function from source texts to P(class 1).

    Raises:
        ValueError: Unequal lengths, or one class only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = np.asarray(train_labels)
    if len(train_codes) != len(labels):
        raise ValueError(f"{len(train_codes)} training functions but {len(labels)} labels")
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(
            f"training labels are {sorted(set(labels.tolist()))}; the baseline needs both 0 and 1"
        )
    vectorizer = TfidfVectorizer(
        token_pattern=CODE_TOKEN,
        lowercase=False,
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2,
        max_features=50_000,
    )
    regression = LogisticRegression(C=1.0, max_iter=1000)
    regression.fit(vectorizer.fit_transform(train_codes), labels)

    def score(codes: Sequence[str]) -> FloatArray:
        probabilities_NC = regression.predict_proba(vectorizer.transform(codes))
        return np.asarray(probabilities_NC[:, 1], dtype=np.float64)

    return score
