"""Records without splits: what belongs together stays together, whatever the order of rows."""

import json
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from conftest import REPOSITORY, write_rows
from language_sets import byte_tokenizer

from data.config import DataConfig
from data.errors import DataError, MappingError
from data.prepared.division import window
from data.prepared.prepare import Prepared, open_splits, prepare
from data.text.shingles import THRESHOLD, jaccard, shingles

DEVIGN = REPOSITORY.parent / "shared/data/devign_test_complete/devign_test_complete.jsonl.gz"
Row = dict[str, object]


def body(rng: random.Random, size: int = 40) -> str:
    return " ".join(f"v{rng.randrange(10**6)} = f{rng.randrange(10**6)} ( ) ;" for _ in range(size))


def functions(count: int) -> list[Row]:
    """A quarter vulnerable; some share a commit, a CVE, or most of their text."""
    rng = random.Random(5)
    rows: list[Row] = []
    for n in range(count):
        row: Row = {"code": f"int f{n} ( ) {{ {body(rng)} }}", "target": int(n % 4 == 0)}
        row["commit"] = f"c{n // 3}" if n % 5 == 0 else ""
        row["cve"] = f"CVE-{n % 40}" if n % 9 == 0 else ""
        row["date"] = f"20{n % 20:02}-01-02"
        row["project"] = f"p{n % 30}"
        rows.append(row)
        if n % 10 == 0:  # a near duplicate: one statement more, another label
            rows.append(
                {**row, "code": f"{row['code']} x = {n} ;", "target": 1, "commit": "", "cve": ""}
            )
    return rows


def divided(folder: Path, rows: list[Row], name: str = "all.jsonl", **config: object) -> Prepared:
    tokenizer = byte_tokenizer(folder / "tokenizer").path.parent
    path = write_rows(folder / name, rows)
    values = {"path": str(path), "cache_dir": str(folder / "cache"), "long_functions": "truncate"}
    return open_splits(DataConfig.model_validate({"seq_length": 64} | values | config), tokenizer)


def contents(prepared: Prepared) -> dict[str, set[str]]:
    return {name: {s.code for s in split.samples} for name, split in prepared.splits.items()}


@pytest.mark.parametrize("by", ["group", "random", "project", "time"])
def test_the_parts_follow_from_what_rows_say_not_from_their_order_or_the_file(tmp_path, by):
    rows = functions(200)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert shuffled != rows
    split = {"by": by}
    first = contents(divided(tmp_path, rows, split=split))
    assert contents(divided(tmp_path, shuffled, "other.csv.jsonl", split=split)) == first
    assert all(first.values())
    assert sum(map(len, first.values())) == len(rows)


def test_commits_cves_and_near_duplicates_never_straddle_and_classes_keep_their_shares(tmp_path):
    rows = functions(400)
    prepared = divided(tmp_path, rows)
    assert not prepared.leaks
    part = {code: name for name, codes in contents(prepared).items() for code in codes}
    for field in ("commit", "cve"):
        of_group: dict[object, set[str]] = {}
        for row in rows:
            if row[field]:
                of_group.setdefault(row[field], set()).add(part[str(row["code"])])
        assert max(map(len, of_group.values())) == 1
    sets = {code: shingles(code) for code in part}
    alike = [(a, b) for a, b in combinations(sets, 2) if jaccard(sets[a], sets[b]) >= THRESHOLD]
    assert len(alike) == 40  # those that were made so
    assert all(part[a] == part[b] for a, b in alike)
    total = Counter(row["target"] for row in rows)
    for name, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        found = Counter(s.target for s in prepared.splits[name].samples)
        for target in (0, 1):
            assert found[target] == pytest.approx(share * total[target], abs=2)


def test_by_project_and_by_time_hold_out_whole_projects_and_the_newest(tmp_path):
    rows = [row | {"commit": "", "cve": ""} for row in functions(200)]
    projects = {
        name: {s.project for s in split.samples}
        for name, split in divided(tmp_path, rows, split={"by": "project"}).splits.items()
    }
    assert not projects["train"] & (projects["valid"] | projects["test"])
    rows = [row for row in rows if "x =" not in str(row["code"])]  # no group has two dates
    times = {
        name: {s.date for s in split.samples}
        for name, split in divided(tmp_path, rows, split={"by": "time"}).splits.items()
    }
    assert max(times["train"]) <= min(times["valid"]) <= max(times["valid"]) <= min(times["test"])
    with pytest.raises(
        DataError, match=r"functions have no date; it is looked for in .*commit_date"
    ):
        divided(tmp_path, [row | {"date": None} for row in rows], split={"by": "time"})
    odd = [row | {"date": "last week"} for row in rows]
    with pytest.raises(
        DataError, match=r"all\.jsonl:1: .*the date is 'last week'.*fields=\{date: NA"
    ):
        divided(tmp_path, odd, split={"by": "time"})


@pytest.mark.parametrize(
    ("column", "write"),
    [
        ("commit_date", lambda day: f"2021-03-{day:02}T12:00:00Z"),
        ("committer_date", lambda day: f"2021-03-{day:02} 09:20:56+02:00"),  # CVEfixes
        ("author_date", lambda day: f"Mon Mar {day} 09:20:56 2021 +0200"),  # git log
        ("Publish Date", lambda day: f"2021-03-{day:02}"),  # Big-Vul
        ("publish_date", lambda day: f"Mon, {day} Mar 2021 09:20:56 +0200"),
        ("commit_time", lambda day: 1614600000 + day * 86400),
        ("when", lambda day: 1614600000.5 + day * 86400),
    ],
)
def test_the_dates_of_known_sets_divide_by_time(tmp_path, column, write):
    rows = [
        {"code": f"f{n}(a{n * 7});", "target": n % 2, column: write(n % 28 + 1) if n else None}
        for n in range(56)
    ]
    rows = [{name: value for name, value in row.items() if name != "date"} for row in rows]
    fields = {"date": "when"} if column == "when" else {}
    found = divided(tmp_path, rows, split={"by": "time"}, fields=fields)
    day = {s.code: n % 28 + 1 if n else 0 for n, s in
           ((int(s.code[1 : s.code.index("(")]), s) for split in found.splits.values()
            for s in split.samples)}  # fmt: skip
    days = {name: [day[s.code] for s in split.samples] for name, split in found.splits.items()}
    assert max(days["train"]) <= min(days["valid"]) <= max(days["valid"]) <= min(days["test"])
    assert min(days["train"]) == 0  # the one without a date
    assert found.facts["division"]["num_undated"] == 1


def test_at_random_only_equal_functions_stay_together(tmp_path):
    rows = [row | {"commit": "one"} for row in functions(100)]
    with pytest.raises(DataError, match=r"11. records are 1 groups that stay together"):
        divided(tmp_path, rows)
    prepared = divided(tmp_path, [*rows, rows[7]], split={"by": "random", "valid": 0.3})
    assert list(prepared.leaks) == ["commits"]  # which training refuses
    assert len(prepared.splits["valid"].samples) == round(0.3 * 111)


def test_functions_that_are_all_alike_are_dealt_and_it_is_said(tmp_path):
    rng = random.Random(2)
    same = body(rng, 80)
    rows: list[Row] = [{"code": f"{same} y = {n} ;", "target": n % 2} for n in range(40)]
    prepared = divided(tmp_path, rows)
    assert [len(s.samples) for s in prepared.splits.values()] == [32, 4, 4]
    assert "not kept together" in prepared.facts["division"]["near_duplicates"]


def test_a_split_with_a_file_is_as_it_is_and_the_share_of_the_other_is_of_train(tmp_path):
    rows = functions(100)
    test = write_rows(tmp_path / "test.jsonl", [{"code": "int t;", "target": 0}])
    prepared = divided(tmp_path, rows, test=str(test), split={"valid": 0.2})
    assert prepared.facts["held_out"] == {"valid": 0.2}
    assert len(prepared.splits["test"].samples) == 1
    assert len(prepared.splits["valid"].samples) == pytest.approx(0.2 * len(rows), abs=2)


def language(folder: Path, train: object, **config: object) -> Prepared:
    tokenizer = byte_tokenizer(folder / "tokenizer").path.parent
    values = {"train": train, "cache_dir": str(folder / "cache"), "template": "plain"}
    settings = DataConfig.model_validate({"seq_length": 64} | values | config)
    return prepare(settings, tokenizer, language=True)


def test_a_file_called_after_a_split_beside_train_is_named_read_or_left_out_by_a_share(
    tmp_path, tiny_model
):
    for name, tag in (("train", "t"), ("valid", "v")):
        rows = [{"code": f"{tag}{n}();", "target": n % 2} for n in range(40)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    train, valid = str(tmp_path / "train.jsonl"), str(tmp_path / "valid.jsonl")
    keys = {"train": train, "cache_dir": str(tmp_path / "cache")}
    said = rf"data\.valid is not set, but {re.escape(valid)} seems to hold it; set data\.valid="
    for given in (keys, {**keys, "train": None, "path": train}, {**keys, "test": valid}):
        if given.get("test") is None:
            with pytest.raises(DataError, match=said):
                prepare(DataConfig.model_validate(given), tiny_model)
        else:  # it is the test
            assert prepare(DataConfig.model_validate(given), tiny_model).facts["held_out"] == {
                "valid": 0.1
            }
    named = prepare(DataConfig.model_validate({**keys, "valid": valid}), tiny_model)
    assert named.facts["held_out"] == {"test": 0.1}
    assert all(s.code.startswith("v") for s in named.splits["valid"].samples)
    shared = prepare(DataConfig.model_validate({**keys, "split": {"valid": 0.25}}), tiny_model)
    assert shared.facts["held_out"] == {"valid": 0.25, "test": 0.1}
    assert shared.facts["unread"] == ["valid.jsonl"]
    assert all(s.code.startswith("t") for s in shared.splits["valid"].samples)


@pytest.mark.parametrize("count", [3, 5, 12, 39])
def test_few_conversations_give_every_split_at_least_one(tmp_path, count):
    rows: list[Row] = [{"instruction": f"say {n}", "output": "x"} for n in range(count)]
    prepared = language(tmp_path, str(write_rows(tmp_path / "few.jsonl", rows)))
    held = max(1, round(0.05 * count))
    assert [len(s.samples) for s in prepared.splits.values()] == [count - 2 * held, held, held]
    with pytest.raises(DataError, match="2 records are 2 groups"):
        language(tmp_path, str(write_rows(tmp_path / "two.jsonl", rows[:2])))
    with pytest.raises(MappingError, match="is for functions"):
        language(tmp_path, str(tmp_path / "few.jsonl"), split={"by": "project"})


def test_nineteen_files_of_one_document_are_dealt_whole_and_one_long_text_in_windows(tmp_path):
    for n in range(19):
        (tmp_path / f"{n}.txt").write_text(f"text {n} " + "word " * 50)
    prepared = language(tmp_path, str(tmp_path / "*.txt"), long_functions="window")
    assert [len(s.samples) for s in prepared.splits.values()] == [17, 1, 1]
    lines = [f"line {n} of a book\n" for n in range(1000)]
    (tmp_path / "book.md").write_text("".join(lines))
    prepared = language(
        tmp_path, str(tmp_path / "book.md"), long_functions="window", supervise="all",
        split={"valid": 0.1, "test": 0.2},
    )  # fmt: skip
    num = [split.tokens.num_targets for split in prepared.splits.values()]
    assert sum(num) == pytest.approx(sum(map(len, lines)), abs=3)  # a byte is a token
    assert num[1] / sum(num) == pytest.approx(0.1, abs=0.005)
    assert num[2] / sum(num) == pytest.approx(0.2, abs=0.005)


@pytest.mark.parametrize("text", ["ab\ncd\n" * 50, "one two " * 50, "x" * 300, "é", ""])
def test_the_windows_of_a_text_are_the_whole_text_once(text):
    held = {"valid": 0.1, "test": 0.1}
    parts = [window(text, name, held) for name in ("train", "valid", "test")]
    assert "".join(parts) == text
    if len(text) > 100:
        assert [len(part) / len(text) for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


@pytest.mark.skipif(not DEVIGN.exists(), reason="needs the real file beside the repository")
def test_a_published_file_without_splits_is_divided(tmp_path):
    tokenizer = byte_tokenizer(tmp_path / "tokenizer").path.parent
    config = DataConfig(path=str(DEVIGN), cache_dir=str(tmp_path / "c"), fields={"code": "func"})
    facts = open_splits(config, tokenizer).facts
    tokens = [facts["splits"][name]["tokens"] for name in ("train", "valid", "test")]
    num = [t["num_functions"] for t in tokens]
    positive = [t["class_counts"][1] for t in tokens]
    assert [n / sum(num) for n in num] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    for n, p in zip(num, positive, strict=True):
        assert p / n == pytest.approx(sum(positive) / sum(num), abs=0.02)
    assert json.loads(json.dumps(facts["division"]))["num_groups"] > 100


def test_a_sample_is_small_always_the_same_and_has_both_classes(tmp_path):
    rng = random.Random(3)
    rows: list[Row] = [{"code": body(rng, 5), "target": int(n < 3)} for n in range(150)]
    found = divided(tmp_path, rows, sample=20)
    kept = contents(found)
    assert [len(codes) for codes in kept.values()] == [20, 15, 15]  # of 120, 15 and 15
    assert found.splits["train"].samples.targets.sum() >= 1
    shuffled = random.Random(1).sample(rows, len(rows))
    assert contents(divided(tmp_path, shuffled, "b.jsonl", sample=20)) == kept
    assert kept["train"] < contents(divided(tmp_path, rows))["train"]


def test_one_id_in_two_files_is_one_function_or_refused(tmp_path):
    rng = random.Random(4)
    rows: list[Row] = [{"id": n, "code": body(rng, 5), "target": n % 2} for n in range(30)]
    for split, part in (("valid", rows[20:25]), ("test", rows[25:])):
        write_rows(tmp_path / f"{split}.jsonl", part)
    write_rows(tmp_path / "train-0.jsonl", rows[:10])
    write_rows(tmp_path / "train-1.jsonl", rows[8:20])
    tokenizer = byte_tokenizer(tmp_path / "tokenizer").path.parent
    config = DataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache"), seq_length=64)
    prepared = open_splits(config, tokenizer)
    assert len(prepared.splits["train"].samples) == 22
    assert (
        "2 functions are in several files, with the same id"
        in (prepared.facts["splits"]["train"]["warnings"])
    )
    write_rows(
        tmp_path / "train-1.jsonl", [row | {"id": int(str(row["id"])) - 8} for row in rows[8:20]]
    )
    with pytest.raises(
        DataError, match=r"train-1\.jsonl:1: has the id '0' of train-0\.jsonl:1, an"
    ):
        open_splits(config, tokenizer)


def test_sources_are_mixed_by_weight_and_the_run_is_known_by_it(tmp_path):
    for name, first in (("a", 0), ("b", 100)):
        rows: list[Row] = [{"instruction": f"say {first + n}", "output": "x"} for n in range(40)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    a, b = (f"{tmp_path}/{name}.jsonl" for name in "ab")
    plain = language(tmp_path, [a, b])
    mixed = language(tmp_path, [{"path": a, "weight": 0.5}, b])
    sources = [record.source for record in mixed.splits["train"].samples]
    expected = [0.5 if source == "a.jsonl" else 1.0 for source in sources]
    assert mixed.splits["train"].times_N.tolist() == expected
    assert set(expected) == {0.5, 1.0}
    assert plain.splits["train"].times_N is None
    assert {k for k in mixed.digests if mixed.digests[k] != plain.digests.get(k)} == {"weights"}
