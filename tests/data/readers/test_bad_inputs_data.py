"""Paths that hold no split: case 68 of the list of bad inputs, as far as data goes.

Rows, content, archives, tables and the pipeline have files of their own.
"""

import pytest
from dataset_files import PAIR

from data.config import DataConfig
from data.errors import DataError
from data.readers import locate


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        pytest.param({}, ("data.train is not set", "data.path"), id="68-nothing-given"),
        pytest.param({"path": "no"}, ("data.path: no does not exist", "resolved"), id="68-path"),
        pytest.param({"train": "no.jsonl"}, ("data.train: no.jsonl", "resolved"), id="68-file"),
        pytest.param(
            {"path": "."}, ("found 2: ['train.jsonl', 'train.jsonl.gz']",), id="68-two-files"
        ),
        pytest.param({"path": "empty"}, ("train.jsonl, .json", "found 0"), id="68-empty-folder"),
        pytest.param({"train": "empty"}, ("empty: no .jsonl", "it has []"), id="68-folder"),
        pytest.param(
            {"path": "test", "format": "folder"},
            ("train/<label>/", "found 0 under data.format=folder"),
            id="68-no",
        ),
        pytest.param(
            {"train": "t*"},
            ("matches files of test and train", "narrow it"),
            id="68-glob-of-all-splits",
        ),
        pytest.param(
            {"train": "part"}, ("is one of 3 files, of which 2 are there",), id="68-lost-shard"
        ),
        pytest.param(
            {"path": "configs"}, ("['c', 'java'], each with splits of its own",), id="68-configs"
        ),
        pytest.param(
            {"train": "only"}, ("holds no train but ['dev.csv']; name",), id="68-another-split"
        ),
    ],
)
def test_a_path_that_holds_no_split_names_its_key_and_what_was_looked_for(
    tmp_path, monkeypatch, config, parts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in (
        "train.jsonl", "train.jsonl.gz", "test.csv", "configs/c/train.csv", "only/dev.csv",
        "configs/java/train.csv", "test/test/a", "part/train-0-of-3.csv", "part/train-2-of-3.csv",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PAIR)
    with pytest.raises(DataError) as caught:
        locate(DataConfig.model_validate(config), "train")
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)
