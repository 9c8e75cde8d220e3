"""Language records out of every format, kind and place a split can stand in."""

import json
from pathlib import Path

import pytest
from conftest import write_rows
from dataset_files import COMPRESSIONS, FORMATS, jsonl_bytes, parquet_bytes, tar, zipped

from data.config import DataConfig
from data.errors import DataError
from data.kinds import KINDS, RecordKind
from data.readers import ReadFacts, layouts, locate, read_language
from data.readers.layouts import Layout
from data.records import Conversation, Document, Turn
from data.text.templates import chosen_template

ALPACA = [
    {"instruction": 'Say "a",\nthen b', "input": "", "output": "a, b"},
    {"instruction": "Summe é", "input": " 1, 2\n", "output": "NA"},
]
ALPACA_TURNS = [
    (Turn("user", 'Say "a",\nthen b'), Turn("assistant", "a, b")),
    (Turn("user", "Summe é"), Turn("user", " 1, 2\n"), Turn("assistant", "NA")),
]
PROMPTS = [{"prompt": "p", "completion": "c"}]
OPENAI = [
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "u2"},
            {"role": "assistant", "content": "a2"},
        ]
    }
]
SHAREGPT = [
    {
        "id": "talk-1",
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "u"},
            {"from": "gpt", "value": "a"},
            {"from": "human", "value": "u2"},
            {"from": "gpt", "value": "a2"},
        ],
    }
]
CHAT_TURNS = (
    Turn("system", "s"),
    Turn("user", "u"),
    Turn("assistant", "a"),
    Turn("user", "u2"),
    Turn("assistant", "a2"),
)


def read(path: Path, facts: ReadFacts | None = None, split: str = "train", **config: object):
    return list(read_language(path, split, DataConfig.model_validate(config), facts))


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def paths(split: str = "train", **config: object) -> list[str]:
    return [path.name for path in locate(DataConfig.model_validate(config), split, language=True)]


@pytest.mark.parametrize("end", COMPRESSIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_alpaca_records_are_equal_out_of_every_format_and_compression(tmp_path, kind, end):
    path = written(tmp_path, f"train.{kind}{end}", COMPRESSIONS[end](FORMATS[kind](ALPACA)))
    records = read(path)
    assert [record.turns for record in records] == ALPACA_TURNS
    assert {record.kind for record in records} == {"alpaca"}
    assert {record.source for record in records} == {path.name}
    assert all(record.id == record.origin for record in records)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("rows", [OPENAI, SHAREGPT], ids=["openai", "sharegpt"])
def test_both_writings_of_a_chat_are_the_same_turns(tmp_path, kind, rows):
    (record,) = read(written(tmp_path, f"chat.{kind}", FORMATS[kind](rows)))
    assert record.turns == CHAT_TURNS
    assert record.kind == "chat"
    assert record.id == rows[0].get("id", record.origin)


def test_a_saved_dataset_of_chats_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(OPENAI).save_to_disk(tmp_path / "train")
    (record,) = read(tmp_path / "train")
    assert record.turns == CHAT_TURNS
    assert paths(path=str(tmp_path)) == ["train"]


@pytest.mark.parametrize(
    ("row", "turns", "kind"),
    [
        ({"prompt": "p", "completion": " c"}, [("user", "p"), ("assistant", " c")], None),
        ({"prompt": "p", "response": "c"}, [("user", "p"), ("assistant", "c")], None),
        (
            {
                "old_contents": "x\n",
                "subject": "Fix",
                "message": "Fix\n\nmore",
                "new_contents": "y",
            },
            [("user", "Fix"), ("user", "x\n"), ("assistant", "y")],
            "commit",
        ),
        (
            {"old_contents": "", "message": "Add", "new_contents": "y"},
            [("user", "Add"), ("assistant", "y")],
            "commit",
        ),
        (
            {"instruction": "i", "input": None, "output": "o", "response": "r"},
            [("user", "i"), ("assistant", "o")],
            "alpaca",
        ),
    ],
    ids=["prompt-completion", "prompt-response", "commit", "commit-of-a-new-file", "alpaca"],
)
def test_a_row_becomes_turns(tmp_path, row, turns, kind):
    (record,) = read(written(tmp_path, "train.jsonl", jsonl_bytes([row])))
    assert record.turns == tuple(Turn(*turn) for turn in turns)
    assert record.kind == (kind or "prompt_completion")


def test_a_row_with_nothing_but_text_is_a_document(tmp_path):
    path = written(tmp_path, "train.jsonl", jsonl_bytes([{"text": " a\n", "id": 7}, {"text": " "}]))
    facts = ReadFacts()
    assert read(path, facts) == [Document("7", " a\n", "train.jsonl:1", "train.jsonl")]
    assert (facts.num_rows, facts.num_empty) == (2, 1)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_text_file_is_one_document_without_its_byte_order_mark(tmp_path, end):
    content = COMPRESSIONS[end](b"\xef\xbb\xbf# A\r\n\n{not json\n")
    name = f"a.md{end}"
    document = Document(name, "# A\r\n\n{not json\n", name, name)
    assert read(written(tmp_path, name, content)) == [document]


@pytest.mark.parametrize("indent", [None, 0, 2, "\t"], ids=repr)
@pytest.mark.parametrize("wanted", ["auto", "json"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_json_file_that_is_one_object_is_one_record(tmp_path, indent, wanted, end):
    row = {"tags": ["a", {"b": 1}], "text": "Summe é\n" * 2000}
    text = f"\ufeff\n{json.dumps(row, indent=indent)}\n\n"
    path = written(tmp_path, f"a.json{end}", COMPRESSIONS[end](text.encode()))
    facts = ReadFacts()
    (record,) = read(path, facts, format=wanted)
    assert record.text == row["text"]
    assert facts.ignored_fields == {"tags"}


def test_lines_in_a_file_named_json_are_records_although_one_is_damaged(tmp_path):
    path = written(tmp_path, "a.json", b'{"text": "a\n{"text": "b"}\n{"text": "c"}\n')
    assert [record.text for record in read(path, records="text", max_bad_rows=1)] == ["b", "c"]


def test_a_labelled_function_asks_for_yes_or_no(tmp_path):
    rows = [{"code": "f();", "target": 1, "id": "x"}, {"code": "g();", "target": 0}]
    first, second = read(written(tmp_path, "train.jsonl", jsonl_bytes(rows)))
    question = (
        "Perform static application security testing on the following function. Is it vulnerable?"
        " Answer yes or no."
    )
    assert first.turns == (Turn("user", question), Turn("user", "f();"), Turn("assistant", "yes"))
    assert second.turns[2] == Turn("assistant", "no")
    assert (first.id, first.kind) == ("x", "vulnerability")


def test_a_pair_is_two_questions(tmp_path):
    path = written(tmp_path, "train.jsonl", jsonl_bytes([{"old": "f();", "new": "g();"}]))
    before, after = read(path, fields={"before": "old", "after": "new"})
    assert [record.turns[1:] for record in (before, after)] == [
        (Turn("user", "f();"), Turn("assistant", "yes")),
        (Turn("user", "g();"), Turn("assistant", "no")),
    ]


def test_labels_are_mapped_as_for_functions(tmp_path):
    rows = [{"func": "f();", "label": "bad"}, {"func": "g();", "label": "good"}]
    path = written(tmp_path, "train.jsonl", jsonl_bytes(rows))
    fields, labels = {"code": "func", "target": "label"}, {"bad": 1, "good": 0}
    records = read(path, records="vulnerability", fields=fields, labels=labels)
    assert [record.turns[-1].content for record in records] == ["yes", "no"]


def test_fields_are_mapped_and_tell_the_kind(tmp_path):
    path = written(tmp_path, "train.jsonl", jsonl_bytes([{"question": "q", "a": "x", "text": "t"}]))
    (record,) = read(path, fields={"instruction": "question", "output": "a"})
    assert record.turns == (Turn("user", "q"), Turn("assistant", "x"))
    (record,) = read(path, fields={"text": "question"})
    assert record.text == "q"


def test_a_stated_kind_wins_over_the_first_row(tmp_path):
    row = {"instruction": "i", "output": "o", "text": "all of it"}
    path = written(tmp_path, "train.jsonl", jsonl_bytes([row]))
    assert isinstance(read(path)[0], Conversation)
    (document,) = read(path, records="text")
    assert document.text == "all of it"


def test_user_messages_in_a_row_are_joined_and_what_no_answer_follows_is_left_out(tmp_path):
    messages = [("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "thanks")]
    row = {"messages": [{"role": role, "content": text} for role, text in messages]}
    facts = ReadFacts()
    (record,) = read(written(tmp_path, "train.jsonl", jsonl_bytes([row])), facts)
    assert record.turns == (Turn("user", "a\n\nb"), Turn("assistant", "c"))
    assert len(facts.warnings) == 2


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_weight_of_zero_makes_an_answer_context(tmp_path, kind):
    answers = [{"weight": 0}, {"weight": 1}, {"weight": None}, {}]
    messages = [
        {"role": role, "content": "x"} | (more if role == "assistant" else {})
        for more in answers
        for role in ("user", "assistant")
    ]
    content = {"jsonl": jsonl_bytes, "parquet": parquet_bytes}[kind]([{"messages": messages}])
    (record,) = read(written(tmp_path, f"train.{kind}", content))
    assert [t.is_learned for t in record.turns if t.role == "assistant"] == [False] + [True] * 3


def test_an_archive_gives_its_split_or_where_none_is_named_every_file_in_its_order(tmp_path):
    line = jsonl_bytes(PROMPTS)
    split = written(tmp_path, "a.tar", tar(("x/train.jsonl", line), ("x/valid.jsonl", line * 2)))
    assert [record.source for record in read(split)] == ["a.tar::x/train.jsonl"]
    assert len(read(split, split="valid")) == 2
    every = zipped(("b.txt", b"B"), ("a.md", b"A"), ("LICENSE", b"no"))
    records = read(written(tmp_path, "b.zip", every))
    assert [(record.text, record.source) for record in records] == [
        ("B", "b.zip::b.txt"),
        ("A", "b.zip::a.md"),
    ]


def test_a_glob_and_a_folder_are_in_natural_order(tmp_path):
    names = ["part10.json", "part2.json", "sub/part1.json", "notes.rst", ".hidden.json"]
    for name in names:
        written(tmp_path / "corpus", name, json.dumps([{"text": name}]).encode())
    folder = str(tmp_path / "corpus")
    assert paths(train=f"{folder}/*.json") == ["part2.json", "part10.json"]
    assert paths(train=folder) == ["part2.json", "part10.json", "part1.json"]
    files = locate(DataConfig(train=folder), "train", language=True)
    texts = [record.text for file in files for record in read(file)]
    assert texts == ["part2.json", "part10.json", "sub/part1.json"]


def test_a_split_that_is_not_given_has_no_files(tmp_path):
    file = written(tmp_path, "train.txt", b"a")
    assert paths("valid", train=str(file)) == []
    assert paths("valid", path=str(tmp_path)) == []
    assert paths(path=str(tmp_path)) == ["train.txt"]
    written(tmp_path, "validation.jsonl.gz", b"")
    assert paths("valid", path=str(tmp_path)) == ["validation.jsonl.gz"]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"train": "none/*.json"}, ("data.train", "matches no file", "there.rst")),
        ({"train": "none.json"}, ("data.train", "does not exist (resolved: ")),
        ({"train": ""}, ("no .jsonl", "there.rst")),
        ({"path": ""}, ("expected exactly one of train.jsonl", "there.rst", "data.train=")),
        ({"path": "gone"}, ("data.path", "does not exist")),
        ({}, ("data.train is not set and there is no data.path",)),
    ],
)
def test_no_file_is_an_error_that_lists_the_folder(tmp_path, config, parts):
    written(tmp_path, "there.rst", b"")
    (tmp_path / "none").mkdir()
    written(tmp_path, "none/there.rst", b"")
    config = {key: str(tmp_path / value) for key, value in config.items()}
    with pytest.raises(DataError) as caught:
        paths(**config)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


def test_an_entry_of_KINDS_is_all_that_a_kind_needs(tmp_path, monkeypatch):
    entry = RecordKind(
        {"question": ("question", "q"), "reply": ("reply",)},
        {"context": ("context",)},
        answer="reply",
        may_be_blank=("context",),
        template="human_assistant",
    )
    monkeypatch.setitem(KINDS, "helpdesk", entry)
    rows = [
        {"q": "Why?", "reply": "Because.", "context": "c = 1"},
        {"q": "How?", "reply": "So.", "context": ""},
    ]
    path = write_rows(tmp_path / "train.jsonl", rows)
    first, second = read_language(path, "train", DataConfig(train=str(path)))
    assert first.kind == "helpdesk"
    assert first.turns == (
        Turn("user", "Why?"), Turn("user", "c = 1"), Turn("assistant", "Because."),
    )  # fmt: skip
    assert second.turns == (Turn("user", "How?"), Turn("assistant", "So."))
    assert chosen_template("auto", "helpdesk", has_own=True) == "human_assistant"
    del rows[1]["q"]
    write_rows(path, rows)
    with pytest.raises(DataError, match="no field 'question' or 'q'"):
        list(read_language(path, "train", DataConfig(train=str(path))))


def test_an_entry_of_LAYOUTS_is_all_that_a_layout_needs(tmp_path, monkeypatch):
    entry = Layout(
        "a folder {split}/ with an INDEX",
        lambda path, _: (path / "INDEX").is_file(),
        files=lambda path: [path / name for name in (path / "INDEX").read_text().split()],
    )
    for name in ("b.jsonl", "a.jsonl"):
        written(tmp_path / "train", name, jsonl_bytes(PROMPTS))
    written(tmp_path / "train", "INDEX", b"b.jsonl\na.jsonl\n")
    assert paths(path=str(tmp_path)) == ["a.jsonl", "b.jsonl"]
    monkeypatch.setattr(layouts, "LAYOUTS", (entry, *layouts.LAYOUTS))
    assert paths(path=str(tmp_path)) == ["b.jsonl", "a.jsonl"]
    (tmp_path / "train").rename(tmp_path / "valid")
    with pytest.raises(DataError, match="a folder train/ with an INDEX"):
        locate(DataConfig(path=str(tmp_path)), "train")


def test_a_recipe_may_name_each_kind_of_KINDS_and_no_other():
    assert set(DataConfig.model_fields["records"].annotation.__args__) == {"auto", *KINDS}
