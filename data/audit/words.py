"""Words that tell the label: in comments, strings, names, code and file names, found by counting.

Every word of the train split is a yes/no feature of a function. Its mutual information with the
label says how many bits of the label it gives away. With V words some look telling by chance, so a
word counts only if Fisher's exact test, corrected for V tests (Bonferroni), finds it at 1%: in a
dataset with labels drawn by lot none is reported 98 times of 100. Words that datasets are known to
leak by are tested apart, among themselves, which lets rarer ones through.

Shapes: N distinct functions, V words.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns, chosen, records_at, tracked
from data.audit.facts import HashArray, TellingWord, WordFacts
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


def telling_words(train: Columns, limit: int, seed: int, show_progress: bool) -> WordFacts:
    """Test every word of a split against the label.

    Args:
        train: Read columns.
        limit: Functions to look at; of a larger split a seeded sample.
        seed: Of that sample.
        show_progress: Draw a bar on stderr.
    """
    places = chosen(train, limit, seed)
    # A function copied a hundred times is one witness, not a hundred.
    places = places[np.sort(np.unique(train.digest_N[places], return_index=True)[1])]
    target_N = train.target_N[places].astype(np.int64)
    bits = entropy(float(target_N.mean()))
    words, held_VN = _presence(train, places, show_progress)
    num_V = np.asarray(held_VN.sum(axis=1)).ravel()
    frequent = np.flatnonzero(num_V >= MIN_FUNCTIONS)
    facts = WordFacts(len(places), len(frequent), bits, 0, [])
    if not bits or not len(frequent):
        return facts
    held_VN = held_VN[frequent]
    commits_N = train.group_N["commit"][places]
    found = _significant([words[v] for v in frequent], held_VN, target_N, commits_N)
    return WordFacts(len(places), len(frequent), bits, len(found), found[:_SHOWN])


def entropy(share: float) -> float:
    """Bits of a yes/no variable."""
    parts = np.array([share, 1.0 - share])
    parts = parts[parts > 0]
    return float(-(parts * np.log2(parts)).sum())


def information(
    positive_V: npt.NDArray[np.int64],
    negative_V: npt.NDArray[np.int64],
    num_positive: int,
    num_negative: int,
) -> npt.NDArray[np.float64]:
    """Mutual information in bits of presence and label, from the functions that hold each word."""
    num = num_positive + num_negative
    cells_4V = np.array(
        [positive_V, negative_V, num_positive - positive_V, num_negative - negative_V],
        dtype=np.float64,
    )
    held_V = cells_4V[0] + cells_4V[1]
    expected_4V = np.array(
        [
            held_V * num_positive,
            held_V * num_negative,
            (num - held_V) * num_positive,
            (num - held_V) * num_negative,
        ]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_4V = cells_4V / num * np.log2(cells_4V * num / expected_4V)
    total_V: npt.NDArray[np.float64] = np.nan_to_num(terms_4V, nan=0.0).sum(axis=0)
    return total_V.clip(min=0.0)


def features(sample: CodeSample) -> Iterator[tuple[str, str]]:
    """(place, word) of a function, lower case, some of them repeatedly."""
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


def _presence(
    train: Columns, places: npt.NDArray[np.int64], show_progress: bool
) -> tuple[list[tuple[str, str]], Any]:
    """All words, and the sparse matrix (V, N) of who holds which."""
    from scipy.sparse import csr_matrix

    ids: dict[tuple[str, str], int] = {}
    rows: list[npt.NDArray[np.int32]] = []
    records = records_at(train, places)
    for sample in tracked(records, "words", len(places), show_progress):
        row = {ids.setdefault(feature, len(ids)) for feature in features(sample)}
        rows.append(np.fromiter(row, dtype=np.int32, count=len(row)))
    starts = np.cumsum([0, *map(len, rows)])
    flat = np.concatenate(rows)
    held_NV = csr_matrix((np.ones(len(flat), np.int32), flat, starts), (len(rows), len(ids)))
    return list(ids), held_NV.T.tocsr()


def _significant(
    words: list[tuple[str, str]],
    held_VN: Any,
    target_N: npt.NDArray[np.int64],
    commits_N: HashArray,
) -> list[TellingWord]:
    """The words beyond chance, most telling first."""
    positive_V = np.asarray(held_VN @ target_N).ravel()
    negative_V = np.asarray(held_VN.sum(axis=1)).ravel() - positive_V
    num_positive = int(target_N.sum())
    num_negative = len(target_N) - num_positive
    bits_V = information(positive_V, negative_V, num_positive, num_negative)
    known_V = np.array([is_known(word) for _, word in words])
    order = np.argsort(-bits_V, kind="stable")
    tested = [*order[:_TESTED], *(v for v in order[_TESTED:] if known_V[v])]
    limit = CARRIES_SHARE * entropy(num_positive / len(target_N))
    found: dict[tuple[str, bytes], TellingWord] = {}
    for v in tested:
        num_held = int(positive_V[v] + negative_V[v])
        p_value = _fisher(int(positive_V[v]), num_held, num_positive, len(target_N))
        tests = int(known_V.sum()) if known_V[v] else len(words)
        holders = np.sort(held_VN[v].indices)
        if p_value * tests > ALPHA or not _widespread(commits_N[holders]):
            continue
        recall, alarm = positive_V[v] / num_positive, negative_V[v] / num_negative
        accuracy = 0.5 + abs(recall - alarm) / 2
        place, word = words[v]
        same = found.get((place, holders.tobytes()))
        if same is not None:
            found[(place, holders.tobytes())] = _joined(same, word)
            continue
        found[(place, holders.tobytes())] = TellingWord(
            words=[word],
            place=place,
            num_positive=int(positive_V[v]),
            num_negative=int(negative_V[v]),
            bits=float(bits_V[v]),
            balanced_accuracy=float(accuracy),
            p_value=p_value,
            is_known=bool(known_V[v]),
            carries_label=bool(accuracy >= CARRIES_ACCURACY or bits_V[v] >= limit),
        )
    return list(found.values())


def _joined(telling: TellingWord, word: str) -> TellingWord:
    """With another word of the very same functions: "createstatement" beside "create"."""
    words = sorted([*telling.words, word], key=lambda w: (not is_known(w), len(w), w))
    return replace(telling, words=words, is_known=is_known(words[0]))


def is_known(word: str) -> bool:
    """Whether datasets are known to give their labels away by this word."""
    return word in KNOWN or _KNOWN_NUMBER.fullmatch(word) is not None


def _fisher(num_positive_held: int, num_held: int, num_positive: int, num: int) -> float:
    """Twice the smaller tail of the hypergeometric distribution."""
    from scipy.stats import hypergeom

    upper = hypergeom.sf(num_positive_held - 1, num, num_positive, num_held)
    lower = hypergeom.cdf(num_positive_held, num, num_positive, num_held)
    return float(min(1.0, 2 * min(upper, lower)))


def _widespread(commits: HashArray) -> bool:
    """Not the mark of a few commits: functions of one commit share their words anyway."""
    known = commits[commits != 0]
    return len(np.unique(known)) + len(commits) - len(known) >= MIN_FUNCTIONS
