"""Words that tell the label are found by counting, and none is where the label is drawn by lot."""

from math import comb, log2

import numpy as np
import pytest
from conftest import sample_rows

from data.audit.columns import read_columns
from data.audit.words import (
    _fisher,
    entropy,
    features,
    information,
    is_known,
    telling_words,
)
from data.records import CodeSample
from data.text.labels import Classes

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "re", "tu") for b in ("ban", "dor", "fel", "gim")]


def function(rng: np.random.Generator, i: int, target: int, name: str = "", comment: str = ""):
    """A function of twenty words drawn by lot, unless a name or a comment is given."""
    called = [WORDS[k] + str(rng.integers(5)) for k in rng.integers(len(WORDS), size=20)]
    name = name or f"{called[0]}_{called[1]}"
    remark = f"  // {comment}\n" if comment else ""
    body = "".join(f"  {word}(a);\n" for word in called[2:])
    code = f"int {name}(int a) {{\n{remark}{body}}}"
    return CodeSample(str(i), code, target, f"train.jsonl:{i}", commit=f"c{i}", function_name=name)


def lottery(num: int, seed: int) -> list[CodeSample]:
    rng = np.random.default_rng(seed)
    return [function(rng, i, int(rng.integers(2))) for i in range(num)]


def tell(samples):
    return telling_words(read_columns("train", samples, Classes()), 50_000)


@pytest.mark.parametrize("seed", range(5))
def test_labels_drawn_by_lot_have_no_telling_word(seed):
    facts = tell(lottery(600, seed))
    assert facts.num_tested > 100  # otherwise nothing could be found
    assert (facts.num_telling, facts.words) == (0, [])


@pytest.mark.parametrize("seed", range(3))
def test_permuted_labels_of_the_embedded_sample_have_no_telling_word(seed):
    rows = sample_rows("train", 10_000)
    samples = [CodeSample(str(i), str(r["code"]), int(str(r["target"])), "t:1")
               for i, r in enumerate(rows)]  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(samples))
    permuted = [s._replace(target=samples[k].target) for s, k in zip(samples, order, strict=True)]
    assert tell(permuted).num_telling == 0
    if seed == 0:
        real = {word for telling in tell(samples).words for word in telling.words}
        assert {"setstring", "strlcpy", "popen"} <= real  # templates of the lexical quarter


def test_names_that_end_in_words_nobody_knows_are_found_to_carry_the_label():
    rng = np.random.default_rng(7)
    samples = []
    for i in range(400):
        target = i % 2
        suffix = ("Blim", "Zorp")[target]
        samples.append(function(rng, i, target, name=f"{WORDS[rng.integers(20)]}{suffix}"))
    facts = tell(samples)
    found = {(w.place, word): w for w in facts.words for word in w.words}
    for word, counts in {"zorp": (200, 0), "blim": (0, 200)}.items():
        telling = found["name", word]
        assert (telling.num_positive, telling.num_negative) == counts
        assert telling.bits == pytest.approx(1.0)
        assert telling.balanced_accuracy == 1.0
        assert telling.carries_label
        assert not telling.is_known
    assert [w for w in facts.words if w.carries_label] == facts.words[:2]


def test_the_words_of_juliet_are_found_in_names_without_the_field_of_names():
    rng = np.random.default_rng(7)
    samples = [
        function(rng, i, i % 2, name=f"CWE121_{'bad' if i % 2 else 'goodG2B'}")._replace(
            function_name="",
        )
        for i in range(200)
    ]
    found = {w.words[0]: w for w in tell(samples).words}
    assert found["bad"].is_known
    assert found["bad"].place == "name"
    assert any("good" in w.words and w.is_known for w in found.values())
    assert "cwe" not in found  # both classes have it


def test_a_word_of_some_comments_is_found_with_its_counts():
    rng = np.random.default_rng(3)
    samples = []
    for i in range(600):
        marked = i % 2 and i % 10 == 1  # 60 of 300 vulnerable functions, no safe one
        samples.append(function(rng, i, i % 2, comment="snark: here" if marked else "here"))
    (telling,) = tell(samples).words
    assert (telling.words, telling.place) == (["snark"], "comment")
    assert (telling.num_positive, telling.num_negative) == (60, 0)
    assert telling.balanced_accuracy == pytest.approx(0.5 + 60 / 300 / 2)
    assert not telling.carries_label


def test_a_known_word_needs_less_evidence_than_one_among_thousands():
    def with_comment(word: str) -> list[CodeSample]:
        rng = np.random.default_rng(3)
        return [
            function(rng, i, i % 2, comment=word if i % 40 == 1 else "") for i in range(400)
        ]  # 10 of 200 vulnerable functions: p = 0.002

    assert tell(with_comment("snark")).num_telling == 0
    (telling,) = tell(with_comment("FLAW")).words
    assert (telling.words, telling.is_known) == (["flaw"], True)


def test_a_word_of_one_commit_or_of_copies_is_no_witness():
    rng = np.random.default_rng(4)
    samples = [function(rng, i, i % 2) for i in range(400)]
    marked = [function(rng, i, 1, comment="snark")._replace(commit="one") for i in range(60)]
    assert tell(samples + marked).num_telling == 0
    copies = [marked[0]._replace(id=str(i), commit=str(i)) for i in range(60)]
    assert tell(samples + copies).num_telling == 0
    apart = [s._replace(commit=s.id + "x") for s in marked]
    assert tell(samples + apart).words[0].words == ["snark"]


def test_words_are_split_and_placed():
    sample = CodeSample(
        "1", 'int fooBar(int a) {\n  // HTTPServer\n  bad_word2("inString"); fooBar(a);\n}', 1,
        "folder_bad/CWE78_file__x.c:1",
    )  # fmt: skip
    found = set(features(sample))
    assert {("name", "foobar"), ("name", "foo"), ("name", "bar")} <= found
    assert {("comment", "httpserver"), ("comment", "http"), ("comment", "server")} <= found
    assert {("code", "bad"), ("code", "word"), ("code", "bad_word2")} <= found
    assert {("string", "in"), ("string", "string"), ("string", "instring")} <= found
    assert {("file", "cwe"), ("file", "cwe78_file__x")} <= found
    assert ("code", "foobar") not in found  # the name is not counted twice
    assert not any("folder" in word for _, word in found)


def test_information_and_the_exact_test_agree_with_sums_by_hand():
    # 4 positive and 6 negative functions; a word in 3 and 1 of them
    cells = {(1, 1): 3, (1, 0): 1, (0, 1): 1, (0, 0): 5}
    held, label = {1: 4, 0: 6}, {1: 4, 0: 6}
    expected = sum(n / 10 * log2(n * 10 / (held[w] * label[y])) for (w, y), n in cells.items())
    assert information(np.array([3]), np.array([1]), 4, 6)[0] == pytest.approx(expected)
    assert information(np.array([2, 0]), np.array([3, 6]), 4, 6).tolist() == pytest.approx(
        [0.0, entropy([4, 6])]
    )
    upper = sum(comb(4, k) * comb(6, 4 - k) for k in (3, 4)) / comb(10, 4)
    assert _fisher(3, 4, 4, 10) == pytest.approx(2 * upper)
    assert entropy([1, 1]) == 1.0
    assert entropy([0, 1]) == 0.0


def test_known_words_are_known_with_and_without_number():
    assert all(map(is_known, ["flaw", "cwe", "cwe78", "cve_2021_1"]))
    assert not any(map(is_known, ["flow", "cwex", "zorp"]))


def test_one_class_or_a_single_function_has_nothing_to_tell():
    assert tell([s._replace(target=1) for s in lottery(50, 1)]).words == []
    assert tell(lottery(1, 1)).num_tested == 0
