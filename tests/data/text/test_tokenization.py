"""Whitespace, the end token and the policy for long functions, at their exact boundaries."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from example_sets import tokenized
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from data.config import DataConfig
from data.errors import DataError
from data.readers import read_records
from data.records import CodeSample
from data.text.tokenization import (
    cut,
    cut_records,
    encode_functions,
    normalize_whitespace,
    token_facts,
)
from data.text.tokenizer import CodeTokenizer

SHARED = REPOSITORY.parent / "shared" / "data"
ARCHIVE = SHARED / "vul_java_x1_without_p3" / "java_k_1_strict_2023_07_03.tar.gz"
STARCODER = SHARED / "tokenizers" / "starcoder1_recovered"
END = "<|endoftext|>"

JAVA = "    int a = 1;  // first\n\n\t    if (a  ==  1) {\n\t        b();   \n    }\n"
PYTHON = "    def f(x):\n        if x:\n            return   1  # one\n\n        return 2\n"


def word_tokenizer(folder: Path, words: str = "w", special: tuple[str, ...] = (END,)) -> Path:
    """A tokenizer of one token a word; ids follow the order given, special tokens last."""
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words.split())}, unk_token="w")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token) for token in special])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def functions(*lengths: int, status: str = "") -> list[CodeSample]:
    """Functions of the given numbers of words; every second one is vulnerable."""
    return [
        CodeSample(f"{n}", " ".join(["w"] * length), n % 2, f"train:{n}", status=status)
        for n, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> CodeTokenizer:
    return CodeTokenizer(word_tokenizer(tmp_path_factory.mktemp("words")))


def test_none_leaves_the_code_as_it_is():
    assert normalize_whitespace(JAVA, "none") == JAVA


def test_lines_keeps_line_comments_apart_from_the_code_after_them():
    by_hand = "int a = 1; // first\n    if (a == 1) {\n        b();\n}"
    assert normalize_whitespace(JAVA, "lines") == by_hand


def test_lines_keeps_the_relative_indentation_of_python():
    by_hand = "def f(x):\n    if x:\n        return 1 # one\n    return 2"
    assert normalize_whitespace(PYTHON, "lines") == by_hand
    compile(by_hand, "by_hand", "exec")


def test_collapse_joins_everything_with_single_spaces():
    by_hand = "int a = 1; // first if (a == 1) { b(); }"
    assert normalize_whitespace(JAVA, "collapse") == by_hand


@pytest.mark.parametrize("mode", ["lines", "collapse"])
@pytest.mark.parametrize("ending", ["\r\n", "\r"])
@pytest.mark.parametrize("code", [JAVA, PYTHON])
def test_line_endings_do_not_change_the_normalised_code(mode, ending, code):
    assert normalize_whitespace(code.replace("\n", ending), mode) == normalize_whitespace(
        code, mode
    )


def test_functions_are_all_supervised_by_their_labels(words):
    pieces = encode_functions(["w", "w w"], words, DataConfig(seq_length=8))
    assert (pieces.supervised, pieces.num_unsupervised) == (None, 0)


def test_functions_that_are_too_long_leave_no_token_and_are_not_measured(words):
    config = DataConfig(seq_length=8, max_function_bytes=20, long_functions="drop")
    pieces = encode_functions(["w " * 9, "w " * 20], words, config)
    assert (pieces.tokens.tolist(), pieces.lengths_E.tolist()) == ([], [])
    assert pieces.code_lengths_N.tolist() == [9, -1]


def test_the_counts_of_a_split_by_hand():
    lengths = np.array([0, 4, 9, 10, -1], np.int32)
    config = DataConfig(seq_length=10, long_functions="drop")
    facts = token_facts(lengths, np.array([1, 0, 1, 1, 1], np.int8), 3, config, num_added=1)
    assert asdict(facts) == {
        "num_functions": 5, "class_counts": [1, 4], "tokens_mean": 23 / 4, "tokens_median": 6.5,
        "tokens_p90": pytest.approx(9.7), "tokens_max": 10, "num_long": 1, "long_counts": [0, 1],
        "num_oversized": 1, "oversized_counts": [0, 1], "policy": "drop", "num_examples": 3,
    }  # fmt: skip


def test_windows_of_an_answer_overlap_by_a_token_so_that_each_is_a_target_once(words):
    whole = np.arange(17, dtype=np.int32), np.ones(17, np.bool_)
    config = DataConfig(seq_length=8, long_functions="window", window_overlap=0)
    pieces = cut_records([whole, None], words, config, are_texts=False)
    assert pieces.tokens.tolist() == [*range(8), *range(7, 15), *range(14, 17)]
    assert pieces.lengths_E.tolist() == [8, 8, 3]
    assert (pieces.record_E.tolist(), pieces.code_lengths_N.tolist()) == ([0] * 3, [17, -1])


def test_windows_repeat_all_but_one_token_at_most(words):
    config = DataConfig(seq_length=8, long_functions="window", window_overlap=6)
    pieces = encode_functions(["w " * 9], words, config)
    assert pieces.lengths_E.tolist() == [8, 8, 8]  # 7 words each: 0 to 6, 1 to 7, 2 to 8
    with pytest.raises(DataError, match="window_overlap=7 must be below 7"):
        encode_functions(["w"], words, config.model_copy(update={"window_overlap": 7}))


def test_lines_breaks_a_line_only_where_a_compiler_does():
    code = "a(); // one\u2028two\x0cthree"  # a line separator and a form feed inside a comment
    assert normalize_whitespace(code, "lines") == code


@given(st.text(alphabet="ab{; \t\r\n", max_size=40), st.sampled_from(["lines", "collapse"]))
def test_normalising_twice_changes_nothing_and_only_whitespace_is_touched(code, mode):
    once = normalize_whitespace(code, mode)
    assert normalize_whitespace(once, mode) == once
    assert once.split() == code.split()


@pytest.mark.parametrize(
    ("policy", "lengths_of_nine_words"), [("drop", []), ("truncate", [8]), ("window", [8, 3])]
)
def test_seven_words_and_the_end_fill_a_row_of_eight_and_one_more_is_long(
    words, policy, lengths_of_nine_words
):
    config = DataConfig(seq_length=8, long_functions=policy)
    fits, facts = tokenized(functions(7), words, config)
    assert fits.lengths.tolist() == [8]
    assert facts.num_long == 0
    _, facts = tokenized(functions(8), words, config)
    assert facts.num_long == 1
    long, _ = tokenized(functions(9), words, config)
    assert long.lengths.tolist() == lengths_of_nine_words


def test_truncate_keeps_the_head_and_window_keeps_all_words_in_order(tmp_path):
    letters = "a b c d e f g h i j k l m n o p"
    tokenizer = CodeTokenizer(word_tokenizer(tmp_path, f"{letters} w"))
    sample = CodeSample("0", letters, 1, "train:1")
    end = tokenizer.end_id
    for policy, pieces in (
        ("truncate", [[*range(7), end]]),
        ("window", [[*range(7), end], [*range(7, 14), end], [14, 15, end]]),
    ):
        config = DataConfig(seq_length=8, long_functions=policy)
        examples, _ = tokenized([sample], tokenizer, config)
        found = np.split(examples.tokens, examples.starts[1:-1])
        assert [piece.tolist() for piece in found] == pieces


@pytest.mark.parametrize(
    ("policy", "overlap", "kept"),
    [
        ("drop", 0, []),
        ("truncate", 0, [[0, 1, 2, 3, 4]]),
        ("truncate_left", 0, [[6, 7, 8, 9, 10]]),
        ("truncate_middle", 0, [[0, 1, 2, 9, 10]]),
        ("window", 0, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]),
        ("window", 2, [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10]]),
        ("window", 4, [list(range(n, n + 5)) for n in range(7)]),
    ],
)
def test_what_is_kept_of_eleven_tokens_in_pieces_of_five(policy, overlap, kept):
    ids, mask = np.arange(11, dtype=np.int32), np.ones(11, np.bool_)
    assert [piece.tolist() for piece, _ in cut(ids, mask, 5, policy, overlap)] == kept
    whole = cut(ids[:5], mask[:5], 5, policy, overlap)
    assert [piece.tolist() for piece, _ in whole] == [[0, 1, 2, 3, 4]]


@given(st.integers(1, 200), st.integers(2, 30), st.data())
def test_windows_cover_every_token_and_repeat_exactly_the_overlap(length, limit, data):
    overlap = data.draw(st.integers(0, limit - 1))
    ids, mask = np.arange(length, dtype=np.int32), np.ones(length, np.bool_)
    pieces = [piece for piece, _ in cut(ids, mask, limit, "window", overlap)]
    assert max(map(len, pieces)) <= limit
    whole = pieces[0].tolist()
    for piece in pieces[1:]:
        assert piece[:overlap].tolist() == whole[len(whole) - overlap :]
        assert len(piece) > overlap  # every window brings something new
        whole += piece[overlap:].tolist()
    assert whole == list(range(length))


def test_28_a_function_above_the_cap_is_dropped_before_it_is_tokenised_and_counted(words):
    config = DataConfig(max_function_bytes=9)
    samples = functions(5, 6, 4)  # 2 n - 1 bytes: 9, 11 and 7; the second is vulnerable
    examples, facts = tokenized(samples, words, config)
    assert examples.record_E.tolist() == [0, 2]
    assert (facts.num_oversized, facts.oversized_counts, facts.tokens_max) == (1, [0, 1], 5)
    umlauts = [CodeSample("0", "\u00e9" * 5, 1, "train:0")]  # five characters in ten bytes
    assert tokenized(umlauts, words, config)[1].num_oversized == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_windows_hold_every_token_once_and_their_shares_add_up_to_the_functions(words, lengths):
    config = DataConfig(seq_length=8, long_functions="window")
    examples, facts = tokenized(functions(*lengths), words, config)
    per_function = np.bincount(examples.record_E, weights=examples.lengths - 1)
    assert per_function.tolist() == lengths
    assert examples.lengths.max() <= 8
    assert np.bincount(examples.record_E, weights=examples.share_E) == pytest.approx(1.0)
    assert examples.label_E.tolist() == [index % 2 for index in examples.record_E.tolist()]
    assert len(examples) == facts.num_examples
    assert examples.num_records == len(lengths)


def test_a_dropped_function_leaves_its_neighbours_with_their_own_labels(words):
    config = DataConfig(seq_length=8, long_functions="drop")
    examples, facts = tokenized(functions(3, 20, 5, 6), words, config)
    assert examples.record_E.tolist() == [0, 2, 3]
    assert examples.label_E.tolist() == [0, 0, 1]
    assert examples.share_E.tolist() == [1.0, 1.0, 1.0]
    assert (examples.num_records, facts.num_functions, facts.num_examples) == (4, 4, 3)


def test_every_piece_ends_with_the_end_token(words):
    config = DataConfig(seq_length=8, long_functions="window")
    examples, _ = tokenized(functions(3, 20, 7), words, config)
    assert len(examples) == 5
    assert set(examples.tokens[examples.starts[1:] - 1].tolist()) == {words.end_id}


def test_facts_count_the_words_of_the_code_by_hand(words):
    # lengths 2 4 6 20 (targets 0 1 0 1), limit 7: mean 8, median 5, one long function, positive
    config = DataConfig(seq_length=8, long_functions="drop")
    _, facts = tokenized(functions(2, 4, 6, 20), words, config)
    assert (facts.tokens_mean, facts.tokens_median, facts.tokens_max) == (8.0, 5.0, 20)
    assert facts.tokens_p90 == pytest.approx(6 + 0.7 * 14)  # place 0.9 x 3 = 2.7 of the sorted four
    assert (facts.num_functions, facts.class_counts) == (4, [2, 2])
    assert (facts.num_long, facts.long_counts) == (1, [0, 1])
    assert (facts.num_examples, facts.policy) == (3, "drop")


def test_special_tokens_of_the_files_are_not_added_around_the_code(words):
    assert [ids.tolist() for ids in words.encode(["w w", "w"])] == [[0, 0], [0]]


def test_the_end_token_is_the_recipes_then_the_files_then_a_known_one(tmp_path):
    folder = word_tokenizer(tmp_path / "t", special=("</s>", END, "<named>", "<mapped>"))
    assert CodeTokenizer(folder).end_token == END  # the known ones in their own order
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<mapped>"}))
    assert CodeTokenizer(folder).end_token == "<mapped>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": None}))
    assert CodeTokenizer(folder).end_token == "<mapped>"
    named = {"eos_token": {"content": "<named>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    assert CodeTokenizer(folder).end_token == "<named>"
    tokenizer = CodeTokenizer(folder, "</s>")
    assert (tokenizer.end_token, tokenizer.end_id, tokenizer.vocab_size) == ("</s>", 1, 5)


def test_79_an_end_token_outside_the_vocabulary_is_refused_by_name(tmp_path):
    folder = word_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json.*'<eos>'.*not in the vocabulary"):
        CodeTokenizer(folder, "<eos>")


def test_79_a_vocabulary_without_a_known_end_token_asks_for_one(tmp_path):
    folder = word_tokenizer(tmp_path, special=())
    with pytest.raises(DataError, match=r"tokenizer\.json.*data\.end_token") as caught:
        CodeTokenizer(folder)
    assert caught.value.exit_code == 4  # the model's files


def test_a_folder_without_tokenizer_json_says_how_to_get_one(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist.*data\.tokenizer"):
        CodeTokenizer(tmp_path)


@pytest.mark.skipif(
    not (ARCHIVE.is_file() and STARCODER.is_dir()),
    reason=f"needs the real archive and the StarCoder tokenizer under {SHARED.name}",
)
def test_the_real_archive_has_the_counts_and_token_lengths_that_are_known_of_it():
    tokenizer = CodeTokenizer(STARCODER)
    config = DataConfig(path=str(ARCHIVE), normalize_whitespace="collapse")
    found = {}
    for split in ("train", "valid", "test"):
        samples = list(read_records(ARCHIVE, split, config))
        _, facts = tokenized(samples, tokenizer, config)
        found[split] = (facts.num_functions, facts.class_counts[1])
        if split == "train":
            train = facts
    assert found == {"train": (810, 403), "valid": (272, 139), "test": (252, 123)}
    assert (int(train.tokens_mean), train.tokens_median, train.tokens_max) == (396, 238, 3397)
    assert (tokenizer.end_token, tokenizer.end_id) == (END, 0)
