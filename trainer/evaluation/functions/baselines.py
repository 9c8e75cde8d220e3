"""What a fine-tuned model has to beat: constant answers and a count of words.

Shapes: N functions of the set that is scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.evaluation.functions.metrics import best_threshold
from trainer.evaluation.resampling import FloatArray

TFIDF_LOGISTIC = "TF-IDF + logistic regression"
PRIOR = "prior"
ALWAYS_POSITIVE = "always positive"
ALWAYS_NEGATIVE = "always negative"

# Identifiers and keywords, numbers, C's operators of two and three characters, then any other
# single mark. Without the operators `a->b`, `a <= b` and `!a` would all read as their names, and a
# missing check is often one operator.
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
    """Scores of one baseline, P(class 1) in [0, 1] per function, and where it says positive."""

    scores_N: FloatArray
    threshold: float


def constant_baselines(
    train_labels: npt.ArrayLike, test_labels: npt.ArrayLike
) -> dict[str, Baseline]:
    """Answer the same for every test function: the training share of positives, always 1, always 0.

    The threshold is 0.5, so the prior answers with the majority class of the training data.

    Args:
        train_labels: 0 or 1; their mean is the prior.
        test_labels: Only their number is read.

    Raises:
        ValueError: There are no training labels.
    """
    train, num = np.asarray(train_labels, dtype=np.float64), len(np.asarray(test_labels))
    if train.size == 0:
        raise ValueError("there are no training labels, so no prior; give the training split")
    return {
        PRIOR: Baseline(np.full(num, train.mean()), 0.5),
        ALWAYS_POSITIVE: Baseline(np.ones(num), 0.5),
        ALWAYS_NEGATIVE: Baseline(np.zeros(num), 0.5),
    }


def tfidf_logistic(train_codes: Sequence[str], train_labels: npt.ArrayLike) -> Scorer:
    """Fit logistic regression on TF-IDF of word 1-2-grams and return its scorer.

    Tokens are those of CODE_TOKEN, case kept; tf is 1 + ln(tf); a term counts when two training
    functions hold it, and the 50,000 most frequent are kept. The fit is deterministic (lbfgs, C =
    1): it draws nothing at random.

    Args:
        train_codes: Source text of the training functions.
        train_labels: 0 or 1, both present.

    Returns:
        A function from source texts to P(class 1), float64, one per text; use it on validation,
        then on test.

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


def tfidf_baseline(
    scorer: Scorer, valid_codes: Sequence[str], valid_labels: npt.ArrayLike, codes: Sequence[str]
) -> Baseline:
    """Score `codes` with the threshold chosen as the model's is: the highest F1 on validation.

    Args:
        scorer: From `tfidf_logistic`.
        valid_codes: Source text of the validation functions.
        valid_labels: 0 or 1.
        codes: Source text of the functions to score.
    """
    return Baseline(scorer(codes), best_threshold(scorer(valid_codes), valid_labels))
