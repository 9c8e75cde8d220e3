"""Bad datasets that show only once a split is whole, by the number of the list of bad inputs."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows
from example_sets import example_set

from data.batches.batch import collate
from data.batches.loader import Batching, TrainLoader
from data.config import DataConfig
from data.errors import DataError
from data.prepared.prepare import Prepared, prepare, read_split
from data.text.tokenizer import CodeTokenizer


def prepared(
    folder: Path, model: Path, train: list[dict[str, object]], **config: object
) -> Prepared:
    write_rows(folder / "train.jsonl", train)
    for name in ("valid", "test"):
        write_rows(folder / f"{name}.jsonl", [{"code": f"{name}();", "target": 1}])
    return prepare(DataConfig.model_validate({"path": str(folder)} | config), model)


def labelled(*pairs: tuple[str, int]) -> list[dict[str, object]]:
    return [{"code": code, "target": target} for code, target in pairs]


def test_40_a_leak_by_the_normalised_digest_is_refused_with_both_places(tmp_path, tiny_model):
    rows = labelled(("a();", 0), ("test();\n", 1))
    with pytest.raises(
        DataError, match=r"(?s)train\.jsonl:2 = test\.jsonl:1.*data\.allow_leaks=true"
    ):
        prepared(tmp_path, tiny_model, rows)
    found = prepared(tmp_path, tiny_model, rows, allow_leaks=True)
    assert found.facts["leaks_allowed"] is True
    assert found.leaks == {"functions": {"train/test": 1}}


def test_41_contradictory_labels_are_counted_and_the_functions_kept(tmp_path, tiny_model):
    found = prepared(tmp_path, tiny_model, labelled(("a();", 0), ("a( );", 0), ("a();", 1)))
    assert found.sharing.contradictory == {"train": 1, "valid": 0, "test": 0}
    assert found.splits["train"].targets == [0, 0, 1]


def test_42_training_on_one_class_is_refused_with_the_class(tmp_path, tiny_model):
    with pytest.raises(DataError, match=r"train: all 2 functions have target 0; need both"):
        prepared(tmp_path, tiny_model, labelled(("a();", 0), ("b();", 0)))


def test_42_one_class_left_by_dropping_long_functions_is_refused(tmp_path, tiny_model):
    rows = labelled(("a;", 0), ("b;", 0), ("int long_function; " * 20, 1))
    with pytest.raises(DataError, match=r"long_functions.*all 2 functions have target 0"):
        prepared(tmp_path, tiny_model, rows, seq_length=8, long_functions="drop")
    kept = prepared(tmp_path, tiny_model, rows, seq_length=8, long_functions="truncate")
    assert kept.splits["train"].examples.label_E.tolist() == [0, 0, 1]


def test_43_no_function_left_gives_the_count_of_every_reason(tmp_path, tiny_model):
    with pytest.raises(DataError, match=r"train: no function left of 3 rows: 3 had no code"):
        prepared(tmp_path, tiny_model, labelled(("", 0), (" ", 1), ("", 1)))
    rows = labelled(
        ("", 0), *[("int long_function; " * 20 + name, n) for n, name in enumerate("ab")]
    )
    expected = (
        r"train: no function left of 3 rows: 1 had no code, 0 were bad, 0 were above"
        r" data\.max_function_bytes, 2 were dropped as longer than data\.seq_length; raise it,"
        r" or set data\.long_functions"
    )
    with pytest.raises(DataError, match=expected):
        prepared(tmp_path, tiny_model, rows, seq_length=8, long_functions="drop")


def test_43_a_file_evaluated_alone_is_refused_as_well_if_nothing_is_left(tmp_path, tiny_model):
    tokenizer = CodeTokenizer(tiny_model)
    path = write_rows(tmp_path / "test.jsonl", labelled(("int long_function; " * 20, 1)))
    config = DataConfig(seq_length=8, long_functions="drop")
    with pytest.raises(DataError, match=r"test: no function left of 1 rows: .* 1 were dropped"):
        read_split([path], "test", config, tokenizer)
    write_rows(path, labelled(("", 1)))
    with pytest.raises(DataError, match=r"test: no function left of 1 rows: 1 had no code"):
        read_split([path], "test", config, tokenizer)


@pytest.mark.parametrize("unit", ["examples", "rows"])
def test_44_fewer_rows_than_the_global_batch_make_one_step_of_all_of_them(unit):
    examples = example_set([[1] * n for n in (3, 4, 5)])
    batching = Batching(8, global_batch_size=64, batch_unit=unit, micro_batch_size=1, seed=0)
    loader = TrainLoader(examples, batching, world_size=4)
    step = loader.step(0)
    assert (loader.plan.steps_per_epoch, step.count) == (1, 3.0)
    assert len(step.micro_batches) == 1


def test_45_a_batch_without_functions_has_no_label_to_score_and_counts_none():
    batch = collate(example_set([[1, 2]]), [])
    assert (batch.count, batch.num_tokens, len(batch.labels_S)) == (0.0, 0, 0)


def test_52_a_file_changed_since_has_another_digest_and_is_read_anew(tmp_path, tiny_model):
    rows = labelled(("a();", 0), ("b();", 1))
    before = prepared(tmp_path, tiny_model, rows)
    again = prepared(tmp_path, tiny_model, rows)
    after = prepared(tmp_path, tiny_model, [*rows, *labelled(("c();", 1))])
    assert again.digests == before.digests
    assert again.facts["cache"] == before.facts["cache"]
    assert after.digests["train"] != before.digests["train"]
    assert after.digests["test"] == before.digests["test"]
    assert [len(found.splits["train"].samples) for found in (before, after)] == [2, 3]
    assert np.array_equal(
        again.splits["train"].examples.tokens, before.splits["train"].examples.tokens
    )
