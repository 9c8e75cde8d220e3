"""Words that tell the label: in comments, strings, names, code and file names, found by counting.

Every word of the train split is a yes/no feature of a function. Its mutual information with the
label says how many bits of the label it gives away. With V words some look telling by chance, so a
word counts only if Fisher's exact test, corrected for V tests (Bonferroni), finds it at 1%: in 98
of 100 datasets with random labels, nothing is reported. Words known to leak labels are tested apart
from the others, so rarer ones are found too.

Shapes: N distinct functions, V words.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns, records_at, tracked
from data.audit.facts import HashArray, TellingWord, WordFacts
from data.batches.sampling import at_most
from data.records import CodeSample
from data.text.scanner import divided

ALPHA = 0.01
MIN_FUNCTIONS = 5  # below it no word can be significant, and most words of a corpus lie there
CARRIES_ACCURACY = 0.75
CARRIES_SHARE = 0.25  # of the entropy of the label
KNOWN = {
    *("good", "bad", "goodg2b", "goodb2g", "flaw", "flawed", "potential_flaw", "benign"),
    *("fix", "fixed", "fixes", "fixme", "patch", "patched", "unpatched", "bug", "buggy"),
    *("vuln", "vulns", "vulnerable", "vulnerability", "vulnerabilities", "cwe", "cve"),
    *("safe", "unsafe", "safely", "secure", "insecure", "exploit", "exploitable", "malicious"),
}
_KNOWN_NUMBER = re.compile(r"(?:cwe|cve)[_\d]*")
_SHOWN = 20
_TESTED = 2000  # most telling words that get the exact test; the others tell less

_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
_CALLED = re.compile(r"(?<![@\w])([^\W\d]\w*)\s*\(")
_NOT_NAMES = {"if", "for", "while", "switch", "return", "sizeof", "catch", "function"}


def telling_words(train: Columns, limit: int) -> WordFacts:
    """Test every word of a split, or of a seeded sample of `limit` functions, against the label."""
    places = at_most(limit, len(train.samples))
    # A function copied a hundred times is one witness, not a hundred.
    places = places[np.sort(np.unique(train.keys.code_N[places], return_index=True)[1])]
    target_N = train.keys.target_N[places].astype(np.int64)
    bits = float(entropy(np.bincount(target_N, minlength=2)))
    words, held_VN = _presence(train, places)
    found = []
    if bits and words:
        found = _significant(words, held_VN, target_N, train.keys.group_N("commit")[places])
    return WordFacts(len(places), len(words), bits, len(found), found[:_SHOWN])


def information(
    positive_V: npt.NDArray[np.int64],
    negative_V: npt.NDArray[np.int64],
    num_positive: int,
    num_negative: int,
) -> npt.NDArray[np.float64]:
    """Mutual information in bits of presence and label, from the functions that hold each word."""
    held_V, num = positive_V + negative_V, num_positive + num_negative
    joint_4V = [positive_V, negative_V, num_positive - positive_V, num_negative - negative_V]
    label = entropy([num_positive, num_negative])
    total_V: npt.NDArray[np.float64] = label + entropy([held_V, num - held_V]) - entropy(joint_4V)
    return total_V.clip(min=0.0)


def entropy(counts: npt.ArrayLike) -> Any:
    """Bits of each column of counts."""
    from scipy.stats import entropy as entropy_of

    return entropy_of(counts, base=2, axis=0)


def features(sample: CodeSample) -> Iterator[tuple[str, str]]:
    """(place, word) for each word of a function, in lower case; some come several times."""
    code, comments, strings = divided(sample.code)
    name = sample.function_name or _own_name(code)
    texts = {
        "code": code,
        "comment": comments,
        "string": strings,
        "name": name,
        # "folder/file.c:12" -> "file": its folders may be the labels themselves
        "file": PurePath(sample.origin.rsplit(":", 1)[0]).name.split(".")[0],
    }
    for place, text in texts.items():
        own = {name} if place == "code" else set()
        for identifier in set(_IDENTIFIER.findall(text)) - own:
            for word in _pieces(identifier):
                yield place, word


@lru_cache(maxsize=200_000)
def _pieces(identifier: str) -> tuple[str, ...]:
    """The identifier and the words it is joined from: "goodG2B" -> goodg2b, good."""
    parts = {piece.lower() for piece in _PIECE.findall(identifier) if len(piece) > 1}
    if len(identifier) > 1:
        parts.add(identifier.lower())
    return tuple(parts)


def _own_name(code: str) -> str:
    """The first thing called or declared with a parenthesis, for records without function_name."""
    for match in _CALLED.finditer(code[:2000]):
        if match[1] not in _NOT_NAMES:
            return match[1]
    return ""


def _presence(train: Columns, places: npt.NDArray[np.int64]) -> tuple[list[tuple[str, str]], Any]:
    """Words of at least MIN_FUNCTIONS, and the sparse matrix (V, N) of who holds which."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=features, binary=True, dtype=np.int32)
    records = tracked(records_at(train, places), "words", len(places))
    try:
        held_NV = counter.fit_transform(records)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        return [], None
    frequent = np.flatnonzero(held_NV.getnnz(axis=0) >= MIN_FUNCTIONS)
    words = sorted(counter.vocabulary_)
    return [words[v] for v in frequent], held_NV[:, frequent].T.tocsr()


def _significant(
    words: list[tuple[str, str]],
    held_VN: Any,
    target_N: npt.NDArray[np.int64],
    commits_N: HashArray,
) -> list[TellingWord]:
    """The words beyond chance, most telling first; those in the very same functions together."""
    num, num_positive = len(target_N), int(target_N.sum())
    num_negative = num - num_positive
    positive_V, held_V = held_VN @ target_N, held_VN.getnnz(axis=1)
    negative_V = held_V - positive_V
    bits_V = information(positive_V, negative_V, num_positive, num_negative)
    accuracy_V = 0.5 + np.abs(positive_V / num_positive - negative_V / num_negative) / 2
    limit = CARRIES_SHARE * entropy([num_positive, num_negative])
    p_values = _beyond_chance(words, positive_V, held_V, bits_V, target_N)
    same_functions: dict[tuple[str, bytes], list[int]] = {}
    for v in p_values:
        holders = np.sort(held_VN[[v]].indices)
        if _widespread(commits_N[holders]):
            same_functions.setdefault((words[v][0], holders.tobytes()), []).append(v)
    found = []
    for (place, _), (v, *others) in same_functions.items():
        names = [words[other][1] for other in (v, *others)]
        names.sort(key=lambda word: (not is_known(word), len(word), word))
        found.append(
            TellingWord(
                words=names,
                place=place,
                num_positive=int(positive_V[v]),
                num_negative=int(negative_V[v]),
                bits=float(bits_V[v]),
                balanced_accuracy=float(accuracy_V[v]),
                p_value=p_values[v],
                is_known=is_known(names[0]),
                carries_label=bool(accuracy_V[v] >= CARRIES_ACCURACY or bits_V[v] >= limit),
            )
        )
    return found


def _beyond_chance(
    words: list[tuple[str, str]],
    positive_V: npt.NDArray[np.int64],
    held_V: npt.NDArray[np.int64],
    bits_V: npt.NDArray[np.float64],
    target_N: npt.NDArray[np.int64],
) -> dict[int, float]:
    """p-values of the words that pass the corrected test, most telling first."""
    known_V = np.array([is_known(word) for _, word in words])
    order = np.argsort(-bits_V, kind="stable")
    tested_T = order[(np.arange(len(order)) < _TESTED) | known_V[order]]
    p_T = _fisher(positive_V[tested_T], held_V[tested_T], int(target_N.sum()), len(target_N))
    num_tests_T = np.where(known_V[tested_T], known_V.sum(), len(words))
    passed_T = p_T * num_tests_T <= ALPHA
    return dict(zip(tested_T[passed_T].tolist(), p_T[passed_T].tolist(), strict=True))


def is_known(word: str) -> bool:
    """Whether datasets are known to give their labels away by this word."""
    return word in KNOWN or _KNOWN_NUMBER.fullmatch(word) is not None


def _fisher(positive_held: Any, num_held: Any, num_positive: int, num: int) -> Any:
    """Twice the smaller tail of the hypergeometric distribution."""
    from scipy.stats import hypergeom

    upper = hypergeom.sf(positive_held - 1, num, num_positive, num_held)
    lower = hypergeom.cdf(positive_held, num, num_positive, num_held)
    return np.minimum(1.0, 2 * np.minimum(upper, lower))


def _widespread(commits: HashArray) -> bool:
    """Whether enough commits hold the word: functions of one commit share their words anyway."""
    known = commits[commits != 0]
    return len(np.unique(known)) + len(commits) - len(known) >= MIN_FUNCTIONS
