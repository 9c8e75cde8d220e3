"""Bad rows and files of language records, the number of the list first in each id."""

import gzip
import json
import os
from pathlib import Path

import pytest
from dataset_files import COMPRESSIONS, csv_bytes, parquet_bytes, tar

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, locate, read_language

GOOD = {"instruction": "i", "output": "o"}
LINE = json.dumps(GOOD).encode() + b"\n"
ROLES = "must be one of ['system', 'developer', 'user', 'assistant', 'tool', 'function', 'human'"
BLANK = "is blank; write it, remove the row, or pass over it with data.max_bad_rows"


def row(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode() + b"\n"


def chat(*messages: object) -> bytes:
    return json.dumps({"messages": messages}).encode() + b"\n"


def said(role: object, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


USER, ANSWER = said("user", "u"), said("assistant", "a")

REFUSED = {
    "01-empty": ("a.jsonl", b"", ("a.jsonl: no rows", "text in .txt and .md")),
    "02-blank-lines": ("a.jsonl", b"\n \n", ("a.jsonl: no rows",)),
    "03-truncated": (
        "a.jsonl.gz",
        gzip.compress(LINE * 9)[:-9],
        ("damaged or cut off", "fetch the file again"),
    ),
    "06-leads-out": ("a.tar", tar(("../a.jsonl", LINE)), ("leads out of the archive",)),
    "15-no-member": ("a.tar", tar(("README", b"x")), ("no member train.jsonl", "['README']")),
    "15-other-split": ("a.tar", tar(("valid.jsonl", LINE)), ("no member train.jsonl",)),
    "15-two-members": (
        "a.tar",
        tar(("train.jsonl", LINE), ("x/train.csv", LINE)),
        ("'train.jsonl' and 'x/train.csv' both hold train",),
    ),
    "14-nested": ("a.tar", tar(("train.jsonl", tar(("b", b"")))), ("an archive within",)),
    "17-not-utf-8": ("a.jsonl", LINE + b'{"x": "\xe9"}\n', ("a.jsonl:2: not UTF-8 at byte 7",)),
    "17-text-not-utf-8": ("a.txt", b"ab\xe9", ("a.txt: not UTF-8 at byte 2", "convert")),
    "20-lone-surrogate": ("a.jsonl", row(output="\ud800"), ("a.jsonl:1: 'output' holds", "half")),
    "25-bad-line": ("a.jsonl", LINE + b"oops\n", ("a.jsonl:2: not a JSON object",)),
    "27-array-in-jsonl": ("a.jsonl", b"[" + LINE + b"]", ("a.jsonl:1: this is a JSON array",)),
    "29-instruction-blank": ("a.jsonl", row(instruction=""), (f"'instruction' {BLANK}",)),
    "29-message-blank": (
        "a.jsonl",
        chat(USER, said("assistant", "")),
        (f"a.jsonl:1: 'messages[2].content' {BLANK}",),
    ),
    "31-label-2": (
        "a.jsonl",
        b'{"code": "f();", "target": 2}\n',
        ("a.jsonl:1: 'target' must be the integer 0 or 1", "found 2 (int)"),
    ),
    "36-answer-is-null": (
        "a.jsonl",
        row(output=None),
        ("'output' must be text", "None (NoneType)"),
    ),
    "36-input-is-a-list": ("a.jsonl", row(input=[1]), ("'input[1]' must be an object with role",)),
    "36-messages-are-text": (
        "a.jsonl",
        b'{"messages": "hello"}\n',
        (
            "a.jsonl:1: 'messages' must be a list of messages, or its JSON text,",
            "found 'hello' (str)",
        ),
    ),
    "36-message-is-text": ("a.jsonl", chat("hi"), ("'messages[1]' must be an object with role",)),
    "36-content-is-a-picture": (
        "a.jsonl",
        chat(said("user", [{"type": "image_url", "image_url": "x"}]), ANSWER),
        ("'messages[1].content[1]' must be a part of type text; others (pictures, sound)",),
    ),
    "36-content-is-null": (
        "a.jsonl",
        chat(USER, said("assistant", None)),
        ("'messages[2].content' must be text, found None (NoneType)",),
    ),
    "36-role-unknown": (
        "a.jsonl",
        chat(USER, ANSWER, said("narrator", "x")),
        (f"a.jsonl:1: 'messages[3].role' {ROLES}", "found 'narrator' (str)"),
    ),
    "36-weight-0.5": (
        "a.jsonl",
        chat(USER, ANSWER, USER, ANSWER | {"weight": 0.5}),
        ("a.jsonl:1: 'messages[4].weight' must be 0 or false (context, not learned)", "found 0.5"),
    ),
    "36-weight-is-text": ("a.jsonl", chat(USER, ANSWER | {"weight": "1"}), ("found '1' (str)",)),
    "36-role-is-a-list": ("a.jsonl", chat(said(["user"], "x")), (ROLES, "found ['user'] (list)")),
    "36-message-without-keys": (
        "a.jsonl",
        chat({"speaker": "a", "content": "b"}),
        ("'messages[1]' needs role and content, or from and value, found ['content', 'speaker']",),
    ),
    "36-no-answer": (
        "a.jsonl",
        chat(said("system", "s"), USER),
        ("a.jsonl:1: 'messages' has no assistant message among 2", "data.max_bad_rows"),
    ),
    "36-no-messages": ("a.jsonl", chat(), ("has no assistant message among 0",)),
    "36-answer-first": (
        "a.jsonl",
        chat(ANSWER),
        ("'messages' has no user message before an answer",),
    ),
    "36-all-flags-are-off": (
        "a.jsonl",
        chat(USER, ANSWER | {"loss": False}),
        ("a.jsonl:1: every answer says that it is not learned",),
    ),
    "36-flags-disagree": (
        "a.jsonl",
        chat(USER, ANSWER | {"train": True, "masked": True}),
        ("'messages[2]' says both that it is learned and that it is not",),
    ),
    "36-call-without-name": (
        "a.jsonl",
        chat(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, ANSWER),
        ("'messages[2].tool_calls[1]' must be an object with name and arguments",),
    ),
    "36-call-is-not-json": (
        "a.jsonl",
        chat(USER, said("function_call", "look()"), ANSWER),
        ("'messages[2].content' is not JSON", "write it with json.dumps"),
    ),
    "36-tools-are-prose": (
        "a.jsonl",
        json.dumps({"messages": [USER, ANSWER], "tools": "look: looks"}).encode(),
        ("'tools' is not JSON",),
    ),
    "36-mask-of-another-length": (
        "a.jsonl",
        json.dumps({"messages": [USER, ANSWER], "loss_mask": [1]}).encode(),
        ("'loss_mask' must be a list of 2 flags, one a message",),
    ),
    "38-column-missing-later": (
        "a.jsonl",
        LINE + b'{"instruction": "i"}\n',
        ("a.jsonl:2: no field 'output'; there are ['instruction']", "data.fields={output: NAME}"),
    ),
    "38-no-kind": (
        "a.csv",
        csv_bytes([{"question": "q", "reply": "r"}]),
        ("the fields ['question', 'reply'] do not fit any kind", "alpaca: instruction"),
    ),
    "39-ids-twice": ("a.jsonl", row(id=1) * 2, ("a.jsonl:2: has the id of a.jsonl:1",)),
    "46-quote": ("a.csv", b'instruction,output\ni,"o\n', ("a.csv:2: a quote opens",)),
    "47-short-row": ("a.csv", b"instruction,output\ni,o\ni\n", ("a.csv:3: 1 fields",)),
    "51-parquet-cut": ("a.parquet", parquet_bytes([GOOD])[:-30], ("damaged or cut off",)),
    "51-parquet-type": (
        "a.parquet",
        parquet_bytes([{"instruction": "i", "output": 3}]),
        ("column 'output' is int64; it must be a column of text",),
    ),
}


def read(path: Path, facts: ReadFacts | None = None, **config: object) -> list[object]:
    return list(read_language(path, "train", DataConfig.model_validate(config), facts))


def message_of(path: Path, **config: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **config)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_its_place_and_remedy(tmp_path, case):
    name, content, parts = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = message_of(path)
    assert name in message
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < 500
    assert path.read_bytes() == content


def test_25_bad_rows_are_passed_over_and_counted_on_request(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE + row(output=1) + LINE + chat(USER) + b"oops\n" + LINE)
    facts = ReadFacts()
    assert len(read(path, facts, max_bad_rows=3)) == 3
    assert (facts.num_rows, facts.num_bad, len(facts.bad_examples)) == (6, 3, 3)
    assert "a.jsonl:5: not a JSON object" in message_of(path, max_bad_rows=2)


def test_25_a_bad_first_row_does_not_hide_the_kind(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"oops\n" + LINE)
    facts = ReadFacts()
    assert len(read(path, facts, max_bad_rows=1)) == 1
    assert (facts.num_rows, facts.num_bad) == (2, 1)


def test_17_text_is_repaired_and_counted_on_request(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes(b"ab\xe9")
    facts = ReadFacts()
    (document,) = read(path, facts, encoding_errors="replace")
    assert document.text == "ab\ufffd"
    assert facts.num_replaced == 1


@pytest.mark.parametrize("end", COMPRESSIONS)
def test_18_a_nul_is_kept_and_counted_and_29_a_blank_document_is_dropped(tmp_path, end):
    path = tmp_path / f"a.jsonl{end}"
    content = b'{"text": "a\\u0000"}\n{"text": " "}\n'
    path.write_bytes(COMPRESSIONS[end](content))
    facts = ReadFacts()
    assert [record.text for record in read(path, facts)] == ["a\0"]
    assert (facts.num_nul, facts.num_empty) == (1, 1)


@pytest.mark.parametrize(
    "content",
    [
        row(output=""),
        row(output=" \n"),
        b'{"prompt": "p", "completion": ""}\n',
        b'{"old_contents": "x", "message": "m", "new_contents": ""}\n',
    ],
)
def test_29_a_record_without_an_answer_is_dropped_and_counted(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    facts = ReadFacts()
    assert read(path, facts) == []
    assert (facts.num_empty, facts.num_bad) == (1, 0)


def test_18_a_nul_in_a_conversation_is_counted_once(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(row(instruction="\0", output="\0"))
    facts = ReadFacts()
    read(path, facts)
    assert facts.num_nul == 1


def test_37_columns_without_use_are_listed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(row(response="o", id=3))
    facts = ReadFacts()
    read(path, facts)
    assert facts.ignored_fields == {"response"}


def test_37_keys_of_messages_without_use_are_listed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        chat(USER | {"time": "x"}, ANSWER | {"weight": 1, "tool_calls": [], "model": "m"})
        + chat(USER | {"images": [], "mood": None}, ANSWER | {"refusal": None})
    )
    facts = ReadFacts()
    read(path, facts)
    assert facts.ignored_fields == {"message.time", "message.model"}


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"fields": {"question": "q"}}, ("['question'] are not fields of one kind", "chat has")),
        (
            {"records": "chat", "fields": {"instruction": "q"}},
            (
                "data.fields: ['instruction']",
                "chat has ['messages', 'system', 'tools',",
            ),
        ),
        (
            {"records": "text"},
            ("a.jsonl:1: no field 'text'", "there are ['instruction', 'output']"),
        ),
        ({"fields": {"output": "gone"}}, ("do not fit any kind",)),
        ({"format": "folder"}, ("data.format=folder is for functions",)),
        ({"format": "datasets"}, ("a.jsonl: data.format=datasets, but this is a file",)),
        ({"format": "json"}, ("a.jsonl: line 2: text follows the first", "data.format=jsonl")),
    ],
)
def test_a_recipe_that_does_not_fit_the_file_is_refused(tmp_path, config, parts):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE * 2)
    message = message_of(path, **config)
    assert [part for part in parts if part not in message] == [], message


INDENTED = json.dumps(GOOD, indent=2).encode()


@pytest.mark.parametrize(
    ("content", "wanted", "parts"),
    [
        (INDENTED, "jsonl", ("a.json:1: not a JSON object", "one indented object set data.format")),
        (INDENTED * 2, "auto", ("line 4: text follows the first object", "need '[' and ']'")),
        (INDENTED * 2, "json", ("line 4: text follows the first object", "need '[' and ']'")),
        (INDENTED[:-1], "auto", ("a.json: line 4: Expecting ',' delimiter", "cut off")),
    ],
)
def test_25_an_object_over_several_lines_is_refused_with_what_reads_it(
    tmp_path, content, wanted, parts
):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = message_of(path, format=wanted)
    assert [part for part in parts if part not in message] == [], message


def test_a_text_file_holds_no_other_kind(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    assert "data.records=alpaca, but this is a file of text" in message_of(path, records="alpaca")


def test_09_a_fifo_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    assert "must be a regular file" in message_of(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="must be a regular file"):
        locate(DataConfig(train=str(tmp_path / "a.jsonl")), "train", language=True)


def test_08_a_link_that_leaves_a_folder_is_refused(tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match="a link that leaves"):
        locate(DataConfig(train=str(tmp_path / "corpus")), "train", language=True)


def test_two_files_of_one_split_are_refused(tmp_path):
    for name in ("train.txt", "train.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    with pytest.raises(DataError, match=r"found 2: \['train.jsonl', 'train.txt'\]"):
        locate(DataConfig(path=str(tmp_path)), "train", language=True)
