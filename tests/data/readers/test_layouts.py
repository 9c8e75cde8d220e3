"""Layouts as datasets are published: shards, other names of splits, lists; what is left over."""

import re
from pathlib import Path

import pytest
from dataset_files import PAIR, jsonl_bytes, parquet_bytes, tar, zipped

from data.config import DataConfig
from data.errors import DataError
from data.readers import locate, overlooked, read_records, unread


def located(folder: Path, split: str, *, language: bool = False, **keys: object) -> list[str]:
    keys = keys or {"path": str(folder)}
    found = locate(DataConfig.model_validate(keys), split, language=language)
    return [path.relative_to(folder).as_posix() for path in found]


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PAIR)
    return folder


@pytest.mark.parametrize("language", [False, True])
@pytest.mark.parametrize("below", ["", "data/", "data/java/", "java/"])
def test_a_hub_snapshot_is_read_from_its_folder_all_shards_in_order(tmp_path, below, language):
    shards = [f"{below}train-{n:05}-of-00011.parquet" for n in range(11)]
    names = [*shards, f"{below}validation-00000-of-00001-9f86d081884c7d65.parquet", "README.md"]
    filled(tmp_path, *names)
    assert located(tmp_path, "train", language=language) == shards
    assert located(tmp_path, "valid", language=language) == [names[-2]]
    assert located(tmp_path, "test", language=language) == []


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "eval", "Val", "big_dev"])
@pytest.mark.parametrize("language", [False, True])
def test_every_usual_name_of_the_validation_split_is_taken(tmp_path, name, language):
    filled(tmp_path, "Train.csv", f"{name}.csv", "test.csv")
    assert located(tmp_path, "train", language=language) == ["Train.csv"]
    assert located(tmp_path, "valid", language=language) == [f"{name}.csv"]


def test_two_names_of_one_split_are_refused_and_a_plain_one_wins_over_a_prefix(tmp_path):
    filled(tmp_path, "train.csv", "set_train.csv", "val.csv", "dev.csv")
    assert located(tmp_path, "train") == ["train.csv"]
    with pytest.raises(DataError, match=r"found 2: \['dev\.csv', 'val\.csv'\]"):
        located(tmp_path, "valid")


@pytest.mark.parametrize(
    "left", ["valid.xlsx", "validation_matched.csv", "my-dev-set.csv", "val.pkl"]
)
def test_a_file_that_seems_to_be_a_missing_split_is_never_passed_over(tmp_path, left):
    filled(tmp_path, "train.csv", "test.csv", left)
    with pytest.raises(DataError, match=left):
        located(tmp_path, "valid", language=True)
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(("train.csv", PAIR), (left, PAIR)))
    with pytest.raises(DataError, match=rf"a\.zip::{left} seems to hold valid"):
        located(tmp_path, "valid", language=True, path=str(archive))


def test_files_that_mention_a_split_are_named_with_the_keys_that_read_them(tmp_path):
    filled(tmp_path, "x_train_pairs.csv", "x_test_pairs.csv", "x_val_pairs.csv")
    keys = [f"data.{s}={tmp_path}/x_{n}_pairs.csv" for s, n in
            (("train", "train"), ("valid", "val"), ("test", "test"))]  # fmt: skip
    with pytest.raises(DataError, match=re.escape(f"name the files: {' '.join(keys)}")):
        located(tmp_path, "train")
    filled(tmp_path, "y_test_pairs.csv")  # which of the two is not known
    with pytest.raises(DataError, match=rf"data\.train={re.escape(str(tmp_path))}/FILE"):
        located(tmp_path, "train")


def test_what_no_split_reads_is_named(tmp_path):
    filled(
        tmp_path,
        "train.csv",
        "test.csv",
        "extra.jsonl",
        "old.pkl",
        "README.md",
        "run.py",
        "state.json",
    )
    config = DataConfig(path=str(tmp_path))
    used = [path for split in ("train", "test") for path in locate(config, split)]
    assert unread(config, used, language=False) == ["extra.jsonl", "old.pkl"]
    config = DataConfig(train=str(tmp_path / "train.csv"))
    used = locate(config, "train")
    assert unread(config, used, language=False) == ["test.csv"]  # the others belong to others


@pytest.mark.parametrize(
    ("given", "beside", "split"),
    [
        ("train.csv", "val.csv", "valid"),
        ("train.csv", "test.xlsx", "test"),
        ("all.jsonl", "big_eval_v2.parquet", "valid"),
        ("a/train", "a/validation/x.csv", "valid"),  # a folder beside a folder of train
        ("set/train_sft", "set/test_sft/x.csv", "test"),
        ("a", "a/dev.csv", "valid"),  # within the folder that train names
        ("a.zip", "", "test"),  # within the archive
        (["b.csv", "a/c.csv"], "a/test.csv", "test"),
        ("x.txt", "test.txt", "test"),
    ],
)
def test_what_seems_to_be_a_split_that_no_key_names_is_found_beside_train_and_in_it(
    tmp_path, given, beside, split
):
    language = "txt" in str(given)
    names = [given] if isinstance(given, str) else given
    filled(tmp_path, *(n if "." in n else f"{n}/train.csv" for n in names), *filter(None, [beside]))
    (tmp_path / "a.zip").write_bytes(zipped(("train.csv", PAIR), ("test.csv", PAIR)))
    config = DataConfig.model_validate({"train": [f"{tmp_path}/{name}" for name in names]})
    used = locate(config, "train", language=language)
    left = overlooked(config, split, used, language=language)
    expected = beside if "." in str(given) else beside.rpartition("/")[0]
    assert left == tmp_path / (expected or str(given))
    other = "valid" if split == "test" else "test"
    assert overlooked(config, other, used, language=language) is None


@pytest.mark.parametrize(
    "beside",
    ["notes.csv", "latest.csv", "test.py", "how_to_test.md", "test/x.csv", "test_README.txt",
     "train-2.csv"],
)  # fmt: skip
def test_what_does_not_seem_to_be_a_split_stops_nothing(tmp_path, beside):
    filled(tmp_path, "all.csv", beside)
    config = DataConfig(train=str(tmp_path / "all.csv"))
    used = locate(config, "train")
    assert overlooked(config, "test", used, language=True) is None
    assert (
        overlooked(DataConfig(path=str(tmp_path / "all.csv")), "test", used, language=True) is None
    )


def test_a_list_a_glob_and_a_folder_of_shards_are_files_of_one_split(tmp_path):
    filled(tmp_path, "a/x-2.csv", "a/x-10.csv", "b.csv", "c/train-1.csv", "c/test-1.csv", "d/q.csv")
    given = [f"{tmp_path}/{name}" for name in ("b.csv", "a/x-*.csv", "c", "d")]
    expected = ["b.csv", "a/x-2.csv", "a/x-10.csv", "c/train-1.csv", "d/q.csv"]
    assert located(tmp_path, "train", train=given) == expected
    assert located(tmp_path, "test", path=[f"{tmp_path}/b.csv", f"{tmp_path}/c"]) == [
        "c/test-1.csv"
    ]
    assert located(tmp_path, "train", path=f"{tmp_path}/a/*.csv") == ["a/x-2.csv", "a/x-10.csv"]


def test_a_corpus_with_folders_called_after_splits_is_one_corpus(tmp_path):
    filled(tmp_path, "guide/a.md", "dev/b.md", "test/c.md")
    found = located(tmp_path, "train", language=True, train=str(tmp_path))
    assert found == ["dev/b.md", "guide/a.md", "test/c.md"]


def test_an_archive_gives_all_shards_of_its_split_and_names_what_it_does_not_read(tmp_path):
    rows = [[{"code": f"int {name};", "target": n % 2}] for n, name in enumerate("abcd")]
    members = [
        ("set/train-00000-of-00002.parquet", parquet_bytes(rows[0])),
        ("set/train-00001-of-00002.parquet", parquet_bytes(rows[1])),
        ("set/dev.jsonl", jsonl_bytes(rows[2])),
        ("set/other.jsonl", jsonl_bytes(rows[3])),
    ]
    for name, content in (("a.zip", zipped(*members)), ("a.tar", tar(*members))):
        (tmp_path / name).write_bytes(content)
        config = DataConfig(path=str(tmp_path / name))
        found = {
            split: [
                s.code for path in locate(config, split) for s in read_records(path, split, config)
            ]
            for split in ("train", "valid", "test")
        }
        assert found == {"train": ["int a;", "int b;"], "valid": ["int c;"], "test": []}


def test_an_archive_without_splits_is_train(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(("x/functions.jsonl", PAIR), ("README.md", b"")))
    config = DataConfig(path=str(tmp_path / "a.zip"))
    assert locate(config, "valid") == []
    (path,) = locate(config, "train")
    assert len(list(read_records(path, "train", config))) == 2


def test_a_folder_whose_only_data_is_an_archive_is_that_archive(tmp_path):
    """As sets are published: a tarball of three splits beside a page about it."""
    members = (("train.csv", PAIR), ("val.csv", PAIR), ("test.csv", PAIR))
    (tmp_path / "set.zip").write_bytes(zipped(*members))
    (tmp_path / "PROVENANCE.txt").write_text("where it comes from")
    for split in ("train", "valid", "test"):
        assert located(tmp_path, split, path=str(tmp_path)) == ["set.zip"]
