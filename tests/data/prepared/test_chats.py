"""Conversations with tools and thoughts, from files to what is learned and what is asked."""

import json

import pytest
from chat_templates import CHATML, THINKS_LAST
from conftest import REPOSITORY, write_rows
from language_sets import byte_tokenizer, decoded, talk

from data.config import DataConfig
from data.prepared.prepare import Prepared, prepare
from data.records import Call, Conversation, Turn
from data.text.language import encode_language
from trainer.config.recipe import load_run_config
from trainer.generation.prompts import asked, run_prompts

CALLED = (
    Turn("user", "q"), Turn("assistant", "", calls=(Call("look", "{}"),)), Turn("tool", "7"),
    Turn("assistant", "a"),
)  # fmt: skip
WITH_TOOLS = "with {{ (tools or []) | length }} tools\n" + CHATML.replace(
    "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
).replace("{% for m in messages %}", "{{ (tools or '') | tojson }}{% for m in messages %}", 1)


@pytest.mark.parametrize(
    "tools", ["", json.dumps([{"type": "function", "function": {"name": "look"}}])]
)
def test_of_several_templates_conversations_with_tools_have_the_one_for_them(tmp_path, tools):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": WITH_TOOLS}]
    tokenizer = byte_tokenizer(tmp_path, chat_template=named)
    config = DataConfig(template="chat_template", max_bad_rows=1)
    records = [talk("q", "a"), Conversation("1", CALLED, "t:1", "t", "chat", tools)]
    if not tools:
        records.append(Conversation("2", CALLED[2:], "t:2", "t", "chat"))  # a result alone
    pieces = encode_language(records, tokenizer, config)
    texts = ["".join(text for _, text in each) for each in decoded(pieces, tokenizer)]
    begin = f"with {len(tools and json.loads(tools))} tools"
    assert [text.startswith(begin) for text in texts] == [False] + [True] * (len(records) - 1)
    assert not pieces.refused


def thinking(folder, num_thinking: int, template: str = THINKS_LAST) -> tuple[Prepared, DataConfig]:
    """Ten conversations, of which some think."""
    tokenizer = byte_tokenizer(folder / "tokenizer", chat_template=template)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{n}"},
                {"role": "assistant", "content": "a"}
                | ({"reasoning_content": "r"} if n < num_thinking else {}),
            ]
        }
        for n in range(10)
    ]
    path = str(write_rows(folder / "chats.jsonl", rows))
    values = dict.fromkeys(("train", "valid", "test"), path) | {"cache_dir": str(folder / "cache")}
    config = DataConfig.model_validate({"allow_leaks": True, "seq_length": 128} | values)
    return prepare(config, tokenizer.path.parent, language=True), config


@pytest.mark.parametrize(("num", "end"), [(0, "<think>\n\n</think>\n\n"), (6, ""), (10, "")])
def test_a_prompt_leaves_the_thought_to_a_model_that_learns_to_think(tmp_path, num, end):
    prepared, data = thinking(tmp_path, num)
    assert prepared.facts["splits"]["train"]["num_thinking"] == num
    config = load_run_config(
        REPOSITORY / "recipes" / "instruction_sample.yaml", ["eval.prompts=['Why?']"]
    )
    config = config.model_copy(update={"data": data})
    [prompt] = run_prompts(config, prepared)
    assert prompt.text == f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{end}"
    assert asked("Why?", "chat", prepared.tokenizer, data, thinks=not end) == prompt
