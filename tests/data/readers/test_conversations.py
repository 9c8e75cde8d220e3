"""Conversations in the words of every tool that writes them are read into the same turns."""

import json

import pytest
from dataset_files import jsonl_bytes, parquet_bytes

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, read_language
from data.records import Call, Turn

CALL = Call("look", '{"at": "é"}')
SAID = (
    Turn("system", "be brief"),
    Turn("user", "q"),
    Turn("assistant", "", calls=(CALL,)),
    Turn("tool", '{"found": 7}'),
    Turn("assistant", "a"),
)
TOOL = {"name": "look", "parameters": {"type": "object"}}
FUNCTION = {"name": "look", "arguments": {"at": "é"}}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OPENAI = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": FUNCTION}]},
        {"role": "tool", "content": '{"found": 7}'},
        ANSWER,
    ],
    "tools": [{"type": "function", "function": TOOL}],
}
BEFORE = {  # OpenAI's before 2023-11, arguments as text
    "messages": [
        {"role": "system", "content": "be brief", "functions": [TOOL]},
        USER,
        {
            "role": "assistant",
            "function_call": {"name": "look", "arguments": '{"at": "é"}'},
        },
        {"role": "function", "content": {"found": 7}},
        ANSWER,
    ]
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(FUNCTION, ensure_ascii=False)},
        {"from": "observation", "value": '{"found": 7}'},
        {"from": "gpt", "value": "a"},
    ],
    "system": "be brief",
    "tools": json.dumps([TOOL]),
}
AS_TEXT = {"messages": json.dumps(OPENAI["messages"]), "tools": json.dumps(OPENAI["tools"])}
TRL = {
    "prompt": OPENAI["messages"][:2],
    "completion": OPENAI["messages"][2:],
    "tools": OPENAI["tools"],
}


def read(tmp_path, *rows, write=jsonl_bytes, **config):
    path = tmp_path / ("a.jsonl" if write is jsonl_bytes else "a.parquet")
    path.write_bytes(write(list(rows)))
    facts = ReadFacts()
    return list(read_language(path, "train", DataConfig.model_validate(config), facts)), facts


@pytest.mark.parametrize("write", [jsonl_bytes, parquet_bytes])
@pytest.mark.parametrize(
    "row",
    [OPENAI, BEFORE, SHAREGPT, AS_TEXT, TRL],
    ids=["openai", "functions", "sharegpt", "text", "trl"],
)
def test_calls_tools_and_their_results_are_the_same_turns_in_every_format(tmp_path, row, write):
    if row is BEFORE and write is parquet_bytes:
        pytest.skip("a column of a table has one type: contents of text and objects cannot mix")
    [record], facts = read(tmp_path, row, write=write)
    assert record.turns == SAID
    assert json.loads(record.tools) == [{"type": "function", "function": TOOL}]
    assert record.kind == "chat"
    assert facts.ignored_fields == set()


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"training": False},
        {"loss_mask": 0}, {"masked": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_says_by_any_usual_name_that_it_is_not_learned(tmp_path, flag):
    said = [USER, ANSWER | flag, USER, ANSWER]
    [record], _ = read(tmp_path, {"messages": said})
    assert [turn.is_learned for turn in record.turns] == [True, False, True, True]
    [record], _ = read(tmp_path, {"messages": [USER, ANSWER] * 2, "loss_mask": [0, 0, 0, 1]})
    assert [turn.is_learned for turn in record.turns] == [True, False, True, True]


def test_only_the_completion_of_messages_is_learned(tmp_path):
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER | {"content": "b"}]}
    [record], _ = read(tmp_path, row)
    assert [(turn.content, turn.is_learned) for turn in record.turns] == [
        ("q", True), ("a", False), ("q", True), ("b", True),
    ]  # fmt: skip


def test_alpaca_has_a_system_a_history_and_a_thought(tmp_path):
    row = {
        "instruction": "i", "input": "n", "output": "o", "system": "s",
        "history": [["q", "a"]], "reasoning_content": "r",
    }  # fmt: skip
    [record], _ = read(tmp_path, row)
    assert record.turns == (
        Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"),
        Turn("user", "i"), Turn("user", "n"), Turn("assistant", "o", reasoning="r"),
    )  # fmt: skip


def test_a_thought_is_a_key_or_a_part(tmp_path):
    part = {"type": "thinking", "thinking": "r"}
    rows = [
        {"messages": [USER, ANSWER | {key: "r"}]}
        for key in ("reasoning_content", "reasoning", "thinking")
    ]
    rows.append({"messages": [USER, ANSWER | {"content": [part, {"type": "text", "text": "a"}]}]})
    records, _ = read(tmp_path, *rows)
    assert {record.turns[1] for record in records} == {Turn("assistant", "a", reasoning="r")}


def test_a_greeting_is_context_and_two_answers_are_one(tmp_path):
    hello = ANSWER | {"content": "hello"}
    [record], facts = read(tmp_path, {"messages": [hello, USER, ANSWER, ANSWER]})
    assert record.turns == (
        Turn("assistant", "hello", False), Turn("user", "q"), Turn("assistant", "a\n\na"),
    )  # fmt: skip
    assert len(facts.warnings) == 2
    called = {"role": "assistant", "tool_calls": [FUNCTION]}
    [record], _ = read(tmp_path, {"messages": [USER, ANSWER, called]})
    assert record.turns[1] == Turn("assistant", "a", calls=(CALL,))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "images"),
        ({"messages": [USER | {"image": "a.png"}, ANSWER]}, "message.image"),
        ({"messages": [USER, ANSWER | {"trainable": False}]}, "message.trainable"),
        ({"messages": [USER, ANSWER | {"loss_scale": 0.0}]}, "message.loss_scale"),
        ({"messages": [USER, ANSWER | {"is_masked": True}]}, "message.is_masked"),
        ({"messages": [USER, ANSWER], "history": [["a", "b"]]}, "history"),
        ({"messages": [USER, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]}, "chosen"),
        ({"prompt": "p", "completion": "c", "label": False}, "label"),
        ({"old_contents": "a", "subject": "s", "new_contents": "b", "system": "s"}, "system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_change_what_is_learned_stops_the_run_unless_it_is_named(tmp_path, row, name):
    with pytest.raises(DataError, match=rf"a.jsonl:1: '{name}' would change") as caught:
        read(tmp_path, row, max_bad_rows=9)
    assert caught.value.exit_code == 3
    assert f"data.ignore_columns=[{name}]" in str(caught.value)
    [record], facts = read(tmp_path, row, ignore_columns=[name, "rejected"])
    assert record.turns[-1].role == "assistant"
    assert name in facts.ignored_fields
    empty = {key: None if key == name else value for key, value in row.items()}
    if name in row:
        read(tmp_path, empty, ignore_columns=["rejected"])


def test_preferences_are_refused_by_name_and_learned_where_they_are_mapped(tmp_path):
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    with pytest.raises(DataError, match=r"preferences \(DPO\) are not learned.*completion: chosen"):
        read(tmp_path, row)
    fields = {"completion": "chosen"}
    with pytest.raises(DataError, match="'rejected' would change"):
        read(tmp_path, row, fields=fields)
    [record], _ = read(tmp_path, row, fields=fields, ignore_columns=["rejected"])
    assert record.turns == (Turn("user", "p"), Turn("assistant", "good"))


UNITS = {
    "type": "object",
    "properties": {
        "at": {"type": "string"},
        "unit": {"type": ["string", "null"]},
        "until": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "more": {"type": "object", "properties": {"a": {"nullable": True}, "b": {}}},
    },
    "required": ["at"],
}


def calling(arguments, name="look"):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, ANSWER]


def test_nulls_that_fill_a_table_are_no_arguments_and_those_a_tool_allows_are(tmp_path):
    given = [
        {"at": None, "unit": None, "until": None, "more": {"a": None, "b": None}},
        {"at": "x", "unit": "C", "until": 7, "more": {"a": "y", "b": "z"}, "other": "w"},
    ]
    tools = [{"type": "function", "function": {"name": "look", "parameters": UNITS}}]
    rows = [{"messages": calling(each), "tools": json.dumps(tools)} for each in given]
    expected = [{**given[0], "more": {"a": None}}, given[1]]
    records, _ = read(tmp_path, *rows, write=parquet_bytes)
    assert [json.loads(r.turns[1].calls[0].arguments) for r in records] == expected
    bare = [{"messages": row["messages"]} for row in rows]
    records, _ = read(tmp_path, *bare, write=parquet_bytes)  # no tool says what a null means
    assert [json.loads(r.turns[1].calls[0].arguments) for r in records] == [{"more": {}}, given[1]]


def test_nulls_that_a_row_writes_itself_stay(tmp_path):
    row = {"messages": calling({"at": None, "z": [None]})}
    [record], _ = read(tmp_path, row)
    assert json.loads(record.turns[1].calls[0].arguments) == {"at": None, "z": [None]}
    text = '{"at": null, "z": [null]}'
    for row in (
        {"messages": calling(text)},
        {"messages": json.dumps(calling({"at": None, "z": [None]}))},
    ):
        [record], _ = read(tmp_path, row, write=parquet_bytes)
        assert json.loads(record.turns[1].calls[0].arguments) == {"at": None, "z": [None]}


@pytest.mark.parametrize("write", [jsonl_bytes, parquet_bytes])
def test_every_key_of_a_message_can_be_ignored_by_name(tmp_path, write):
    answer = ANSWER | {"reasoning_content": "r", "tools": json.dumps([TOOL]), "weight": 0}
    row = {"messages": [USER, answer, USER, ANSWER]}
    named = ["message.reasoning_content", "message.tools", "message.weight"]
    [record], facts = read(tmp_path, row, write=write, ignore_columns=named)
    assert record.turns == (Turn("user", "q"), Turn("assistant", "a")) * 2
    assert (record.tools, facts.ignored_fields) == ("", set(named))
    [record], facts = read(tmp_path, row, write=write)
    assert (record.turns[1].reasoning, record.turns[1].is_learned) == ("r", False)
    assert (bool(record.tools), facts.ignored_fields) == (True, set())
    with pytest.raises(DataError, match=r"needs role and content"):
        read(tmp_path, row, write=write, ignore_columns=["message.content"])


def test_a_flag_of_another_name_that_says_what_is_so_anyway_changes_nothing(tmp_path):
    flags = {"trainable": True, "is_masked": False, "loss_scale": 1.0, "trained_by": "x"}
    [record], facts = read(tmp_path, {"messages": [USER, ANSWER | flags]})
    assert record.turns[-1].is_learned
    assert facts.ignored_fields == {f"message.{name}" for name in flags}


@pytest.mark.parametrize("key", ["reasoning_content", "tool_plan"])
def test_a_thought_beside_an_answer_can_be_ignored(tmp_path, key):
    row = {"instruction": "i", "output": "o", key: "r"}
    [record], _ = read(tmp_path, row)
    assert record.turns[-1].reasoning == "r"
    [record], facts = read(tmp_path, row, ignore_columns=[key])
    assert (record.turns[-1].reasoning, facts.ignored_fields) == ("", {key})
