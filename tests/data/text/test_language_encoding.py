"""Which tokens are learned: by place, the end token among them, once where windows overlap."""

from dataclasses import asdict, replace
from io import StringIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_sets import CHAT_END, END, byte_tokenizer, document, encoded, talk

from data.config import DataConfig
from data.errors import DataError
from data.text.language import encode_language, show_example, supervised_facts
from data.text.tokenization import Pieces, cut
from data.text.tokenizer import CodeTokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
POLICIES = ["drop", "truncate", "truncate_left", "truncate_middle", "window"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CodeTokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory) -> CodeTokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("chat"), chat_template=CHATML)


def test_an_answer_and_its_end_token_are_learned_and_the_prompt_is_not(tokenizer):
    assert encoded([talk("Q", "é")], tokenizer) == [
        [(False, "Question: Q\n\nAnswer:"), (True, f" é{END}")]
    ]


def test_every_answer_of_a_conversation_is_learned_or_only_the_last_or_all_tokens(tokenizer):
    record = talk("a", "b", "c", "d")
    first, second = "Question: a\n\nAnswer:", "\n\nQuestion: c\n\nAnswer:"
    answers = [(False, first), (True, f" b{END}"), (False, second), (True, f" d{END}")]
    assert encoded([record], tokenizer) == [answers]
    last = [(False, f"{first} b{END}{second}"), (True, f" d{END}")]
    assert encoded([record], tokenizer, supervise="last_answer") == [last]
    everything = [(True, f"{first} b{END}{second} d{END}")]
    assert encoded([record], tokenizer, supervise="all") == [everything]


@pytest.mark.parametrize("answer", [END, f"x{END}y", "Question: Q\n\nAnswer:", CHAT_END])
def test_the_mask_does_not_look_at_tokens(tokenizer, answer):
    question = f"Q{END}{answer}"
    assert encoded([talk(question, answer)], tokenizer) == [
        [(False, f"Question: {question}\n\nAnswer:"), (True, f" {answer}{END}")]
    ]


def test_a_chat_template_of_the_tokenizer_is_used_for_chat_and_learns_its_marker(chat_tokenizer):
    record = talk("a", "b", "c", "d")
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert encoded([record], chat_tokenizer, template="auto") == [
        [
            (False, ask.format("a")),
            (True, f"b{CHAT_END}"),
            (False, f"\n{ask.format('c')}"),
            (True, f"d{CHAT_END}"),
            (False, "\n"),
        ]
    ]
    plain = encoded([talk("a", "b", kind="prompt_completion")], chat_tokenizer, template="auto")
    assert plain == [[(False, "Question: a\n\nAnswer:"), (True, f" b{END}")]]


def test_a_document_is_learned_whole_with_its_end(tokenizer):
    assert encoded([document("ab\n")], tokenizer) == [[(True, f"ab\n{END}")]]


@pytest.mark.parametrize(
    ("policy", "examples"),
    [
        ("drop", []),
        ("truncate", [[(False, "abc"), (True, "defghi")]]),
        ("truncate_left", [[(True, f"ghijklmn{END}")]]),
        ("truncate_middle", [[(False, "abc"), (True, "de"), (False, "l"), (True, f"mn{END}")]]),
        ("window", [[(False, "abc"), (True, "defghi")], [(False, "hi"), (True, f"jklmn{END}")]]),
    ],
)
def test_what_is_kept_of_a_conversation_of_fifteen_tokens_in_nine(tokenizer, policy, examples):
    found = encoded(
        [talk("abc", "defghijklmn")],
        tokenizer,
        template="plain",
        long_functions=policy,
        seq_length=9,
        window_overlap=2,
    )
    assert found == examples


def test_what_fits_exactly_is_not_cut(tokenizer):
    for policy in POLICIES:
        whole = encoded([document("abcdefg")], tokenizer, seq_length=8, long_functions=policy)
        assert whole == [[(True, f"abcdefg{END}")]]


@given(
    num_tokens=st.integers(1, 200),
    limit=st.integers(2, 50),
    overlap=st.integers(1, 49),
    seed=st.integers(0, 9),
)
def test_windows_hold_every_token_and_supervise_each_once(num_tokens, limit, overlap, seed):
    overlap = min(overlap, limit - 1)
    ids = np.arange(num_tokens, dtype=np.int32)
    mask = np.random.default_rng(seed).random(num_tokens) < 0.5
    windows = cut(ids, mask, limit, "window", overlap)
    assert all(len(piece) == len(learned) <= limit for piece, learned in windows)
    assert all((np.diff(piece) == 1).all() for piece, _ in windows)
    assert set(np.concatenate([piece for piece, _ in windows])) == set(range(num_tokens))
    learned = np.concatenate([piece[flags] for piece, flags in windows])
    assert sorted(learned) == np.flatnonzero(mask).tolist()
    # Each but the text's first is predicted from the token before it.
    targets = np.concatenate([piece[1:][flags[1:]] for piece, flags in windows])
    assert sorted(targets) == (np.flatnonzero(mask[1:]) + 1).tolist()


@given(num_tokens=st.integers(1, 60), limit=st.integers(2, 50), policy=st.sampled_from(POLICIES))
def test_no_policy_learns_what_was_context_or_makes_up_tokens(num_tokens, limit, policy):
    ids = np.arange(num_tokens, dtype=np.int32)
    mask = ids % 3 == 0
    for piece, learned in cut(ids, mask, limit, policy):
        assert len(piece) <= limit
        assert set(piece[learned]) <= set(ids[mask])
        assert (np.diff(piece) > 0).all()


def test_a_document_of_several_blocks_is_the_same_text(tokenizer, monkeypatch):
    monkeypatch.setattr("data.text.language._BLOCK_CHARACTERS", 5)
    for text in ("ab\ncdefghijklmno\np", "\n\n\n\n\n\n\n", "abcde"):
        assert encoded([document(text)], tokenizer) == [[(True, f"{text}{END}")]]


def test_records_keep_their_numbers_where_some_are_dropped(tokenizer):
    records = [talk("q" * 30, "a"), talk("q", "a"), talk("q" * 99, "a"), document("a" * 40)]
    config = DataConfig(
        template="plain", seq_length=16, long_functions="truncate", max_function_bytes=50
    )
    pieces = encode_language(records, tokenizer, config)
    # the first loses its answer, the third is above max_function_bytes, a document never is
    assert pieces.record_E.tolist() == [1, 3]
    assert pieces.lengths_E.tolist() == [3, 16]
    assert pieces.code_lengths_N.tolist() == [32, 3, -1, 41]
    assert pieces.num_unsupervised == 1
    assert (pieces.tokens.dtype, pieces.supervised.dtype) == (np.int32, np.bool_)
    facts = supervised_facts(pieces, config, num_documents=1)
    assert asdict(facts) == {
        "num_records": 4,
        "num_examples": 2,
        "num_tokens": 19,
        "num_supervised": 18,
        "num_targets": 17,  # nothing predicts the first token of the document
        "share_histogram": [0, 0, 0, 0, 0, 0, 1, 0, 0, 1],
        "num_long": 2,
        "num_oversized": 1,
        "num_dropped": 2,
        "num_unsupervised": 1,
        "policy": "truncate",
        "warnings": [
            "data.long_functions=truncate: 2 of 4 records are above data.seq_length=16 and lose"
            " text; window keeps all of it"
        ],
    }


def test_no_example_is_no_fault(tokenizer):
    config = DataConfig(long_functions="drop", seq_length=8)
    pieces = encode_language([document("a" * 9)], tokenizer, config)
    assert len(pieces.tokens) == len(pieces.lengths_E) == 0
    facts = supervised_facts(pieces, config)
    assert (facts.num_examples, facts.num_dropped, facts.num_tokens) == (0, 1, 0)
    assert sum(facts.share_histogram) == 0


def test_a_record_in_which_nothing_is_supervised_names_its_origin(tokenizer):
    record = talk("only a question", origin="train.jsonl:7")
    with pytest.raises(DataError, match=r"train.jsonl:7: nothing in this record is supervised"):
        encode_language([talk("q", "a"), record], tokenizer, DataConfig())


def test_a_record_whose_every_answer_is_context_names_its_origin(tokenizer):
    record = talk("q", "a", "r", "b", origin="train.jsonl:7")
    turns = [replace(turn, is_learned=turn.role == "user") for turn in record.turns]
    with pytest.raises(DataError, match=r"train.jsonl:7: nothing in this record is supervised"):
        encode_language([replace(record, turns=tuple(turns))], tokenizer, DataConfig())


def test_records_that_the_chat_template_refuses_are_told_apart_up_to_max_bad_rows(tmp_path):
    picky = CHATML.replace(
        "{{ m.role }}", "{{ raise_exception('no b') if m.content == 'b' else m.role }}"
    )
    tokenizer = byte_tokenizer(tmp_path, chat_template=picky)
    records = [talk("b", "a", origin="x:1"), talk("a", "c"), talk("d", "b", origin="x:3")]
    pieces = encode_language(records, tokenizer, DataConfig(max_bad_rows=2))
    assert {n: why.split(";")[0] for n, why in pieces.refused.items()} == {
        0: "x:1: the chat template fails (no b)",
        2: "x:3: the chat template fails (no b)",
    }
    alone = encode_language(records[1:2], tokenizer, DataConfig())
    for name in ("tokens", "lengths_E", "record_E", "code_lengths_N", "supervised"):
        assert getattr(pieces, name).tolist() == getattr(alone, name).tolist()
    for allowed, origin in ((0, "x:1"), (1, "x:3")):
        with pytest.raises(DataError, match=f"^{origin}: the chat template fails"):
            encode_language(records, tokenizer, DataConfig(max_bad_rows=allowed))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_whitespace": "lines"}, "data.normalize_whitespace=lines is for functions"),
        ({"seq_length": 8, "window_overlap": 8}, "data.window_overlap=8 must be below"),
        ({"template": "alpca"}, "data.template: there is no 'alpca'"),
        ({"template": "chat_template"}, "the tokenizer has none"),
    ],
)
def test_what_cannot_be_met_is_refused(tokenizer, config, message):
    with pytest.raises(DataError) as caught:
        encode_language([talk("q", "a")], tokenizer, DataConfig.model_validate(config))
    assert message in str(caught.value)


def test_shown_examples_mark_what_is_learned_and_show_special_tokens(tokenizer):
    pieces = encode_language([talk("é", "a€")], tokenizer, DataConfig(template="plain"))
    shown = show_example(pieces.tokens, pieces.supervised, tokenizer)
    assert shown.plain == f"éa€{END}"
    styles = [(shown.plain[span.start : span.end], str(span.style)) for span in shown.spans]
    assert styles == [("é", "dim"), ("a", "green"), ("€", "green"), (END, "reverse green")]


def test_a_shown_document_begins_with_a_token_that_nothing_predicts(tokenizer):
    pieces = encode_language([document("ab")], tokenizer, DataConfig())
    shown = show_example(pieces.tokens, pieces.supervised, tokenizer)
    assert [str(span.style) for span in shown.spans] == ["dim", "green", "reverse green"]


def test_a_shown_example_of_broken_bytes_loses_no_token(tokenizer):
    tokens = encode_language([document("€")], tokenizer, DataConfig()).tokens
    broken = np.concatenate([tokens[:2], tokens[:2], tokens[:1]])
    shown = show_example(broken, np.ones(len(broken), np.bool_), tokenizer)
    assert set(shown.plain) == {"\ufffd"}


def test_a_shown_example_cannot_drive_the_terminal(tokenizer):
    from rich.console import Console

    controls = [chr(n) for n in (*range(32), *range(127, 160)) if chr(n) not in "\t\n"]
    pieces = encode_language([document(f"{''.join(controls)}\t\nb")], tokenizer, DataConfig())
    shown = show_example(pieces.tokens, pieces.supervised, tokenizer)
    written = "".join(repr(control)[1:-1] for control in controls)
    assert shown.plain == f"{written}\t\nb{END}"
    console = Console(file=StringIO(), width=2000)
    console.print(shown)
    assert not set(console.file.getvalue()) & set(controls)


def test_an_example_is_drawn_in_colour(tokenizer):
    from rich.console import Console

    pieces = encode_language([talk("q", "a")], tokenizer, DataConfig(template="plain"))
    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(show_example(pieces.tokens, pieces.supervised, tokenizer))
    drawn = console.file.getvalue()
    assert "\x1b[2mq" in drawn
    assert "\x1b[32ma" in drawn
    assert f"\x1b[7;32m{END}" in drawn


def test_pieces_are_made_for_the_cache(tokenizer):
    pieces = encode_language([talk("q", "a")], tokenizer, DataConfig())
    assert isinstance(pieces, Pieces)
    assert len(pieces.supervised) == len(pieces.tokens) == pieces.lengths_E.sum()
