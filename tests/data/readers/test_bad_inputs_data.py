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
        pytest.param(
            {"path": "train.jsonl"}, ("train.jsonl is one file", "data.valid"), id="68-one-file"
        ),
        pytest.param({"train": "empty"}, ("empty is a folder", "name the file"), id="68-folder"),
        pytest.param(
            {"path": "empty", "format": "folder"},
            ("train/<label>/", "found 0 under data.format=folder"),
            id="68-no",
        ),
    ],
)
def test_a_path_that_holds_no_split_names_its_key_and_what_was_looked_for(
    tmp_path, monkeypatch, config, parts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("train.jsonl", "train.jsonl.gz"):
        (tmp_path / name).write_bytes(PAIR)
    with pytest.raises(DataError) as caught:
        locate(DataConfig.model_validate(config), "train")
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)
