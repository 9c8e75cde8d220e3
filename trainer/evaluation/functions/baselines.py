"""Baselines that a fine-tuned model has to beat: constants, length, word counts, style alone.

Shapes: N functions of the set that is scored.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.text.scanner import divided
from trainer.evaluation.resampling import FloatArray
from trainer.processes.imports import without

TFIDF_LOGISTIC = "TF-IDF + logistic regression"
LENGTH = "length"
SHORTCUTS = "comments, names, whitespace"
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

# What is no name in C, C++, Java, JavaScript, Python, Go, Rust and PHP.
_KEYWORDS = """
abstract and as assert async auto await bool boolean break byte case catch char class const continue
def default defer del delete do double elif else end enum except explicit export extends extern
false False final finally float fn for foreach from func function global go goto if impl implements
import in inline instanceof int interface is lambda let long loop match mod mut namespace native new
nil None nonlocal not null NULL nullptr operator or package pass private protected pub public raise
range register return self short signed sizeof static struct super switch template this throw throws
trait true True try type typedef typename typeof union unsafe unsigned use using var virtual void
volatile where while with yield
"""
_IS_KEYWORD = frozenset(_KEYWORDS.split())
_NAME = re.compile(r"[^\W\d]\w*")
_SPACE = re.compile(r"[ \t]*\n[\s]*|[ \t]{2,}|[ \t]+(?=[,;)\]])|(?<=[(\[])[ \t]+")

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
    return _word_counts(
        train_codes, train_labels, {"token_pattern": CODE_TOKEN, "ngram_range": (1, 2)}
    )


def shortcut_logistic(train_codes: Sequence[str], train_labels: npt.ArrayLike) -> Scorer:
    """As `tfidf_logistic`, of single tokens of `style_tokens`: nothing that the code does.

    A model that is no better may have learned how the functions were collected.
    """
    return _word_counts(
        train_codes, train_labels, {"tokenizer": style_tokens, "token_pattern": None}
    )


def style_tokens(code: str) -> list[str]:
    """Words of comments, names and whitespace of a function, each kind marked apart."""
    bare, comments, _ = divided(code)
    names = [name for name in _NAME.findall(bare) if name not in _IS_KEYWORD]
    return [
        *(f"#{word}" for word in _NAME.findall(comments)),
        *names,
        *map(repr, _SPACE.findall(code)),
    ]


def length_logistic(train_codes: Sequence[str], train_labels: npt.ArrayLike) -> Scorer:
    """Fit logistic regression on the logarithm of the number of characters."""
    from sklearn.linear_model import LogisticRegression

    def lengths(codes: Sequence[str]) -> FloatArray:
        return np.log([[1 + len(code)] for code in codes])

    regression = LogisticRegression().fit(lengths(train_codes), np.asarray(train_labels))
    return lambda codes: np.asarray(regression.predict_proba(lengths(codes))[:, 1])


def _word_counts(
    train_codes: Sequence[str], train_labels: npt.ArrayLike, tokens: Mapping[str, Any]
) -> Scorer:
    with without("pandas"):  # scikit-learn imports it to recognise its tables
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
        lowercase=False, sublinear_tf=True, min_df=2, max_features=50_000, **tokens
    )
    regression = LogisticRegression(C=1.0, max_iter=1000)
    regression.fit(vectorizer.fit_transform(train_codes), labels)

    def score(codes: Sequence[str]) -> FloatArray:
        probabilities_NC = regression.predict_proba(vectorizer.transform(codes))
        return np.asarray(probabilities_NC[:, 1], dtype=np.float64)

    return score


LEARNED: dict[str, Callable[[Sequence[str], npt.ArrayLike], Scorer]] = {
    TFIDF_LOGISTIC: tfidf_logistic,
    SHORTCUTS: shortcut_logistic,
    LENGTH: length_logistic,
}
