"""Baselines that a fine-tuned model has to beat: constants, length, word counts, style alone.

Shapes: N functions of the set that is scored.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.errors import parsing
from data.text.scanner import divided
from data.text.terminal import step, tracked
from trainer.errors import ModelError
from trainer.evaluation.resampling import FloatArray
from trainer.processes.imports import without
from trainer.run_folder.folder import built, verify, write_json

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

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

_TABLE, _ARRAYS = "learned.json", "learned.safetensors"
_REMEDY = "copy the run folder again, or remove this folder"


@dataclass(frozen=True)
class Scorer:
    """Logistic regression on what a text shows: source texts -> P(class 1).

    Attributes:
        vectorizer: Counts terms; None: the regression reads the length.
    """

    regression: "LogisticRegression"
    vectorizer: "TfidfVectorizer | None" = None

    def __call__(self, codes: Sequence[str]) -> FloatArray:
        """P(class 1) of each text."""
        if self.vectorizer is None:
            shown_NF = _log_lengths(codes)
        else:
            shown_NF = self.vectorizer.transform(tracked(codes, "baseline: counting", len(codes)))
        return np.asarray(self.regression.predict_proba(shown_NF)[:, 1], dtype=np.float64)


@dataclass(frozen=True)
class Learned:
    """What the baselines of a run learned: a scorer and its threshold by name.

    Attributes:
        num_functions: That they learned from.
    """

    scorers: Mapping[str, tuple[Scorer, float]]
    num_functions: int

    def save(self, folder: Path, origin: Mapping[str, Any]) -> None:
        """Write them as a folder of their own; its words are those of the training functions.

        Args:
            origin: What they follow from, as plain values.
        """
        from safetensors.numpy import save_file

        arrays, table = {}, {}
        for name, (scorer, threshold) in self.scorers.items():
            arrays[f"{name}.coef"] = scorer.regression.coef_
            arrays[f"{name}.intercept"] = scorer.regression.intercept_
            terms = None
            if scorer.vectorizer is not None:
                terms = scorer.vectorizer.get_feature_names_out().tolist()
                arrays[f"{name}.idf"] = scorer.vectorizer.idf_
            table[name] = {"threshold": threshold, "terms": terms}
        facts = {"origin": dict(origin), "num_functions": self.num_functions, "learned": table}
        with built(folder) as building:
            save_file(arrays, building / _ARRAYS)
            write_json(building / _TABLE, facts)

    @classmethod
    def load(cls, folder: Path, origin: Mapping[str, Any]) -> "Learned":
        """Those that were saved, which score as they did.

        Raises:
            ModelError: They are damaged, or follow from something else.
        """
        from safetensors.numpy import load_file

        verify(folder, _REMEDY)
        with parsing(f"{folder / _TABLE} cannot be used", ModelError, _REMEDY):
            saved = json.loads((folder / _TABLE).read_text(encoding="utf-8"))
            if saved["origin"] != dict(origin):
                raise ValueError("it belongs to other data or another threshold")
            arrays = load_file(folder / _ARRAYS)
            scorers = {}
            for name, facts in saved["learned"].items():
                regression = _regression()
                regression.classes_ = np.array([0, 1])
                regression.coef_ = arrays[f"{name}.coef"]
                regression.intercept_ = arrays[f"{name}.intercept"]
                vectorizer = None
                if facts["terms"] is not None:
                    vectorizer = _vectorizer(_TOKENS[name], vocabulary=facts["terms"])
                    vectorizer.idf_ = arrays[f"{name}.idf"]
                scorers[name] = Scorer(regression, vectorizer), float(facts["threshold"])
            return cls(scorers, int(saved["num_functions"]))


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
    """Fit logistic regression on TF-IDF of word 1-2-grams.

    Tokens match CODE_TOKEN, case kept; tf is 1 + ln(tf); terms of two or more training
    functions count, the 50,000 most frequent of them. The fit (lbfgs, C = 1) draws nothing at
    random.

    Args:
        train_codes: Source text of the training functions.
        train_labels: 0 or 1, both present.

    Raises:
        ValueError: Unequal lengths, or one class only.
    """
    return _word_counts(train_codes, train_labels, TFIDF_LOGISTIC)


def shortcut_logistic(train_codes: Sequence[str], train_labels: npt.ArrayLike) -> Scorer:
    """As `tfidf_logistic`, of single tokens of `style_tokens`: nothing that the code does.

    A model that is no better may have learned how the functions were collected.
    """
    return _word_counts(train_codes, train_labels, SHORTCUTS)


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
    return Scorer(_regression().fit(_log_lengths(train_codes), np.asarray(train_labels)))


def _log_lengths(codes: Sequence[str]) -> FloatArray:
    return np.log([[1 + len(code)] for code in codes])


def _word_counts(train_codes: Sequence[str], train_labels: npt.ArrayLike, name: str) -> Scorer:
    labels = np.asarray(train_labels)
    if len(train_codes) != len(labels):
        raise ValueError(f"{len(train_codes)} training functions but {len(labels)} labels")
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(
            f"training labels are {sorted(set(labels.tolist()))}; the baseline needs both 0 and 1"
        )
    vectorizer = _vectorizer(_TOKENS[name], min_df=2, max_features=50_000)
    counted = tracked(train_codes, f"{name}: counting", len(train_codes))
    counts_NF = vectorizer.fit_transform(counted)
    with step(f"{name}: fitting"):
        return Scorer(_regression().fit(counts_NF, labels), vectorizer)


def _vectorizer(tokens: Mapping[str, Any], **terms: Any) -> "TfidfVectorizer":
    with without("pandas"):  # scikit-learn imports it to recognise its tables
        from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(lowercase=False, sublinear_tf=True, **tokens, **terms)


def _regression() -> "LogisticRegression":
    with without("pandas"):
        from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1.0, max_iter=1000)


_TOKENS: dict[str, dict[str, Any]] = {  # what words are
    TFIDF_LOGISTIC: {"token_pattern": CODE_TOKEN, "ngram_range": (1, 2)},
    SHORTCUTS: {"tokenizer": style_tokens, "token_pattern": None},
}
LEARNED: dict[str, Callable[[Sequence[str], npt.ArrayLike], Scorer]] = {
    TFIDF_LOGISTIC: tfidf_logistic,
    SHORTCUTS: shortcut_logistic,
    LENGTH: length_logistic,
}
