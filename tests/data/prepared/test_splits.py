"""Functions in several splits stop a training run, unless the recipe says otherwise."""

import dataclasses
import hashlib

import numpy as np
import pytest
from conftest import REPOSITORY, write_rows

from data.config import DataConfig
from data.errors import DataError
from data.prepared.prepare import prepare
from data.prepared.splits import (
    SplitFacts,
    SplitKeys,
    compare_splits,
    refuse_absent_class,
    refuse_leaks,
)
from data.readers import read_records
from data.records import CodeSample
from data.text.labels import Classes

ARCHIVE = REPOSITORY.parent.joinpath(
    "shared", "data", "vul_java_x1_without_p3", "java_k_1_strict_2023_07_03.tar.gz"
)


def split(name: str, *codes: str, target: int = 0, **group: str) -> list[CodeSample]:
    return [
        CodeSample(str(line), code, target, f"{name}:{line}", **group)
        for line, code in enumerate(codes, start=1)
    ]


def compared(**splits: list[CodeSample]) -> SplitFacts:
    """Facts of splits that arrive in two chunks each."""
    keys = {}
    for name, samples in splits.items():
        keys[name] = SplitKeys()
        for chunk in (samples[:1], samples[1:]):
            keys[name].append([sample.code for sample in chunk])
            keys[name].append_groups(chunk)
    return compare_splits(splits, keys)


def digests(*codes: str) -> list[bytes]:
    keys = SplitKeys()
    keys.append(codes)
    return [key.tobytes() for key in keys.code_N]


def test_the_digest_is_blind_to_whitespace_and_to_nothing_else():
    first, *others = digests("int a; int b;", "int  a;\n\tint b; ", "inta; int b;", "int A; int b;")
    assert [other == first for other in others] == [True, False, False]
    assert digests(" a\r\nb") == [hashlib.blake2b(b"a b", digest_size=8).digest()]


def test_functions_shared_by_two_splits_are_counted_per_pair_with_their_places():
    facts = compared(
        train=split("train", "a ;", "b;", "c;", "c;"),
        valid=split("valid", "d;", "b;"),
        test=split("test", "a\n;", " c;", "e;"),
    )
    assert facts.shared_functions == {"train/valid": 1, "train/test": 2, "valid/test": 0}
    assert facts.duplicates == {"train": 1, "valid": 0, "test": 0}
    assert facts.examples == [
        "functions train/valid: train:2 = valid:2", "functions train/test: train:1 = test:1",
        "functions train/test: train:3 = test:2",
    ]  # fmt: skip


def test_splits_of_different_functions_share_nothing():
    facts = compared(train=split("train", "a;"), test=split("test", "b;"))
    assert facts.leaks(["commit", "cve", "project"]) == {}
    assert facts.examples == []
    refuse_leaks(facts, ["commit"], allow=False)


def test_leaks_are_refused_with_pair_count_place_and_remedy():
    facts = compared(train=split("train", "a", "b"), test=split("test", "z", "b"))
    with pytest.raises(DataError) as caught:
        refuse_leaks(facts, [], allow=False)
    assert caught.value.exit_code == 3
    assert str(caught.value).splitlines()[1] == (
        "  1 function, equal but for whitespace, in both train and test, for example"
        " train:2 = test:2"
    )
    assert "data.allow_leaks=true" in str(caught.value)
    refuse_leaks(facts, [], allow=True)


@pytest.mark.parametrize("group", ["commit", "cve", "project"])
def test_a_group_on_both_sides_is_a_leak_only_where_the_recipe_forbids_it(group):
    facts = compared(
        train=split("t", "a", "b", **{group: "g1"}) + split("t", "c", **{group: "g2"}),
        test=split("e", "d", "e", **{group: "g1"}) + split("e", "f"),
        valid=split("v", "g"),  # of no group, as the last of test
    )
    others = {"commit", "cve", "project"} - {group}
    nothing = {"train/test": 0, "train/valid": 0, "test/valid": 0}
    assert facts.shared_groups[group] == nothing | {"train/test": 1}
    assert all(facts.shared_groups[other] == nothing for other in others)
    word = {"cve": "CVE"}.get(group, group)
    line = f"1 {word} in both train and test, for example g1 at t:1 = e:1\n"
    with pytest.raises(DataError, match=line):
        refuse_leaks(facts, [group], allow=False)
    refuse_leaks(facts, sorted(others), allow=False)


def test_functions_without_a_group_share_none():
    facts = compared(
        train=split("t", "a", commit="c1") + split("t", "b"),
        test=split("e", "c", commit="c2") + split("e", "d"),
    )
    assert facts.shared_groups["commit"] == {"train/test": 0}


def test_two_examples_of_a_kind_and_pair_are_kept_and_quoted():
    codes = ("a", "b", "c", "d", "e")
    facts = compared(train=split("t", *codes), test=split("e", *codes))
    assert facts.examples == [f"functions train/test: t:{n} = e:{n}" for n in (1, 2)]
    with pytest.raises(DataError, match=r"5 functions, .* example t:1 = e:1; t:2 = e:2\nremove"):
        refuse_leaks(facts, [], allow=False)


def test_facts_of_an_older_cache_have_no_prefix_and_are_not_quoted():
    facts = compared(train=split("t", "a"), test=split("e", "a"))
    older = dataclasses.replace(facts, examples=["t:1 = e:1"])
    assert older.leak_lines([]) == ["1 function, equal but for whitespace, in both train and test"]


def test_the_200_most_frequent_weaknesses_are_named():
    keys = SplitKeys()
    for number in range(201):
        keys.append_groups(split("t", *"a" * (2 if number else 1), cwe=f"CWE-{number}"))
    assert list(keys.cwe_table(Classes())) == [f"CWE-{number}" for number in range(1, 201)]


def test_a_function_with_both_labels_in_a_split_is_counted_once():
    both = split("t", "a ;", "b;") + split("t", "a;", "a ;", target=1)
    facts = compared(train=both, test=split("e", "c;", "c;"))
    assert facts.contradictory == {"train": 1, "test": 0}
    assert facts.duplicates == {"train": 1, "test": 1}  # "a;" and "a ;" differ


def test_language_records_have_no_class_and_contradict_nothing():
    keys = SplitKeys()
    keys.append(["a", "b"])
    assert compare_splits({"train": []}, {"train": keys}).contradictory == {"train": 0}


def test_the_weaknesses_of_a_split_are_counted_by_class_the_most_frequent_first():
    keys = SplitKeys()
    keys.append_groups(split("t", "a", "b") + split("t", "c", target=1))
    keys.append_groups(split("t", "d", target=1, cwe="CWE-89") + split("t", "e", cwe="CWE-78"))
    keys.append_groups(split("t", "f", target=1, cwe="CWE-78"))
    found = keys.cwe_table(Classes())
    assert list(found.items()) == [("unknown", [2, 1]), ("CWE-78", [1, 1]), ("CWE-89", [0, 1])]


def test_one_class_is_refused_with_the_class():
    with pytest.raises(DataError, match=r"train: all 3 functions have target 1; need both"):
        refuse_absent_class(np.array([1, 1, 1]), "train")
    refuse_absent_class(np.array([0, 1, 1]), "train")


def test_an_allowed_leak_is_recorded_in_the_facts_of_the_run(tmp_path, tiny_model):
    codes = {"train": ("a", "b ()"), "valid": ("c", "d"), "test": ("e", "b\n()")}
    for name, pair in codes.items():
        rows: list[dict[str, object]] = [
            {"code": code, "target": target} for target, code in enumerate(pair)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    refusing = DataConfig(path=str(tmp_path))
    with pytest.raises(DataError, match=r"train\.jsonl:2 = test\.jsonl:2"):
        prepare(refusing, tiny_model)
    prepared = prepare(refusing.model_copy(update={"allow_leaks": True}), tiny_model)
    assert prepared.facts["leaks_allowed"] is True
    assert prepared.leaks == {"functions": {"train/test": 1}}
    assert prepared.sharing.examples == ["functions train/test: train.jsonl:2 = test.jsonl:2"]


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs the real archive beside the repository")
def test_the_real_archive_shares_one_function_and_no_commit():
    config = DataConfig(path=str(ARCHIVE))
    splits = {
        name: list(read_records(ARCHIVE, name, config)) for name in ("train", "valid", "test")
    }
    facts = compared(**splits)
    assert facts.shared_functions == {"train/valid": 0, "train/test": 1, "valid/test": 0}
    assert set(facts.shared_groups["commit"].values()) == {0}
    assert len(facts.examples) == 1
