"""Every template written out by hand, and which stretches of it are learned."""

import json
from dataclasses import replace

import pytest

from data.errors import DataError
from data.records import Conversation, Document, Turn
from data.text.own_template import own_template
from data.text.templates import TEMPLATES, Span
from data.text.templates import render as examples_of

INTRODUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request."
)
INTRODUCTION_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request."
)
ONE = [("user", "Add {x}."), ("assistant", "1 + {y}")]
INPUT = [("user", "Add."), ("user", "1, 2"), ("assistant", "3")]
INPUTS = [("user", "Add."), ("user", "1, 2"), ("user", "and 3"), ("assistant", "6")]
TWO = [*ONE, ("user", "And?"), ("assistant", "no")]
SYSTEM = [("system", "Be brief."), *ONE]

# template, turns -> context and answer, context and answer, ...
BY_HAND = {
    ("alpaca", "one"): [
        f"{INTRODUCTION}\n\n### Instruction:\nAdd {{x}}.\n\n### Response:",
        "1 + {y}",
    ],
    ("alpaca", "input"): [
        f"{INTRODUCTION_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:",
        "3",
    ],
    ("alpaca", "two"): [
        f"{INTRODUCTION}\n\n### Instruction:\nAdd {{x}}.\n\n### Response:",
        "1 + {y}",
        "\n\n### Instruction:\nAnd?\n\n### Response:",
        "no",
    ],
    ("alpaca", "system"): [
        "Be brief.\n\n### Instruction:\nAdd {x}.\n\n### Response:",
        "1 + {y}",
    ],
    ("question_answer", "one"): ["Question: Add {x}.\n\nAnswer:", " 1 + {y}"],
    ("question_answer", "input"): ["Question: Add.\n1, 2\n\nAnswer:", " 3"],
    ("question_answer", "inputs"): ["Question: Add.\n1, 2\nand 3\n\nAnswer:", " 6"],
    ("question_answer", "two"): [
        "Question: Add {x}.\n\nAnswer:",
        " 1 + {y}",
        "\n\nQuestion: And?\n\nAnswer:",
        " no",
    ],
    ("question_answer", "system"): ["Be brief.\n\nQuestion: Add {x}.\n\nAnswer:", " 1 + {y}"],
    ("human_assistant", "one"): ["Human: Add {x}.\n\nAssistant: ", "1 + {y}"],
    ("human_assistant", "input"): ["Human: Add.\n1, 2\n\nAssistant: ", "3"],
    ("human_assistant", "two"): [
        "Human: Add {x}.\n\nAssistant: ",
        "1 + {y}",
        "\n\nHuman: And?\n\nAssistant: ",
        "no",
    ],
    ("human_assistant", "system"): [
        "Be brief.\n\nHuman: Add {x}.\n\nAssistant: ",
        "1 + {y}",
    ],
    ("plain", "one"): ["Add {x}.", "1 + {y}"],
    ("plain", "input"): ["Add.\n1, 2", "3"],
    ("plain", "two"): ["Add {x}.", "1 + {y}", "And?", "no"],
    ("plain", "system"): ["Be brief.\n\nAdd {x}.", "1 + {y}"],
}
CONVERSATIONS = {"one": ONE, "input": INPUT, "inputs": INPUTS, "two": TWO, "system": SYSTEM}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no system turns here') }}{% endif %}{% endfor %}"
)
MARKLESS = (
    "{% for m in messages %}{{ '\nQ: ' if m.role == 'user' else '\nA: ' }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\nA: ' }}{% endif %}"
)
CHATML_UNASKED = CHATML.partition("{% if")[0]
LLAMA3_ALWAYS_ASKING = (  # the first template of Llama-3-8B-Instruct
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
BOT_UNASKED = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else 'Bot: ' }}{{ m.content }}\n"
    "{% endfor %}"
)
MARKERS = [
    "</s>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
]
LLAMA3_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def conversation(turns, kind: str = "chat") -> Conversation:
    return Conversation("0", tuple(Turn(*turn) for turn in turns), "train.jsonl:7", "x", kind)


def render(*arguments) -> list[Span]:
    (spans,) = examples_of(*arguments)
    return spans


def chat(turns, template: str, supervise: str = "answers") -> list[Span]:
    return render(conversation(turns), "chat_template", supervise, template, SPECIAL, MARKERS)


@pytest.mark.parametrize(("template", "turns"), BY_HAND, ids=lambda value: value)
def test_a_template_writes_what_stands_in_its_paper(template, turns):
    expected = [
        Span(text, supervised=bool(place % 2), ends=bool(place % 2), plain=True)
        for place, text in enumerate(BY_HAND[template, turns])
    ]
    assert render(conversation(CONVERSATIONS[turns]), template, "answers") == expected


def test_every_template_is_written_by_hand():
    assert {template for template, _ in BY_HAND} == set(TEMPLATES)


@pytest.mark.parametrize(
    ("supervise", "supervised"),
    [
        ("answers", [False, True, False, True]),
        ("last_answer", [False, False, False, True]),
        ("all", [True] * 4),
    ],
)
def test_what_is_supervised_changes_no_text_and_no_end(supervise, supervised):
    spans = render(conversation(TWO), "question_answer", supervise)
    assert [span.supervised for span in spans] == supervised
    assert [span.text for span in spans] == BY_HAND["question_answer", "two"]
    assert [span.ends for span in spans] == [False, True, False, True]
    spans = chat(TWO, CHATML, supervise)
    assert [span.text for span in spans if span.supervised] == {
        "answers": ["1 + {y}<|im_end|>", "no<|im_end|>"],
        "last_answer": ["no<|im_end|>"],
        "all": [span.text for span in spans],
    }[supervise]
    assert "".join(s.text for s in spans) == "".join(s.text for s in chat(TWO, CHATML))


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_of_weight_zero_is_the_same_text_and_not_supervised(template):
    learned = render(conversation(TWO), template, "answers", CHATML)
    turns = [(*turn, place != 1) for place, turn in enumerate(TWO)]
    spans = render(conversation(turns), template, "answers", CHATML)
    first, second = (n for n, span in enumerate(learned) if span.supervised)
    assert [n for n, span in enumerate(spans) if span.supervised] == [second]
    assert spans == [
        replace(span, supervised=span.supervised and n != first) for n, span in enumerate(learned)
    ]


def test_a_document_is_learned_whole_and_ends():
    document = Document("0", "text {x}", "a.txt", "a.txt")
    assert render(document, "alpaca", "answers") == [Span("text {x}", True, True)]


def test_auto_takes_the_tokenizers_own_for_chat_alone():
    own = render(conversation(ONE), "auto", "answers", CHATML)
    assert own[0].text.startswith("<|im_start|>user")
    for kind, template in (
        ("alpaca", "alpaca"),
        ("prompt_completion", "question_answer"),
        ("commit", "question_answer"),
        ("vulnerability", "question_answer"),
    ):
        expected = render(conversation(ONE), template, "answers")
        assert render(conversation(ONE, kind), "auto", "answers", CHATML) == expected
    without = render(conversation(ONE), "auto", "answers")
    assert without == render(conversation(ONE), "question_answer", "answers")


def test_a_chat_template_supervises_answers_and_their_end_of_turn_marker():
    assert chat(TWO, CHATML) == [
        Span("<|im_start|>user\nAdd {x}.<|im_end|>\n<|im_start|>assistant\n", False),
        Span("1 + {y}<|im_end|>", True),
        Span("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n", False),
        Span("no<|im_end|>", True),
        Span("\n", False),
    ]


def test_a_chat_template_without_a_generation_prompt_is_cut_behind_the_question():
    assert chat(TWO, LLAMA2) == [
        Span("<s>[INST] Add {x}. [/INST]", False),
        Span(" 1 + {y} </s>", True),
        Span("<s>[INST] And? [/INST]", False),
        Span(" no </s>", True),
    ]


def test_where_a_chat_template_writes_no_marker_the_end_token_follows():
    assert chat(TWO, MARKLESS) == [
        Span("\nQ: Add {x}.\nA: ", False),
        Span("1 + {y}", True, ends=True),
        Span("\nQ: And?\nA: ", False),
        Span("no", True, ends=True),
    ]


def test_the_header_of_an_answer_is_context_where_no_generation_prompt_holds_it():
    assert chat(TWO, CHATML_UNASKED) == chat(TWO, CHATML)
    assert chat([("user", "B"), ("assistant", "B")], BOT_UNASKED) == [
        Span("User: B\nBot:", False),
        Span(" B", True, ends=True),  # a blank after the end is not learned
        Span("\n", False),
    ]


def test_what_stands_behind_the_first_marker_is_context():
    user, assistant = LLAMA3_HEADER.format("user"), LLAMA3_HEADER.format("assistant")
    assert chat(TWO, LLAMA3_ALWAYS_ASKING) == [
        Span(f"{user}Add {{x}}.<|eot_id|>{assistant}", False),
        Span("1 + {y}<|eot_id|>", True),
        Span(f"{user}And?<|eot_id|>{assistant}", False),
        Span("no<|eot_id|>", True),
        Span(assistant, False),
    ]


def test_a_chat_template_that_closes_the_last_turn_otherwise_tells_every_span():
    assert chat(TWO, PHI3) == [
        Span("<|user|>\nAdd {x}.<|end|>\n<|assistant|>\n", False),
        Span("1 + {y}<|end|>", True),
        Span("\n<|user|>\nAnd?<|end|>\n<|assistant|>\n", False),
        Span("no<|end|>", True),
        Span("\n</s>", False),
    ]


@pytest.mark.parametrize(
    ("trims", "answer"),
    [
        ("", "\n  x\n\n"),
        ("| trim", "x"),
        (".rstrip('\n')", "\n  x"),
        (".removesuffix('\n')", "\n  x\n"),
        (".lstrip('\n')", "  x\n\n"),
    ],
)
def test_an_answer_is_learned_with_the_blanks_that_the_chat_template_leaves(trims, answer):
    template = CHATML.replace("m.content }}", f"m.content{trims} }}}}")
    spans = [s.text for s in chat([("user", "q"), ("assistant", "\n  x\n\n")], template)]
    assert spans[1:] == [f"{answer}<|im_end|>", "\n"]
    assert chat([("user", "q"), ("assistant", "x \n")], MARKLESS)[1:] == [
        Span("x \n", True, ends=True)
    ]


def test_an_answer_that_quotes_the_prompt_or_the_marker_keeps_its_span():
    turns = [("user", "no"), ("assistant", "no<|im_end|>\nno"), ("user", "no"), ("assistant", "|>")]
    answers = [span.text for span in chat(turns, CHATML) if span.supervised]
    assert answers == ["no<|im_end|>\nno<|im_end|>", "|><|im_end|>"]


def test_an_instruction_and_its_input_are_one_turn_of_a_chat_template():
    assert chat(INPUT, CHATML)[0].text.startswith("<|im_start|>user\nAdd.\n1, 2<|im_end|>")
    later = chat([*ONE, *INPUT], CHATML)[2].text
    assert later == "\n<|im_start|>user\nAdd.\n1, 2<|im_end|>\n<|im_start|>assistant\n"


def test_what_a_chat_template_writes_between_its_prompt_and_the_answer_is_learned():
    thinks = "{{ '<note></note>' if m.role == 'assistant' else '' }}{{ m.content }}"
    assert chat(ONE, CHATML.replace("{{ m.content }}", thinks))[1:] == [
        Span("<note></note>1 + {y}<|im_end|>", True),
        Span("\n", False),
    ]


@pytest.mark.parametrize(
    ("template", "turns", "parts"),
    [
        ("{{ messages[0].content }}{{ messages[-1].content | upper }}", ONE, ("turn 2 with '",)),
        (CHATML.replace("m.content }}", "m.content | upper }}"), ONE, ("the user turn 1", "'Add")),
        (CHATML.replace("{{ m.content", "{{ m.content[:3]"), ONE, ("does not write",)),
        ("{{ messages[9].content }}", ONE, ("the chat template fails",)),
        ("{% for %}", ONE, ("the chat template fails",)),
        ("{{ ''.__class__.__mro__ }}" + CHATML, ONE, ("the chat template fails",)),
        ("{% set _ = messages.append(1) %}" + CHATML, ONE, ("the chat template fails",)),
    ],
    ids=["other", "changed", "cut", "no-such-turn", "syntax", "attribute", "mutation"],
)
def test_a_chat_template_that_tells_no_span_is_refused_with_the_reason(template, turns, parts):
    with pytest.raises(DataError) as caught:
        chat(turns, template)
    message = str(caught.value)
    assert message.startswith("train.jsonl:7: ")
    assert [part for part in (*parts, "data.max_bad_rows") if part not in message] == [], message


@pytest.mark.parametrize("name", ["alpca", "chat_template"])
def test_a_template_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(DataError, match=r"'alpaca', 'question_answer', 'human_assistant', 'plain'"):
        render(conversation(ONE), name, "answers")


def test_the_tokenizers_own_template_is_found_in_either_file(tmp_path):
    assert own_template(tmp_path) == (None, {})
    config = {"eos_token": {"content": "</s>"}, "bos_token": None, "chat_template": "a"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert own_template(tmp_path) == ("a", {"eos_token": "</s>"})
    config["chat_template"] = [
        {"name": "tool_use", "template": "t"},
        {"name": "default", "template": "d"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert own_template(tmp_path)[0] == "d"
    assert own_template(tmp_path, has_tools=True)[0] == "t"
    config["chat_template"].pop()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="none called default"):
        own_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("alone")
    assert own_template(tmp_path)[0] == own_template(tmp_path, has_tools=True)[0] == "alone"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("beside")
    assert own_template(tmp_path)[0] == "alone"
    assert own_template(tmp_path, has_tools=True)[0] == "beside"


def test_a_special_token_that_the_first_file_leaves_open_is_taken_from_the_second(tmp_path):
    config = {"eos_token": "</s>", "bos_token": None, "chat_template": "t"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "other"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert own_template(tmp_path) == ("t", {"eos_token": "</s>", "bos_token": "<s>"})


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("tokenizer_config.json", [], "must hold a JSON object"),
        (
            "tokenizer_config.json",
            {"chat_template": ["x"]},
            "chat_template must be text, or a list",
        ),
        ("tokenizer_config.json", {"chat_template": 7}, "chat_template must be text, or a list"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "default", "template": 7}]},
            "chat_template must be text, or a list",
        ),
        ("tokenizer_config.json", {"bos_token": ["<s>"]}, "bos_token must be text or an object"),
        ("special_tokens_map.json", {"eos_token": {}}, "eos_token must be text or an object"),
        ("special_tokens_map.json", "x", "must hold a JSON object"),
    ],
)
def test_a_file_beside_the_tokenizer_that_holds_something_else_is_named(
    tmp_path, name, content, found
):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        own_template(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: {found}")
    assert str(caught.value).endswith("again")
