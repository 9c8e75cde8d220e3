"""What is learned of a conversation through a chat template, for every kind of template."""

import ast
import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_templates import (
    ALWAYS_ASKS,
    CHANNELS,
    CHATML,
    DATED,
    KINDS,
    MARKED,
    NO_SYSTEM,
    OPENS,
    OWN_TAGS,
    PARTS,
    SPECIAL,
    SYSTEM_LAST,
    THINKS_LAST,
    TWO_MARKERS,
    learned,
    stock,
)

from data.errors import DataError
from data.records import Call, Conversation, Turn
from data.text.chat import RecordRefused, chat_examples, chat_template
from data.text.dialects import dialect_of, marked, messages_of

MARKERS = [
    "</s>", "<eos>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|start|>",
    "<end_of_turn>", "<|START|>", "<|END|>", "<|END_RESPONSE|>", "<end_of_utterance>",
]  # fmt: skip
TWO = [Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2")]
SYSTEM = [Turn("system", "be brief"), *TWO]
THOUGHT = [
    Turn("user", "q1"), Turn("assistant", "a1", reasoning="r1"),
    Turn("user", "q2"), Turn("assistant", "a2", reasoning="r2"),
]  # fmt: skip
CALLED = [
    Turn("user", "q1"), Turn("assistant", "", calls=(Call("look", '{"at": "é"}'),)),
    Turn("tool", "7"), Turn("assistant", "a1"),
]  # fmt: skip
TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {}}}])
CALLS = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>"
    "{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments ARGUMENTS }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def examples(turns, template, supervise="answers", tools="", markers=MARKERS):
    """Of every example: [(asked since the answer before, learned), ...]."""
    record = Conversation("0", tuple(turns), "train.jsonl:7", "x", "chat", tools)
    made = chat_examples(record, chat_template(template, SPECIAL, markers), supervise)
    for spans in made:
        assert [span.supervised for span in spans] == [n % 2 == 1 for n in range(len(spans))]
    return [
        [(a.text, b.text) for a, b in zip(spans[:-1:2], spans[1::2], strict=True)] for spans in made
    ]


def asked_and_learned(turns, template):
    """Of every answer: the whole text that the model is asked, and the answer."""
    for spans in examples(turns, template):
        for n, (_, answer) in enumerate(spans):
            whole = "".join(text for pair in spans[: n + 1] for text in pair)
            yield whole.removesuffix(answer), answer


EMPTY = re.compile(
    r"\s*(<think>|\[THINK\]|<\|channel>thought|<\|START_THINKING\|>)?"
    r"\s*(</think>|\[/THINK\]|<channel\|>|<\|END_THINKING\|>)\s*"
)


def without_empty_thought(asked, answer):
    empty = EMPTY.match(answer)
    return (asked + empty[0], answer[empty.end() :]) if empty else (asked, answer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [TWO[:2], TWO, SYSTEM], ids=["one", "two", "system"])
def test_what_is_learned_is_what_the_model_writes_after_the_prompt(kind, turns):
    template, num_checked = KINDS[kind], 0
    places = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
    dialect = dialect_of(template, SPECIAL)
    for place, found in zip(places, asked_and_learned(turns, template), strict=True):
        slow = learned(template, messages_of(turns[: place + 1], dialect), MARKERS)
        if slow is not None:
            assert found == without_empty_thought(*slow)
            num_checked += 1
    is_beside = kind == "opens a thought" or (kind, turns) == ("system last", SYSTEM)
    assert num_checked == (0 if is_beside else len(places))


def test_an_answer_is_an_example_of_its_own_where_earlier_turns_are_written_otherwise():
    first, second = examples(THOUGHT, THINKS_LAST)
    ask = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    assert first == [(ask, "<think>\nr1\n</think>\n\na1<|im_end|>")]
    later = f"{ask}a1<|im_end|>\n{ask.replace('q1', 'q2')}"
    assert second == [(later, "<think>\nr2\n</think>\n\na2<|im_end|>")]
    assert len(examples(THOUGHT, CHATML)) == 1
    assert examples(THOUGHT, THINKS_LAST, "last_answer") == [second]
    first, second = examples(TWO, CHANNELS)
    assert first[0][1] == "<|channel|>final<|message|>a1<|return|>"
    assert "a1<|end|><|start|>user" in second[0][0]


def test_an_empty_thought_is_never_learned():
    for spans in examples(TWO, THINKS_LAST):
        ((asked, answer),) = spans
        assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert re.fullmatch(r"a\d<\|im_end\|>", answer)


def test_a_prompt_that_opens_a_thought_gets_it_or_is_closed():
    inline = [TWO[0], Turn("assistant", "<think>\nr1\n</think>\n\na1")]
    for turns in (THOUGHT[:2], inline):
        [[(asked, answer)]] = examples(turns, OPENS)
        assert asked == "<s><User>q1<Assistant><think>\n"
        assert answer == "r1\n</think>\n\na1<eos>"
    [[(asked, answer)]] = examples(TWO[:2], OPENS)
    assert (asked, answer) == ("<s><User>q1<Assistant><think>\n\n</think>\n\n", "a1<eos>")


def test_a_template_that_knows_no_thoughts_gets_them_in_the_answer():
    [[(_, first), (_, second)]] = examples(THOUGHT, CHATML)
    assert first == "<think>\nr1\n</think>\n\na1<|im_end|>"
    assert second == "<think>\nr2\n</think>\n\na2<|im_end|>"


def test_a_system_turn_goes_where_the_template_has_a_place_for_it():
    [[(asked, answer)]] = examples(SYSTEM[:3], NO_SYSTEM)
    assert asked == "<s><start_of_turn>user\nbe brief\n\nq1<end_of_turn>\n<start_of_turn>model\n"
    assert answer == "a1<end_of_turn>"
    [[(asked, answer)]] = examples(SYSTEM[:3], SYSTEM_LAST)
    assert (asked, answer) == ("<s>[INST] be brief\n\nq1[/INST]", " a1</s>")
    developer = [Turn("developer", "be brief"), *TWO[:2]]
    assert "<|im_start|>system\nbe brief" in examples(developer, CHATML)[0][0][0]


def test_every_marker_of_the_end_is_learned_and_the_date_is_one_day():
    assert examples(TWO[:2], TWO_MARKERS)[0][0][1] == "a1<|END_RESPONSE|><|END|>"
    assert examples(TWO[:2], DATED)[0][0][0].startswith("26 Jul 2024\n")
    assert [answer for _, answer in examples(TWO, MARKED)[0]] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert examples(TWO[:2], PARTS)[0][0] == (
        "user: q1<end_of_utterance>\nassistant: ", "a1<end_of_utterance>",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "written"), [("| tojson", '{"at": "é"}'), ("", '{"at": "é"}')]
)
def test_calls_are_given_as_the_template_expects_them(arguments, written):
    template = CALLS.replace("ARGUMENTS", arguments)
    [[(asked, call), (result, answer)]] = examples(CALLED, template, tools=TOOLS)
    assert asked.startswith(f"{json.loads(TOOLS)[0]}".replace("'", '"'))
    assert call == f"<call>look{written}</call><|im_end|>"
    assert result == "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"
    assert answer == "a1<|im_end|>"


def test_a_call_whose_content_must_be_null_is_given_so():
    template = CALLS.replace("ARGUMENTS", "| tojson").replace(
        "{% for c in m.tool_calls or []", "{% for c in (m.tool_calls if m.content is none else [])"
    ).replace("{{ m.content }}", "{{ m.content or '' }}")  # fmt: skip
    assert "<call>look" in examples(CALLED, template, tools=TOOLS)[0][0][1]


@pytest.mark.parametrize(
    ("turns", "tools", "template", "lost"),
    [
        (CALLED, TOOLS, CHATML, "the call look of turn 2"),
        (TWO, TOOLS, CHATML, "the tool as it is ('look')"),
        (SYSTEM, "", OPENS.replace("'user' %}", "'user' and loop.first %}"), "the user turn 4"),
    ],
)
def test_what_a_template_leaves_out_refuses_the_record(turns, tools, template, lost):
    with pytest.raises(DataError) as caught:
        examples(turns, template, tools=tools)
    message = str(caught.value)
    assert message.startswith("train.jsonl:7: the chat template does not write")
    assert lost in message
    assert "data.ignore_columns" in message
    assert "data.template" not in message


def answers_of(turns, template, tools=""):
    """Of every answer: the end of what is asked, and what is learned."""
    found = [pair for spans in examples(turns, template, tools=tools) for pair in spans]
    return [(asked[-60:], answer) for asked, answer in found]


def test_a_prompt_at_the_end_of_every_text_is_a_prompt_and_closes_no_answer():
    [[(asked, first), (between, second)]] = examples(TWO, ALWAYS_ASKS)
    assert (
        asked == "<s><|START|><|SYSTEM|>Be safe.<|END|><|START|><|USER|>q1<|END|><|START|><|BOT|>"
    )
    assert first == "<|RESPONSE|>a1<|END_RESPONSE|><|END|>"
    assert between == "<|START|><|USER|>q2<|END|><|START|><|BOT|>"
    assert second == "<|RESPONSE|>a2<|END_RESPONSE|><|END|>"
    [[(asked, call), (_, answer)]] = examples(CALLED, ALWAYS_ASKS, tools=TOOLS)
    assert asked.endswith("<|BOT|><|START_THINKING|><|END_THINKING|>")  # an empty one is context
    assert call == '<|ACTION|>look{"at": "é"}<|END|>'
    assert answer == "<|RESPONSE|>a1<|END_RESPONSE|><|END|>"


def test_a_thought_goes_where_its_answer_has_a_place_for_it_with_and_without_a_call():
    thinks = [CALLED[0], replace(CALLED[1], reasoning="r1"), CALLED[2], THOUGHT[1]]
    (asked, call), (_, answer) = answers_of(thinks, ALWAYS_ASKS, TOOLS)
    assert asked.endswith("<|START|><|BOT|>")
    assert call == '<|START_THINKING|>r1<|END_THINKING|><|ACTION|>look{"at": "é"}<|END|>'
    written = "<|START_THINKING|>\nr1\n<|END_THINKING|><|RESPONSE|>a1<|END_RESPONSE|><|END|>"
    assert answer == written
    (asked, call), (result, answer) = answers_of(thinks, OWN_TAGS, TOOLS)
    assert asked.endswith("<|turn>user\nq1<turn|>\n<|turn>model\n")  # no empty thought before one
    thought = "<|channel>thought\nr1\n<channel|>"
    assert call == f'{thought}<|tool_call>look{{"at": "é"}}<tool_call|><|tool_response>'
    assert result.endswith("<tool_call|><|tool_response>response:7<tool_response|>")
    assert answer == f"{thought}a1<turn|>"
    ((asked, answer),) = answers_of(THOUGHT[:2], OWN_TAGS)
    assert (
        asked == "<s><|turn>system\n<|think|><turn|>\n<|turn>user\nq1<turn|>\n<|turn>model\n"[-60:]
    )
    assert answer == f"{thought}a1<turn|>"
    ((asked, answer),) = answers_of(TWO[:2], OWN_TAGS)
    assert asked.endswith("<|turn>model\n<|channel>thought\n<channel|>")
    assert answer == "a1<turn|>"


@pytest.mark.parametrize("blanks", ["\n", "\n\n", " "])
def test_a_thought_that_the_prompt_opens_is_not_opened_again(blanks):
    is_off = "{% if enable_thinking is defined and not enable_thinking %}"
    template = THINKS_LAST.replace(f"{is_off}<think>\n\n", f"<think>{blanks}{is_off}")
    assert template != THINKS_LAST
    ((asked, answer),) = answers_of(THOUGHT[:2], template)
    assert asked.endswith(f"<|im_start|>assistant\n<think>{blanks}")
    assert answer == "r1\n</think>\n\na1<|im_end|>"


QUESTIONS = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n{% else %}"


@pytest.mark.parametrize(
    ("marked", "asked", "answer"),
    [
        ("A: {% generation %}{{ m.content }}</s>{% endgeneration %}", "Q: q1\nA: ", "a1</s>"),
        ("{%- generation -%}A: {{ m.content }}</s>{% endgeneration %}", "Q: q1\n", "A: a1</s>"),
        # no mark that holds what is said: the rule for templates without a prompt
        ("A: {% generation %}x{% endgeneration %}{{ m.content }}</s>", "Q: q1\nA: x", "a1</s>"),
        ("A: {{ m.content }}</s>", "Q: q1\nA:", " a1</s>"),
    ],
)
def test_marks_say_where_an_answer_begins_if_no_prompt_does(marked, asked, answer):
    [[found, *_]] = examples(TWO, f"{QUESTIONS}{marked}{{% endif %}}{{% endfor %}}")
    assert found == (asked, answer)


def test_all_learns_the_last_text_once():
    record = Conversation("0", tuple(THOUGHT), "x:1", "x")
    (spans,) = chat_examples(record, chat_template(THINKS_LAST, SPECIAL, MARKERS), "all")
    assert all(span.supervised for span in spans)
    messages = [{"role": t.role, "content": t.content} for t in THOUGHT]
    messages[-1]["reasoning_content"] = "r2"
    assert "".join(span.text for span in spans) == stock(THINKS_LAST, messages)


def template_in(path: Path) -> str:
    """The longest of a module, which is not imported: that takes seconds in every process."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if type(node) is ast.Constant)
    return max((n.value for n in nodes if type(n.value) is str and "{%" in n.value), key=len)


def shipped() -> dict[str, str]:
    """Templates that transformers and TRL ship."""
    stock, trl = (
        Path(find_spec(name).submodule_search_locations[0]) for name in ("transformers", "trl")
    )
    models = ("llama4", "qwen2_audio", "smolvlm")
    own = {name: template_in(stock / f"models/{name}/processing_{name}.py") for name in models}
    return own | {p.name: p.read_text() for p in sorted(trl.glob("chat_templates/*.jinja"))}


SHIPPED = shipped()
DESCRIBED = json.dumps([{"type": "function", "function": {
    "name": "look", "description": "Look.",
    "parameters": {
        "type": "object", "required": ["at"],
        "properties": {"at": {"type": "string", "description": "where"}},
    },
}}])  # fmt: skip
CONVERSATIONS = {
    "called": CALLED,
    "thought": [CALLED[0], replace(CALLED[1], reasoning="t1"), CALLED[2], CALLED[3]],
    "two calls": [
        CALLED[0], replace(CALLED[1], calls=CALLED[1].calls * 2), *CALLED[2:3] * 2, CALLED[3]
    ],
    "said and called": [CALLED[0], replace(CALLED[1], content="c1"), *CALLED[2:]],
    "rounds": [SYSTEM[0], *CALLED[:3], *CALLED[1:], *TWO[2:]],
    "tools alone": TWO,
}  # fmt: skip


@pytest.mark.parametrize("name", [*KINDS, "calls", "always asks", "own tags", *SHIPPED])
def test_tools_and_calls_give_the_spans_of_the_slow_definition(name):
    more = {
        "calls": CALLS.replace("ARGUMENTS", "| tojson"),
        "always asks": ALWAYS_ASKS,
        "own tags": OWN_TAGS,
    }
    template = (KINDS | more | SHIPPED)[name]
    markers = sorted(set(re.findall(r"<[^<>\s{}'\"]{1,40}>", template)) | {"</s>", *MARKERS})
    dialect, num_checked = dialect_of(template, SPECIAL), 0
    for turns in CONVERSATIONS.values():
        record = Conversation("0", tuple(turns), "train.jsonl:7", "x", "chat", DESCRIBED)
        known = chat_template(template, SPECIAL, markers)
        try:
            made = chat_examples(record, known)
        except RecordRefused:  # the template has no place for tools, calls or thoughts beside them
            continue
        found = []
        for spans in made:
            texts = [span.text for span in spans]
            places = [n for n, span in enumerate(spans) if span.supervised]
            found += [("".join(texts[:n]), texts[n]) for n in places]
        places = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
        for place, (asked, answer) in zip(places, found, strict=True):
            messages = messages_of(turns[: place + 1], dialect)
            slow = learned(template, messages, markers, json.loads(DESCRIBED))
            if name == "always asks" and slow is not None:  # its prompt ends every text
                slow = slow[0], slow[1].removesuffix("<|START|><|BOT|>")
            turn, num_checked = turns[place], num_checked + 1
            if slow is None or (turn.reasoning and turn.reasoning not in slow[1]):
                pieces = [turn.reasoning, turn.content, *(call.name for call in turn.calls)]
                at = [answer.find(piece) for piece in pieces if piece]
                assert (
                    min(at) == at[0] >= 0 or not turn.reasoning
                )  # it is thought before it is said
                assert -1 not in at
            else:
                assert (asked, answer) == (slow if turn.reasoning else without_empty_thought(*slow))
    is_written = all(word in template for word in ("tools", "tool_calls"))
    assert num_checked >= 8 or not is_written


@pytest.mark.parametrize("name", [*KINDS, *SHIPPED])
def test_what_a_template_marks_is_learned_but_for_what_the_prompt_holds(name):
    template = (KINDS | SHIPPED)[name]
    if "generation %}" not in template and "generation -%}" not in template:
        return
    markers = sorted(set(re.findall(r"<[^<>\s{}'\"]{1,40}>", template)) | {"</s>"})
    for turns in (TWO[:2], TWO):
        text, places = marked(template, messages_of(turns, dialect_of(template, SPECIAL)), SPECIAL)
        own = "".join(text[begin:end] for begin, end in places if text.rfind("q") < begin)
        *_, (_, answer) = [p for spans in examples(turns, template, markers=markers) for p in spans]
        header, _, rest = own.partition(answer.strip())
        assert turns[-1].content in answer
        assert rest.strip() in ("", "</s>")  # Phi 3 marks its end token behind its end of turn
        assert not EMPTY.sub("", header).strip(" \n") or header[:2] in ("<|", "<\uff5c")


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_libraries_ship_give_the_spans_of_the_slow_definition(name):
    template = SHIPPED[name]
    markers = sorted(set(re.findall(r"<[^<>\s{}'\"]{1,40}>", template)) | {"</s>"})
    dialect = dialect_of(template, SPECIAL)
    for place in (1, 3):
        turns = TWO[: place + 1]
        made = [pair for spans in examples(turns, template, markers=markers) for pair in spans]
        slow = learned(template, messages_of(turns, dialect), markers)
        if slow is not None:
            assert made[-1][1] == without_empty_thought(*slow)[1]
        assert turns[place].content in made[-1][1]
