"""Functions in several splits stop a training run, unless the recipe says otherwise."""

import pytest
from conftest import REPOSITORY, write_rows

from data.config import DataConfig
from data.errors import DataError
from data.prepare import prepare
from data.readers import read_records
from data.records import CodeSample
from data.splits import code_digest, compare_splits, refuse_leaks, refuse_one_class

ARCHIVE = REPOSITORY.parent.joinpath(
    "shared", "data", "vul_java_x1_without_p3", "java_k_1_strict_2023_07_03.tar.gz"
)


def split(name: str, *codes: str, target: int = 0, commit: str = "") -> list[CodeSample]:
    return [
        CodeSample(str(line), code, target, f"{name}:{line}", commit=commit)
        for line, code in enumerate(codes, start=1)
    ]


def test_the_digest_is_blind_to_whitespace_and_to_nothing_else():
    assert code_digest("int  a;\n\tint b; ") == code_digest("int a; int b;")
    assert code_digest("int a;") != code_digest("inta;")
    assert code_digest("int a;") != code_digest("int A;")
    # sha256 of "a b", computed elsewhere
    assert code_digest(" a\r\nb") == (
        "c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65"
    )


def test_functions_shared_by_two_splits_are_counted_per_pair_with_their_places():
    facts = compare_splits(
        {
            "train": split("train", "a ;", "b;", "c;", "c;"),
            "valid": split("valid", "d;", "b;"),
            "test": split("test", "a\n;", " c;", "e;"),
        }
    )
    assert facts.shared_functions == {"train/valid": 1, "train/test": 2, "valid/test": 0}
    assert facts.num_leaks == 3
    assert len(facts.examples) == 3
    assert {"train:2 = valid:2", "train:1 = test:1"} < set(facts.examples)


def test_splits_of_different_functions_share_nothing():
    facts = compare_splits({"train": split("train", "a;"), "test": split("test", "b;")})
    assert facts.num_leaks == 0
    assert facts.examples == []
    refuse_leaks(facts, allow=False)


def test_leaks_are_refused_with_pair_count_place_and_remedy():
    facts = compare_splits({"train": split("train", "a", "b"), "test": split("test", "z", "b")})
    with pytest.raises(DataError) as caught:
        refuse_leaks(facts, allow=False)
    assert caught.value.exit_code == 3
    for part in ("{'train/test': 1}", "train:2 = test:2", "data.allow_leaks=true"):
        assert part in str(caught.value)
    refuse_leaks(facts, allow=True)


def test_shared_commits_are_counted_once_each_and_unknown_ones_not_at_all():
    facts = compare_splits(
        {
            "train": split("t", "a", "b", commit="c1") + split("t", "c", commit="c2"),
            "test": split("e", "d", "e", commit="c1") + split("e", "f"),
            "valid": split("v", "g"),  # no commit, as the last of test
        }
    )
    assert facts.shared_commits == {"train/test": 1, "train/valid": 0, "test/valid": 0}


def test_a_function_with_both_labels_in_a_split_is_counted_once():
    both = split("t", "a ;", "b;") + split("t", "a;", "a ;", target=1)
    facts = compare_splits({"train": both, "test": split("e", "c;", "c;")})
    assert facts.contradictory == {"train": 1, "test": 0}


def test_one_class_is_refused_with_the_class():
    with pytest.raises(DataError, match=r"train: all 3 functions have target 1; need both"):
        refuse_one_class([1, 1, 1], "train")
    refuse_one_class([0, 1, 1], "train")


def test_an_allowed_leak_is_recorded_in_the_facts_of_the_run(tmp_path, tiny_model):
    codes = {"train": ("a", "b ()"), "valid": ("c", "d"), "test": ("e", "b\n()")}
    for name, pair in codes.items():
        rows: list[dict[str, object]] = [
            {"code": code, "target": target} for target, code in enumerate(pair)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    refusing = DataConfig(path=str(tmp_path))
    with pytest.raises(DataError, match=r"train\.jsonl:2 = test\.jsonl:2"):
        prepare(refusing, tiny_model, {})
    prepared = prepare(refusing.model_copy(update={"allow_leaks": True}), tiny_model, {})
    leaks = prepared.facts["leaks"]
    assert leaks["allowed"] is True
    assert leaks["shared_functions"] == {"train/valid": 0, "train/test": 1, "valid/test": 0}
    assert leaks["examples"] == ["train.jsonl:2 = test.jsonl:2"]


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs the real archive beside the repository")
def test_the_real_archive_has_exactly_one_function_in_train_and_test():
    config = DataConfig(path=str(ARCHIVE))
    splits = {
        name: list(read_records(ARCHIVE, name, config)) for name in ("train", "valid", "test")
    }
    facts = compare_splits(splits)
    assert facts.shared_functions == {"train/valid": 0, "train/test": 1, "valid/test": 0}
    assert len(facts.examples) == 1
    with pytest.raises(DataError, match=r"train\.jsonl:\d+ = .*test\.jsonl:\d+"):
        refuse_leaks(facts, allow=False)
