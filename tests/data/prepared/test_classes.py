"""Labels of any names become classes, by the labels alone; pairs of functions are one record."""

import json
from collections import Counter

import numpy as np
import pytest
from conftest import write_rows
from example_sets import example_set

from data.batches.batch import collate
from data.batches.loader import Batching, TrainLoader
from data.config import DataConfig
from data.errors import DataError
from data.prepared.prepare import Prepared, open_splits, prepare, read_split
from data.text.labels import Classes
from data.text.pairs import pair_shares
from data.text.tokenization import encode_functions
from data.text.tokenizer import CodeTokenizer

NAMES = ["CWE-119", "safe", "CWE-79", "CWE-1004"]


def labelled(split, labels, **more):
    return [
        {"code": f"{split} f{n}();", "target": label, **{k: v[n] for k, v in more.items()}}
        for n, label in enumerate(labels)
    ]


def prepared(folder, tiny_model, given, more=None, **config) -> Prepared:
    """Splits of these labels; valid and test have each of them once."""
    config = {"labels": "auto", "cache_dir": str(folder / "cache")} | config
    once = [given[n] for n in sorted({json.dumps(v): n for n, v in enumerate(given)}.values())]
    for split, of_split in (("train", given), ("valid", once), ("test", once)):
        write_rows(folder / f"{split}.jsonl", labelled(split, of_split, **(more or {})))
    return prepare(DataConfig(path=str(folder), **config), tiny_model)


def classes_of(split, prepared):
    return [prepared.classes.text(target) for target in split.targets]


def test_classes_are_ordered_by_their_names_whatever_the_order_of_the_rows(tmp_path, tiny_model):
    orders = []
    for number, labels in enumerate((NAMES * 2, NAMES[::-1] * 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = prepared(folder, tiny_model, labels)
        train = found.splits["train"]
        assert classes_of(train, found) == labels
        assert [found.classes.text(s.target) for s in train.samples] == labels
        assert train.examples.label_E.tolist() == train.targets
        orders.append(found.classes.names)
    assert orders == [("safe", "CWE-79", "CWE-119", "CWE-1004")] * 2
    saved = found.facts["classes"]
    assert saved["problem_type"] == "single_label_classification"
    assert Classes.of(json.loads(json.dumps(found.facts))) == found.classes
    assert found.facts["splits"]["train"]["tokens"]["class_counts"] == [2, 2, 2, 2]
    assert found.prior_C.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("labels", "names", "problem"),
    [
        ([["b", "a"], [], ["a"], ["b"]] * 2, ("a", "b"), "multi_label_classification"),
        ([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]] * 2, ("0", "1", "2"),
         "multi_label_classification"),
        (['["b", "a"]', "[]", "['a']", "b"] * 2, ("a", "b"), "multi_label_classification"),
        ([0, 1, 2, 10] * 2, ("0", "1", "2", "10"), "single_label_classification"),
    ],
)  # fmt: skip
def test_lists_of_names_and_rows_of_bits_are_several_classes_at_once(
    tmp_path, tiny_model, labels, names, problem
):
    found = prepared(tmp_path, tiny_model, labels)
    assert (found.classes.names, found.classes.problem_type) == (names, problem)
    if problem == "multi_label_classification":
        assert classes_of(found.splits["train"], found)[1] == "none"
        examples = found.splits["train"].examples
        batch = collate(examples, [np.array([0, 1])])
        assert batch.labels_S[:, :2].tolist() == [[1, 1], [0, 0]]
        assert batch.count == 2.0


def test_ids_and_names_of_the_recipe_fix_the_order(tmp_path, tiny_model):
    ids = {"CWE-119": 1, "CWE-79": 2, "CWE-1004": 2, "safe": 0}
    found = prepared(tmp_path, tiny_model, NAMES * 2, labels=ids)
    assert found.classes.names == ("safe", "CWE-119", "CWE-79/CWE-1004")
    assert found.splits["train"].targets == [1, 0, 2, 2] * 2
    names = {"CWE-119": "memory", "CWE-79": "web", "CWE-1004": "web", "safe": "nothing"}
    found = prepared(tmp_path, tiny_model, NAMES * 2, labels=names)
    assert found.classes.names == ("memory", "web", "nothing")
    found = prepared(tmp_path, tiny_model, [0, 1] * 2, labels={"0": "different", "1": "clone"})
    assert (found.classes.names, found.classes.is_binary) == (("different", "clone"), True)


def test_0_and_1_stay_what_they_are(tmp_path, tiny_model):
    found = prepared(tmp_path, tiny_model, [1, 0, 1], labels={})
    assert found.splits["train"].targets == [1, 0, 1]
    assert found.classes.are_usual


def test_weaknesses_are_learned_with_not_vulnerable_as_a_class(tmp_path, tiny_model):
    cwes = ["CWE-89", "CWE-79", "", "cwe-089", ["CWE-79", "CWE-22"], None, "CWE-79", "CWE-89"]
    targets = [1, 1, 1, 1, 1, 0, 0, 1]
    rows = {"cwe": cwes}
    one = prepared(tmp_path, tiny_model, targets, rows, labels={}, target="cwe", min_class_size=2)
    assert one.classes.names == ("not vulnerable", "CWE-79", "CWE-89", "other")
    named = classes_of(one.splits["train"], one)
    # the fifth has CWE-22, which is rare, and the more frequent CWE-79
    assert named == ["CWE-89", "CWE-79", "other", "CWE-89", "CWE-79", *["not vulnerable"] * 2,
                     "CWE-89"]  # fmt: skip
    assert one.classes.merged == {"CWE-22": 1}
    every = prepared(
        tmp_path, tiny_model, targets, rows, labels={}, target="cwes", min_class_size=2
    )
    named = classes_of(every.splits["train"], every)
    assert named[4:6] == ["CWE-79, other", "none"]
    assert every.classes.sizes == (2, 3, 2)


def test_a_label_of_one_function_alone_is_refused_with_its_place(tmp_path, tiny_model):
    with pytest.raises(DataError, match=r"train\.jsonl:5: 'Safe' is the label of one") as caught:
        prepared(tmp_path, tiny_model, ["safe", "a", "safe", "a", "Safe"])
    assert "data.min_class_size" in str(caught.value)


def test_a_label_that_train_lacks_is_refused_or_other(tmp_path, tiny_model):
    found = prepared(tmp_path, tiny_model, ["a", "b", "c"] * 2)
    path = write_rows(tmp_path / "more.jsonl", labelled("more", ["c", "new"]))
    config = DataConfig(labels="auto", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"more\.jsonl:2: no training function has .* 'new'"):
        read_split([path], "more", config, found.tokenizer, classes=found.classes)
    found = prepared(tmp_path, tiny_model, ["a", "b", "c"] * 2 + ["rare"], min_class_size=2)
    split, _ = read_split([path], "more", config, found.tokenizer, classes=found.classes)
    assert [found.classes.names[target] for target in split.targets] == ["c", "other"]


def test_contradictions_leaks_and_balance_know_every_class(tmp_path, tiny_model):
    labels = ["a", "b", "b", "c", "c", "c", "a"]
    found = prepared(tmp_path, tiny_model, labels)
    rows = labelled("train", labels)
    rows[5]["code"] = rows[6]["code"] = rows[0]["code"]  # c, a and a of one function
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [rows[1], *labelled("test", ["a", "c"])])
    path = DataConfig(path=str(tmp_path), labels="auto", cache_dir=str(tmp_path / "cache"))
    sharing = open_splits(path, tiny_model).sharing
    assert sharing.contradictory == {"train": 1, "valid": 0, "test": 0}
    assert sharing.shared_functions["train/test"] == 1
    weighed = prepare(
        path.model_copy(update={"allow_leaks": True}), tiny_model, class_weights="balanced"
    )
    of_class = dict(zip(weighed.splits["train"].targets, weighed.splits["train"].examples.weight_E,
                        strict=True))  # fmt: skip
    # 7 functions of 3 classes, of 2, 2 and 3: 7 / (3 N_c)
    assert of_class == pytest.approx({0: 7 / 6, 1: 7 / 6, 2: 7 / 9})
    assert found.classes.names == ("a", "b", "c")


def test_a_balanced_epoch_has_every_class_as_often_and_of_several_the_rarest_decides():
    def times(examples):
        batching = Batching(8, 64, "examples", micro_batch_size=8, seed=0, sampling="balanced")
        step = TrainLoader(examples, batching).step(0)
        return Counter(int(e) for batch in step.micro_batches for e in batch.example_S)

    labels = [0] * 6 + [1] * 3 + [2] * 2
    found = times(example_set([[n + 1] for n in range(11)], labels=labels))
    assert Counter(labels[e] for e in found.elements()) == {0: 6, 1: 6, 2: 6}
    # sets: none; a; a and b: b is rarer
    members = np.array([[False, False], [True, False], [True, True]])
    several = example_set([[n + 1] for n in range(11)], labels=[0] * 6 + [1] * 4 + [2])
    several = several.__class__(**{**vars(several), "members_KC": members})
    found = times(several)
    assert [sum(found[e] for e in range(*span)) for span in ((0, 6), (6, 10), (10, 11))] == [6] * 3


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [((10, 10), 9, (5, 4)), ((2, 20), 9, (2, 7)), ((20, 2), 9, (7, 2)), ((3, 4), 9, (3, 4))],
)
def test_each_of_a_pair_keeps_half_and_what_the_other_leaves(lengths, room, kept):
    assert pair_shares(*lengths, room) == kept


def test_a_pair_is_one_text_as_its_tokenizer_joins_two(tmp_path, tiny_model):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate(["[CLS]", "[SEP]", *"abcdefgh"])}
    whole = Tokenizer(models.WordLevel(words, "a"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    stock = PreTrainedTokenizerFast(tokenizer_object=whole, sep_token="[SEP]", cls_token="[CLS]")
    stock.save_pretrained(tmp_path)
    tokenizer = CodeTokenizer(tmp_path)
    codes, seconds = ["a b c", "a b c d e f", "a"], ["d e", "g h a b c d", ""]
    pieces = encode_functions(codes, tokenizer, DataConfig(seq_length=9), seconds)
    ids = np.split(pieces.tokens, np.cumsum(pieces.lengths_E)[:-1])
    for found, first, second in zip(ids, codes, seconds, strict=True):
        expected = stock(first, second or None, truncation="longest_first", max_length=9).input_ids
        assert found.tolist() == expected
    assert pieces.code_lengths_N.tolist() == [6, 13, 1]
    assert CodeTokenizer(tiny_model).between_ids == [CodeTokenizer(tiny_model).end_id]
    with pytest.raises(DataError, match="the two of a pair are read together"):
        encode_functions(codes, tokenizer, DataConfig(seq_length=9, long_functions="window"),
                         seconds)  # fmt: skip


def test_pairs_of_functions_are_records_and_a_pair_in_two_splits_leaks(tmp_path, tiny_model):
    rows = [{"code": f"f{n}", "code2": f"g{n % 2}", "target": n % 2} for n in range(4)]
    for split, some in (("train", rows[:2]), ("valid", rows[2:]), ("test", rows[1:])):
        write_rows(tmp_path / f"{split}.jsonl", some)
    config = DataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    found = open_splits(config, tiny_model)
    assert [(s.code, s.code2) for s in found.splits["train"].samples] == [
        ("f0", "g0"),
        ("f1", "g1"),
    ]
    assert found.sharing.shared_functions == {"train/valid": 0, "train/test": 1, "valid/test": 2}


def test_a_pair_with_swapped_sides_leaks_contradicts_and_stays_with_its_own(tmp_path, tiny_model):
    def pair(one, other, target):
        return {"code": f"{one} ();", "code2": f"{other}\n ();", "target": target}

    rows = {
        "train": [pair("f", "g", 0), pair("g", "f", 1), pair("h", "k", 1), pair("m", "n", 0)],
        "valid": [pair("k", "h", 1), pair("a", "b", 0)],
        "test": [pair("c", "d", 0), pair("f", "k", 1)],
    }
    for split, some in rows.items():
        write_rows(tmp_path / f"{split}.jsonl", some)
    cache = str(tmp_path / "cache")
    config = DataConfig(path=str(tmp_path), cache_dir=cache)
    sharing = open_splits(config, tiny_model).sharing
    assert sharing.shared_functions == {"train/valid": 1, "train/test": 0, "valid/test": 0}
    assert sharing.duplicates["train"] == sharing.contradictory["train"] == 1
    with pytest.raises(
        DataError, match=r"in both train and valid.*train\.jsonl:3 = valid\.jsonl:1"
    ):
        prepare(config, tiny_model)
    lone = tmp_path / "lone"
    lone.mkdir()
    both = [pair(*sides, n % 2) for n in range(30) for sides in ((f"f{n}", "g"), ("g", f"f{n}"))]
    write_rows(lone / "pairs.jsonl", both)
    found = open_splits(DataConfig(path=str(lone), cache_dir=cache), tiny_model)
    assert set(found.sharing.shared_functions.values()) == {0}
    assert found.facts["division"]["num_groups"] == 30


def test_weaknesses_are_counted_by_class_where_several_hold_at_once(tmp_path, tiny_model):
    labels, cwe = [["b", "a"], [], ["a"], ["b"]] * 2, ["CWE-1", "CWE-1", "CWE-1", ""] * 2
    found = prepared(tmp_path, tiny_model, labels, {"cwe": cwe})
    assert found.facts["splits"]["train"]["cwe"] == {"CWE-1": [4, 2], "unknown": [0, 2]}
