"""A conversation with a model of chosen answers: what it reads, and what is shown."""

import io
import signal
import sys

import pytest
from chat_templates import CHATML, stock
from language_sets import byte_tokenizer

from data.config import DataConfig
from data.errors import DataError
from trainer.generation.chat import Chat, converse
from trainer.generation.decoding import Limits


class Says:
    """A writer that answers with these texts, one after the other, and keeps what it was asked."""

    most, line = 1, ""

    def __init__(self, tokenizer, *texts):
        self.tokenizer, self.texts, self.asked = tokenizer, list(texts), []

    def stream(self, prompt, limits):
        self.asked.append(prompt.text)
        [ids] = self.tokenizer.encode([self.texts.pop(0) if self.texts else "again"])
        yield from [*ids.tolist(), max(prompt.ends)]


@pytest.fixture
def chat_of(tmp_path):
    def made(*texts, kind="chat", seq_length=400, **more):
        tokenizer = byte_tokenizer(tmp_path / "tokenizer", chat_template=CHATML)
        writer = Says(tokenizer, *texts)
        return Chat(writer, Limits(seq_length, 100), tokenizer, DataConfig(), kind, **more)

    return made


@pytest.fixture
def talk(monkeypatch, capsys):
    """Puts bytes into stdin; returns the exit code, stdout and stderr."""

    def talked(chat, given, is_terminal=False):
        stdin = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8")
        monkeypatch.setattr(stdin, "isatty", lambda: is_terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        before = signal.getsignal(signal.SIGINT)
        code = converse(chat)
        assert signal.getsignal(signal.SIGINT) is before
        return code, *capsys.readouterr()

    return talked


def test_each_question_is_read_with_all_that_was_said_before(chat_of, talk):
    chat = chat_of("One.", "Two.\n", system="Be short.")
    assert talk(chat, b"What is 1?\n\n  \nAnd 2?\n") == (0, "One.\nTwo.\n\n", "")
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is 1?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "And 2?"},
    ]
    assert chat.writer.asked == [
        stock(CHATML, messages[:2], add_generation_prompt=True),
        stock(CHATML, messages, add_generation_prompt=True),
    ]


def test_a_new_conversation_keeps_only_the_system_prompt(chat_of, talk):
    chat = chat_of("x", "y", system="Be short.")
    talk(chat, b"a\n/new\na\n/exit\nb\n")
    first, second = chat.writer.asked
    assert first == second


def test_a_block_is_one_question(chat_of, talk):
    chat = chat_of(kind="chat")
    talk(chat, b'"""\nint f() {\n\n}\n"""\n"""\nlast')
    assert "user\nint f() {\n\n}<" in chat.writer.asked[0]
    assert "user\nlast<" in chat.writer.asked[1]


@pytest.mark.parametrize("kind", ["text", "vulnerability"])
def test_texts_and_functions_are_each_their_own(kind, chat_of, talk):
    chat = chat_of(kind=kind)
    talk(chat, b"int f;\nint f;\n")
    first, second = chat.writer.asked
    assert first == second
    assert "int f;" in first


def test_what_a_model_writes_cannot_drive_the_terminal(chat_of, talk):
    _, shown, _ = talk(chat_of("\x1b]0;owned\x07\u202eab\tc\rd"), b"q\n")
    assert shown == "\\x1b]0;owned\\x07\\u202eab\tc\\rd\n"


def test_a_character_of_several_tokens_is_shown_whole(chat_of):
    chat = chat_of(" é€😀.")
    assert [piece for piece in chat.answer("q") if piece] == ["é", "€", "😀", "."]
    chat = chat_of("é\ufffd")
    assert "".join(chat.answer("q")) == "é\ufffd"


def test_input_that_is_not_utf8_is_read_all_the_same(chat_of, talk):
    chat = chat_of()
    assert talk(chat, b"a\xff\0b\n")[0] == 0
    assert "user\na\ufffd\0b<" in chat.writer.asked[0]


def test_a_conversation_that_leaves_no_room_is_refused_and_forgotten(chat_of, talk):
    chat = chat_of("x", "y")
    _, shown, errors = talk(chat, b"a\n" + b"long " * 100 + b"\nb\n")
    assert shown == "x\ny\n"
    assert "tokens, and the model reads 400 with its answer; /new begins another" in errors
    assert "user\na<" in chat.writer.asked[1]
    assert "long" not in chat.writer.asked[1]
    with pytest.raises(DataError, match="the model reads 400"):
        list(chat.answer("long " * 100))


def test_ctrl_c_stops_an_answer_and_keeps_what_is_written(chat_of, talk):
    chat = chat_of("a long answer", "more")
    stream = chat.writer.stream

    def interrupted(prompt, limits):
        for number, token in enumerate(stream(prompt, limits)):
            if number == 4 and len(chat.writer.asked) == 1:
                signal.raise_signal(signal.SIGINT)
            yield token

    chat.writer.stream = interrupted
    code, shown, errors = talk(chat, b"q\ngo on\n", is_terminal=True)
    assert code == 0
    assert "Ctrl-C stops an answer" in errors
    assert shown.replace("> ", "") == "a lon\nmore\n"
    assert "assistant\na lon<" in chat.writer.asked[1]


def test_ctrl_c_while_a_terminal_waits_leaves(chat_of, talk, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: signal.raise_signal(signal.SIGINT))
    assert talk(chat_of(), b"", is_terminal=True)[:2] == (130, "")
