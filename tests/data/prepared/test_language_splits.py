"""Language files -> splits: held out by question, read file by file, counted as they are."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows
from language_sets import byte_tokenizer

from data.batches.loader import Batching, TrainLoader
from data.config import DataConfig
from data.errors import DataError, TokenizerError
from data.prepared.prepare import Prepared, prepare
from data.text import chat_sandbox


def pairs(count: int, first: int = 0) -> list[dict[str, object]]:
    return [
        {"instruction": f"say {n}", "output": "x" * (n % 7 + 1)}
        for n in range(first, first + count)
    ]


def prepared(folder: Path, **config: object) -> Prepared:
    tokenizer = byte_tokenizer(folder / "tokenizer")
    values = {"template": "plain", "seq_length": 64, "cache_dir": str(folder / "cache")} | config
    return prepare(DataConfig.model_validate(values), tokenizer.path.parent, language=True)


def questions(data: Prepared, split: str) -> list[str]:
    """The question of every record in a split, from its tokens."""
    examples = data.splits[split].examples
    return [
        data.tokenizer.decode(
            examples.tokens[s:e][~examples.supervised[s:e]].tolist()  # the answer is supervised
        )
        for s, e in zip(examples.starts[:-1], examples.starts[1:], strict=True)
    ]


def test_valid_and_test_are_held_out_of_train_once_and_by_question(tmp_path):
    rows = pairs(600) + [row | {"output": "another answer"} for row in pairs(600)]
    data = prepared(tmp_path, train=str(write_rows(tmp_path / "train.jsonl", rows)))
    asked = {name: questions(data, name) for name in data.splits}
    assert sorted(chain(*asked.values())) == sorted(str(row["instruction"]) for row in rows)
    train, valid, test = (set(asked[name]) for name in ("train", "valid", "test"))
    assert not (train & valid) | (valid & test) | (train & test)
    for name in ("valid", "test"):
        assert len(set(asked[name])) == 30  # 5% of 600 questions
    assert data.facts["held_out"] == {"valid": 0.05, "test": 0.05}


def chats(folder: Path, rows: list[tuple[str, str]], **config: object) -> Prepared:
    """Every split is the same rows, under a chat template that refuses the answer "no"."""
    template = (
        "{% for m in messages %}{{ raise_exception('no') if m.content == 'no' else m.content }}"
        "<|im_end|>{% endfor %}"
    )
    tokenizer = byte_tokenizer(folder / "tokenizer", chat_template=template)
    path = write_rows(
        folder / "chats.jsonl",
        [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in rows
        ],
    )
    values = dict.fromkeys(("train", "valid", "test"), str(path))
    values |= {"cache_dir": str(folder / "cache"), "template": "chat_template"}
    settings = DataConfig.model_validate({"allow_leaks": True, "seq_length": 64} | values | config)
    return prepare(settings, tokenizer.path.parent, language=True)


def test_a_record_that_the_chat_template_refuses_is_a_bad_row(tmp_path):
    rows = [(f"say {n}", "no" if n in (3, 7, 1500) else "yes") for n in range(2000)]
    facts = chats(tmp_path, rows, max_bad_rows=3).facts["splits"]["train"]
    assert (facts["num_rows"], facts["num_bad"], facts["tokens"]["num_records"]) == (2000, 3, 1997)
    assert [example.split(";")[0] for example in facts["bad_examples"]] == [
        f"chats.jsonl:{line}: the chat template fails (TemplateError no)" for line in (4, 8, 1501)
    ]
    assert [file["num_records"] for file in facts["files"]] == [1997]
    with pytest.raises(DataError, match=r"jsonl:1501: the chat .*; 2 bad rows before it were"):
        chats(tmp_path, rows, max_bad_rows=2)
    with pytest.raises(DataError, match=r"jsonl:4: the chat template fails"):
        chats(tmp_path, rows)


def test_a_split_of_which_the_chat_template_refuses_all_says_so(tmp_path):
    with pytest.raises(DataError, match=r"of 2: 0 were blank, 2 were bad \(chats\.jsonl:1"):
        chats(tmp_path, [("a", "no"), ("b", "no")], max_bad_rows=2)


def test_special_tokens_in_the_text_of_records_are_counted_in_a_warning(tmp_path):
    rows = [("a", "yes"), ("b<|endoftext|>", "<|im_start|>"), ("c", "<|im_end|>")]
    warning = (
        "2 records write a special token of the tokenizer in their own text, the first one"
        " '<|endoftext|>': it acts as the control token; remove it where it is meant as text"
    )
    assert warning in chats(tmp_path, rows).facts["splits"]["train"]["warnings"]
    plain = chats(tmp_path, rows, template="plain").facts["splits"]["train"]["warnings"]
    assert not [sentence for sentence in plain if "special token" in sentence]


def test_questions_that_differ_in_blanks_alone_stay_together(tmp_path):
    """Leaks are found whitespace apart, so a split that tore them apart would be refused."""
    rows = pairs(200) + [row | {"instruction": f"{row['instruction']}\n"} for row in pairs(200)]
    data = prepared(tmp_path, train=str(write_rows(tmp_path / "train.jsonl", rows)))
    assert data.sharing.duplicates["train"] > 100
    assert not data.leaks


def test_windows_of_a_text_are_examples_and_those_of_an_answer_shares_of_one(tmp_path):
    texts = [{"text": f"{n} " + "y" * 300} for n in range(200)]
    answers = [{"instruction": f"say {n}", "output": "y" * 300} for n in range(200)]
    for rows, units in ((texts, "examples"), (answers, "records")):
        path = write_rows(tmp_path / f"{units}.jsonl", rows)
        train = prepared(tmp_path, train=str(path), long_functions="window").splits["train"]
        expected = {"examples": len(train.examples), "records": len(train.samples)}
        assert len(train.examples) > 4 * len(train.samples)
        assert train.examples.share_E.sum() == pytest.approx(expected[units])


def test_an_end_token_that_no_answer_has_is_said(tmp_path):
    """A chat template that closes turns with a marker of its own, while eos is another token."""
    tokenizer = tmp_path / "tokenizer"
    byte_tokenizer(tokenizer)
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    (tokenizer / "chat_template.jinja").write_text(
        template + "{% if add_generation_prompt %}assistant {% endif %}"
    )
    path = write_rows(tmp_path / "train.jsonl", pairs(200))
    for end_token, is_said in ((None, True), ("<|im_end|>", False)):
        data = prepared(tmp_path, train=str(path), template="chat_template", end_token=end_token)
        said = [line for line in data.facts["splits"]["train"]["warnings"] if "to stop" in line]
        assert bool(said) is is_said


def test_a_split_with_a_file_of_its_own_is_not_held_out(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", pairs(200))
    valid = write_rows(tmp_path / "valid.jsonl", pairs(20, first=900))
    data = prepared(tmp_path, train=str(train), valid=str(valid))
    assert len(data.splits["valid"].samples) == 20
    assert list(data.facts["held_out"]) == ["test"]
    total = sum(len(data.splits[name].samples) for name in ("train", "test"))
    assert total == 200


def test_records_that_stand_in_two_splits_are_refused(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", pairs(200))
    valid = write_rows(tmp_path / "valid.jsonl", pairs(3))
    with pytest.raises(
        DataError, match=r"(?s)share what they must not.*3 records, equal.*data\.allow_leaks=true"
    ):
        prepared(tmp_path, train=str(train), valid=str(valid))
    assert prepared(tmp_path, train=str(train), valid=str(valid), allow_leaks=True).leaks


def test_a_split_to_which_nothing_falls_says_what_to_do(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", [{"text": "t"}])
    with pytest.raises(DataError, match=r"none of 1 records.*give it a file"):
        prepared(tmp_path, train=str(train))


def corpus(folder: Path, sizes: dict[str, int]) -> Path:
    """Files of texts, `size` records each."""
    folder.mkdir()
    first = 0
    for name, size in sizes.items():
        rows = [{"text": f"text {n} " + "y" * (n % 30)} for n in range(first, first + size)]
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
        first += size
    return folder


def test_files_are_known_by_their_first_record_in_their_order(tmp_path):
    folder = corpus(tmp_path / "corpus", {"part1.json": 30, "part2.json": 50, "part10.json": 40})
    data = prepared(tmp_path, train=str(folder / "*.json"))
    train = data.splits["train"]
    assert list(train.files) == ["part1.json", "part2.json", "part10.json"]
    sources = [record.source for record in train.samples]
    assert train.files == {name: sources.index(name) for name in train.files}
    counted = [file["num_records"] for file in data.facts["splits"]["train"]["files"]]
    assert counted == [sources.count(name) for name in train.files]


def test_files_of_one_name_in_two_folders_are_two_files(tmp_path):
    for folder, size in (("a", 30), ("b", 50)):
        corpus(tmp_path / folder, {"x.json": size})
    (tmp_path / "b" / "x.json").write_text(
        json.dumps([{"prompt": f"say {n}", "completion": "x"} for n in range(50)])
    )
    data = prepared(tmp_path, train=str(tmp_path / "[ab]" / "x.json"))
    num_first = data.facts["splits"]["train"]["files"][0]["num_records"]
    assert 20 < num_first < 30
    assert data.splits["train"].files == {"a/x.json": 0, "b/x.json": num_first}
    assert data.facts["splits"]["train"]["kinds"] == ["prompt_completion", "text"]


def test_a_sequential_epoch_reads_one_file_after_the_other_and_every_example_once(tmp_path):
    folder = corpus(tmp_path / "corpus", {"a.json": 60, "b.json": 60, "c.json": 60})
    train = prepared(tmp_path, train=str(folder)).splits["train"]
    batching = Batching(64, global_batch_size=8, batch_unit="examples", micro_batch_size=1, seed=0)
    loader = TrainLoader(train.examples, batching, files=train.files)
    starts = list(train.files.values())
    for epoch in (0, 1):
        seen, files = [], []
        for step in range(loader.plan.steps_per_epoch):
            number = epoch * loader.plan.steps_per_epoch + step
            done, current = loader.files_at(number)
            assert done == list(train.files)[: len(done)]
            found = [
                example
                for batch in loader.step(number).micro_batches
                for example in dict.fromkeys(batch.example_S.tolist())
            ]
            records = train.examples.record_E[found]
            own = {list(train.files)[i] for i in np.searchsorted(starts, records, "right") - 1}
            assert own == set(current)
            seen += found
            files.append(current[0])
        assert sorted(seen) == list(range(len(train.examples)))
        assert files == sorted(files)
        assert set(files) == set(train.files)
        assert seen != sorted(seen)  # the rows of a file are shuffled


def test_counts_are_those_of_a_loop_over_the_records(tmp_path):
    rows = pairs(300)
    data = prepared(tmp_path, train=str(write_rows(tmp_path / "train.jsonl", rows)))
    by_question = {str(row["instruction"]): str(row["output"]) for row in rows}
    for name, split in data.splits.items():
        # In the plain template a question and an answer are their bytes, and the end is one token.
        answers = [by_question[q] for q in questions(data, name)]
        targets = sum(len(answer) + 1 for answer in answers)
        tokens = targets + sum(map(len, questions(data, name)))
        facts = split.tokens
        assert (facts.num_targets, facts.num_tokens) == (targets, tokens)
        assert (facts.num_records, facts.num_dropped) == (len(answers), 0)


def test_another_template_of_the_tokenizer_is_prepared_anew(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", pairs(200))
    first = prepared(tmp_path, train=str(path)).facts["cache"]
    assert prepared(tmp_path, train=str(path)).facts["cache"] == first
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    assert prepared(tmp_path, train=str(path)).facts["cache"] != first


def test_a_chat_template_that_does_not_end_stops_the_preparation(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_sandbox, "MOST_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}"
    folder = byte_tokenizer(tmp_path / "tokenizer").path.parent
    (folder / "chat_template.jinja").write_text(loop * 3 + "{% endfor %}" * 3)
    turns = [[("user", f"q{n}"), ("assistant", "a")] for n in range(3)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in each]} for each in turns]
    train = str(write_rows(tmp_path / "train.jsonl", rows))
    config = DataConfig(train=train, cache_dir=str(tmp_path / "cache"), max_bad_rows=9)
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: .* runs for more than 0\.2 s"):
        prepare(config, folder, language=True)
