"""The same functions come back from every format, compression and archive, whatever they hold."""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import sample_rows
from dataset_files import COMPRESSIONS, FORMATS, read, tar, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.kinds import FUNCTION, KINDS
from data.readers import formats, locate, read_records
from data.records import CodeSample

FUNCTIONS = [
    {"id": f"f{n}", "target": row["target"], "code": row["code"], "cwe": f"CWE-{n}", "commit": "é"}
    for n, row in enumerate(sample_rows("train", 20))
]


def expected(rows: list[dict[str, Any]]) -> list[CodeSample]:
    return [CodeSample(**row, origin="") for row in rows]


def without_origin(samples: list[CodeSample]) -> list[CodeSample]:
    return [sample._replace(origin="") for sample in samples]


@pytest.mark.parametrize(("kind", "end"), list(product(FORMATS, COMPRESSIONS)))
@pytest.mark.parametrize("archive", ["plain", "tar", "tar.gz", "tar.xz", "tar.zst", "zip"])
def test_every_format_in_every_compression_and_archive_holds_the_same(tmp_path, kind, end, archive):
    content = COMPRESSIONS[end](FORMATS[kind](FUNCTIONS))
    path = tmp_path / f"train.{kind}{end}"
    if archive == "zip":
        content = zipped(("README", b"x"), (f"folder/{path.name}", content))
    elif archive != "plain":
        content = tar(("README", b"x"), (f"folder/{path.name}", content), ("z", b""))
        content = COMPRESSIONS[archive.removeprefix("tar")](content)
    path = path if archive == "plain" else tmp_path / f"train.{archive}"
    path.write_bytes(content)
    assert locate(DataConfig(path=str(tmp_path)), "train") == [path]
    samples = read(path)
    assert without_origin(samples) == expected(FUNCTIONS)
    name = path.name if archive == "plain" else f"{path.name}::folder/train.{kind}{end}"
    assert all(sample.origin.startswith(f"{name}:") for sample in samples)
    assert len({sample.origin for sample in samples}) == 20


@pytest.mark.parametrize("whole", [True, False], ids=["of-several-splits", "alone"])
def test_a_dataset_saved_to_disk_holds_the_same(tmp_path, whole):
    import datasets

    dataset = datasets.Dataset.from_list(FUNCTIONS)
    if whole:
        splits = datasets.DatasetDict({"train": dataset, "validation": dataset.select([3, 1])})
        splits.save_to_disk(str(tmp_path))
    else:
        dataset.save_to_disk(str(tmp_path / "train"))
        dataset.select([3, 1]).save_to_disk(str(tmp_path / "valid"))
    config = DataConfig(path=str(tmp_path))
    train, valid = (locate(config, name)[0] for name in ("train", "valid"))
    assert without_origin(list(read_records(train, "train", config))) == expected(FUNCTIONS)
    found = list(read_records(valid, "valid", config))
    assert [sample.id for sample in found] == ["f3", "f1"]
    assert found[1].origin == f"{valid.name}:row 2"


def source_files() -> dict[str, bytes]:
    names = ("safe", "vulnerable")
    return {
        f"train/{names[row['target']]}/{n % 3}/{row['id']}.java": row["code"].encode()
        for n, row in enumerate(FUNCTIONS)
    }


def test_a_source_folder_holds_the_same_on_disk_and_in_an_archive(tmp_path):
    files = source_files()
    for name, content in {**files, "train/.hidden": b"", "train/safe/.git/x": b"y"}.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    config = DataConfig(path=str(tmp_path / "folder"))
    on_disk = list(read_records(locate(config, "train")[0], "train", config))
    assert [sample.origin for sample in on_disk] == sorted(files)
    assert {(s.origin, s.code, s.target) for s in on_disk} == {
        (name, content.decode(), int("vulnerable" in name)) for name, content in files.items()
    }
    archive = tmp_path / "data.tar"
    archive.write_bytes(tar(*[(f"top/{name}", files[name]) for name in sorted(files)]))
    in_archive = read(archive, format="folder")
    assert [(s.code, s.target) for s in in_archive] == [(s.code, s.target) for s in on_disk]
    assert in_archive[0].origin == f"data.tar::top/{on_disk[0].origin}"


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "code": TEXT.filter(str.strip),
            "target": st.integers(0, 1),
            **dict.fromkeys(KINDS[FUNCTION].optional, TEXT.map("x{}x".format)),  # known values
        }
    ),
    min_size=1,
    max_size=8,
)


@given(records=RECORDS, block=st.sampled_from([1, 5, 1 << 20]), kind=st.sampled_from([*FORMATS]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_record_survives_every_format_unchanged(records, block, kind):
    rows = [{"id": str(n), **record} for n, record in enumerate(records)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BLOCK_BYTES", block)
        path = Path(folder) / f"train.{kind}"
        path.write_bytes(FORMATS[kind](rows))
        assert without_origin(read(path)) == expected(rows)


def test_records_without_our_fields_survive_too(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(FORMATS["jsonl"]([{"code": "a", "target": 1, "cwe": None, "id": None}]))
    assert read(path) == [CodeSample("train.jsonl:1", "a", 1, "train.jsonl:1")]
