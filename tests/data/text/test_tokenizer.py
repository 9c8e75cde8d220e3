"""What a tokenizer puts before a text stands there once, and nowhere inside the text."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_sets import example_set, tokenized
from language_sets import byte_tokenizer, document, talk
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as before_bpe

from data.config import DataConfig
from data.errors import DataError, TokenizerError
from data.readers.conversations import sample_conversation
from data.records import CodeSample
from data.text.language import encode_language, show_example
from data.text.templates import TEMPLATES, render
from data.text.tokenizer import CodeTokenizer
from trainer.generation.prompts import asked, first_prompts

BEGIN, END = "<s>", "</s>"
BLANKS = {  # who puts the blank before a text
    "prepend": {
        "normalizer": normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    },
    "first": {"pre_tokenizer": before_bpe.Metaspace(prepend_scheme="first", split=False)},
    "always": {"pre_tokenizer": before_bpe.Metaspace(prepend_scheme="always", split=False)},
    "nobody": {"pre_tokenizer": before_bpe.Metaspace(prepend_scheme="never", split=False)},
}
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}"
    " [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)

LLAMA2_CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
CHATML_UNASKED = "{% for m in messages %}#{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"


def llama_tokenizer(folder: Path, blank: str, **config: object) -> CodeTokenizer:
    """Characters, a blank joined to a letter after it, <s> before every text: as Llama's does."""
    letters = [*map(chr, range(33, 127)), "\n", "▁"]
    joined = [f"▁{letter}" for letter in letters if letter.isalpha()]
    vocabulary = {token: n for n, token in enumerate([BEGIN, END, "<unk>", *letters, *joined])}
    merges = [("▁", pair[1]) for pair in joined]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    for part, value in BLANKS[blank].items():
        setattr(tokenizer, part, value)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token) for token in (BEGIN, END, "<unk>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BEGIN, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config))
    return CodeTokenizer(folder)


def whole(tokenizer: CodeTokenizer, text: str) -> list[int]:
    """The library's own ids of a text, special tokens and all."""
    return Tokenizer.from_file(str(tokenizer.path)).encode(text).ids


@pytest.fixture(params=sorted(BLANKS))
def tokenizer(request, tmp_path) -> CodeTokenizer:
    return llama_tokenizer(tmp_path, request.param)


def test_a_conversation_in_spans_is_the_text_tokenised_whole(tokenizer):
    pieces = encode_language([talk("a b", "c", "d", "e")], tokenizer, DataConfig())
    first, second = "Question: a b\n\nAnswer: c", "\n\nQuestion: d\n\nAnswer: e"
    # Behind a special token a library may put another blank, so the end is cut off by hand.
    inside = whole(tokenizer, f"x{second}")
    inside = inside[len(whole(tokenizer, "x")) :]
    expected = [*whole(tokenizer, first), tokenizer.end_id, *inside, tokenizer.end_id]
    assert pieces.tokens.tolist() == expected
    assert pieces.tokens[0] == 0
    answers = np.split(pieces.tokens, np.flatnonzero(np.diff(pieces.supervised)) + 1)[1::2]
    library = Tokenizer.from_file(str(tokenizer.path))
    said = [[library.id_to_token(n) for n in answer.tolist()] for answer in answers]
    assert said == [["▁c", END], ["▁e", END]]


def test_an_answer_without_a_blank_gets_none(tokenizer):
    pieces = encode_language([talk("a", "c", kind="alpaca")], tokenizer, DataConfig())
    library = Tokenizer.from_file(str(tokenizer.path))
    assert library.id_to_token(int(pieces.tokens[-2])) == "c"
    assert not pieces.supervised[0]


@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_every_function_and_window_of_one_begins_and_ends_as_a_text_of_its_own(tokenizer, policy):
    code = "if a\nb and c"
    config = DataConfig(seq_length=8, long_functions=policy)
    examples, facts = tokenized([CodeSample("1", code, 1, "train:1")], tokenizer, config)
    ids = whole(tokenizer, code)[1:]
    cut = [ids[n : n + 6] for n in range(0, len(ids), 6)][: 1 if policy == "truncate" else None]
    assert [
        examples.tokens[a:b].tolist()
        for a, b in zip(examples.starts[:-1], examples.starts[1:], strict=True)
    ] == [[0, *piece, 1] for piece in cut]
    assert facts.num_long == 1
    assert facts.tokens_max == len(ids)


def test_a_document_begins_once_however_many_windows_it_gives(tokenizer):
    text = "a b c\nd e f\n" * 3
    config = DataConfig(seq_length=8, long_functions="window")
    pieces = encode_language([document(text)], tokenizer, config)
    windows = np.split(pieces.tokens, np.cumsum(pieces.lengths_E)[:-1])
    assert len(windows) > 2
    joined = [*windows[0].tolist(), *(n for window in windows[1:] for n in window[1:].tolist())]
    assert joined == [*whole(tokenizer, text), tokenizer.end_id]


@pytest.mark.parametrize("kind", ["text", "alpaca", "chat", "vulnerability"])
def test_a_prompt_is_how_the_example_begins(tmp_path, kind):
    tokenizer = llama_tokenizer(tmp_path, "prepend", chat_template=LLAMA_CHAT)
    record = document("a b") if kind == "text" else talk("a b", "c", kind=kind)
    if kind == "vulnerability":
        record = sample_conversation(CodeSample("1", "a b", 1, "x:1"), "x")
    tokens = encode_language([record], tokenizer, DataConfig()).tokens.tolist()
    ids = asked("a b", kind, tokenizer, DataConfig()).ids
    assert ids == tokens[: len(ids)]
    assert len(ids) >= len(tokens) - (4 if kind == "vulnerability" else 3)


def test_the_datas_answer_to_a_prompt_ends_where_the_answer_does(tmp_path):
    tokenizer = llama_tokenizer(tmp_path, "first")
    pieces = encode_language(
        [talk("a", "b c", "d", "e"), document("f g h")], tokenizer, DataConfig()
    )
    starts = np.concatenate([[0], np.cumsum(pieces.lengths_E)])
    examples = example_set(np.split(pieces.tokens, starts[1:-1]))
    found = first_prompts(replace(examples, supervised=pieces.supervised), tokenizer, 64)
    assert [prompt.reference for prompt in found] == ["b c", "g h"]


def test_a_chat_template_that_writes_the_begin_token_does_not_double_it(tmp_path):
    tokenizer = llama_tokenizer(tmp_path, "first", chat_template=LLAMA_CHAT)
    tokens = encode_language([talk("a", "b")], tokenizer, DataConfig()).tokens.tolist()
    assert tokens.count(0) == 1
    assert tokens[0] == 0


@pytest.mark.parametrize("blank", sorted(BLANKS))
def test_turns_that_write_the_begin_token_are_tokenised_as_the_library_does(tmp_path, blank):
    tokenizer = llama_tokenizer(tmp_path, blank, chat_template=LLAMA2_CHAT)
    tokens = encode_language([talk("a", "b", "c", "d")], tokenizer, DataConfig()).tokens.tolist()
    first, second = (f"{BEGIN}[INST] {q} [/INST] {a} {END}" for q, a in ("ab", "cd"))
    library = Tokenizer.from_file(str(tokenizer.path))
    assert tokens == library.encode(first + second, add_special_tokens=False).ids


def test_an_empty_prompt_is_what_stands_before_every_text(tmp_path):
    tokenizer = llama_tokenizer(tmp_path, "nobody")
    assert asked("", "alpaca", tokenizer, DataConfig(template="plain")).ids == [0]


def test_a_prompt_holds_the_header_that_no_generation_prompt_has(tmp_path):
    tokenizer = llama_tokenizer(tmp_path, "nobody", chat_template=CHATML_UNASKED)
    prompt = asked("a b", "chat", tokenizer, DataConfig())
    assert prompt.ids == whole(tokenizer, f"#user\na b{END}\n#assistant\n")


@pytest.mark.parametrize("said", [f"Use {BEGIN}old{END} new", BEGIN, f"{END}x", f"{BEGIN}{BEGIN}"])
def test_a_special_token_written_in_a_record_of_a_fixed_template_is_text(tokenizer, said):
    record = talk(said, said, kind="prompt_completion")
    for template in TEMPLATES:
        config = DataConfig(template=template)
        pieces = encode_language([record], tokenizer, config)
        tokens = pieces.tokens.tolist()
        assert [n for n in tokens if n <= 1] == [0, 1]  # before the text and after the answer
        assert (tokens[0], tokens[-1], pieces.control_tokens) == (0, 1, [])
        text = tokenizer.decode(tokens).replace("▁", " ").removeprefix(BEGIN).removesuffix(END)
        (spans,) = render(record, template, "answers")
        parts = [span.text for span in spans]
        assert text.strip() == "".join(parts).strip()
        prompt = asked(said, "prompt_completion", tokenizer, config)
        assert prompt.ids == tokens[: int(np.argmax(pieces.supervised))]


def test_in_texts_and_chat_templates_a_special_token_acts_and_is_counted(tmp_path):
    tokenizer = llama_tokenizer(tmp_path, "nobody", chat_template=LLAMA2_CHAT)
    records = [document(f"a{END}b{BEGIN}"), document("a"), talk("a", f"b{BEGIN}"), talk("c", "d")]
    pieces = encode_language(records, tokenizer, DataConfig())
    text, _, chat, _ = np.split(pieces.tokens, np.cumsum(pieces.lengths_E)[:-1])
    assert text.tolist() == [*whole(tokenizer, f"a{END}b{BEGIN}"), 1]
    assert [n for n in chat.tolist() if n <= 1] == [0, 0, 1]
    assert pieces.control_tokens == [END, BEGIN]


def test_an_example_is_shown_as_its_text(tokenizer):
    pieces = encode_language([talk("a", "c", kind="alpaca")], tokenizer, DataConfig())
    shown = show_example(pieces.tokens, pieces.supervised, tokenizer).plain
    assert shown.replace(f"{BEGIN} ", BEGIN).startswith(f"{BEGIN}Below is an instruction")
    assert shown.endswith(f"\n\n### Response:c{END}")


@pytest.mark.parametrize("text", ["日本語", "a日é本🙂語", "é a 日"])
def test_characters_that_are_bytes_of_the_vocabulary_are_shown_whole(tmp_path, text):
    """Llama's and Mistral's: what no token spells is written in tokens such as <0xE6>."""
    tokenizer = llama_tokenizer(tmp_path, "prepend")
    saved = json.loads(tokenizer.path.read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary |= {f"<0x{n:02X}>": len(vocabulary) + n for n in range(256)}
    saved["model"] |= {"byte_fallback": True}
    saved["decoder"]["decoders"].insert(1, {"type": "ByteFallback"})
    tokenizer.path.write_text(json.dumps(saved))
    tokenizer = CodeTokenizer(tmp_path)
    pieces = encode_language([talk("q", text)], tokenizer, DataConfig(template="plain"))
    shown = show_example(pieces.tokens, pieces.supervised, tokenizer).plain
    assert shown == f"{BEGIN} q{text}{END}"


def test_what_closes_a_text_by_itself_is_not_taken_for_its_beginning(tmp_path):
    tokenizer = llama_tokenizer(tmp_path, "first")
    library = Tokenizer.from_file(str(tokenizer.path))
    library.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 0), (END, 1)]
    )
    library.save(str(tokenizer.path))
    assert CodeTokenizer(tmp_path).begin_ids == [0]
    assert CodeTokenizer(tmp_path).begin_token == BEGIN


def test_windows_that_repeat_all_but_what_is_added_are_refused(tmp_path):
    config = DataConfig(seq_length=8, long_functions="window", window_overlap=6)
    with pytest.raises(DataError, match=r"must be below 6: data\.seq_length less the 2 tokens"):
        tokenized([CodeSample("1", "a", 0, "x:1")], llama_tokenizer(tmp_path, "first"), config)


PADDED = {
    "strategy": {"Fixed": 10**13}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "<s>",
}  # fmt: skip
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def test_a_tokenizer_that_would_fill_the_memory_is_not_given_a_text(tmp_path):
    """The library ends the whole process where an allocation fails."""
    expected = byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"padding": PADDED}))
    padded = CodeTokenizer(tmp_path)
    assert [ids.tolist() for ids in padded.encode(["aé"])] == [
        ids.tolist() for ids in expected.encode(["aé"])
    ]
    rules = {"type": "Sequence", "normalizers": [DOUBLED] * 60}
    path.write_text(json.dumps(values | {"normalizer": rules}))
    with pytest.raises(TokenizerError, match=r"its normalizer can make a text 1,000,000,000 times"):
        CodeTokenizer(tmp_path)
    rules["normalizers"] = [DOUBLED] * 3
    path.write_text(json.dumps(values | {"normalizer": rules}))
    assert [len(ids) for ids in CodeTokenizer(tmp_path).encode(["aba"])] == [17]
