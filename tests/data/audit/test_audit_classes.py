"""The audit of many classes, of several at once and of pairs, against plain loops."""

import json
import re
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, roc_auc_score

from data.audit import AuditFacts, audit_splits, write_audit
from data.audit.columns import read_columns
from data.audit.near import near_duplicates
from data.audit.shared import contradictions, exact_duplicates
from data.audit.words import telling_words
from data.records import CodeSample
from data.text.labels import Classes

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "re", "tu") for b in ("ban", "dor", "fel", "gim")]
FOUR = Classes(("not vulnerable", "CWE-79", "CWE-89", "CWE-787"))
SETS = Classes(("CWE-79", "CWE-89", "_$x"), sets=((), (0,), (0, 1), (1, 2), (2,)))


def split_of(name: str, num: int, classes: Classes, seed: int, num_codes: int) -> list[CodeSample]:
    """Functions that share few codes, commits and names, so that everything meets."""
    rng = np.random.default_rng(seed)
    return [
        CodeSample(
            f"{name}{n}",
            f"f{rng.integers(num_codes)}( a );" + " " * int(rng.integers(3)),
            int(rng.integers(classes.num_targets)),
            f"{name}:{n}",
            cwe=f"CWE-{rng.integers(3)}",
            commit=f"c{rng.integers(20)}",
            function_name=f"f{rng.integers(4)}",
        )
        for n in range(num)
    ]


def held(sample: CodeSample, classes: Classes) -> set[str]:
    ids = [sample.target] if classes.sets is None else classes.sets[sample.target]
    return {classes.names[number] for number in ids}


def is_safe(sample: CodeSample, classes: Classes) -> bool:
    return held(sample, classes) <= {"not vulnerable"}


@pytest.fixture(params=[FOUR, SETS], ids=["many", "several"])
def classes(request: pytest.FixtureRequest) -> Classes:
    return request.param


@pytest.fixture
def splits(classes: Classes) -> dict[str, list[CodeSample]]:
    return {
        "train": split_of("train", 150, classes, 1, 60),
        "test": split_of("test", 60, classes, 2, 90),
    }


def test_contradictions_are_those_of_a_plain_loop(classes, splits):
    found = {
        shared.where: shared
        for shared in contradictions([read_columns(n, s, classes) for n, s in splits.items()])
    }
    expected = {}
    for name, samples in splits.items():
        expected[name] = {
            a.code.split()[0]
            for a, b in combinations(samples, 2)
            if a.text.split() == b.text.split() and a.target != b.target
        }
    expected["train/test"] = {
        a.code.split()[0]
        for a in splits["train"]
        for b in splits["test"]
        if a.text.split() == b.text.split() and a.target != b.target
    }
    assert {where: shared.num_things for where, shared in found.items()} == {
        where: len(codes) for where, codes in expected.items()
    }
    assert min(map(len, expected.values())) > 5
    by_place = {s.origin: s for samples in splits.values() for s in samples}
    for shared in found.values():
        for example in shared.examples:
            places = re.fullmatch(r"(\S+) \((.+)\) = (\S+) \((.+)\)", example)
            assert places is not None, example
            one, other = by_place[places[1]], by_place[places[3]]
            assert one.text.split() == other.text.split()
            assert places[2] == classes.text(one.target) != classes.text(other.target) == places[4]


def test_counts_of_classes_fixes_and_weaknesses_are_those_of_a_plain_loop(classes, splits):
    facts = audit_splits(splits, {}, classes)
    for split in facts.splits:
        samples = splits[split.name]
        assert split.counts == {
            name: sum(name in held(s, classes) for s in samples) for name in classes.names
        }
        names = {(s.commit, s.function_name) for s in samples}
        expected = {
            name
            for name in names
            if len({is_safe(s, classes) for s in samples if (s.commit, s.function_name) == name})
            == 2
        }
        assert split.num_fix_pairs == len(expected) > 3
        for cwe, counts in facts.cwes.items():
            own = [s for s in samples if s.cwe == cwe]
            unsafe = sum(not is_safe(s, classes) for s in own)
            assert counts[split.name] == (len(own), unsafe)


def test_lengths_are_ranked_for_each_class_against_the_rest(classes, splits):
    rng = np.random.default_rng(0)
    lengths = {
        name: np.array([30 * ("CWE-79" in held(s, classes)) + rng.integers(40) for s in samples])
        for name, samples in splits.items()
    }
    facts = audit_splits(splits, lengths, classes)
    for split in facts.splits:
        lengths_N, samples = lengths[split.name], splits[split.name]
        assert split.length_auc == {
            name: pytest.approx(
                roc_auc_score([name in held(s, classes) for s in samples], lengths_N)
            )
            for name in classes.names
        }
        assert {name: sum(bins) for name, bins in split.histogram.items()} == split.counts
    texts = [finding.found for finding in facts.findings]
    assert any(re.match(r"train: CWE-79 functions are longer: .* ROC AUC 0\.", t) for t in texts)


def function_split(classes: Classes, num: int, marked: str) -> list[CodeSample]:
    """Functions of which those of one class have a word in a comment, and one in ten others."""
    rng = np.random.default_rng(5)
    samples = []
    for n in range(num):
        code = "\n".join(f"{WORDS[a]}{b}(a);" for a, b in rng.integers((20, 5), size=(20, 2)))
        target = int(rng.integers(classes.num_targets))
        sample = CodeSample(str(n), code, target, f"train:{n}", commit=f"c{n}")
        if marked in held(sample, classes) or (marked and rng.random() < 0.1):
            sample = sample._replace(code=f"// snark\n{sample.code}")
        samples.append(sample)
    return samples


def test_a_word_is_counted_for_the_class_that_it_tells_most_about(classes):
    samples = function_split(classes, 500, "CWE-89")
    facts = telling_words(read_columns("train", samples, classes), 50_000)
    (telling,) = facts.words
    holders = [s for s in samples if "snark" in s.code]
    own = sum("CWE-89" in held(s, classes) for s in holders)
    assert (telling.label, telling.words, telling.place) == ("CWE-89", ["snark"], "comment")
    assert (telling.num_positive, telling.num_negative) == (own, len(holders) - own)
    said = [["snark" in s.code, "CWE-89" in held(s, classes)] for s in samples]
    assert telling.bits == pytest.approx(mutual_info_score(*zip(*said, strict=True)) / np.log(2))
    assert telling.carries_label
    if classes is FOUR:
        labels = [s.target for s in samples]
        assert facts.label_bits == pytest.approx(mutual_info_score(labels, labels) / np.log(2))


def test_labels_of_many_classes_drawn_by_lot_have_no_telling_word(classes):
    samples = function_split(classes, 500, "")
    facts = telling_words(read_columns("train", samples, classes), 50_000)
    assert facts.num_tested > 100
    assert facts.words == []


def audited(splits, classes=None, **options) -> AuditFacts:
    lengths = {n: np.array([len(s.text) for s in split]) for n, split in splits.items()}
    return audit_splits(splits, lengths, classes, **options)


def test_absent_common_and_shifted_classes_are_said(classes):
    splits = {
        n: split_of(n, 90, classes, k, 10**6) for k, n in enumerate(("train", "valid", "test"))
    }
    target = classes.num_targets - 1
    splits["valid"] = [s._replace(target=target) for s in splits["valid"]]
    splits["test"] = [s for s in splits["test"] if "CWE-89" not in held(s, classes)]
    texts = [f.found for f in audited(splits, classes).findings]
    only = classes.names[-1]
    assert f"valid: every function is {only}" in texts
    assert "test: no function is 'CWE-89'" in texts
    shift = [
        t for t in texts if re.match(rf"\d+\.\d% of train are {re.escape(only)}, 100.0% of", t)
    ]
    assert len(shift) == 1
    splits["test"] = [s._replace(target=1) for s in splits["train"]][:85] + splits["test"][:1]
    texts = [f.found for f in audited(splits, classes).findings]
    assert any(
        re.match(rf"test: 9\d\.\d% are {classes.names[classes._ids_K[1][0]]}", t) for t in texts
    )


def test_page_and_picture_hold_every_class(classes, splits, tmp_path):
    many = Classes(tuple(f"$_{n}_^" for n in range(12))) if classes is FOUR else classes
    given = {n: split_of(n, 200, many, k, 10**6) for k, n in enumerate(splits)}
    facts = audited(given, many, seq_length=16)
    paths = write_audit(tmp_path, facts)
    assert [path.name for path in paths] == ["audit.json", "audit.md", "lengths.svg"]
    page = paths[1].read_text()
    for name, count in facts.splits[0].counts.items():
        row = rf"^\| {re.escape(name)} \| {count} \("
        assert re.search(row, page.replace("\\", ""), re.MULTILINE), name
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert json.loads(paths[0].read_text())["splits"][0]["counts"] == facts.splits[0].counts


def pairs(name: str, num: int, seed: int) -> list[CodeSample]:
    """Pairs of functions of words drawn by lot."""
    rng = np.random.default_rng(seed)

    def code() -> str:
        return "\n".join(f"{WORDS[a]}{b}({c});" for a, b, c in rng.integers(20, size=(12, 3)))

    return [
        CodeSample(f"{name}{n}", code(), n % 2, f"{name}:{n}", code2=code()) for n in range(num)
    ]


def swapped(sample: CodeSample, **changes: object) -> CodeSample:
    return sample._replace(code=sample.code2, code2=sample.code, **changes)


def test_a_pair_with_swapped_sides_is_the_same_record():
    train, test = pairs("train", 40, 1), pairs("test", 20, 2)
    train[7] = swapped(train[3], origin="train:7", target=1)
    spaced = train[4].code2.replace("\n", "\n  ")
    test[5] = train[4]._replace(code=spaced, code2=train[4].code, origin="test:5")
    test[6] = train[8]._replace(code2=test[6].code2, origin="test:6")  # half of one
    read = [read_columns("train", train, Classes()), read_columns("test", test, Classes())]
    exact = {shared.where: shared.examples for shared in exact_duplicates(read)}
    assert exact == {
        "train": ["train:3 = train:7"], "test": [], "train/test": ["train:4 = test:5"]
    }  # fmt: skip
    differ = {shared.where: shared.num_things for shared in contradictions(read)}
    assert differ == {"train": int(train[3].target != 1), "test": 0, "train/test": 0}


def test_a_pair_with_one_statement_changed_is_a_near_twin_on_either_side():
    train, test = pairs("train", 30, 1), pairs("test", 30, 2)
    for n, side in ((1, "code"), (2, "code2")):
        lines = getattr(train[n], side).split("\n")
        changed = train[n]._replace(**{side: "\n".join([*lines, "altogether(1);"])})
        test[n] = swapped(changed, origin=f"test:{n}")
    test[3] = train[3]._replace(code2=test[3].code2, origin="test:3")  # half of one
    near = near_duplicates(
        [read_columns("train", train, Classes()), read_columns("test", test, Classes())], 50_000
    )
    found = {p.where: [e.rsplit(" ", 1)[0] for e in p.examples] for p in near.pairs}
    assert sorted(found["train/test"]) == ["train:1 ~ test:1", "train:2 ~ test:2"]
    assert found["train"] == found["test"] == []


def test_words_of_both_sides_of_a_pair_are_read():
    samples = []
    for n, sample in enumerate(pairs("train", 200, 3)):
        side = "code2" if n % 4 == 1 else "code"
        marked = f"// snark\n{getattr(sample, side)}" if sample.target else getattr(sample, side)
        samples.append(sample._replace(**{side: marked}))
    (telling, *_) = telling_words(read_columns("train", samples, Classes()), 50_000).words
    assert (telling.words, telling.num_positive, telling.num_negative) == (["snark"], 100, 0)
