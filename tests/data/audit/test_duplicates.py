"""Exact and near duplicates, pairs of a fix, shared groups and contradictions are found."""

from zlib import crc32

import numpy as np
import pytest
from conftest import REPOSITORY

from data.audit import near as near_module
from data.audit.columns import read_columns
from data.audit.near import METHOD, near_duplicates
from data.audit.shared import contradictions, duplicate_ids, exact_duplicates, shared_groups
from data.config import DataConfig
from data.readers import read_records
from data.records import CodeSample
from data.text.labels import Classes
from data.text.shingles import THRESHOLD, jaccard, shingles

ARCHIVE = REPOSITORY.parent.joinpath(
    "shared", "data", "vul_java_x1_without_p3", "java_k_1_strict_2023_07_03.tar.gz"
)


def random_code(rng: np.random.Generator, num_calls: int = 12) -> list[str]:
    """Statements of random calls: two of these functions share next to no run of five tokens."""
    return [
        f"w{rng.integers(900)} = w{rng.integers(900)}(w{rng.integers(900)}, {rng.integers(99)});"
        for _ in range(num_calls)
    ]


def random_split(name: str, num: int, seed: int) -> list[CodeSample]:
    rng = np.random.default_rng(seed)
    return [
        CodeSample(
            str(i), "\n".join(random_code(rng)), i % 2, f"{name}:{i}", commit=f"{name}-commit-{i}"
        )
        for i in range(num)
    ]


def columns(**splits):
    return [read_columns(name, samples, Classes()) for name, samples in splits.items()]


def search(limit=50_000, **splits):
    return near_duplicates(columns(**splits), limit)


def edited(sample: CodeSample, **changes: object) -> CodeSample:
    """A near twin: one of its twelve statements is another."""
    lines = sample.code.split("\n")
    lines[5] = "altogether(different, line);"
    return sample._replace(code="\n".join(lines), **changes)


def by_where(found):
    return {item.where: item for item in found}


def test_a_clean_dataset_has_no_duplicate_of_any_kind():
    splits = {"train": random_split("train", 300, 1), "test": random_split("test", 100, 2)}
    read = columns(**splits)
    everything = [
        *exact_duplicates(read), *contradictions(read), *shared_groups(read)["commit"]
    ]  # fmt: skip
    assert {shared.where for shared in everything} == {"train", "test", "train/test"}
    assert not any(shared.num_things or shared.examples for shared in everything)
    near = search(**splits)
    assert not any(pairs.num_pairs for pairs in near.pairs)
    assert near.clusters == dict.fromkeys(near.clusters, 0)
    assert near.num_fix_pairs == {"train": 0, "test": 0}


def test_exact_duplicates_are_counted_within_and_across_whitespace_aside():
    train, test = random_split("train", 50, 1), random_split("test", 20, 2)
    train[7] = train[3]._replace(code=train[3].code.replace("\n", "\n\n  "), origin="x")
    test[4] = train[3]._replace(code=train[3].code.replace("\n", " "), origin="test:4")
    test[5] = train[9]._replace(origin="test:5")
    found = by_where(exact_duplicates(columns(train=train, test=test)))
    assert (found["train"].num_things, found["train"].num_functions) == (1, {"train": 2})
    assert found["train"].examples == ["train:3 = x"]
    assert found["test"].num_things == 0
    across = found["train/test"]
    assert (across.num_things, across.num_functions) == (2, {"train": 3, "test": 2})
    assert set(across.examples) == {"train:3 = test:4", "train:9 = test:5"}
    near = by_where(search(train=train, test=test).pairs)
    assert near["train/test"].num_pairs == 0  # exact ones are not counted twice


def test_contradictory_labels_are_counted_within_and_across():
    train, test = random_split("train", 50, 1), random_split("test", 20, 2)
    train[7] = train[2]._replace(code="  " + train[2].code, target=1, origin="train:7")
    test[4] = train[11]._replace(target=0, origin="test:4")
    test[6] = train[12]._replace(origin="test:6")  # a duplicate with the same label
    found = by_where(contradictions(columns(train=train, test=test)))
    assert found["train"].examples == ["train:2 (not vulnerable) = train:7 (vulnerable)"]
    assert found["test"].num_things == 0
    assert found["train/test"].num_things == 1
    assert found["train/test"].examples == ["train:11 (vulnerable) = test:4 (not vulnerable)"]


@pytest.mark.parametrize("field", ["commit", "project", "cve"])
def test_groups_on_both_sides_are_counted_with_their_functions(field):
    train, valid, test = (
        [s._replace(commit="") for s in random_split(name, 20, seed)]
        for seed, name in enumerate(("train", "valid", "test"))
    )
    for i in (1, 2, 3):
        train[i] = train[i]._replace(**{field: "shared-one"})
    test[5] = test[5]._replace(**{field: "shared-one"})
    train[9] = train[9]._replace(**{field: "of train alone"})
    groups = shared_groups(columns(train=train, valid=valid, test=test))
    assert list(groups) == [field]  # nothing is said of fields nobody names
    found = by_where(groups[field])
    assert found["train/valid"].num_things == found["valid/test"].num_things == 0
    assert found["train/test"].num_things == 1
    assert found["train/test"].num_functions == {"train": 3, "test": 1}
    assert found["train/test"].examples == ["shared-one"]


def test_repeated_ids_are_counted():
    train = random_split("train", 10, 1)
    train[4] = train[4]._replace(id="1")
    assert [(f.num_things, f.examples) for f in duplicate_ids(columns(train=train))] == [
        (1, ["train:1 = train:4"])
    ]


def test_shingles_see_tokens_and_neither_layout_nor_comments():
    code = 'int f(int a) {\n  // why\n  return a + 0x1F; /* so */ g("x");\n}'
    assert np.array_equal(shingles(code), shingles('int f ( int a ){return a+0x1F;g("x") ;}'))
    assert jaccard(shingles(code), shingles(code)) == 1.0
    assert len(shingles("a b c d e f g")) == 3  # abcde bcdef cdefg
    assert len(shingles("a b")) == 1
    assert len(shingles("// nothing")) == 0
    one, other = shingles("a b c d e f g h i j k"), shingles("a b c d e f g h i j z")
    assert jaccard(one, other) == pytest.approx(6 / 8)  # 7 shingles each, the last differs


def test_a_digest_is_five_checksums_mixed_as_integers_of_64_bits():
    odd = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93,
           0xA0761D6478BD642F)  # fmt: skip

    def mixed(tokens: list[str]) -> int:
        checksums = [crc32(token.encode()) for token in tokens] + [0] * (5 - len(tokens))
        total = sum(c * o for c, o in zip(checksums, odd, strict=True)) % 2**64
        return ((total ^ total >> 32) * odd[1]) % 2**64 >> 32

    for code in ("a b c d e f g", "x = 1 ;", "}"):
        tokens = code.split()
        runs = [tokens[n : n + 5] for n in range(max(1, len(tokens) - 4))]
        assert shingles(code).tolist() == sorted(map(mixed, runs))


def test_the_method_is_said_with_its_numbers():
    assert METHOD == (
        "MinHash (128 permutations, 18 bands of 7) over runs of 5 code tokens without comments;"
        " pairs verified by exact Jaccard similarity >= 0.8"
    )


def twins(num: int, **changes) -> list[CodeSample]:
    """Functions of which each two share all runs but those of their last statement."""
    lines = "\n".join(random_code(np.random.default_rng(1), 40))
    return [
        CodeSample(str(i), f"{lines}\nlast({i});", i % 2, f"train:{i}", **changes)
        for i in range(num)
    ]


def test_sixteen_twins_of_one_split_and_label_represent_all_others():
    alike = [twin._replace(target=0) for twin in twins(20)]
    # The first 16 are compared with all before them; they represent the crowd for 4 more.
    assert search(train=alike).pairs[0].num_pairs == 16 * 15 // 2 + 4 * 16
    assert search(train=twins(20)).pairs[0].num_pairs == 20 * 19 // 2  # ten of a label
    within, _, across = search(train=alike[:12], test=alike[12:]).pairs
    assert (within.num_pairs, across.num_pairs) == (12 * 11 // 2, 12 * 8)


def test_the_most_alike_are_listed_first_and_equal_ones_in_their_order():
    train = random_split("train", 12, 1)
    train[9] = train[2]._replace(code=f"{train[2].code}\nmore(1, 2, 3);")
    train[8] = train[3]._replace(code=f"{train[3].code}\nx();", origin="train:8")
    train[7] = train[1]._replace(code=f"{train[1].code}\nx();", origin="train:7")
    (pairs,) = search(train=train).pairs
    assert [example.rsplit(" ", 1)[0] for example in pairs.examples] == [
        "train:1 ~ train:7", "train:3 ~ train:8", "train:2 ~ train:2"
    ]  # fmt: skip


def test_functions_per_second_are_those_of_the_clock(monkeypatch):
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(near_module.time, "perf_counter", lambda: next(clock))
    assert search(train=random_split("train", 7, 1)).functions_per_second == 2.3


def test_near_twins_within_and_across_are_found_and_counted():
    train, test = random_split("train", 60, 1), random_split("test", 30, 2)
    train[40] = edited(train[3], target=1 - train[3].target, commit="other", origin="train:40")
    test[4] = edited(train[9], commit="new", origin="test:4")
    test[5] = edited(train[10], target=train[10].target, commit="newer", origin="test:5")
    near = search(train=train, test=test)
    found = by_where(near.pairs)
    assert (found["train"].num_pairs, found["train"].num_opposite) == (1, 1)
    assert found["train"].num_functions == {"train": 2}
    assert found["test"].num_pairs == 0
    assert (found["train/test"].num_pairs, found["train/test"].num_opposite) == (2, 0)
    assert found["train/test"].num_functions == {"train": 2, "test": 2}
    assert {e.rsplit(" ", 1)[0] for e in found["train/test"].examples} == {
        "train:9 ~ test:4", "train:10 ~ test:5"
    }  # fmt: skip
    assert near.clusters == {
        "num_clusters": 3, "num_functions": 6, "largest": 2, "num_across_splits": 2
    }  # fmt: skip


def test_a_function_and_its_fix_are_no_duplicates_inside_one_split_only():
    train, test = random_split("train", 30, 1), random_split("test", 30, 2)
    train[1] = edited(train[0], target=1 - train[0].target)  # of the same commit
    train[3] = edited(train[2])  # of the same commit and label: a duplicate
    test[1] = edited(train[4], target=1 - train[4].target)  # its fix is in the other split
    near = search(train=train, test=test)
    found = by_where(near.pairs)
    assert near.num_fix_pairs == {"train": 1, "test": 0}
    assert found["train"].num_pairs == 1
    assert found["train"].examples[0].startswith("train:2 ~ ")
    assert (found["train/test"].num_pairs, found["train/test"].num_opposite) == (1, 1)


def test_a_pair_at_exactly_the_threshold_is_reported():
    codes = [" ".join(f"w{n}" for n in range(12)) + f" {last}" for last in ("one", "other")]
    # Thirteen tokens make nine runs of five, of which all but the last are in both: 8 of 10.
    assert jaccard(*map(shingles, codes)) == THRESHOLD == 8 / 10
    (pair,) = search(train=[CodeSample(c, c, 0, f"train:{n}") for n, c in enumerate(codes)]).pairs
    assert (pair.num_pairs, pair.examples) == (1, ["train:0 ~ train:1 (0.80)"])


def test_functions_without_a_commit_are_twins_and_not_a_fix():
    train = random_split("train", 20, 1)
    train[0] = train[0]._replace(commit="")
    train[1] = edited(train[0], target=1 - train[0].target)
    near = search(train=train)
    assert near.num_fix_pairs == {"train": 0}
    assert [(pairs.num_pairs, pairs.num_opposite) for pairs in near.pairs] == [(1, 1)]


def test_clusters_join_chains_of_pairs_but_not_a_function_and_its_fix():
    train, test = random_split("train", 20, 1), random_split("test", 20, 2)
    train[1] = edited(train[0], target=1 - train[0].target)  # its fix
    train[3] = train[2]._replace(commit="copy")
    test[1] = edited(train[3], commit="twin")  # a twin of 2 and 3
    assert search(train=train, test=test).clusters == {
        "num_clusters": 1, "num_functions": 3, "largest": 3, "num_across_splits": 1
    }  # fmt: skip


def test_no_pair_is_reported_or_missed_where_every_pair_is_compared():
    rng = np.random.default_rng(5)
    samples = random_split("train", 40, 3)
    for k in range(120):  # twins at every distance, on both sides of the threshold
        parent = samples[rng.integers(len(samples))]
        lines = parent.code.split("\n")
        for _ in range(rng.integers(1, 4)):
            lines[rng.integers(len(lines))] = random_code(rng, 1)[0]
        samples.append(CodeSample(str(k), "\n".join(lines), 0, f"twin:{k}"))
    sets = [set(shingles(s.code).tolist()) for s in samples]
    similarity = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i] if a != b]
    expected = sum(value >= THRESHOLD for value in similarity)
    assert expected > 40
    assert sum(0.6 < value < THRESHOLD for value in similarity) > 50  # false ones to propose
    found = search(train=samples).pairs[0].num_pairs
    # Never more; the seeded hashing proposes a pair just at 0.8 with probability 0.986.
    assert 0.97 * expected <= found <= expected


def test_a_thousand_copies_with_one_number_changed_are_one_cluster_in_bounded_time():
    lines = random_code(np.random.default_rng(1), 20)
    train = [
        CodeSample(str(i), "\n".join([*lines, f"last({i});"]), 0, f"train:{i}") for i in range(1000)
    ]
    near = search(train=train)
    assert near.clusters["num_functions"] == near.clusters["largest"] == 1000
    assert near.pairs[0].num_functions == {"train": 1000}
    assert 999 <= near.pairs[0].num_pairs <= 1000 * 16  # not a thousand squared
    assert len(near.pairs[0].examples) == 1000


def test_a_large_split_is_sampled_by_seed_and_says_so():
    train, test = random_split("train", 300, 1), random_split("test", 20, 2)
    near = search(limit=100, train=train, test=test)
    assert near.examined == {"train": (100, 300), "test": (20, 20)}
    train[5:] = [
        train[0]._replace(code=f"{train[0].code}\nx{i}();", commit=str(i)) for i in range(295)
    ]
    first, again = (search(limit=100, train=train, test=test) for _ in range(2))
    assert first.pairs == again.pairs
    assert first.pairs[0].num_functions["train"] > 90


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs the real archive beside the repository")
def test_the_real_splits_share_no_commit_one_function_and_two_dozen_near_twins():
    config = DataConfig(path=str(ARCHIVE))
    splits = {
        name: list(read_records(ARCHIVE, name, config)) for name in ("train", "valid", "test")
    }
    read = columns(**splits)
    exact = by_where(exact_duplicates(read))
    assert {where: shared.num_things for where, shared in exact.items()} == {
        "train": 0, "valid": 0, "test": 0, "train/valid": 0, "train/test": 1, "valid/test": 0
    }  # fmt: skip
    assert all(shared.num_things == 0 for shared in shared_groups(read)["commit"])
    assert all(shared.num_things == 0 for shared in contradictions(read))
    near = search(**splits)
    # Counted once by comparing all 889,111 pairs of shingle sets: 527 at or above 0.8.
    assert {pairs.where: pairs.num_pairs for pairs in near.pairs} == {
        "train": 55, "valid": 12, "test": 11, "train/valid": 29, "train/test": 46, "valid/test": 15
    }  # fmt: skip
    assert near.num_fix_pairs == {"train": 226, "valid": 67, "test": 65}
    assert by_where(near.pairs)["train/test"].num_functions == {"train": 27, "test": 24}
