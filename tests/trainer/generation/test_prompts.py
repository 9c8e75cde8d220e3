"""Prompts: texts and conversations are asked as they are learned, and answers end as they do."""

import numpy as np
import pytest
import yaml
from chat_templates import CHATML
from conftest import REPOSITORY
from language_sets import byte_tokenizer, document, talk

from data.config import DataConfig
from data.prepared.prepare import Prepared
from data.records import Conversation, Turn
from data.text.language import encode_language
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError
from trainer.generation.prompts import asked, run_prompts

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 1?"},
    {"role": "assistant", "content": "A number."},
    {"from": "human", "value": "And 2?"},
    {"from": "human", "value": "Say it."},
]
TURNS = (
    Turn("system", "Be short."), Turn("user", "What is 1?"), Turn("assistant", "A number."),
    Turn("user", "And 2?\n\nSay it."), Turn("assistant", "Another."),
)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
    return byte_tokenizer(tmp_path / "tokenizer", chat_template=CHATML)


def prompts_of(tokenizer, given, kind="chat", **data):
    """The prompts of a recipe over data of a kind."""
    facts = {"splits": {"train": {"kinds": [kind], "tokens": {"num_records": 4}}}}
    config = load_run_config(
        REPOSITORY / "recipes" / "instruction_sample.yaml",
        [f"eval.prompts={yaml.safe_dump(given)}"],
    )
    config = config.model_copy(update={"data": DataConfig(**{"seq_length": 256} | data)})
    return run_prompts(config, Prepared({}, tokenizer, facts))


@pytest.mark.parametrize("template", ["chat_template", "question_answer", "alpaca", "plain"])
def test_a_conversation_is_asked_as_its_last_answer_is_learned(tokenizer, template):
    record = Conversation("1", TURNS, "x:1", "x")
    config = DataConfig(template=template, supervise="last_answer")
    learned = encode_language([record], tokenizer, config)
    before = int(np.argmax(learned.supervised))
    [prompt] = prompts_of(tokenizer, [MESSAGES], template=template)
    assert prompt.ids == learned.tokens[:before].tolist()
    assert "A number." in prompt.text
    answer = learned.tokens[before:][learned.supervised[before:]]
    assert answer[-1] in prompt.ends
    assert not prompt.ends & set(answer[:-1].tolist())


def test_an_answer_ends_with_the_first_marker_that_its_template_writes_after_it(tmp_path):
    closed = CHATML.replace("<|im_end|>", " !<|im_end|><|im_start|>")
    tokenizer = byte_tokenizer(tmp_path / "tokenizer", chat_template=closed)
    prompt = asked("q", "chat", tokenizer, DataConfig())
    shown = {tokenizer.decode([number]) for number in prompt.ends}
    assert shown == {"<|im_end|>", tokenizer.end_token}
    plain = asked("q", "chat", tokenizer, DataConfig(template="question_answer"))
    assert plain.ends == {tokenizer.end_id}
    assert asked("q", "text", tokenizer, DataConfig()).ends == {tokenizer.end_id}


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([MESSAGES[:3]], "chat", r"eval.prompts\[1\]: its last message is an answer"),
        (["q", MESSAGES], "text", r"eval.prompts\[2\] is a conversation, the data are not"),
        ([[{"role": "user"}]], "chat", r"eval.prompts\[1\]: .*needs role and content"),
        ([[{"role": "cat", "content": "q"}]], "chat", "one of .*system"),
        ([MESSAGES[:1]], "chat", "no user message"),
        ([[]], "chat", "no user message"),
        ([[*MESSAGES[:1], {"role": "user", "content": "a " * 200}]], "chat", "conversation 1 is"),
    ],
)
def test_what_is_not_a_conversation_to_answer_is_refused(tokenizer, given, kind, message):
    with pytest.raises(ConfigError, match=message):
        prompts_of(tokenizer, given, kind)


def test_texts_and_conversations_can_be_mixed(tokenizer):
    text, conversation = prompts_of(tokenizer, ["q", MESSAGES])
    learned = encode_language([talk("q", "a"), document("x")], tokenizer, DataConfig())
    assert text.ids == learned.tokens[: int(np.argmax(learned.supervised))].tolist()
    assert len(conversation.ids) > len(text.ids)
